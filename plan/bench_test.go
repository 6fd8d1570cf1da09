package plan_test

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/plan"
)

// big is a view of hosts with 100 endpoints each, some with two addresses.
func big(hosts int) carrick.View {
	v := carrick.View{
		Network: carrick.Network{ID: "00000000000000aa", Mode: carrick.ModeVXLAN, VNI: 4242, Port: 4789, Flood: true,
			Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1"), Block: 26}}},
		Hosts:     map[carrick.HostID]carrick.Host{h1: {ID: h1, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500}},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{h1: {ep("a1", 4242, "10.255.0.2")}},
	}
	for h := range hosts {
		id := carrick.HostID(fmt.Sprintf("%016x", 0x4444000000000000+h))
		v.Hosts[id] = carrick.Host{ID: id, Name: string(id), VTEP: netip.AddrFrom4([4]byte{198, 18, byte(h >> 8), byte(h)}), MTU: 1500}
		for i := range 100 {
			a := netip.AddrFrom4([4]byte{10, byte(h >> 8), byte(h), byte(i + 1)})
			e := carrick.Endpoint{ID: carrick.EndpointID(fmt.Sprintf("%064x", h*1000+i)), MAC: carrick.MACFor(4242, a), Addrs: []netip.Addr{a}}
			if i%5 < 2 {
				e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 64 + byte(h>>8), byte(h), byte(i + 1)}))
			}
			v.Endpoints[id] = append(v.Endpoints[id], e)
		}
	}
	return v
}

func BenchmarkMake(b *testing.B) {
	v := big(300)
	b.ReportAllocs()
	for b.Loop() {
		plan.Make(v, h1)
	}
}

// The same by a planner, with one container more or less on one host.
func BenchmarkPlanner(b *testing.B) {
	views := [2]carrick.View{big(300), big(300)}
	views[1].Endpoints = maps.Clone(views[0].Endpoints)
	for h, eps := range views[0].Endpoints {
		if h != h1 {
			views[1].Endpoints[h] = eps[1:]
			break
		}
	}
	var p plan.Planner
	p.Make(views[0], h1)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Make(views[(i+1)%2], h1)
	}
}
