package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
)

// Underlay is the desired state of a network whose containers stand on a device of
// their host, in the host's namespace: one device per endpoint, which Docker moves into
// the container, and routes to the others if nobody on their segment answers for them.
type Underlay struct {
	Kind    carrick.Mode // macvlan, ipvlan or sriov
	Submode string       // macvlan_mode or ipvlan_mode; "" of sriov
	Flag    string       // ipvlan_flag
	Parent  carrick.Parent
	MTU     int // of the children, in bytes; 0: the parent's

	Children []Child // sorted by name
	// Leg is the host's own device beside them; nil: it has none.
	Leg *Leg
	// Routes lead to the containers of other hosts; they and no others, of Carrick's,
	// lead into Prefixes. Without any, routes are none of the network's business.
	Routes   []RouteRow // sorted
	Prefixes []netip.Prefix
}

// Leg is a device of the host's own on a network's segment, by which it and its containers
// there reach each other, whom the kernel keeps apart otherwise: the host has an address on
// it, and routes to its containers lead there.
type Leg struct {
	Endpoint carrick.EndpointID
	Name     string
	MAC      carrick.MAC
	Addrs    []netip.Addr // of the host; single ones
	To       []netip.Addr // of its containers, sorted
	// Down: its addresses may be somebody else's.
	Down bool
}

// Source is the host's address of the same family as another's; false if it has none.
func (l Leg) Source(a netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(l.Addrs, func(x netip.Addr) bool { return x.Is4() == a.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return l.Addrs[i], true
}

// LegName is the name of a host's leg in a network: unique, and of 15 characters.
func LegName(id carrick.NetworkID) string { return "ckl" + string(id)[:min(len(id), 12)] }

// LegAlias is the alias of a leg, by which a restart knows it as ours.
func LegAlias(id carrick.NetworkID) string { return aliasPrefix + string(id) + legSuffix }

const legSuffix = "/leg"

// ParseLegAlias is the inverse of [LegAlias].
func ParseLegAlias(s string) (carrick.NetworkID, bool) {
	rest, ours := strings.CutPrefix(s, aliasPrefix)
	id, leg := strings.CutSuffix(rest, legSuffix)
	return carrick.NetworkID(id), ours && leg && carrick.ValidID(id)
}

// LegSysctls are the settings of a leg, sorted by name.
func LegSysctls(link string, six bool) []Sysctl {
	out := []Sysctl{
		// It answers for the host's address in the network and for no other of the host's:
		// the segment would find each of those twice.
		{Name: "net.ipv4.conf." + link + ".arp_ignore", Value: "1", Also: "2"},
	}
	if six {
		conf6 := "net.ipv6.conf." + link + "."
		out = append(out, Sysctl{Name: conf6 + "accept_ra", Value: "0"}, Sysctl{Name: conf6 + "autoconf", Value: "0"}, Sysctl{Name: conf6 + "disable_ipv6", Value: "0"})
	}
	return out
}

// Child is the device of one local endpoint.
type Child struct {
	Endpoint carrick.EndpointID
	Name     string      // in the host's namespace, until Docker moves it
	MAC      carrick.MAC // zero: the parent's
	// Sandbox is the path of the namespace it is in once its container runs, as the
	// engine says it; "" if it was not said yet.
	Sandbox string
	// Create allows the applier to make it. After Join it is Docker's, and a missing
	// one is a problem to report.
	Create bool
	// Down: it is cut off.
	Down bool
}

// ChildAlias is what the alias of a child, or of the host's end of a pair, says, by which a restart knows it as ours.
func ChildAlias(id carrick.NetworkID, ep carrick.EndpointID) string {
	return aliasPrefix + string(id) + "/" + string(ep)
}

// ParseChildAlias is the inverse of [ChildAlias], also of [FunctionAlias], and of either
// with what marks an endpoint that is cut off.
func ParseChildAlias(s string) (carrick.NetworkID, carrick.EndpointID, bool) {
	rest, ours := strings.CutPrefix(strings.TrimSuffix(s, cutAlias), aliasPrefix)
	rest, _, _ = strings.Cut(rest, functionAlias)
	id, ep, _ := strings.Cut(rest, "/")
	if !ours || !carrick.ValidID(id) || !carrick.ValidDockerID(ep) {
		return "", "", false
	}
	return carrick.NetworkID(id), carrick.EndpointID(ep), true
}

// aliasPrefix begins the alias of each device that is Carrick's and is in the host's
// namespace.
const aliasPrefix = "carrick/"

// cutAlias ends the alias of a device that is down because of us.
const cutAlias = "/cut"

// VLANAlias is the alias of 802.1q sub-interfaces that Carrick made.
const VLANAlias = aliasPrefix + "vlan"

// underlay plans a network that stands on devices of the hosts. The plan's Present
// says, as of any network, that this host has an endpoint in it.
func underlay(n Network, v carrick.View, me carrick.HostID) Network {
	self := v.Hosts[me]
	u := &Underlay{Kind: v.Network.Mode, Submode: v.Network.Submode, Flag: v.Network.Flag, MTU: v.Network.MTU}
	n.Present, n.Partial, n.Underlay = true, v.Partial, u
	m := &maker{net: &n, addrs: map[netip.Addr]claim{}, macs: map[carrick.MAC]claim{}}
	if parents, err := carrick.ParseParents(v.Network.Parent); err != nil {
		m.problem("the network's parent cannot be read: %v", err)
	} else if p, ok := parents.For(self.Name); ok {
		u.Parent = p
	} else {
		m.problem("the network has no device for this host (-o parent=%s does not name %s): remove the network, and make it again with one", v.Network.Parent, self.Name)
	}
	local := sorted(v.Endpoints[me])
	for _, e := range local {
		if !v.Fenced[e.ID] {
			m.claim(claim{own: true, host: me, gen: e.Gen, ep: e.ID}, e)
		}
	}
	var others []other // elsewhere the segment knows who has an address
	if v.Network.Routes() {
		u.Prefixes = prefixes(v.Network)
		others = m.others(v, me)
	}
	for i := range others {
		h := &others[i]
		h.eps = sorted(h.eps)
		for _, e := range h.eps {
			m.claim(claim{host: h.ID, gen: e.Gen, ep: e.ID}, e)
		}
	}
	var to []netip.Addr
	leg := carrick.LegID(v.Network.ID, me)
	for _, e := range local {
		if v.Network.HostAccess && e.ID == leg {
			u.Leg = &Leg{Endpoint: e.ID, Name: LegName(v.Network.ID), MAC: e.MAC, Down: v.Fenced[e.ID]}
			if !u.Leg.Down {
				u.Leg.Addrs = m.hasAddrs(me, e)
			}
			continue
		}
		u.Children = append(u.Children, Child{
			Endpoint: e.ID, Name: e.ID.OuterName(), MAC: e.MAC, Sandbox: v.Sandboxes[e.ID], Create: !v.Joined[e.ID], Down: v.Fenced[e.ID],
		})
		if v.Fenced[e.ID] {
			m.problem("endpoint %s is cut off, because its addresses may be another host's by now: it comes back if they are granted again; docker restart CONTAINER gives it others", e.ID.Short())
			continue
		}
		to = append(to, m.hasAddrs(me, e)...)
	}
	if u.Leg != nil {
		slices.SortFunc(to, netip.Addr.Compare)
		u.Leg.To, u.Prefixes = to, prefixes(v.Network)
	}
	for _, h := range others {
		for _, e := range h.eps {
			for _, a := range m.hasAddrs(h.ID, e) {
				if a.Is4() != h.VTEP.Is4() {
					m.problem("%s of host %s cannot be reached: its host is known by %s, and a route needs a next hop of the same family", a, h.Name, h.VTEP)
					continue
				}
				u.Routes = append(u.Routes, RouteRow{Dst: netip.PrefixFrom(a, a.BitLen()), Via: h.VTEP})
			}
		}
	}
	slices.SortFunc(u.Children, func(a, b Child) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(u.Routes, func(a, b RouteRow) int { return a.Dst.Addr().Compare(b.Dst.Addr()) })
	return n
}

func prefixes(n carrick.Network) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.Pools {
		out = append(out, p.Prefix)
	}
	return out
}

// text prints the plan as the commands that would make it; see [Network.String].
func (u *Underlay) text(id carrick.NetworkID, problems []string) string {
	var b strings.Builder
	p := u.Parent
	if p.VLAN != 0 {
		fmt.Fprintf(&b, "ip link add %s link %s alias %s up type vlan id %d # unless it is there\n", p.Name, p.Base, VLANAlias, p.VLAN)
	}
	mode := u.Submode
	if u.Flag != "" {
		mode += " " + u.Flag
	}
	for _, c := range u.Children {
		mac, mtu := "", ""
		if !c.MAC.IsZero() {
			mac = " address " + c.MAC.String()
		}
		if u.MTU != 0 {
			mtu = fmt.Sprintf(" mtu %d", u.MTU)
		}
		switch {
		case c.Create && u.Kind == carrick.ModeSRIOV:
			b.WriteString(functionText(id, u, c))
		case c.Create:
			fmt.Fprintf(&b, "ip link add %s link %s%s%s alias %s type %s mode %s\n", c.Name, p.Name, mac, mtu, ChildAlias(id, c.Endpoint), u.Kind, mode)
		}
		if c.Down {
			fmt.Fprintf(&b, "ip link set %s down # in %s\n", c.Name, c.Sandbox)
		}
	}
	if l := u.Leg; l != nil {
		mtu, state := "", "up"
		if u.MTU != 0 {
			mtu = fmt.Sprintf(" mtu %d", u.MTU)
		}
		if l.Down {
			state = "down"
		}
		fmt.Fprintf(&b, "ip link add %s link %s address %s%s alias %s type %s mode %s\n", l.Name, p.Name, l.MAC, mtu, LegAlias(id), u.Kind, mode)
		writeSysctls(&b, LegSysctls(l.Name, slices.ContainsFunc(l.Addrs, netip.Addr.Is6)))
		fmt.Fprintf(&b, "ip link set %s %s\n", l.Name, state)
		for _, a := range l.Addrs {
			fmt.Fprintf(&b, "ip addr add %s dev %s\n", netip.PrefixFrom(a, a.BitLen()), l.Name)
		}
		for _, a := range l.To {
			if src, ok := l.Source(a); ok {
				fmt.Fprintf(&b, "ip route replace %s dev %s src %s proto carrick\n", netip.PrefixFrom(a, a.BitLen()), l.Name, src)
			}
		}
	}
	for _, r := range u.Routes {
		fmt.Fprintf(&b, "ip route replace %s via %s proto carrick\n", r.Dst, r.Via)
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "# %s\n", p)
	}
	return b.String()
}
