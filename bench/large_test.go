package bench

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// self is the host whose kernel is measured.
const self = carrick.HostID("1111111111111111")

// hostNumber is the id of another host.
func hostNumber(i int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", 0x2222<<48+i)) }

// ofHost is endpoint i of host h. Four of ten have a second address: a network of
// 30,000 has 42,000 neighbours, as the largest overlay that people have told of.
func ofHost(vni carrick.VNI, h, i int) carrick.Endpoint {
	a := netip.AddrFrom4([4]byte{10, byte(h >> 8), byte(h), byte(i)})
	e := carrick.Endpoint{ID: carrick.EndpointID(fmt.Sprintf("%06x%03x%02x%053x", vni, h, i, 0)), Addrs: []netip.Addr{a}, MAC: carrick.MACFor(vni, a)}
	if i%10 < 4 {
		e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 128 + byte(h>>8), byte(h), byte(i)}))
	}
	return e
}

// large is network number n, of one container here and on so many other hosts so
// many each.
func large(n, hosts, each int) carrick.View {
	vni := carrick.VNI(1000 + n)
	v := carrick.View{
		Network: carrick.Network{
			ID: carrick.NetworkID(fmt.Sprintf("%016x", 0xbe<<48+n)), Mode: carrick.ModeVXLAN, VNI: vni, Port: carrick.DefaultPort, Flood: true,
			Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1"), Block: 26}},
		},
		Hosts:     map[carrick.HostID]carrick.Host{self: {ID: self, Name: "self", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500}},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{self: {ofHost(vni, 0, 201)}},
		Joined:    map[carrick.EndpointID]bool{},
		Fenced:    map[carrick.EndpointID]bool{},
	}
	for h := 1; h <= hosts; h++ {
		v.Hosts[hostNumber(h)] = carrick.Host{ID: hostNumber(h), Name: fmt.Sprint(h), VTEP: netip.AddrFrom4([4]byte{198, 18, byte(h >> 8), byte(h)}), MTU: 1500}
		for i := range each {
			v.Endpoints[hostNumber(h)] = append(v.Endpoints[hostNumber(h)], ofHost(vni, h, i))
		}
	}
	return v
}

// with returns the view with an endpoint more on a host.
func with(v carrick.View, h carrick.HostID, e carrick.Endpoint) carrick.View {
	v.Endpoints = maps.Clone(v.Endpoints)
	v.Endpoints[h] = append(slices.Clone(v.Endpoints[h]), e)
	return v
}
