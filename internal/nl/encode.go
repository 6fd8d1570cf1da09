package nl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	create  = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	// appendTo adds a further destination; only the zero MAC and multicast may
	// have several (vxlan_fdb_update_existing). Replace is refused for them.
	appendTo = unix.NLM_F_CREATE | unix.NLM_F_APPEND
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// change appends c. The error is the caller's mistake: a Change of a type that
// is not this package's.
func (e *encoder) change(c Change, seq uint32) error {
	switch c := c.(type) {
	case AddBridge:
		e.addBridge(c, seq)
	case AddVXLAN:
		e.addVXLAN(c, seq)
	case AddVeth:
		e.addVeth(c, seq)
	case SetLink:
		e.setLink(c, seq)
	case SetBridge:
		e.setBridge(c, seq)
	case DelLink:
		e.begin(unix.RTM_DELLINK, 0, seq)
		e.ifinfo(unix.AF_UNSPEC, c.Link.Index, 0, 0)
	case SetFDB:
		flags := uint16(replace)
		if c.MAC.IsZero() {
			flags = appendTo
		}
		e.begin(unix.RTM_NEWNEIGH, flags, seq)
		e.ndmsg(unix.AF_BRIDGE, c.Link.Index, StatePermanent, unix.NTF_SELF)
		e.attr(unix.NDA_LLADDR, c.MAC[:])
		e.addr(unix.NDA_DST, c.VTEP)
	case DelFDB:
		e.begin(unix.RTM_DELNEIGH, 0, seq)
		e.ndmsg(unix.AF_BRIDGE, c.Link.Index, StatePermanent, unix.NTF_SELF)
		e.attr(unix.NDA_LLADDR, c.MAC[:])
		if c.VTEP.IsValid() {
			e.addr(unix.NDA_DST, c.VTEP)
		}
	case SetBridged:
		e.begin(unix.RTM_NEWNEIGH, replace, seq)
		e.ndmsg(unix.AF_BRIDGE, c.Link.Index, StateNoARP, unix.NTF_MASTER)
		e.attr(unix.NDA_LLADDR, c.MAC[:])
	case DelBridged:
		e.begin(unix.RTM_DELNEIGH, 0, seq)
		e.ndmsg(unix.AF_BRIDGE, c.Link.Index, StateNoARP, unix.NTF_MASTER)
		e.attr(unix.NDA_LLADDR, c.MAC[:])
	case SetNeigh:
		e.begin(unix.RTM_NEWNEIGH, replace, seq)
		e.ndmsg(family(c.Addr), c.Link.Index, StatePermanent, 0)
		e.addr(unix.NDA_DST, c.Addr)
		e.attr(unix.NDA_LLADDR, c.MAC[:])
	case DelNeigh:
		e.begin(unix.RTM_DELNEIGH, 0, seq)
		e.ndmsg(family(c.Addr), c.Link.Index, 0, 0)
		e.addr(unix.NDA_DST, c.Addr)
	case AddAddress:
		e.begin(unix.RTM_NEWADDR, create, seq)
		e.ifaddr(family(c.Prefix.Addr()), c.Prefix.Bits(), c.Link.Index)
		e.addr(unix.IFA_LOCAL, c.Prefix.Addr())
		e.addr(unix.IFA_ADDRESS, c.Prefix.Addr())
		if c.Prefix.Addr().Is6() {
			e.attrU32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
		}
	case DelAddress:
		e.begin(unix.RTM_DELADDR, 0, seq)
		e.ifaddr(family(c.Prefix.Addr()), c.Prefix.Bits(), c.Link.Index)
		e.addr(unix.IFA_LOCAL, c.Prefix.Addr())
		if c.Prefix.Addr().Is6() {
			e.addr(unix.IFA_ADDRESS, c.Prefix.Addr()) // of IPv4 it would be the peer's (inet_rtm_deladdr)
		}
	case SetVF:
		e.vf(c, seq)
	default:
		if !e.underlay(c, seq) {
			return fmt.Errorf("nl: %T is not a change of this package", c)
		}
	}
	e.end()
	return nil
}

func (e *encoder) addBridge(c AddBridge, seq uint32) {
	e.begin(unix.RTM_NEWLINK, create, seq)
	e.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
	e.attrString(unix.IFLA_IFNAME, c.Name)
	e.kind(KindBridge, func() {
		e.attrU8(unix.IFLA_BR_MCAST_SNOOPING, 0)
		e.attrU16(unix.IFLA_BR_VLAN_DEFAULT_PVID, 0)
	})
}

// setBridge turns VLAN filtering off before the default PVID is set, which the
// kernel refuses otherwise; it takes them in this order, not the message's
// (br_changelink).
func (e *encoder) setBridge(c SetBridge, seq uint32) {
	e.begin(unix.RTM_NEWLINK, 0, seq)
	e.ifinfo(unix.AF_UNSPEC, c.Link.Index, 0, 0)
	e.kind(KindBridge, func() {
		if c.Off.STP {
			e.attrU32(unix.IFLA_BR_STP_STATE, 0)
		}
		if c.Off.VLANFiltering {
			e.attrU8(unix.IFLA_BR_VLAN_FILTERING, 0)
		}
		if c.Off.MulticastSnooping {
			e.attrU8(unix.IFLA_BR_MCAST_SNOOPING, 0)
		}
		if m := c.Snoop; m != nil {
			e.attrU8(unix.IFLA_BR_MCAST_SNOOPING, 1)
			e.attrBool(unix.IFLA_BR_MCAST_QUERIER, m.Querier)
			e.attrU8(unix.IFLA_BR_MCAST_IGMP_VERSION, m.IGMP)
			e.attrU64(unix.IFLA_BR_MCAST_QUERY_INTVL, ticks(m.QueryInterval))
			e.attrU64(unix.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, ticks(m.QueryResponse))
			e.attrU64(unix.IFLA_BR_MCAST_QUERIER_INTVL, ticks(m.QuerierAway))
			e.attrU64(unix.IFLA_BR_MCAST_MEMBERSHIP_INTVL, ticks(m.Membership))
		}
		if c.Off.DefaultPVID != 0 {
			e.attrU16(unix.IFLA_BR_VLAN_DEFAULT_PVID, 0)
		}
	})
}

// MDB_RTR_TYPE_TEMP_QUERY, the kernel's default, and MDB_RTR_TYPE_PERM of
// linux/if_bridge.h.
const (
	routerByQuery = 1
	routerForGood = 2
)

// tick is the unit of a bridge's times: clock_t with USER_HZ of 100.
const tick = 10 * time.Millisecond

func ticks(d time.Duration) uint64 { return uint64(d / tick) }

func (e *encoder) addVXLAN(c AddVXLAN, seq uint32) {
	e.begin(unix.RTM_NEWLINK, create, seq)
	e.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
	e.attrString(unix.IFLA_IFNAME, c.Name)
	if c.Target != nil {
		e.attrU32(unix.IFLA_NET_NS_FD, uint32(c.Target.FD()))
	}
	e.attrU32(unix.IFLA_MTU, uint32(c.MTU))
	if c.Master.Index != 0 {
		e.attrU32(unix.IFLA_MASTER, uint32(c.Master.Index))
	}
	e.kind(KindVXLAN, func() {
		e.attrU32(unix.IFLA_VXLAN_ID, uint32(c.VNI))
		e.attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, c.Port))
		if c.Local.Unmap().Is4() {
			e.addr(unix.IFLA_VXLAN_LOCAL, c.Local)
		} else {
			e.addr(unix.IFLA_VXLAN_LOCAL6, c.Local)
		}
		e.attrU8(unix.IFLA_VXLAN_LEARNING, 0) // the kernel's default is on
		if c.Target != nil {
			e.attrU8(unix.IFLA_VXLAN_PROXY, 1)
		}
	})
}

// addVeth sends the end in Target as the device and Outer as its peer: only the
// device, not the peer, can be given a master in the message that makes it.
func (e *encoder) addVeth(c AddVeth, seq uint32) {
	e.begin(unix.RTM_NEWLINK, create, seq)
	e.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
	e.attrString(unix.IFLA_IFNAME, c.Name)
	if c.Target != nil {
		e.attrU32(unix.IFLA_NET_NS_FD, uint32(c.Target.FD()))
	}
	e.attrU32(unix.IFLA_MTU, uint32(c.MTU))
	if c.Master.Index != 0 {
		e.attrU32(unix.IFLA_MASTER, uint32(c.Master.Index))
	}
	e.kind(KindVeth, func() {
		e.nest(vethInfoPeer, func() {
			e.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
			e.attrString(unix.IFLA_IFNAME, c.Outer)
			e.attrU32(unix.IFLA_MTU, uint32(c.MTU))
			if !c.OuterMAC.IsZero() {
				e.attr(unix.IFLA_ADDRESS, c.OuterMAC[:])
			}
		})
	})
}

// setLink is RTM_NEWLINK without NLM_F_CREATE: unlike RTM_SETLINK it takes a
// bridge port's flags as well (rtnl_changelink).
func (e *encoder) setLink(c SetLink, seq uint32) {
	e.begin(unix.RTM_NEWLINK, 0, seq)
	flags, mask := uint32(0), uint32(0)
	if c.Up != Keep {
		mask = unix.IFF_UP
	}
	if c.Up == On {
		flags = unix.IFF_UP
	}
	e.ifinfo(unix.AF_UNSPEC, c.Link.Index, flags, mask)
	if c.Rename != "" {
		e.attrString(unix.IFLA_IFNAME, c.Rename)
	}
	if c.MTU != 0 {
		e.attrU32(unix.IFLA_MTU, uint32(c.MTU))
	}
	if !c.MAC.IsZero() {
		e.attr(unix.IFLA_ADDRESS, c.MAC[:])
	}
	if c.Alias != "" || c.NoAlias {
		e.attr(unix.IFLA_IFALIAS, []byte(c.Alias)) // of no length: none (dev_set_alias)
	}
	if c.Master != nil {
		e.attrU32(unix.IFLA_MASTER, uint32(c.Master.Index))
	}
	if p := c.Port; p != nil {
		e.nest(unix.IFLA_LINKINFO, func() {
			e.attrString(unix.IFLA_INFO_SLAVE_KIND, KindBridge)
			e.nest(unix.IFLA_INFO_SLAVE_DATA|unix.NLA_F_NESTED, func() {
				e.attrBool(unix.IFLA_BRPORT_LEARNING, p.Learning)
				e.attrBool(unix.IFLA_BRPORT_UNICAST_FLOOD, p.Flood)
				e.attrBool(unix.IFLA_BRPORT_MCAST_FLOOD, p.MulticastFlood)
				e.attrBool(unix.IFLA_BRPORT_BCAST_FLOOD, p.BroadcastFlood)
				e.attrBool(unix.IFLA_BRPORT_MODE, p.Hairpin)
				e.attrBool(unix.IFLA_BRPORT_ISOLATED, p.Isolated)
				e.attrBool(unix.IFLA_BRPORT_NEIGH_SUPPRESS, p.NeighSuppress)
				e.attrBool(unix.IFLA_BRPORT_LOCKED, p.Locked)
				e.attrBool(unix.IFLA_BRPORT_FAST_LEAVE, p.FastLeave)
				router := uint8(routerByQuery)
				if p.Router {
					router = routerForGood
				}
				e.attrU8(unix.IFLA_BRPORT_MULTICAST_ROUTER, router)
			})
		})
	}
	if c.NoAddrGen {
		e.nest(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, func() {
			e.nest(unix.AF_INET6|unix.NLA_F_NESTED, func() {
				e.attrU8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenNone)
			})
		})
	}
}

// kind appends IFLA_LINKINFO.
func (e *encoder) kind(kind string, data func()) {
	e.nest(unix.IFLA_LINKINFO, func() {
		e.attrString(unix.IFLA_INFO_KIND, kind)
		e.nest(unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data)
	})
}

func (e *encoder) addr(typ uint16, a netip.Addr) {
	e.attr(typ, a.Unmap().AsSlice())
}

func family(a netip.Addr) uint8 {
	if a.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
