package datapath_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
)

func TestPartialPlansOnlyAddOnTheRealKernel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	want := fresh(t, h)
	names := sortedNames(want)
	for range 60 {
		from, to := names[rng.IntN(len(names))], names[rng.IntN(len(names))]
		sum, same := both(plans()[from], plans()[to])
		if !same {
			continue
		}
		h.apply(sum)
		wanted := h.reading()
		h.apply(absent())
		h.apply(plans()[from])
		if err := h.o.Close(); err != nil {
			t.Fatal(err)
		}
		h.start()
		h.apply(partial(plans()[to]))
		if got := h.reading(); got != wanted {
			t.Fatalf("%q, and then partially %q: the kernel holds\n%s\nwant\n%s", from, to, got, wanted)
		}
		rep := h.apply(plans()[to])
		if got := h.reading(); got != want[to] || rep.Drift.Total() != 0 {
			t.Fatalf("%q, and then whole %q: drift %+v, the kernel holds\n%s\nwant\n%s", from, to, rep.Drift, got, want[to])
		}
	}
}

// An agent that starts while little is known keeps all connections, a new
// container is reached at once, and the one that is cut off is silent until it is
// let in again, whatever somebody does to its port.
func TestTrafficOverPartialPlansAndFences(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	echo(t, c)
	n.reach(t, c)
	n.joined = true
	h := n.hosts[0]
	little := partial(n.plan(0))
	little.FDB, little.Neigh, little.Bridged = nil, nil, little.Bridged[:1]
	if err := h.o.Close(); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.apply(little)
	n.reach(t, c)
	h.apply(n.plan(0))
	n.reach(t, c)

	cut := n.plan(0)
	cut.Ports[0].Down, cut.Bridged = true, cut.Bridged[1:]
	silent := func() {
		t.Helper()
		if err := nstest.TryExchange(c[1].NS, netip.AddrPortFrom(n.addr4(0), echoPort), 100, 0); err == nil {
			t.Error("a container that is cut off answers")
		}
	}
	h.apply(cut)
	silent()
	h.run("ip link set " + endpoint(0).PortName() + " up")
	<-h.a.Changed()
	if rep := h.apply(cut); rep.Drift.Links != 1 {
		t.Errorf("somebody raised the port: drift %+v", rep.Drift)
	}
	silent()
	h.apply(n.plan(0))
	n.reach(t, c)
}
