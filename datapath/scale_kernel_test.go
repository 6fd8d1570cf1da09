package datapath_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

const self = carrick.HostID("1111111111111111")

// hostNumber is the id of another host.
func hostNumber(i int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", 0x2222<<48+i)) }

// ofHost is endpoint i of host h, with a second address if the last digit of i is
// below 4: so 30,000 endpoints have 42,000 addresses.
func ofHost(h, i int) carrick.Endpoint {
	a := netip.AddrFrom4([4]byte{10, byte(h >> 8), byte(h), byte(i)})
	e := carrick.Endpoint{ID: carrick.EndpointID(fmt.Sprintf("%05x%06x%053x", h, i, 0)), Addrs: []netip.Addr{a}, MAC: carrick.MACFor(42, a)}
	if i%10 < 4 {
		e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 128 + byte(h>>8), byte(h), byte(i)}))
	}
	return e
}

// crowd is a network of one container here and on so many other hosts as many.
func crowd(id carrick.NetworkID, hosts, each int) carrick.View {
	v := carrick.View{
		Network: carrick.Network{ID: id, Mode: carrick.ModeVXLAN, VNI: 42, Port: carrick.DefaultPort, Flood: true,
			Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Gateway: addr("10.0.0.1"), Block: 26}}},
		Hosts:     map[carrick.HostID]carrick.Host{self: {ID: self, Name: "self", VTEP: addr("192.0.2.1"), MTU: 1500}},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{self: {ofHost(0, 201)}},
		Joined:    map[carrick.EndpointID]bool{},
		Fenced:    map[carrick.EndpointID]bool{},
	}
	for h := 1; h <= hosts; h++ {
		v.Hosts[hostNumber(h)] = carrick.Host{ID: hostNumber(h), Name: fmt.Sprint(h), VTEP: netip.AddrFrom4([4]byte{198, 18, byte(h >> 8), byte(h)}), MTU: 1500}
		for i := range each {
			v.Endpoints[hostNumber(h)] = append(v.Endpoints[hostNumber(h)], ofHost(h, i))
		}
	}
	return v
}

// with returns the view with a host's endpoints changed.
func with(v carrick.View, h carrick.HostID, change func([]carrick.Endpoint) []carrick.Endpoint) carrick.View {
	v.Endpoints = maps.Clone(v.Endpoints)
	v.Endpoints[h] = change(slices.Clone(v.Endpoints[h]))
	return v
}

func adding(e carrick.Endpoint) func([]carrick.Endpoint) []carrick.Endpoint {
	return func(eps []carrick.Endpoint) []carrick.Endpoint { return append(eps, e) }
}

func without(e carrick.Endpoint) func([]carrick.Endpoint) []carrick.Endpoint {
	return func(eps []carrick.Endpoint) []carrick.Endpoint {
		return slices.DeleteFunc(eps, func(x carrick.Endpoint) bool { return x.ID == e.ID })
	}
}

// What comes and goes costs the same messages and the same bytes in a network of
// 100 rows and in one of 42,000 neighbours, both ways. The rows of the others are
// not read, not sent again and not even planned again.
func TestAChangeCostsTheKernelTheSameWhateverTheSize(t *testing.T) {
	t.Parallel()
	nstest.RequireRoot(t)
	cost := map[string][]nl.Volume{}
	sizes := []struct{ hosts, each int }{{1, 24}, {300, 100}}
	for n, size := range sizes {
		h := nstest.NewLab(t).Host(n+1, 1500)
		var traffic nl.Traffic
		o, err := datapath.Open(t.Context(), datapath.Config{Kernel: nl.Linux{Traffic: &traffic}, Namespaces: h.Namespaces})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		a := o.Network(id)
		var planner plan.Planner
		var before plan.Network
		apply := func(what string, v carrick.View, rows int) carrick.View {
			t.Helper()
			from, want := traffic.Volume(), planner.Make(v, self)
			rep, err := a.Apply(t.Context(), want)
			if err != nil || rep.Failed() != nil {
				t.Fatal(what, err, rep.Failed())
			}
			if got := rep.Changes.FDB + rep.Changes.Bridged + rep.Changes.Neigh; rows >= 0 && (got != rows || rep.Resync != "") {
				t.Errorf("%s among %d: %d rows written and removed, want %d; read because of %q", what, size.hosts*size.each, got, rows, rep.Resync)
			}
			for i, part := range want.Remote {
				if rows == 0 && part != before.Remote[i] {
					t.Errorf("%s: rows of %s were planned again", what, part.Host)
				}
			}
			before = want
			cost[what] = append(cost[what], traffic.Volume().Sub(from))
			return v
		}
		v := crowd(id, size.hosts, size.each)
		apply("all", v, -1)
		delete(cost, "all")
		apply("nothing", v, 0)

		there, here, one := hostNumber(size.hosts), ofHost(999, 7), ofHost(1, 5)
		one.MAC[5] = 0xff
		v = apply("a container elsewhere", with(v, there, adding(here)), 3)
		v = apply("its move to this host", with(with(v, there, without(here)), self, adding(here)), 3)
		v = apply("its end", with(v, self, without(here)), 0)
		v = apply("another MAC", with(v, hostNumber(1), func(eps []carrick.Endpoint) []carrick.Endpoint { eps[5] = one; return eps }), 5)
		apply("the end of a container elsewhere", with(v, hostNumber(1), without(one)), 3)
	}
	for what, volumes := range cost {
		t.Logf("%s: %+v", what, volumes[0])
		if volumes[0] != volumes[1] {
			t.Errorf("%s costs %+v in a small network and %+v in a large one", what, volumes[0], volumes[1])
		}
		if (volumes[0] == nl.Volume{}) != (what == "nothing") {
			t.Errorf("%s costs %+v", what, volumes[0])
		}
	}
}
