package daemon

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/status"
)

// Hosts are alive, then lost, then removed; what is alive is not removed by
// mistake.
func TestNodes(t *testing.T) {
	t.Parallel()
	_, h1, h2, _, n2 := two(t)
	ctx := t.Context()
	h2.run(n2, sim.Run{})
	sim.Eventually(t, "both are alive", func() bool {
		return h1.node("h1").State == status.NodeAlive && h1.node("h2").State == status.NodeAlive && h1.node("h1").Self
	})
	if _, err := h1.src.RemoveNode(ctx, "h2", false); !errors.Is(err, status.ErrRefused) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("removing a host that is alive: %v", err)
	}
	if _, err := h1.src.RemoveNode(ctx, "none", false); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("removing nobody: %v", err)
	}
	if _, err := h1.src.RemoveNode(ctx, "h1", true); err == nil || !strings.Contains(err.Error(), "this one") {
		t.Errorf("removing itself: %v", err)
	}
	sim.Eventually(t, "h2's container is published", func() bool { return h2.status().Pending == 0 })
	h2.stop()
	h2.Crash() // its lease ends at once
	sim.Eventually(t, "h2 is lost", func() bool { n := h1.node("h2"); return n.State == status.NodeLost && !n.Since.IsZero() && !n.Alive })
	r, err := h1.src.RemoveNode(ctx, "h2", false)
	if err != nil || r.Name != "h2" || r.WasAlive || r.Networks != 1 || r.Blocks != 1 || r.Endpoints != 1 {
		t.Errorf("removed %+v, %v", r, err)
	}
	sim.Eventually(t, "h2 is removed", func() bool { n := h1.node("h2"); return n.State == status.NodeRemoved && !n.Since.IsZero() })

}

// The store is wiped while a host is off: status and node ls say whom the recovery
// waits for and what to do, and once that is done all is well.
func TestRecoveryIsSeen(t *testing.T) {
	t.Parallel()
	s, h1, h2, n1, n2 := two(t)
	h1.run(n1, sim.Run{})
	h2.run(n2, sim.Run{})
	sim.Eventually(t, "h1 knows h2", func() bool { return h1.node("h2").State == status.NodeAlive && h1.status().Healthy() })
	h2.stop()
	h2.Crash()
	s.Wipe()
	sim.Eventually(t, "the recovery is seen", func() bool {
		e := h1.status().Epoch
		return e.State == status.EpochRecovering && slices.Equal(e.Wait, []string{"h2"})
	})
	st := h1.status()
	if st.Healthy() || st.Epoch.Since.IsZero() || !slices.ContainsFunc(st.Problems, func(p string) bool {
		return strings.Contains(p, "waits for h2") && strings.Contains(p, "carrick node rm h2")
	}) {
		t.Errorf("status %+v", st)
	}
	if n := h1.node("h2"); !n.Awaited {
		t.Errorf("h2 is %+v", n)
	}
	if h1.src.gauges().Recovery() != 1 {
		t.Error("no gauge of the recovery")
	}
	sim.Eventually(t, "h2 can be removed", func() bool {
		r, err := h1.src.RemoveNode(t.Context(), "h2", true)
		return err == nil && r.Name == "h2"
	})
	sim.Eventually(t, "the recovery is over", func() bool { return h1.status().Healthy() && h1.status().Epoch.State == status.EpochNormal })
	if h1.status().Epoch.Num <= st.Epoch.Num-1 {
		t.Error("the incarnation did not grow")
	}
}

// A removed host comes back after its block was taken: its endpoint stays cut off,
// and status names the container to restart.
func TestFenceIsSeen(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h1, h2 := newHost(t, s, sim.Options{Number: 1, Rest: time.Millisecond}), newHost(t, s, sim.Options{Number: 2, Rest: time.Millisecond})
	n1, n2 := h1.create("app", "10.42.0.0/24"), h2.create("app", "10.42.0.0/24")
	c := h2.run(n2, sim.Run{})
	sim.Eventually(t, "h1 knows h2", func() bool { return h1.node("h2").State == status.NodeAlive })
	h2.stop()
	h2.Crash()
	sim.Eventually(t, "h2 is removed", func() bool {
		_, err := h1.src.RemoveNode(t.Context(), "h2", false)
		return err == nil
	})
	// Its very address is another's now.
	sim.Eventually(t, "h1 has the address", func() bool {
		_, err := h1.Run(n1, sim.Run{IP: c.Addr.Addr().String()})
		return err == nil
	})
	h2.Start()
	h2.begin()
	sim.Eventually(t, "the fence is seen", func() bool {
		st := h2.status()
		return len(st.Cut) == 1 && !st.Healthy() && slices.ContainsFunc(st.Problems, func(p string) bool {
			return strings.Contains(p, c.Endpoint.Short()) && strings.Contains(p, "docker restart box-"+c.Endpoint.Short())
		})
	})
	if h2.src.gauges().Cut() != 1 {
		t.Error("no gauge of what is cut off")
	}
	if eps, err := h2.src.Endpoints(t.Context()); err != nil || !slices.ContainsFunc(eps, func(e status.Endpoint) bool { return e.ID == c.Endpoint && e.Cut && e.Local }) {
		t.Errorf("endpoint ls %+v, %v", eps, err)
	}
	sim.Eventually(t, "its port is down", func() bool {
		held, err := h2.src.overlay.Inspect(t.Context(), h2.show("app").Network)
		p, ok := held.Port(c.Endpoint)
		return err == nil && ok && !p.Up
	})
	told := 0
	for _, p := range h2.status().Problems {
		if strings.Contains(p, c.Endpoint.Short()+" (") || strings.Contains(p, c.Endpoint.Short()+" is cut off") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the endpoint that is cut off is told of %d times: %q", told, h2.status().Problems)
	}
	h2.Stop(c)
	sim.Eventually(t, "all is well again", func() bool { st := h2.status(); return st.Healthy() && !st.Fenced && len(st.Cut) == 0 })
}
