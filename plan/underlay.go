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
	// Routes lead to the containers of other hosts; they and no others, of Carrick's,
	// lead into Prefixes. Without any, routes are none of the network's business.
	Routes   []RouteRow // sorted
	Prefixes []netip.Prefix
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
	for _, e := range local {
		u.Children = append(u.Children, Child{
			Endpoint: e.ID, Name: e.ID.OuterName(), MAC: e.MAC, Sandbox: v.Sandboxes[e.ID], Create: !v.Joined[e.ID], Down: v.Fenced[e.ID],
		})
		if v.Fenced[e.ID] {
			m.problem("endpoint %s is cut off, because its addresses may be another host's by now: it comes back if they are granted again; docker restart CONTAINER gives it others", e.ID.Short())
			continue
		}
		m.hasAddrs(me, e)
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
	for _, r := range u.Routes {
		fmt.Fprintf(&b, "ip route replace %s via %s proto carrick\n", r.Dst, r.Via)
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "# %s\n", p)
	}
	return b.String()
}
