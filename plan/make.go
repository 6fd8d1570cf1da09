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
// endpoint in it; without one the plan is that nothing exists, however little is
// known of the others.
//
// Facts may contradict each other for a moment, or because somebody made a
// mistake: an address or MAC claimed twice goes to this host's own endpoint
// first, then to the use with the highest stamp, then to the lowest host id, and
// the contradiction is a problem. A fenced endpoint claims nothing.
//
// All rows are in the plan's own tables; see [Planner] for plans that share them.
func Make(v carrick.View, me carrick.HostID) Network { return build(v, me, nil) }

// build makes a plan. With a planner, what other hosts contribute without
// contradicting anybody comes from it.
func build(v carrick.View, me carrick.HostID, p *Planner) Network {
	n := Network{ID: v.Network.ID, Namespace: Namespace(v.Network.ID)}
	if len(v.Endpoints[me]) == 0 {
		return n
	}
	switch {
	case v.Network.Mode.Underlay():
		return underlay(n, v, me)
	case v.Network.Mode == carrick.ModeRouted:
		return routed(n, v, me)
	}
	self := v.Hosts[me]
	n.Present, n.Partial = true, v.Partial
	mtu := MTU(v.Network, self)
	n.Bridge = Bridge{Name: BridgeName, MTU: mtu, Snoop: v.Network.Snoop}
	n.Storm = v.Network.StormRate()
	n.VXLAN = VXLAN{Name: VXLANName, VNI: v.Network.VNI, Port: v.Network.Port, Local: self.VTEP, MTU: mtu}

	m := &maker{net: &n, addrs: map[netip.Addr]claim{}, macs: map[carrick.MAC]claim{}}
	local := sorted(v.Endpoints[me])
	for _, e := range local {
		if !v.Fenced[e.ID] {
			m.claim(claim{own: true, host: me, gen: e.Gen, ep: e.ID}, e)
		}
	}
	others := m.others(v, me)
	m.ways(v, self, others)
	// The kernel has no IPv6, and takes no IPv6 neighbours, on devices below its MTU.
	carries6 := mtu >= carrick.MinMTU6
	if p != nil {
		p.look(local, v.Fenced, others, carries6)
	}
	for i := range others {
		h := &others[i]
		if h.remote != nil {
			continue
		}
		h.eps = sorted(h.eps)
		for _, e := range h.eps {
			m.claim(claim{host: h.ID, gen: e.Gen, ep: e.ID}, e)
		}
	}

	for _, e := range local {
		port := Port{
			Endpoint: e.ID, Name: e.ID.PortName(), Outer: e.ID.OuterName(),
			MAC: e.MAC, MTU: mtu, Create: !v.Joined[e.ID], Down: v.Fenced[e.ID],
		}
		n.Ports = append(n.Ports, port)
		if port.Down {
			m.problem("endpoint %s is cut off, because its addresses may be another host's by now: it comes back if they are granted again; docker restart CONTAINER gives it others", e.ID.Short())
			continue
		}
		if m.hasMAC(me, e) {
			n.Bridged = append(n.Bridged, BridgeRow{e.MAC, port.Name})
		}
		for _, a := range m.hasAddrs(me, e) {
			n.Here = append(n.Here, HereRow{e.ID, NeighRow{a, e.MAC}})
		}
	}
	_, six := v.Network.Pool(carrick.IPv6)
	if six && !carries6 {
		m.problem("MTU is %d here and IPv6 needs %d: containers of this host reach nobody over IPv6: raise the MTU of the underlay, or make the network again without IPv6", mtu, carrick.MinMTU6)
	}
	n.Sysctls = Sysctls(six && carries6)
	for _, h := range others {
		if v.Network.Flood {
			n.FDB = append(n.FDB, FDBRow{VTEP: h.VTEP})
		}
		if h.remote != nil {
			n.Remote = append(n.Remote, h.remote)
			continue
		}
		for _, e := range h.eps {
			reachable := m.hasMAC(h.ID, e)
			if reachable {
				n.FDB = append(n.FDB, FDBRow{e.MAC, h.VTEP})
				n.Bridged = append(n.Bridged, BridgeRow{e.MAC, VXLANName})
			}
			n.Neigh = appendNeigh(n.Neigh, e, m.hasAddrs(h.ID, e), carries6, reachable)
		}
	}
	slices.SortFunc(n.Ports, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(n.Here, func(a, b HereRow) int { return a.Addr.Compare(b.Addr) })
	n.sortRows()
	return n
}

// appendNeigh adds the neighbours that an endpoint elsewhere is, of those of its
// addresses that are its own.
func appendNeigh(rows []NeighRow, e carrick.Endpoint, addrs []netip.Addr, carries6, reachable bool) []NeighRow {
	six := false
	for _, a := range addrs {
		if a.Is4() || carries6 {
			rows = append(rows, NeighRow{a, e.MAC})
		}
		six = six || a.Is6()
	}
	if six && reachable && carries6 {
		rows = append(rows, NeighRow{e.MAC.LinkLocal(), e.MAC})
	}
	return rows
}

func (n *Network) sortRows() {
	slices.SortFunc(n.FDB, func(a, b FDBRow) int {
		return cmp.Or(bytes.Compare(a.MAC[:], b.MAC[:]), a.VTEP.Compare(b.VTEP))
	})
	slices.SortFunc(n.Bridged, func(a, b BridgeRow) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
	slices.SortFunc(n.Neigh, func(a, b NeighRow) int { return a.Addr.Compare(b.Addr) })
}

// maker tracks who has which address and MAC in the plan.
type maker struct {
	net   *Network
	addrs map[netip.Addr]claim
	macs  map[carrick.MAC]claim
}

func (m *maker) problem(format string, args ...any) {
	m.net.Problems = append(m.net.Problems, fmt.Sprintf(format, args...))
}

// other is another host that frames can be sent to.
type other struct {
	carrick.Host
	eps    []carrick.Endpoint
	remote *Remote // what it contributes, if a planner knows; then eps is not looked at
}

// others lists the hosts with endpoints here, sorted by id, without those that
// cannot be reached, which are problems.
func (m *maker) others(v carrick.View, me carrick.HostID) []other {
	self := v.Hosts[me]
	var out []other
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
			m.problem("host %s has VTEP %s, which this host's %s cannot reach: one is IPv4 and one IPv6: start all agents with an --advertise of one family", host.Name, host.VTEP, self.VTEP)
			continue
		case host.VTEP == self.VTEP:
			m.problem("host %s has this host's VTEP %s", host.Name, host.VTEP)
			continue
		}
		host.ID = id
		out = append(out, other{Host: host, eps: v.Endpoints[id]})
	}
	return out
}

// claim is an endpoint's word that an address or a MAC is its own.
type claim struct {
	own  bool // this host's
	host carrick.HostID
	gen  carrick.Gen
	ep   carrick.EndpointID
	used bool // it is in the plan
}

// before says whether a claim is believed rather than another one.
func (c claim) before(o claim) bool {
	if c.own != o.own {
		return c.own
	}
	return cmp.Or(cmp.Compare(o.gen, c.gen), cmp.Compare(c.host, o.host), cmp.Compare(c.ep, o.ep)) < 0
}

// claim enters an endpoint's claims. Once all are in, the best of each stands.
func (m *maker) claim(c claim, e carrick.Endpoint) {
	if old, taken := m.macs[e.MAC]; !taken || c.before(old) {
		m.macs[e.MAC] = c
	}
	for _, a := range e.Addrs {
		if old, taken := m.addrs[a]; !taken || c.before(old) {
			m.addrs[a] = c
		}
	}
}

// hasMAC says whether an endpoint's claim on its MAC stands.
func (m *maker) hasMAC(host carrick.HostID, e carrick.Endpoint) bool {
	c := m.macs[e.MAC]
	if c.host == host && c.ep == e.ID && !c.used {
		c.used = true
		m.macs[e.MAC] = c
		return true
	}
	m.problem("MAC %s is claimed by endpoint %s and by %s, which goes without", e.MAC, c.ep.Short(), e.ID.Short())
	return false
}

// hasAddrs returns the addresses of an endpoint on which its claims stand.
func (m *maker) hasAddrs(host carrick.HostID, e carrick.Endpoint) []netip.Addr {
	var got []netip.Addr
	for _, a := range e.Addrs {
		c := m.addrs[a]
		if c.host == host && c.ep == e.ID && !c.used {
			c.used = true
			m.addrs[a] = c
			got = append(got, a)
			continue
		}
		m.problem("address %s is claimed by endpoint %s and by %s, which goes without", a, c.ep.Short(), e.ID.Short())
	}
	return got
}

func sorted(eps []carrick.Endpoint) []carrick.Endpoint {
	return slices.SortedFunc(slices.Values(eps), func(a, b carrick.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
}
