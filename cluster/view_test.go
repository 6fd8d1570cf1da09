package cluster_test

import (
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// What did not change on a host is the very slice of the view before, and what did
// is another, so that a view kept earlier stays what it was.
func TestViewsShareWhatDidNotChange(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	var hosts []*sim.Host
	var nets []*sim.Network
	for i := range 3 {
		h := sim.NewHost(t, s, i+1)
		hosts, nets = append(hosts, h), append(nets, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}))
		h.MustRun(nets[i], sim.Run{})
	}
	a, b, c := hosts[0], hosts[1].Cluster.Self(), hosts[2].Cluster.Self()
	see := func(n int) (v carrick.View) {
		sim.Eventually(t, "a sees b's and c's containers", func() bool {
			v, _ = a.View(nets[0])
			return len(v.Endpoints[b]) == n && len(v.Endpoints[c]) == 1
		})
		return v
	}
	before := see(1)
	again := see(1)
	more := hosts[1].MustRun(nets[1], sim.Run{})
	after := see(2)
	hosts[1].Stop(more)
	gone := see(1)
	for what, shared := range map[string]struct{ one, other carrick.View }{
		"again": {before, again}, "after a container of b": {before, after}, "after its end": {after, gone},
	} {
		if one, other := shared.one.Endpoints[c], shared.other.Endpoints[c]; &one[0] != &other[0] {
			t.Errorf("%s: c's endpoints are another slice", what)
		}
	}
	if one, other := before.Endpoints[b], again.Endpoints[b]; &one[0] != &other[0] {
		t.Error("b's endpoints are another slice, though nothing changed")
	}
	if len(before.Endpoints[b]) != 1 || len(after.Endpoints[b]) != 2 {
		t.Errorf("views changed afterwards: %v, %v", before.Endpoints[b], after.Endpoints[b])
	}
}
