package plan

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// Namespace is the name of a network's namespace.
func Namespace(id carrick.NetworkID) string { return NamespacePrefix + string(id) }

// Make plans one network for host me. A host holds a network while it has an
// endpoint in it; without one the plan is that nothing exists.
//
// Facts may contradict each other for a moment, or because somebody made a
// mistake: an address or MAC claimed twice goes to this host's own endpoint
// first, then to the lowest host id, and the contradiction is a problem.
func Make(v carrick.View, me carrick.HostID) Network {
	n := Network{ID: v.Network.ID, Namespace: Namespace(v.Network.ID)}
	local := v.Endpoints[me]
	if len(local) == 0 {
		return n
	}
	self := v.Hosts[me]
	n.Present = true
	mtu := MTU(v.Network, self)
	n.Bridge = Bridge{Name: BridgeName, MTU: mtu}
	n.VXLAN = VXLAN{Name: VXLANName, VNI: v.Network.VNI, Port: v.Network.Port, Local: self.VTEP, MTU: mtu}

	m := &maker{net: &n, addrs: map[netip.Addr]carrick.EndpointID{}, macs: map[carrick.MAC]carrick.EndpointID{}}
	for _, e := range sorted(local) {
		port := Port{
			Endpoint: e.ID, Name: e.ID.PortName(), Outer: e.ID.OuterName(),
			MAC: e.MAC, MTU: mtu, Create: !v.Joined[e.ID],
		}
		n.Ports = append(n.Ports, port)
		if m.claimMAC(e) {
			n.Bridged = append(n.Bridged, BridgeRow{e.MAC, port.Name})
		}
		m.claimAddrs(e)
	}
	for _, id := range slices.Sorted(maps.Keys(v.Endpoints)) {
		if id == me || len(v.Endpoints[id]) == 0 {
			continue
		}
		host, ok := v.Hosts[id]
		switch {
		case !ok:
			m.problem("host %s has endpoints here and is not known yet", id)
			continue
		case host.VTEP.Is4() != self.VTEP.Is4():
			m.problem("host %s has VTEP %s, which this host's %s cannot reach", host.Name, host.VTEP, self.VTEP)
			continue
		case host.VTEP == self.VTEP:
			m.problem("host %s has this host's VTEP %s", host.Name, host.VTEP)
			continue
		}
		if theirs := MTU(v.Network, host); theirs != mtu {
			m.problem("MTU is %d here and %d on host %s: set one that fits all with -o mtu=%d at creation", mtu, theirs, host.Name, min(mtu, theirs))
		}
		if v.Network.Flood {
			n.FDB = append(n.FDB, FDBRow{VTEP: host.VTEP})
		}
		for _, e := range sorted(v.Endpoints[id]) {
			if m.claimMAC(e) {
				n.FDB = append(n.FDB, FDBRow{e.MAC, host.VTEP})
				n.Bridged = append(n.Bridged, BridgeRow{e.MAC, VXLANName})
			}
			for _, a := range m.claimAddrs(e) {
				n.Neigh = append(n.Neigh, NeighRow{a, e.MAC})
			}
		}
	}
	slices.SortFunc(n.Ports, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(n.FDB, func(a, b FDBRow) int {
		return cmp.Or(bytes.Compare(a.MAC[:], b.MAC[:]), a.VTEP.Compare(b.VTEP))
	})
	slices.SortFunc(n.Bridged, func(a, b BridgeRow) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
	slices.SortFunc(n.Neigh, func(a, b NeighRow) int { return a.Addr.Compare(b.Addr) })
	return n
}

// MTU is what a container of the network may send on a host, in bytes: what the
// network says, or what the host's underlay leaves after the encapsulation.
func MTU(n carrick.Network, h carrick.Host) int {
	if n.MTU != 0 {
		return n.MTU
	}
	return h.MTU - Overhead(h.VTEP)
}

// maker tracks who has which address and MAC in the plan.
type maker struct {
	net   *Network
	addrs map[netip.Addr]carrick.EndpointID
	macs  map[carrick.MAC]carrick.EndpointID
}

func (m *maker) problem(format string, args ...any) {
	m.net.Problems = append(m.net.Problems, fmt.Sprintf(format, args...))
}

func (m *maker) claimMAC(e carrick.Endpoint) bool {
	if holder, taken := m.macs[e.MAC]; taken {
		m.problem("MAC %s is claimed by endpoint %s and by %s, which goes without", e.MAC, holder.Short(), e.ID.Short())
		return false
	}
	m.macs[e.MAC] = e.ID
	return true
}

// claimAddrs returns the addresses of e that nobody claimed before.
func (m *maker) claimAddrs(e carrick.Endpoint) []netip.Addr {
	var got []netip.Addr
	for _, a := range e.Addrs {
		if holder, taken := m.addrs[a]; taken {
			m.problem("address %s is claimed by endpoint %s and by %s, which goes without", a, holder.Short(), e.ID.Short())
			continue
		}
		m.addrs[a] = e.ID
		got = append(got, a)
	}
	return got
}

func sorted(eps []carrick.Endpoint) []carrick.Endpoint {
	return slices.SortedFunc(slices.Values(eps), func(a, b carrick.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
}
