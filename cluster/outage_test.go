package cluster_test

import (
	"slices"
	"testing"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// addresses are the addresses of a host's endpoints in a view, in order.
func addresses(cs ...*sim.Container) []string {
	var out []string
	for _, c := range cs {
		out = append(out, c.Addr.Addr().String())
	}
	slices.Sort(out)
	return out
}

// sees waits until h knows exactly these containers of another host, from the
// store.
func sees(t *testing.T, h *sim.Host, n *sim.Network, of *sim.Host, cs ...*sim.Container) {
	t.Helper()
	id := of.Cluster.Self()
	sim.Eventually(t, h.Name+" sees what runs on "+of.Name, func() bool {
		v, complete := h.View(n)
		got := endpoints(v, id)
		slices.Sort(got)
		return complete && slices.Equal(got, addresses(cs...))
	})
}

// settled waits until the store has all of a host's facts.
func settled(t *testing.T, h *sim.Host) {
	t.Helper()
	sim.Eventually(t, h.Name+"'s facts are in the store", func() bool {
		x := h.Cluster.Health()
		return x.Err == nil && x.Pending == 0 && x.Unpublished == 0 && x.Since.IsZero()
	})
}

// pair is two hosts in one network with a container each, who know one another.
func pair(t *testing.T) (a, b *sim.Host, na, nb *sim.Network, ca, cb *sim.Container) {
	t.Helper()
	s := memory.NewServer()
	a, b = sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb = a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	ca, cb = a.MustRun(na, sim.Run{}), b.MustRun(nb, sim.Run{})
	sees(t, a, na, b, cb)
	sees(t, b, nb, a, ca)
	settled(t, a)
	return a, b, na, nb, ca, cb
}

// With the store away containers start, stop and start again, with the address
// they ask for, and what the others missed they learn when it is back.
func TestNobodyNoticesTheOutage(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, cb := pair(t)
	a.Store.Cut()
	more := a.MustRun(na, sim.Run{})
	named := a.MustRun(na, sim.Run{IP: "10.42.0.40"})
	a.Stop(ca)
	ca = a.MustRun(na, sim.Run{IP: ca.Addr.Addr().String()})
	gone := a.MustRun(na, sim.Run{})
	a.Stop(gone)
	// The endpoint that stopped, and three that run.
	if h := a.Cluster.Health(); h.Pending != 1 || h.Unpublished != 4 || h.Since.IsZero() || h.Contact.IsZero() {
		t.Errorf("health without the store: %+v", h)
	}
	if v, complete := a.View(na); !complete || v.Partial || len(v.Endpoints[b.Cluster.Self()]) != 1 {
		t.Errorf("a forgot what it knew: complete %v, %+v", complete, v)
	}
	a.Store.Heal()
	sees(t, b, nb, a, ca, more, named)
	sees(t, a, na, b, cb)
	settled(t, a)
}

// A container that is created again and again, while the store is away, leaves
// no more than its last state to be told.
func TestTheLastStateIsTold(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, _ := pair(t)
	a.Store.Cut()
	for range 20 {
		a.Stop(ca)
		ca = a.MustRun(na, sim.Run{})
	}
	if h := a.Cluster.Health(); h.Unpublished != 2 { // the first went, the last came
		t.Errorf("unpublished: %+v", h)
	}
	a.Store.Heal()
	sees(t, b, nb, a, ca)
}
