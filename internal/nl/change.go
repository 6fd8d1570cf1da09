package nl

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/netns"
)

// Change is one message that changes the kernel. It prints itself as the ip or
// bridge command that would do the same.
type Change interface {
	// Command is the command line; ns is the name of the namespace it is sent
	// in, "" for the host's own.
	Command(ns string) string
	isChange()
}

// AddBridge makes a bridge, down, that floods multicast and knows no VLANs:
// with the default PVID of 1 the kernel would keep every row twice.
type AddBridge struct {
	Name string
}

// AddVXLAN makes a vxlan device, down, in Target, directly: there is never a
// half-made one elsewhere. Its UDP socket will be opened in the namespace of
// the handle it is sent on (the kernel's vxlan->net is the sender's, because no
// IFLA_LINK_NETNSID is given). It does not learn and answers ARP and ND.
//
// Kernels before 6.14 look for the name in the sender's namespace, not in
// Target, so Name should be one that nobody uses there; SetLink renames it.
//
// Without a Target it is made where the message is sent, as a port of nothing, and
// answers nobody.
type AddVXLAN struct {
	Name   string
	Target netns.Namespace // nil: the handle's namespace
	Master Ref             // a bridge in Target; zero without one
	MTU    int
	VNI    carrick.VNI
	Port   uint16
	Local  netip.Addr
}

// AddVeth makes a pair, both ends down: Name as a port of Master in Target, and
// Outer in the namespace of the handle it is sent on.
type AddVeth struct {
	Name     string
	Target   netns.Namespace // nil: where Outer is
	Master   Ref             // zero: Name is no port
	MTU      int             // of both ends
	Outer    string
	OuterMAC carrick.MAC
}

// Switch is a setting that may be left alone.
type Switch int8

// The states of a Switch.
const (
	Keep Switch = iota
	On
	Off
)

// SetLink alters a link. What is zero stays as it is. Port needs the link to be
// a port already, so it cannot go with Master in one message.
type SetLink struct {
	Link      Ref
	Rename    string
	MTU       int
	MAC       carrick.MAC
	Alias     string
	NoAlias   bool       // takes the alias off; Alias is "" then
	NoAddrGen bool       // no IPv6 link-local address from now on
	Master    *Ref       // the zero Ref takes it out of its bridge
	Port      *PortFlags // all of them
	Up        Switch     // applied before NoAddrGen by the kernel: say it later
}

// SetBridge turns a bridge's settings off again, as AddBridge makes them: those
// that are on in Off and no others, because a kernel built without VLAN
// filtering refuses to be told that it is off.
//
// With Snoop it turns multicast snooping on and sets what belongs to it.
type SetBridge struct {
	Link  Ref
	Off   BridgeInfo
	Snoop *Multicast
}

// DelLink deletes a link; of a veth, both ends.
type DelLink struct {
	Link Ref
}

// SetFDB adds a row to a vxlan device, or gives an existing one another VTEP.
// For the zero MAC it adds a further VTEP. Repeating it changes nothing.
type SetFDB struct {
	Link Ref
	MAC  carrick.MAC
	VTEP netip.Addr
}

// DelFDB removes a row of a vxlan device; without a VTEP, all rows of the MAC.
// Removing one of several VTEPs twice is not an error, removing the last of a
// MAC twice is ErrNotFound.
type DelFDB struct {
	Link Ref
	MAC  carrick.MAC
	VTEP netip.Addr
}

// SetBridged pins a MAC to a bridge port, wherever the bridge thought it was.
type SetBridged struct {
	Link Ref // the port
	MAC  carrick.MAC
}

// DelBridged removes a row of the bridge; ErrNotFound if the port has none.
type DelBridged struct {
	Link Ref
	MAC  carrick.MAC
}

// SetNeigh adds a permanent neighbour or alters one.
type SetNeigh struct {
	Link Ref
	Addr netip.Addr
	MAC  carrick.MAC
}

// DelNeigh removes a neighbour; ErrNotFound if there is none.
type DelNeigh struct {
	Link Ref
	Addr netip.Addr
}

// AddAddress gives a link an address, of IPv6 without asking whether somebody has it
// (IFA_F_NODAD). One that it has is ErrExists.
type AddAddress struct {
	Link   Ref
	Prefix netip.Prefix
}

// DelAddress takes an address off a link; the errno is EADDRNOTAVAIL if it has
// none such.
type DelAddress struct {
	Link   Ref
	Prefix netip.Prefix
}

func (AddBridge) isChange()  {}
func (AddVXLAN) isChange()   {}
func (AddVeth) isChange()    {}
func (SetLink) isChange()    {}
func (SetBridge) isChange()  {}
func (DelLink) isChange()    {}
func (SetFDB) isChange()     {}
func (DelFDB) isChange()     {}
func (SetBridged) isChange() {}
func (DelBridged) isChange() {}
func (SetNeigh) isChange()   {}
func (DelNeigh) isChange()   {}
func (AddAddress) isChange() {}
func (DelAddress) isChange() {}

// Module is the kernel module that a change depends on, "" if it alters or
// removes what exists already.
func Module(c Change) string {
	switch c.(type) {
	case AddBridge:
		return "bridge"
	case AddVXLAN:
		return "vxlan"
	case AddVeth:
		return "veth"
	case AddMacvlan:
		return "macvlan"
	case AddIPvlan:
		return "ipvlan"
	case AddVLAN:
		return "8021q"
	default:
		return ""
	}
}

func tool(name, ns string) string {
	if ns == "" {
		return name
	}
	return name + " -n " + ns
}

func btoi(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// Command is `ip link add NAME type bridge ...`.
func (c AddBridge) Command(ns string) string {
	return fmt.Sprintf("%s link add %s type bridge mcast_snooping 0 vlan_default_pvid 0", tool("ip", ns), c.Name)
}

// Command is `ip link add NAME netns TARGET ... type vxlan ...`.
func (c AddVXLAN) Command(ns string) string {
	master, proxy := "", ""
	if c.Target != nil {
		master, proxy = " master "+c.Master.Name, " proxy"
	}
	return fmt.Sprintf("%s link add %s%s mtu %d%s type vxlan id %d dstport %d local %s nolearning%s",
		tool("ip", ns), c.Name, in(c.Target), c.MTU, master, c.VNI, c.Port, c.Local, proxy)
}

// Command is `ip link add NAME netns TARGET ... type veth peer OUTER ...`.
func (c AddVeth) Command(ns string) string {
	master := ""
	if c.Master.Index != 0 || c.Master.Name != "" {
		master = " master " + c.Master.Name
	}
	return fmt.Sprintf("%s link add %s%s mtu %d%s type veth peer name %s address %s mtu %d",
		tool("ip", ns), c.Name, in(c.Target), c.MTU, master, c.Outer, c.OuterMAC, c.MTU)
}

// Command is `ip link set NAME ...`.
func (c SetLink) Command(ns string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s link set %s", tool("ip", ns), c.Link.Name)
	if c.Rename != "" {
		fmt.Fprintf(&b, " name %s", c.Rename)
	}
	if c.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", c.MTU)
	}
	if !c.MAC.IsZero() {
		fmt.Fprintf(&b, " address %s", c.MAC)
	}
	if c.Alias != "" {
		fmt.Fprintf(&b, " alias %s", c.Alias)
	}
	if c.NoAlias {
		b.WriteString(" alias ''")
	}
	if c.NoAddrGen {
		b.WriteString(" addrgenmode none")
	}
	switch {
	case c.Master != nil && c.Master.Index == 0:
		b.WriteString(" nomaster")
	case c.Master != nil:
		fmt.Fprintf(&b, " master %s", c.Master.Name)
	}
	switch c.Up {
	case On:
		b.WriteString(" up")
	case Off:
		b.WriteString(" down")
	}
	if c.Port != nil {
		fmt.Fprintf(&b, " type bridge_slave %s", *c.Port)
	}
	return b.String()
}

// String prints what differs from the kernel's defaults, and always learning
// and flood.
func (p PortFlags) String() string {
	s := "learning " + onOff(p.Learning) + " flood " + onOff(p.Flood)
	for _, f := range []struct {
		name     string
		val, def bool
	}{
		{"mcast_flood", p.MulticastFlood, true},
		{"bcast_flood", p.BroadcastFlood, true},
		{"hairpin", p.Hairpin, false},
		{"isolated", p.Isolated, false},
		{"neigh_suppress", p.NeighSuppress, false},
		{"locked", p.Locked, false},
		{"mcast_fast_leave", p.FastLeave, false},
	} {
		if f.val != f.def {
			s += " " + f.name + " " + onOff(f.val)
		}
	}
	if p.Router {
		s += " mcast_router 2"
	}
	return s
}

// Command is `ip link set NAME type bridge ...`.
func (c SetBridge) Command(ns string) string {
	s := fmt.Sprintf("%s link set %s type bridge", tool("ip", ns), c.Link.Name)
	if c.Off.STP {
		s += " stp_state 0"
	}
	if c.Off.VLANFiltering {
		s += " vlan_filtering 0"
	}
	if c.Off.MulticastSnooping {
		s += " mcast_snooping 0"
	}
	if m := c.Snoop; m != nil {
		s += fmt.Sprintf(" mcast_snooping 1 mcast_querier %d mcast_igmp_version %d mcast_query_interval %d mcast_query_response_interval %d mcast_querier_interval %d mcast_membership_interval %d",
			btoi(m.Querier), m.IGMP, ticks(m.QueryInterval), ticks(m.QueryResponse), ticks(m.QuerierAway), ticks(m.Membership))
	}
	if c.Off.DefaultPVID != 0 {
		s += " vlan_default_pvid 0"
	}
	return s
}

// Command is `ip link del NAME`.
func (c DelLink) Command(ns string) string {
	return fmt.Sprintf("%s link del %s", tool("ip", ns), c.Link.Name)
}

// Command is `bridge fdb replace|append MAC dev DEV dst VTEP self permanent`.
func (c SetFDB) Command(ns string) string {
	verb := "replace"
	if c.MAC.IsZero() {
		verb = "append"
	}
	return fmt.Sprintf("%s fdb %s %s dev %s dst %s self permanent", tool("bridge", ns), verb, c.MAC, c.Link.Name, c.VTEP)
}

// Command is `bridge fdb del MAC dev DEV dst VTEP self`.
func (c DelFDB) Command(ns string) string {
	dst := ""
	if c.VTEP.IsValid() {
		dst = " dst " + c.VTEP.String()
	}
	return fmt.Sprintf("%s fdb del %s dev %s%s self", tool("bridge", ns), c.MAC, c.Link.Name, dst)
}

// Command is `bridge fdb replace MAC dev PORT master static`.
func (c SetBridged) Command(ns string) string {
	return fmt.Sprintf("%s fdb replace %s dev %s master static", tool("bridge", ns), c.MAC, c.Link.Name)
}

// Command is `bridge fdb del MAC dev PORT master`.
func (c DelBridged) Command(ns string) string {
	return fmt.Sprintf("%s fdb del %s dev %s master", tool("bridge", ns), c.MAC, c.Link.Name)
}

// Command is `ip neigh replace ADDR lladdr MAC dev DEV nud permanent`.
func (c SetNeigh) Command(ns string) string {
	return fmt.Sprintf("%s neigh replace %s lladdr %s dev %s nud permanent", tool("ip", ns), c.Addr, c.MAC, c.Link.Name)
}

// Command is `ip neigh del ADDR dev DEV`.
func (c DelNeigh) Command(ns string) string {
	return fmt.Sprintf("%s neigh del %s dev %s", tool("ip", ns), c.Addr, c.Link.Name)
}

// Command is `ip addr add PREFIX dev DEV`.
func (c AddAddress) Command(ns string) string {
	nodad := ""
	if c.Prefix.Addr().Is6() {
		nodad = " nodad"
	}
	return fmt.Sprintf("%s addr add %s dev %s%s", tool("ip", ns), c.Prefix, c.Link.Name, nodad)
}

// Command is `ip addr del PREFIX dev DEV`.
func (c DelAddress) Command(ns string) string {
	return fmt.Sprintf("%s addr del %s dev %s", tool("ip", ns), c.Prefix, c.Link.Name)
}
