package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/plan"
	"github.com/carrick-net/carrick/status"
)

// two hosts with the network app, 10.42.0.0/24.
func two(t *testing.T) (s *memory.Server, h1, h2 *host, n1, n2 *sim.Network) {
	t.Helper()
	s = memory.NewServer()
	h1, h2 = newHost(t, s, sim.Options{Number: 1}), newHost(t, s, sim.Options{Number: 2})
	n1, n2 = h1.create("app", "10.42.0.0/24"), h2.create("app", "10.42.0.0/24")
	return s, h1, h2, n1, n2
}

// With nothing wrong status says so, in every line.
func TestStatusOfAWellHost(t *testing.T) {
	t.Parallel()
	_, h1, _, n1, _ := two(t)
	h1.run(n1, sim.Run{})
	sim.Eventually(t, "everything is published", func() bool { return h1.status().Pending == 0 })
	s := h1.status()
	if !s.Healthy() || !s.Store.OK || s.Epoch.State != status.EpochNormal || s.Epoch.Num == 0 || s.Fenced || len(s.Cut)+len(s.Conflicts) > 0 {
		t.Errorf("status %+v", s)
	}
	if s.Networks != 1 || s.Local != 1 || s.Unpublished != 0 {
		t.Errorf("status %+v", s)
	}
	g := h1.src.gauges()
	if g.StoreUp() != 1 || g.Recovery() != 0 || g.Fenced() != 0 || g.Cut() != 0 || g.Conflicts() != 0 || g.Unpublished() != 0 || g.UnpublishedAge() != 0 || g.Endpoints() != 1 {
		t.Error("gauges of a well host are not at rest")
	}
}

// With the store away status says since when, and what the others do not know.
func TestStatusWithoutTheStore(t *testing.T) {
	t.Parallel()
	_, h1, _, n1, _ := two(t)
	h1.run(n1, sim.Run{})
	sim.Eventually(t, "everything is published", func() bool { return h1.status().Pending == 0 })
	h1.CutStore()
	h1.run(n1, sim.Run{})
	sim.Eventually(t, "the cut is noticed", func() bool { return !h1.status().Store.OK })
	if n := h1.node("h2"); n.State != status.NodeUnknown || n.Since.IsZero() || h1.node("h1").State != status.NodeAlive {
		t.Errorf("without the store h2 is %+v", n)
	}
	if _, err := h1.src.RemoveNode(t.Context(), "h2", true); err == nil || !strings.Contains(err.Error(), "without the store") {
		t.Errorf("removing a host without the store: %v", err)
	}
	s := h1.status()
	if s.Healthy() || s.Pending != 1 || s.Unpublished != 1 || s.PendingSince.IsZero() || s.Store.Contact.IsZero() || s.Store.Error == "" {
		t.Errorf("status %+v", s)
	}
	if g := h1.src.gauges(); g.StoreUp() != 0 || g.Unpublished() != 1 {
		t.Error("gauges do not show that the store is away")
	}
}

// Each host shows the whole of a pool: its own part from its journal, the other's
// from the store; without the store what it last heard of the other.
func TestIPAMShow(t *testing.T) {
	t.Parallel()
	_, h1, h2, n1, n2 := two(t)
	a, _, c := h1.run(n1, sim.Run{}), h1.run(n1, sim.Run{}), h2.run(n2, sim.Run{})
	h1.Stop(a)
	own := func(p status.PoolUse, name string) status.HostUse {
		t.Helper()
		i := slices.IndexFunc(p.Hosts, func(u status.HostUse) bool { return u.Host == name })
		if i < 0 {
			t.Fatalf("no host %s in %+v", name, p)
		}
		return p.Hosts[i]
	}
	sim.Eventually(t, "h1 sees both hosts' part", func() bool {
		p := h1.show("app").Pools[0]
		return p.Given == 2 && len(p.Hosts) == 2 && own(p, "h2").Given == 1
	})
	n := h1.show(string(h1.show("app").Network))
	p := n.Pools[0]
	if !n.Whole || p.Usable != 253 || p.Reserved != 3 || len(p.Blocks) != 2 || p.InBlocks != 6+8 || p.FreeBlocks != 30 {
		t.Errorf("pool %+v", p)
	}
	if u := own(p, "h1"); u.Given != 1 || u.Resting == nil || *u.Resting != 1 || !u.Self {
		t.Errorf("this host's part %+v", u)
	}
	if u := own(p, "h2"); u.Resting != nil || u.Blocks != 1 {
		t.Errorf("the other's part %+v", u)
	}

	sim.Eventually(t, "h1 follows the network", func() bool { v, ok := h1.View(n1); return ok && len(v.Endpoints) == 2 })
	if r := h1.src.ratios(); len(r) != 1 || r[0].Name != "app" || r[0].Pool != "10.42.0.0/24" || r[0].Ratio != 2./253 {
		t.Errorf("gauges %+v", r)
	}
	h1.CutStore()
	h1.run(n1, sim.Run{})
	n = h1.show("10.42.0.0/24")
	if p = n.Pools[0]; n.Whole || n.AsOf.IsZero() || p.Given != 3 || own(p, "h1").Given != 2 || own(p, "h2").Given != 1 || len(p.Blocks) != 1 {
		t.Errorf("without the store %+v", n)
	}
	h1.HealStore()
	h2.Stop(c)
	if _, err := h1.src.IPAM(t.Context(), "none"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("of no network: %v", err)
	}
}

// What is wrong is found if both looks see it, and on its own network only.
func TestCheck(t *testing.T) {
	t.Parallel()
	_, h1, h2, n1, n2 := two(t)
	ctx := t.Context()
	c := h1.run(n1, sim.Run{})
	h2.run(n2, sim.Run{})
	h1.create("quiet", "10.43.0.0/24")
	look := func(ref string) status.Check {
		t.Helper()
		got, err := h1.src.Check(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	sim.Eventually(t, "h1's kernel knows both containers", func() bool {
		return strings.Contains(h1.kernel.Dump(), "dst 192.0.2.2") && look("").Fine()
	})
	if sides := look("").Sides; len(sides) != 4 || slices.ContainsFunc(sides, func(s status.Side) bool { return s.Off || s.Error != "" }) {
		t.Errorf("sides %+v", sides)
	}

	// Somebody takes a port down.
	ns := plan.NamespacePrefix + string(h1.show("app").Network)
	down := func(s nl.Switch) {
		t.Helper()
		if err := h1.kernel.As(ns, nl.SetLink{Link: h1.kernel.Ref(ns, c.Endpoint.PortName()), Up: s}); err != nil {
			t.Fatal(err)
		}
	}
	h1.stop() // nobody mends it
	down(nl.Off)
	got := look("app")
	if got.Fine() || len(got.Findings) != 1 || got.Findings[0].Rule != check.KernelRule || got.Findings[0].NetworkName != "app" || got.Findings[0].HostName != "h1" {
		t.Errorf("a port that is down: %+v", got.Findings)
	}
	if got := look("quiet"); !got.Fine() {
		t.Errorf("another network: %+v", got.Findings)
	}
	// It is up again at the second look.
	waited := 0
	h1.src.wait = func(context.Context, time.Duration) error { waited++; down(nl.On); return nil }
	if got := look(""); !got.Fine() || waited != 1 {
		t.Errorf("waited %d times, then found %+v", waited, got.Findings)
	}
	if got := look(""); !got.Fine() || waited != 1 {
		t.Errorf("waited %d times with nothing to wait for: %+v", waited, got.Findings)
	}
	h1.src.wait = func(context.Context, time.Duration) error { return nil }

	// The engine has a container that the journal does not know, and forgot one.
	h1.engine.forgot = map[carrick.EndpointID]bool{c.Endpoint: true}
	if got := look("app"); len(got.Findings) != 1 || got.Findings[0].Rule != check.Leak || got.Findings[0].Severity != check.Transient || got.Fine() {
		t.Errorf("a container that the engine forgot: %+v", got.Findings)
	}
	h1.engine.forgot = nil

	// What cannot be looked at is said, and is no reason to be content.
	h1.engine.err = errors.New("no engine today")
	if got := look(""); got.Fine() || len(got.Findings) > 0 || !slices.Contains(got.Sides, status.Side{Name: "engine", Error: "no engine today"}) {
		t.Errorf("without the engine: %+v", got)
	}
	h1.engine.err = nil
	h1.CutStore()
	got = look("")
	i := slices.IndexFunc(got.Sides, func(s status.Side) bool { return s.Name == "store" })
	if got.Fine() || got.Sides[i].Error == "" || slices.ContainsFunc(got.Findings, func(f status.Finding) bool { return f.Severity == check.Wrong }) {
		t.Errorf("without the store: %+v", got)
	}
	h1.HealStore()
	h1.src.engine = nil
	sim.Eventually(t, "all is well without the engine", func() bool { return look("").Fine() })
	if !slices.Contains(look("").Sides, status.Side{Name: "engine", Off: true}) {
		t.Errorf("an engine that is not used: %+v", look("").Sides)
	}
	if _, err := h1.src.Check(ctx, "none"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("of no network: %v", err)
	}
}

// An address is given back if nobody can have it, and each refusal says who may.
func TestRelease(t *testing.T) {
	t.Parallel()
	_, h1, h2, n1, n2 := two(t)
	ctx := t.Context()
	a, b, c := h1.run(n1, sim.Run{}), h1.run(n1, sim.Run{}), h2.run(n2, sim.Run{})
	refused := func(ref, ip string, force bool, want ...string) {
		t.Helper()
		_, err := h1.src.Release(ctx, ref, addr(ip), force)
		if !errors.Is(err, status.ErrRefused) {
			t.Errorf("release %s: %v, want a refusal", ip, err)
			return
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("release %s: %q does not say %q", ip, err, w)
			}
		}
	}
	done := func(ip string, force, want bool, words string) status.Released {
		t.Helper()
		r, err := h1.src.Release(ctx, "app", addr(ip), force)
		if err != nil || r.Done != want || !strings.Contains(r.What, words) {
			t.Errorf("release %s: %+v, %v", ip, r, err)
		}
		return r
	}
	ip := func(c *sim.Container) string { return c.Addr.Addr().String() }

	refused("app", ip(a), false, "docker network disconnect app box-"+a.Endpoint.Short(), "--force")
	refused("app", "10.42.0.1", true, "gateway")
	refused("app", "10.44.0.1", true, "10.42.0.0/24")
	sim.Eventually(t, "h2's block is known", func() bool { return len(h1.show("app").Pools[0].Blocks) == 2 })
	refused("app", ip(c), true, "host h2", "carrick ipam release app "+ip(c)+" on h2")
	done("10.42.0.200", false, false, "its block is nobody's")
	done("10.42.0.6", false, false, "never gave it out")

	// The engine forgot a container: the kernel is asked.
	h1.engine.forgot = map[carrick.EndpointID]bool{a.Endpoint: true, b.Endpoint: true}
	refused("app", ip(a), false, "the kernel has the pair", a.Endpoint.Short())
	// Its end comes home, as after a container's end.
	h1.kernel.Move("c"+a.Endpoint.Short(), "eth0", "", a.Endpoint.OuterName())
	if r := done(ip(a), false, true, "rests"); r.Endpoint != a.Endpoint || r.Container != "" {
		t.Errorf("released %+v", r)
	}
	done(ip(a), false, false, "rests already")
	if _, err := h1.Cluster.Journal().Endpoint(a.Endpoint); err == nil {
		t.Error("the endpoint is still there")
	}

	// Nobody can be asked.
	h1.engine.err = errors.New("no engine today")
	refused("app", ip(b), false, "no engine today", "--force")
	h1.src.engine = nil
	refused("app", ip(b), false, "--docker", "--force")
	done(ip(b), true, true, "rests")
}
