package nl

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/netns"
)

// Kinds of devices that stand on another one.
const (
	KindMacvlan = "macvlan"
	KindIPvlan  = "ipvlan"
	KindVLAN    = "vlan"
)

// MacvlanMode is MACVLAN_MODE_* of linux/if_link.h, by the names of ip(8).
type MacvlanMode string

// The modes of a macvlan device.
const (
	MacvlanPrivate  MacvlanMode = "private"
	MacvlanVEPA     MacvlanMode = "vepa"
	MacvlanBridge   MacvlanMode = "bridge"
	MacvlanPassthru MacvlanMode = "passthru"
)

func (m MacvlanMode) number() uint32 {
	switch m {
	case MacvlanPrivate:
		return 1
	case MacvlanVEPA:
		return 2
	case MacvlanPassthru:
		return 8
	}
	return 4 // bridge
}

func macvlanMode(n uint32) MacvlanMode {
	for _, m := range []MacvlanMode{MacvlanPrivate, MacvlanVEPA, MacvlanBridge, MacvlanPassthru} {
		if m.number() == n {
			return m
		}
	}
	return MacvlanMode(fmt.Sprint(n)) // source (16), or one that came later
}

// IPvlanMode is IPVLAN_MODE_* of linux/if_link.h, by the names of ip(8). It is the
// parent's: all devices on one parent have it, and setting it on one sets it on all.
type IPvlanMode string

// The modes of an ipvlan device.
const (
	IPvlanL2  IPvlanMode = "l2"
	IPvlanL3  IPvlanMode = "l3"
	IPvlanL3S IPvlanMode = "l3s"
)

func (m IPvlanMode) number() uint16 {
	switch m {
	case IPvlanL3:
		return 1
	case IPvlanL3S:
		return 2
	}
	return 0 // l2
}

func ipvlanMode(n uint16) IPvlanMode {
	for _, m := range []IPvlanMode{IPvlanL2, IPvlanL3, IPvlanL3S} {
		if m.number() == n {
			return m
		}
	}
	return IPvlanMode(fmt.Sprint(n))
}

// IPvlanFlag is IPVLAN_F_* of linux/if_link.h, by the names of ip(8), and like the mode
// the parent's.
type IPvlanFlag string

// The flags of an ipvlan device; bridge is none of the other two.
const (
	IPvlanBridge  IPvlanFlag = "bridge"
	IPvlanPrivate IPvlanFlag = "private"
	IPvlanVEPA    IPvlanFlag = "vepa"
)

func (f IPvlanFlag) number() uint16 {
	switch f {
	case IPvlanPrivate:
		return 1
	case IPvlanVEPA:
		return 2
	}
	return 0
}

func ipvlanFlag(n uint16) IPvlanFlag {
	switch n {
	case 1:
		return IPvlanPrivate
	case 2:
		return IPvlanVEPA
	}
	return IPvlanBridge
}

// IPvlanInfo is how an ipvlan device forwards.
type IPvlanInfo struct {
	Mode IPvlanMode
	Flag IPvlanFlag
}

// Attributes of IFLA_INFO_DATA, of linux/if_link.h.
const (
	iflaMacvlanMode = 1
	iflaIPvlanMode  = 1
	iflaIPvlanFlags = 2
	iflaVLANID      = 1
)

// AddMacvlan makes a macvlan device, down, on a parent of the handle's namespace: in
// Target, or beside its parent if that is nil. Its kind of parent takes either macvlan
// devices or ipvlan devices (EBUSY, as of a bridge's port), and in passthru mode one
// only (EINVAL).
type AddMacvlan struct {
	Name   string
	Parent Ref
	Target netns.Namespace
	Mode   MacvlanMode
	MAC    carrick.MAC // zero: the kernel makes one up
	MTU    int         // bytes; 0: the parent's. More than that is EINVAL
}

// AddIPvlan makes an ipvlan device, down, with its parent's MAC: see [AddMacvlan].
type AddIPvlan struct {
	Name   string
	Parent Ref
	Target netns.Namespace
	IPvlanInfo
	MTU int
}

// AddVLAN makes an 802.1q sub-interface, down, beside its parent.
type AddVLAN struct {
	Name   string
	Parent Ref
	ID     uint16 // 1 to 4094
}

// SetMacvlan gives a macvlan device another mode; to and from passthru the kernel
// refuses.
type SetMacvlan struct {
	Link Ref
	Mode MacvlanMode
}

// SetIPvlan gives an ipvlan device, and all others of its parent, another mode.
type SetIPvlan struct {
	Link Ref
	IPvlanInfo
}

// RouteProtocol marks routes that Carrick wrote, in rtm_protocol: a number that
// rt_protos of iproute2 gives to nobody ("carrick" is 67 in /etc/iproute2/rt_protos if
// an operator likes to read it).
const RouteProtocol = 67

// SetRoute adds a route to the main table, or alters the one to its destination that has
// the same metric. The errno is ENETUNREACH if the next hop is on no link's segment, and
// ENETDOWN if its link is down.
type SetRoute struct{ Path }

// DelRoute removes a route that SetRoute made; ErrNotFound if there is none.
type DelRoute struct{ Path }

// Path is a route as Carrick writes it: by a next hop, by a link, by a next hop that is
// taken to be on a link whatever the link's addresses say, or to nowhere. Paths are
// comparable, and compare as routes do but for the name of their link.
type Path struct {
	Dst netip.Prefix // masked
	Via netip.Addr   // zero: on Link
	// Link is where Dst is, or Via if both are given; zero: where the kernel finds Via.
	Link Ref
	// Unreachable: packets to Dst are refused with an ICMP message. It has neither Via
	// nor Link.
	Unreachable bool
	// Source is the address that the host's own packets have unless they say another; zero:
	// as the kernel chooses.
	Source netip.Addr
	// MTU is the largest packet that the way carries, in bytes; 0: what its link does.
	MTU int
	// Metric is the route's rank among those to the same destination, the least first;
	// 0: what the kernel gives one without, 0 of IPv4 and 1024 of IPv6.
	Metric uint32
}

// String is the route as ip(8) prints it, without its protocol.
func (p Path) String() string {
	var b strings.Builder
	if p.Unreachable {
		b.WriteString("unreachable ")
	}
	b.WriteString(p.Dst.String())
	if p.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", p.Via)
	}
	if p.Link.Index != 0 || p.Link.Name != "" {
		fmt.Fprintf(&b, " dev %s", p.Link.Name)
		if p.Via.IsValid() {
			b.WriteString(" onlink")
		}
	}
	if p.Source.IsValid() {
		fmt.Fprintf(&b, " src %s", p.Source)
	}
	if p.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", p.Metric)
	}
	if p.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", p.MTU)
	}
	return b.String()
}

// SetProxy has a link answer neighbour solicitations for an IPv6 address that is
// elsewhere, if its proxy_ndp and forwarding are on. Repeating it changes nothing.
type SetProxy struct {
	Link Ref
	Addr netip.Addr
}

// DelProxy is the inverse; ErrNotFound if there is none.
type DelProxy struct {
	Link Ref
	Addr netip.Addr
}

func (AddMacvlan) isChange() {}
func (AddIPvlan) isChange()  {}
func (AddVLAN) isChange()    {}
func (SetMacvlan) isChange() {}
func (SetIPvlan) isChange()  {}
func (SetRoute) isChange()   {}
func (DelRoute) isChange()   {}
func (SetProxy) isChange()   {}
func (DelProxy) isChange()   {}

// in is the rest of a command that makes a device in another namespace.
func in(target netns.Namespace) string {
	if target == nil {
		return ""
	}
	return " netns " + target.Name()
}

// Command is `ip link add NAME link PARENT type macvlan ...`.
func (c AddMacvlan) Command(ns string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s link add %s link %s%s", tool("ip", ns), c.Name, c.Parent.Name, in(c.Target))
	if !c.MAC.IsZero() {
		fmt.Fprintf(&b, " address %s", c.MAC)
	}
	if c.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", c.MTU)
	}
	fmt.Fprintf(&b, " type macvlan mode %s", c.Mode)
	return b.String()
}

// Command is `ip link add NAME link PARENT type ipvlan ...`.
func (c AddIPvlan) Command(ns string) string {
	mtu := ""
	if c.MTU != 0 {
		mtu = fmt.Sprintf(" mtu %d", c.MTU)
	}
	return fmt.Sprintf("%s link add %s link %s%s%s type ipvlan mode %s %s", tool("ip", ns), c.Name, c.Parent.Name, in(c.Target), mtu, c.Mode, c.Flag)
}

// Command is `ip link add NAME link PARENT type vlan id ID`.
func (c AddVLAN) Command(ns string) string {
	return fmt.Sprintf("%s link add %s link %s type vlan id %d", tool("ip", ns), c.Name, c.Parent.Name, c.ID)
}

// Command is `ip link set NAME type macvlan mode MODE`.
func (c SetMacvlan) Command(ns string) string {
	return fmt.Sprintf("%s link set %s type macvlan mode %s", tool("ip", ns), c.Link.Name, c.Mode)
}

// Command is `ip link set NAME type ipvlan mode MODE FLAG`.
func (c SetIPvlan) Command(ns string) string {
	return fmt.Sprintf("%s link set %s type ipvlan mode %s %s", tool("ip", ns), c.Link.Name, c.Mode, c.Flag)
}

// Command is `ip route replace DST via VIA proto 67`.
func (c SetRoute) Command(ns string) string {
	return fmt.Sprintf("%s route replace %s proto %d", tool("ip", ns), c.Path, RouteProtocol)
}

// Command is `ip route del DST via VIA proto 67`.
func (c DelRoute) Command(ns string) string {
	return fmt.Sprintf("%s route del %s proto %d", tool("ip", ns), c.Path, RouteProtocol)
}

// Command is `ip neigh replace proxy ADDR dev DEV`.
func (c SetProxy) Command(ns string) string {
	return fmt.Sprintf("%s neigh replace proxy %s dev %s", tool("ip", ns), c.Addr, c.Link.Name)
}

// Command is `ip neigh del proxy ADDR dev DEV`.
func (c DelProxy) Command(ns string) string {
	return fmt.Sprintf("%s neigh del proxy %s dev %s", tool("ip", ns), c.Addr, c.Link.Name)
}

// child begins the message that makes a device on another one.
func (e *encoder) child(seq uint32, name string, parent Ref, target netns.Namespace, mtu int) {
	e.begin(unix.RTM_NEWLINK, create, seq)
	e.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
	e.attrString(unix.IFLA_IFNAME, name)
	e.attrU32(unix.IFLA_LINK, uint32(parent.Index))
	if target != nil {
		e.attrU32(unix.IFLA_NET_NS_FD, uint32(target.FD()))
	}
	if mtu != 0 {
		e.attrU32(unix.IFLA_MTU, uint32(mtu))
	}
}

// underlay appends a change of this file, and says whether c is one.
func (e *encoder) underlay(c Change, seq uint32) bool {
	switch c := c.(type) {
	case AddMacvlan:
		e.child(seq, c.Name, c.Parent, c.Target, c.MTU)
		if !c.MAC.IsZero() {
			e.attr(unix.IFLA_ADDRESS, c.MAC[:])
		}
		e.kind(KindMacvlan, func() { e.attrU32(iflaMacvlanMode, c.Mode.number()) })
	case AddIPvlan:
		e.child(seq, c.Name, c.Parent, c.Target, c.MTU)
		e.kind(KindIPvlan, func() { e.ipvlan(c.IPvlanInfo) })
	case AddVLAN:
		e.child(seq, c.Name, c.Parent, nil, 0)
		e.kind(KindVLAN, func() { e.attrU16(iflaVLANID, c.ID) })
	case SetMacvlan:
		e.begin(unix.RTM_NEWLINK, 0, seq)
		e.ifinfo(unix.AF_UNSPEC, c.Link.Index, 0, 0)
		e.kind(KindMacvlan, func() { e.attrU32(iflaMacvlanMode, c.Mode.number()) })
	case SetIPvlan:
		e.begin(unix.RTM_NEWLINK, 0, seq)
		e.ifinfo(unix.AF_UNSPEC, c.Link.Index, 0, 0)
		e.kind(KindIPvlan, func() { e.ipvlan(c.IPvlanInfo) })
	case SetRoute:
		e.begin(unix.RTM_NEWROUTE, replace, seq)
		e.route(c.Path)
	case DelRoute:
		e.begin(unix.RTM_DELROUTE, 0, seq)
		e.route(c.Path)
	case SetProxy:
		e.begin(unix.RTM_NEWNEIGH, replace, seq)
		e.ndmsg(family(c.Addr), c.Link.Index, 0, unix.NTF_PROXY)
		e.addr(unix.NDA_DST, c.Addr)
	case DelProxy:
		e.begin(unix.RTM_DELNEIGH, 0, seq)
		e.ndmsg(family(c.Addr), c.Link.Index, 0, unix.NTF_PROXY)
		e.addr(unix.NDA_DST, c.Addr)
	default:
		return false
	}
	return true
}

func (e *encoder) ipvlan(i IPvlanInfo) {
	e.attrU16(iflaIPvlanMode, i.Mode.number())
	e.attrU16(iflaIPvlanFlags, i.Flag.number())
}

// route appends struct rtmsg (family, dst_len, src_len, tos, table, protocol, scope,
// type, flags) and what the route is.
func (e *encoder) route(p Path) {
	kind, scope := uint8(unix.RTN_UNICAST), uint8(unix.RT_SCOPE_UNIVERSE)
	flags := uint32(0)
	switch {
	case p.Unreachable:
		kind = unix.RTN_UNREACHABLE
	case !p.Via.IsValid() && p.Dst.Addr().Is4():
		scope = unix.RT_SCOPE_LINK // which fib_check_nh wants of a route without a next hop
	case p.Via.IsValid() && p.Link.Index != 0:
		flags = unix.RTNH_F_ONLINK
	}
	e.buf = append(e.buf, family(p.Dst.Addr()), uint8(p.Dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, RouteProtocol, scope, kind)
	e.u32(flags)
	e.addr(unix.RTA_DST, p.Dst.Addr())
	if p.Via.IsValid() {
		e.addr(unix.RTA_GATEWAY, p.Via)
	}
	if p.Link.Index != 0 {
		e.attrU32(unix.RTA_OIF, uint32(p.Link.Index))
	}
	if p.Source.IsValid() {
		e.addr(unix.RTA_PREFSRC, p.Source)
	}
	if p.Metric != 0 {
		e.attrU32(unix.RTA_PRIORITY, p.Metric)
	}
	if p.MTU != 0 {
		e.nest(unix.RTA_METRICS, func() { e.attrU32(unix.RTAX_MTU, uint32(p.MTU)) })
	}
}

// decodeChild reads IFLA_INFO_DATA of a device that stands on another one.
func decodeChild(l *Link, b []byte) error {
	switch l.Kind {
	case KindMacvlan:
		return attrs(b, func(typ uint16, v []byte) error {
			if typ == iflaMacvlanMode {
				l.Macvlan = macvlanMode(readU32(v))
			}
			return nil
		})
	case KindIPvlan:
		i := &IPvlanInfo{}
		l.IPvlan = i
		return attrs(b, func(typ uint16, v []byte) error {
			switch typ {
			case iflaIPvlanMode:
				i.Mode = ipvlanMode(readU16(v))
			case iflaIPvlanFlags:
				i.Flag = ipvlanFlag(readU16(v))
			}
			return nil
		})
	case KindVLAN:
		return attrs(b, func(typ uint16, v []byte) error {
			if typ == iflaVLANID {
				l.VLAN = readU16(v)
			}
			return nil
		})
	}
	return nil
}
