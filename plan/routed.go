package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
)

// Routed is the desired state of a network whose hosts route: in the host's namespace, a
// veth pair per local endpoint and a route to each, and routes to the containers of other
// hosts by way of those hosts.
type Routed struct {
	Pairs []Pair // sorted by name
	// Routes lead to the containers of other hosts; they, the pairs' own and no others,
	// of Carrick's, lead into Prefixes. What else is in Prefixes is unreachable.
	Routes   []RouteRow // sorted
	Prefixes []netip.Prefix
	// Local is the host's own address among the hosts: routes to the others are by the
	// device that has it.
	Local netip.Addr
	// Proxied are addresses for which the host answers its containers' neighbour
	// solicitations, so that they can be next hops: one if the network has IPv6. ARP is
	// answered for whatever the host has a route to.
	Proxied []netip.Addr
	// Tunnel reaches hosts that are on no segment of this one; nil: they are not reached.
	Tunnel *Tunnel
}

// Pair is the veth pair of one local endpoint.
type Pair struct {
	Endpoint carrick.EndpointID
	Name     string       // of the host's end
	Outer    string       // of the other, until Docker moves it
	MAC      carrick.MAC  // of the other
	MTU      int          // of both, in bytes
	Addrs    []netip.Addr // routes to the host's end, unless Down
	// Create allows the applier to make it. After Join the other end is Docker's, and a
	// missing pair is a problem to report.
	Create bool
	// Down: it is cut off, and forwards nothing.
	Down bool
}

// RouteRow leads to a container of another host.
type RouteRow struct {
	Dst netip.Prefix // a single address
	Via netip.Addr   // its host, or what stands for that on the tunnel
	// Tunnelled: by the tunnel, whatever else is there. Others take it if Via is on no
	// segment of this host.
	Tunnelled bool
	// MTU is what the other host's device, or the way to it, carries in bytes, if that is
	// less than this host's: senders of more are told; 0: it is not.
	MTU int
}

// Tunnel is a vxlan device of the host's namespace that carries packets to other hosts.
// It does not learn, and each host's end has a MAC made of its VTEP.
type Tunnel struct {
	Name  string
	VNI   carrick.VNI
	Port  uint16
	Local netip.Addr
	MAC   carrick.MAC
	MTU   int          // bytes
	Peers []TunnelPeer // sorted
}

// TunnelPeer is another host's end of a tunnel.
type TunnelPeer struct {
	VTEP netip.Addr
	MAC  carrick.MAC
	// Hops are the addresses by which it is a next hop on the tunnel.
	Hops []netip.Addr
}

// TunnelName is the name of a network's tunnel: unique, and of 15 characters.
func TunnelName(id carrick.NetworkID) string { return "ckt" + string(id)[:min(len(id), 12)] }

// TunnelAlias is the alias of a network's tunnel, by which a restart knows it as ours.
func TunnelAlias(id carrick.NetworkID) string { return aliasPrefix + string(id) + tunnelSuffix }

const tunnelSuffix = "/tunnel"

// ParseTunnelAlias is the inverse of [TunnelAlias].
func ParseTunnelAlias(s string) (carrick.NetworkID, bool) {
	rest, ours := strings.CutPrefix(s, aliasPrefix)
	id, tunnel := strings.CutSuffix(rest, tunnelSuffix)
	return carrick.NetworkID(id), ours && tunnel && carrick.ValidID(id)
}

// RoutedSysctls are the settings of the host's end of a pair, sorted by name.
func RoutedSysctls(link string, six bool) []Sysctl {
	four := "net.ipv4.conf." + link + "."
	out := []Sysctl{
		{Name: four + "forwarding", Value: "1"},
		// It answers for whatever there is a route to, at once: the kernel would wait for
		// 0.8 s at random, lest several proxies answer.
		{Name: four + "proxy_arp", Value: "1"},
		// A container sends from its own addresses and no others: no other's lead here. On a
		// device without an address the looser 2 is as strict (fib_validate_source), and
		// distributions set it on each new device.
		{Name: four + "rp_filter", Value: "1", Also: "2"},
		{Name: "net.ipv4.neigh." + link + ".proxy_delay", Value: "0"},
	}
	if !six {
		return out
	}
	conf6 := "net.ipv6.conf." + link + "."
	return append(out,
		// There is nobody else on a pair who could have the address, and until it is sure
		// of that, for a second, the host answers nothing.
		Sysctl{Name: conf6 + "accept_dad", Value: "0"},
		// A container's router advertisements are not for the host.
		Sysctl{Name: conf6 + "accept_ra", Value: "0"},
		Sysctl{Name: conf6 + "disable_ipv6", Value: "0"},
		Sysctl{Name: conf6 + "forwarding", Value: "1"}, // else it is no proxy
		Sysctl{Name: conf6 + "proxy_ndp", Value: "1"},
		Sysctl{Name: "net.ipv6.neigh." + link + ".proxy_delay", Value: "0"},
	)
}

// TunnelSysctls are the settings of the tunnel, sorted by name.
func TunnelSysctls(link string, six bool) []Sysctl {
	four := "net.ipv4.conf." + link + "."
	out := []Sysctl{
		{Name: four + "forwarding", Value: "1"},
		// Two hosts may differ for a while in whether the other one is on their segment.
		{Name: four + "rp_filter", Value: "0"},
	}
	if six {
		// Nobody's router advertisements are for the host, and without IPv6 the device takes
		// no neighbours of it.
		conf6 := "net.ipv6.conf." + link + "."
		out = append(out, Sysctl{Name: conf6 + "accept_ra", Value: "0"}, Sysctl{Name: conf6 + "disable_ipv6", Value: "0"}, Sysctl{Name: conf6 + "forwarding", Value: "1"})
	}
	return out
}

// routed plans a network whose hosts route.
func routed(n Network, v carrick.View, me carrick.HostID) Network {
	self := v.Hosts[me]
	u := &Routed{Local: self.VTEP, Prefixes: prefixes(v.Network)}
	n.Present, n.Partial, n.Routed = true, v.Partial, u
	m := &maker{net: &n, addrs: map[netip.Addr]claim{}, macs: map[carrick.MAC]claim{}}
	mtu := MTU(v.Network, self)
	if mtu > self.MTU {
		m.problem("MTU is %d and this host's device carries %d: containers that send larger packets are told: raise the MTU of the device, or make the network again with -o mtu=%d", mtu, self.MTU, self.MTU)
	}
	if p, ok := v.Network.Pool(carrick.IPv6); ok {
		if mtu < carrick.MinMTU6 {
			m.problem("MTU is %d here and IPv6 needs %d: containers of this host reach nobody over IPv6: raise the MTU of the device, or make the network again without IPv6", mtu, carrick.MinMTU6)
		} else {
			u.Proxied = append(u.Proxied, p.Router())
		}
	}
	local := sorted(v.Endpoints[me])
	for _, e := range local {
		if !v.Fenced[e.ID] {
			m.claim(claim{own: true, host: me, gen: e.Gen, ep: e.ID}, e)
		}
	}
	others := m.others(v, me)
	for i := range others {
		h := &others[i]
		h.eps = sorted(h.eps)
		for _, e := range h.eps {
			m.claim(claim{host: h.ID, gen: e.Gen, ep: e.ID}, e)
		}
	}
	if v.Network.Fallback == carrick.ModeVXLAN {
		u.Tunnel = tunnel(v.Network, self, others, len(u.Proxied) > 0)
	}
	for _, e := range local {
		p := Pair{
			Endpoint: e.ID, Name: e.ID.HostName(), Outer: e.ID.OuterName(), MAC: e.MAC, MTU: mtu,
			Create: !v.Joined[e.ID], Down: v.Fenced[e.ID],
		}
		if p.Down {
			m.problem("endpoint %s is cut off, because its addresses may be another host's by now: it comes back if they are granted again; docker restart CONTAINER gives it others", e.ID.Short())
		} else {
			p.Addrs = m.hasAddrs(me, e)
			if len(u.Proxied) == 0 {
				p.Addrs = slices.DeleteFunc(p.Addrs, netip.Addr.Is6)
			}
		}
		u.Pairs = append(u.Pairs, p)
	}
	for _, h := range others {
		for _, e := range h.eps {
			for _, a := range m.hasAddrs(h.ID, e) {
				row, why := u.way(v.Network, h.Host, a)
				if way := carries(v, h.Host); !row.Tunnelled && way < self.MTU {
					row.MTU = way
				}
				if why != "" {
					m.problem("%s of host %s cannot be reached: %s", a, h.Name, why)
					continue
				}
				u.Routes = append(u.Routes, row)
			}
		}
	}
	slices.SortFunc(u.Pairs, func(a, b Pair) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(u.Routes, func(a, b RouteRow) int { return a.Dst.Addr().Compare(b.Dst.Addr()) })
	return n
}

// carries is the largest packet that comes through to a host, in bytes, as far as it is
// known: no kernel tells a sender that the other end of a segment takes less.
func carries(v carrick.View, h carrick.Host) int {
	if way, ok := v.Paths[h.VTEP]; ok {
		return min(h.MTU, way)
	}
	return h.MTU
}

// way is the route to a container's address, or why there is none.
func (u *Routed) way(n carrick.Network, h carrick.Host, a netip.Addr) (row RouteRow, why string) {
	row = RouteRow{Dst: netip.PrefixFrom(a, a.BitLen()), Via: h.VTEP}
	switch {
	case a.Is4() == h.VTEP.Is4():
		return row, ""
	case a.Is6() && u.Tunnel != nil:
		row.Via, row.Tunnelled = carrick.MACFor(n.VNI, h.VTEP).LinkLocal(), true
		return row, ""
	case a.Is6():
		return row, fmt.Sprintf("its host is known by %s, and a route needs a next hop of the same family: make the network with -o routed_fallback=vxlan, which carries both, or start all agents with an IPv6 --advertise", h.VTEP)
	}
	return row, fmt.Sprintf("its host is known by %s, and a route needs a next hop of the same family: start all agents with an IPv4 --advertise", h.VTEP)
}

func tunnel(n carrick.Network, self carrick.Host, others []other, six bool) *Tunnel {
	t := &Tunnel{
		Name: TunnelName(n.ID), VNI: n.VNI, Port: n.Port, Local: self.VTEP,
		MAC: carrick.MACFor(n.VNI, self.VTEP), MTU: max(self.Carries(), minMTU4),
	}
	for _, h := range others {
		p := TunnelPeer{VTEP: h.VTEP, MAC: carrick.MACFor(n.VNI, h.VTEP), Hops: []netip.Addr{h.VTEP}}
		if six && h.VTEP.Is4() {
			p.Hops = append(p.Hops, p.MAC.LinkLocal())
		}
		t.Peers = append(t.Peers, p)
	}
	slices.SortFunc(t.Peers, func(a, b TunnelPeer) int { return a.VTEP.Compare(b.VTEP) })
	return t
}

// text prints the plan as the commands that would make it; see [Network.String].
func (u *Routed) text(id carrick.NetworkID, problems []string) string {
	var b strings.Builder
	if t := u.Tunnel; t != nil {
		fmt.Fprintf(&b, "ip link add %s address %s mtu %d alias %s up type vxlan id %d dstport %d local %s nolearning\n", t.Name, t.MAC, t.MTU, TunnelAlias(id), t.VNI, t.Port, t.Local)
		for _, p := range t.Peers {
			fmt.Fprintf(&b, "bridge fdb replace %s dev %s dst %s self permanent\n", p.MAC, t.Name, p.VTEP)
			for _, a := range p.Hops {
				fmt.Fprintf(&b, "ip neigh replace %s lladdr %s dev %s nud permanent\n", a, p.MAC, t.Name)
			}
		}
		writeSysctls(&b, TunnelSysctls(t.Name, len(u.Proxied) > 0))
	}
	for _, p := range u.Prefixes {
		fmt.Fprintf(&b, "ip route replace unreachable %s metric %d proto carrick\n", p, UnreachableMetric)
		fmt.Fprintf(&b, "%s DOCKER-USER -s %s -d %s -m comment --comment \"carrick %s\" -j ACCEPT # if there is such a chain\n",
			map[bool]string{true: "iptables -A", false: "ip6tables -A"}[p.Addr().Is4()], p, p, id)
	}
	for _, p := range u.Pairs {
		if p.Create {
			fmt.Fprintf(&b, "ip link add %s mtu %d alias %s type veth peer name %s address %s mtu %d\n", p.Name, p.MTU, ChildAlias(id, p.Endpoint), p.Outer, p.MAC, p.MTU)
		}
		writeSysctls(&b, RoutedSysctls(p.Name, len(u.Proxied) > 0))
		state := "up"
		if p.Down {
			state = "down"
		}
		fmt.Fprintf(&b, "ip link set %s mtu %d %s\n", p.Name, p.MTU, state)
		for _, a := range p.Addrs {
			fmt.Fprintf(&b, "ip route replace %s dev %s proto carrick\n", netip.PrefixFrom(a, a.BitLen()), p.Name)
		}
		for _, a := range u.Proxied {
			fmt.Fprintf(&b, "ip neigh replace proxy %s dev %s\n", a, p.Name)
		}
	}
	for _, r := range u.Routes {
		by := ""
		if r.Tunnelled {
			by = " dev " + u.Tunnel.Name + " onlink"
		}
		mtu := ""
		if r.MTU != 0 {
			mtu = fmt.Sprintf(" mtu %d", r.MTU)
		}
		fmt.Fprintf(&b, "ip route replace %s via %s%s%s proto carrick\n", r.Dst, r.Via, by, mtu)
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "# %s\n", p)
	}
	return b.String()
}

func writeSysctls(b *strings.Builder, list []Sysctl) {
	for _, s := range list {
		fmt.Fprintf(b, "sysctl -w %s=%s\n", s.Name, s.Value)
	}
}

// UnreachableMetric is the metric of the routes that make a network's prefixes
// unreachable: whoever has a better one of his own keeps it.
const UnreachableMetric = 1 << 30
