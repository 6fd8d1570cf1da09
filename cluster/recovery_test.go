package cluster_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// trio starts three hosts that share a network.
func trio(t *testing.T, s *memory.Server, subnet string) ([]*sim.Host, []*sim.Network) {
	t.Helper()
	var hs []*sim.Host
	var ns []*sim.Network
	for i := range 3 {
		h := sim.NewHost(t, s, i+1)
		hs = append(hs, h)
		ns = append(ns, h.MustCreate("app", sim.Create{Subnet: subnet}))
	}
	return hs, ns
}

// knows says whether a host's whole snapshot has exactly these containers of
// another.
func knows(h *sim.Host, n *sim.Network, other *sim.Host, want ...*sim.Container) func() bool {
	return func() bool {
		v, ok := h.View(n)
		if !ok || len(v.Endpoints[other.Cluster.Self()]) != len(want) {
			return false
		}
		got := strings.Join(endpoints(v, other.Cluster.Self()), " ")
		for _, c := range want {
			if !strings.Contains(got, c.Addr.Addr().String()) {
				return false
			}
		}
		return true
	}
}

// normal waits until a structural change is possible again.
func normal(t *testing.T, h *sim.Host) {
	t.Helper()
	i := 0
	sim.Eventually(t, h.Name+" may create networks again", func() bool {
		i++
		name := fmt.Sprintf("probe%d", i)
		if _, err := h.NetworkCreate(name, sim.Create{Subnet: "10.99.0.0/24"}); err != nil {
			return false
		}
		return h.NetworkRm(name) == nil
	})
}

// A store that is empty when it comes back is written again by the hosts: nobody
// loses a container, nobody gets an address that another has.
func TestStoreWiped(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs, ns := trio(t, s, "10.42.0.0/24")
	var cs []*sim.Container
	for i, h := range hs {
		cs = append(cs, h.MustRun(ns[i], sim.Run{}))
	}
	for i, h := range hs {
		for j, o := range hs {
			if i != j {
				sim.Eventually(t, h.Name+" sees "+o.Name, knows(h, ns[i], o, cs[j]))
			}
		}
	}
	s.Wipe()
	for i, h := range hs {
		normal(t, h)
		for j, o := range hs {
			if i != j {
				sim.Eventually(t, h.Name+" sees "+o.Name+" again", knows(h, ns[i], o, cs[j]))
			}
		}
	}
	seen := map[netip.Addr]bool{}
	for _, c := range cs {
		seen[c.Addr.Addr()] = true
	}
	for i, h := range hs {
		for range 20 {
			c := h.MustRun(ns[i], sim.Run{})
			if seen[c.Addr.Addr()] {
				t.Fatalf("%s got %s, which somebody has", h.Name, c.Addr)
			}
			seen[c.Addr.Addr()] = true
		}
	}
}

// A host that is off when the store is lost is waited for; who is named as gone
// is not, and cannot bring its addresses back.
func TestRecoveryWaitsForEverybody(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs, ns := trio(t, s, "10.42.0.0/24")
	gone := hs[2].MustRun(ns[2], sim.Run{})
	hs[0].MustRun(ns[0], sim.Run{})
	sim.Eventually(t, "h1 knows h3", knows(hs[0], ns[0], hs[2], gone))
	id := hs[2].Cluster.Self()
	hs[2].Crash()
	s.Wipe()
	var err error
	sim.Eventually(t, "a create is refused and says why", func() bool {
		_, err = hs[0].NetworkCreate("other", sim.Create{Subnet: "10.43.0.0/24"})
		return err != nil && strings.Contains(err.Error(), "waits for h3") && strings.Contains(err.Error(), "node rm")
	})
	hs[0].MustRun(ns[0], sim.Run{}) // what is known goes on
	if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
		t.Fatalf("node rm h3: %v", err)
	}
	normal(t, hs[0])
	// Its address goes to somebody else.
	c, err := hs[1].Run(ns[1], sim.Run{IP: gone.Addr.Addr().String()})
	if err != nil {
		t.Fatalf("run --ip of the removed host: %v", err)
	}
	hs[2].Start()
	if hs[2].Cluster.Self() != id {
		t.Fatal("h3 is another host now")
	}
	sim.Eventually(t, "the conflict is reported on h3", func() bool {
		return strings.Contains(strings.Join(hs[2].Cluster.Conflicts(), "\n"), c.Addr.Addr().String())
	})
	v, _ := hs[2].View(ns[2])
	if !v.Fenced[gone.Endpoint] {
		t.Error("the endpoint whose address is another's is not cut off")
	}
	sim.Eventually(t, "h1 believes h2", knows(hs[0], ns[0], hs[1], c))
	if v, _ := hs[0].View(ns[0]); len(v.Endpoints[id]) != 0 {
		t.Errorf("h1 still has rows of the fenced host: %v", v.Endpoints[id])
	}
}

// A backup from before claims and releases does not bring back what was.
func TestStoreRestored(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs, ns := trio(t, s, "10.42.0.0/24")
	old := hs[0].MustRun(ns[0], sim.Run{})
	one := hs[1].MustRun(ns[1], sim.Run{})
	hs[2].MustRun(ns[2], sim.Run{})
	sim.Eventually(t, "h2 sees it", knows(hs[1], ns[1], hs[0], old))
	cs := []*sim.Container{one}
	backup := s.Snapshot()
	for i, h := range hs {
		for range 12 {
			c := h.MustRun(ns[i], sim.Run{})
			if i == 1 {
				cs = append(cs, c)
			}
		}
	}
	hs[0].Stop(old)
	hs[0].MustCreate("later", sim.Create{Subnet: "10.44.0.0/24"})
	sim.Eventually(t, "h3 sees all", knows(hs[2], ns[2], hs[1], cs...))
	s.Restore(backup)
	for _, h := range hs {
		normal(t, h)
	}
	sim.Eventually(t, "h3 still sees all", knows(hs[2], ns[2], hs[1], cs...))
	if _, err := hs[1].NetworkCreate("later", sim.Create{Subnet: "10.44.0.0/24"}); err != nil {
		t.Errorf("the network that is younger than the backup cannot be joined: %v", err)
	}
	seen := map[netip.Addr]string{}
	for i, h := range hs {
		for range 20 {
			c := h.MustRun(ns[i], sim.Run{})
			if by := seen[c.Addr.Addr()]; by != "" {
				t.Errorf("%s has %s, and %s got it", by, c.Addr, h.Name)
			}
			seen[c.Addr.Addr()] = h.Name
		}
	}
}

// An address in another host's block is asked of that host.
func TestBorrowedAddress(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs, ns := trio(t, s, "10.42.0.0/24")
	mine := hs[0].MustRun(ns[0], sim.Run{})
	next := mine.Addr.Addr().Next().String()
	c, err := hs[1].Run(ns[1], sim.Run{IP: next})
	if err != nil {
		t.Fatalf("run --ip %s in h1's block: %v", next, err)
	}
	if _, err := hs[2].Run(ns[2], sim.Run{IP: next}); err == nil || !strings.Contains(err.Error(), "lent to host h2") {
		t.Errorf("run --ip of a lent address: %v", err)
	}
	if _, err := hs[1].Run(ns[1], sim.Run{IP: mine.Addr.Addr().String()}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("run --ip of a container's address on another host: %v", err)
	}
	for range 5 {
		if got := hs[0].MustRun(ns[0], sim.Run{}); got.Addr == c.Addr {
			t.Fatalf("h1 gave %s out, which it lent", got.Addr)
		}
	}
	// Without its owner nobody gets it.
	hs[1].Stop(c)
	hs[0].Crash()
	hs[0].Store.Cut()
	if _, err := hs[2].Run(ns[2], sim.Run{IP: mine.Addr.Addr().String()}); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("run --ip with the owner gone: %v, want a refusal", err)
	}
	hs[0].Store.Heal()
}

// A removed host that comes back regains what nobody took.
func TestRemovedHostReturns(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs, ns := trio(t, s, "10.42.0.0/24")
	hs[0].MustRun(ns[0], sim.Run{})
	kept := hs[2].MustRun(ns[2], sim.Run{})
	sim.Eventually(t, "h1 sees it", knows(hs[0], ns[0], hs[2], kept))
	if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", false); !errors.Is(err, cluster.ErrAlive) {
		t.Errorf("node rm of a host that is alive: %v", err)
	}
	if _, err := hs[0].Cluster.RemoveHost(t.Context(), "nobody", false); !errors.Is(err, cluster.ErrUnknownHost) {
		t.Errorf("node rm of nobody: %v", err)
	}
	if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
		t.Fatalf("node rm --force: %v", err)
	}
	// It is alive: it notices, and takes back what is still free.
	sim.Eventually(t, "h3 has its endpoint back", func() bool {
		v, ok := hs[2].View(ns[2])
		return !strings.Contains(s.Dump(), "v1/removed/") && ok && len(v.Endpoints[hs[2].Cluster.Self()]) == 1 && !v.Fenced[kept.Endpoint]
	})
	sim.Eventually(t, "h1 sees it again", knows(hs[0], ns[0], hs[2], kept))
	sim.Eventually(t, "h3 may allocate again", func() bool { return !hs[2].Cluster.Journal().Meta().Fenced })
	more := hs[2].MustRun(ns[2], sim.Run{})
	sim.Eventually(t, "h1 sees both", knows(hs[0], ns[0], hs[2], kept, more))
	// One that is off is removed with all it has.
	hs[2].Crash()
	var got cluster.Removed
	sim.Eventually(t, "h3 is lost", func() bool {
		var err error
		got, err = hs[0].Cluster.RemoveHost(t.Context(), "h3", false)
		return err == nil
	})
	if got.Endpoints != 2 || got.Blocks != 1 || got.Networks != 1 {
		t.Errorf("removal freed %+v", got)
	}
	sim.Eventually(t, "h1 has no rows of it", knows(hs[0], ns[0], hs[2]))
	if _, err := hs[1].Run(ns[1], sim.Run{IP: kept.Addr.Addr().String()}); err != nil {
		t.Errorf("run --ip of a removed host's address: %v", err)
	}
}

// A host asks another for an address, and what it wrote arrives only when it has left
// the network: it gets none, since nobody would give it back.
func TestAQuestionThatComesLate(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs, ns := trio(t, s, "10.42.0.0/24")
	mine := hs[0].MustRun(ns[0], sim.Run{})
	next := mine.Addr.Addr().Next()
	settled(t, hs[1])
	hs[1].Store.DelayTxns(1)
	if _, err := hs[1].Run(ns[1], sim.Run{IP: next.String()}); err == nil {
		t.Fatal("h2 has an address of h1's block, and its question is still under way")
	}
	if err := hs[1].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	if n := s.Deliver(); n != 1 {
		t.Fatalf("%d late writes, want the question", n)
	}
	sim.Eventually(t, "h1 to have answered", func() bool {
		return strings.Contains(s.Dump(), `answer\":\"`) || !strings.Contains(s.Dump(), "v1/ask/"+string(hs[0].Cluster.Self())+"/")
	})
	if loan := "/ipam/" + next.String() + "-32"; strings.Contains(s.Dump(), loan) {
		t.Errorf("%s was lent to a host that has left:\n%s", next, s.Dump())
	}
	if _, err := hs[2].Run(ns[2], sim.Run{IP: next.String()}); err != nil && !strings.Contains(err.Error(), "rest") {
		t.Errorf("run --ip %s on h3: %v", next, err)
	}
}
