package nl

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
)

// decodeLink reads RTM_NEWLINK and RTM_DELLINK, of any family.
func decodeLink(body []byte) (l Link, family uint8, err error) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, 0, errMalformed
	}
	family = body[0]
	l.Index = int(int32(readU32(body[4:])))
	l.Up = readU32(body[8:])&unix.IFF_UP != 0
	l.PeerNS = NoNSID
	l.NoAddrGen = true // until IPv6 says otherwise
	err = attrs(body[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = readString(v)
		case unix.IFLA_MTU:
			l.MTU = int(readU32(v))
		case unix.IFLA_MASTER:
			l.Master = int(readU32(v))
		case unix.IFLA_LINK:
			l.Peer = int(readU32(v))
		case unix.IFLA_LINK_NETNSID:
			l.PeerNS = NSID(int32(readU32(v)))
		case unix.IFLA_IFALIAS:
			l.Alias = readString(v)
		case unix.IFLA_ADDRESS:
			if len(v) == len(l.MAC) {
				l.MAC = carrick.MAC(v)
			}
		case unix.IFLA_PARENT_DEV_NAME:
			l.Device = readString(v)
		case unix.IFLA_LINKINFO:
			return decodeLinkInfo(&l, v)
		case unix.IFLA_AF_SPEC:
			return decodeAFSpec(&l, v)
		case unix.IFLA_PROTINFO:
			// Only in messages of the bridge about its port; IPv6 uses it otherwise.
			if family == unix.AF_BRIDGE {
				p, err := decodePort(v)
				l.Port = &p
				return err
			}
		}
		return nil
	})
	return l, family, err
}

// decodeLinkInfo reads IFLA_LINKINFO. The kernel puts each kind before its data
// (rtnl_link_fill).
func decodeLinkInfo(l *Link, b []byte) error {
	slave := ""
	return attrs(b, func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			l.Kind = readString(v)
		case unix.IFLA_INFO_DATA:
			switch l.Kind {
			case KindBridge:
				l.Bridge, err = decodeBridge(v)
			case KindVXLAN:
				l.VXLAN, err = decodeVXLAN(v)
			default:
				err = decodeChild(l, v)
			}
		case unix.IFLA_INFO_SLAVE_KIND:
			slave = readString(v)
		case unix.IFLA_INFO_SLAVE_DATA:
			if slave == KindBridge {
				var p PortFlags
				p, err = decodePort(v)
				l.Port = &p
			}
		}
		return err
	})
}

// decodeAFSpec reads how IPv6 makes addresses for the link. In messages of the
// bridge the attribute holds VLANs instead, without this nesting.
func decodeAFSpec(l *Link, b []byte) error {
	return attrs(b, func(family uint16, v []byte) error {
		if family != unix.AF_INET6 {
			return nil
		}
		return attrs(v, func(typ uint16, v []byte) error {
			if typ == unix.IFLA_INET6_ADDR_GEN_MODE {
				l.NoAddrGen = readU8(v) == addrGenNone
			}
			return nil
		})
	})
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

func decodePort(b []byte) (p PortFlags, err error) {
	err = attrs(b, func(typ uint16, v []byte) error {
		on := readU8(v) != 0
		switch typ {
		case unix.IFLA_BRPORT_LEARNING:
			p.Learning = on
		case unix.IFLA_BRPORT_UNICAST_FLOOD:
			p.Flood = on
		case unix.IFLA_BRPORT_MCAST_FLOOD:
			p.MulticastFlood = on
		case unix.IFLA_BRPORT_BCAST_FLOOD:
			p.BroadcastFlood = on
		case unix.IFLA_BRPORT_MODE:
			p.Hairpin = on
		case unix.IFLA_BRPORT_ISOLATED:
			p.Isolated = on
		case unix.IFLA_BRPORT_NEIGH_SUPPRESS:
			p.NeighSuppress = on
		case unix.IFLA_BRPORT_LOCKED:
			p.Locked = on
		case unix.IFLA_BRPORT_FAST_LEAVE:
			p.FastLeave = on
		case unix.IFLA_BRPORT_MULTICAST_ROUTER:
			p.Router = readU8(v) == routerForGood
		}
		return nil
	})
	return p, err
}

func decodeBridge(b []byte) (*BridgeInfo, error) {
	i := &BridgeInfo{}
	m := Multicast{}
	err := attrs(b, func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFLA_BR_MCAST_SNOOPING:
			i.MulticastSnooping = readU8(v) != 0
		case unix.IFLA_BR_MCAST_QUERIER:
			m.Querier = readU8(v) != 0
		case unix.IFLA_BR_MCAST_IGMP_VERSION:
			m.IGMP = readU8(v)
		case unix.IFLA_BR_MCAST_QUERY_INTVL:
			m.QueryInterval = time.Duration(readU64(v)) * tick
		case unix.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL:
			m.QueryResponse = time.Duration(readU64(v)) * tick
		case unix.IFLA_BR_MCAST_QUERIER_INTVL:
			m.QuerierAway = time.Duration(readU64(v)) * tick
		case unix.IFLA_BR_MCAST_MEMBERSHIP_INTVL:
			m.Membership = time.Duration(readU64(v)) * tick
		case unix.IFLA_BR_VLAN_FILTERING:
			i.VLANFiltering = readU8(v) != 0
		case unix.IFLA_BR_VLAN_DEFAULT_PVID:
			i.DefaultPVID = readU16(v)
		case unix.IFLA_BR_STP_STATE:
			i.STP = readU32(v) != 0
		}
		return nil
	})
	if i.MulticastSnooping {
		i.Multicast = m
	}
	return i, err
}

func decodeVXLAN(b []byte) (*VXLANInfo, error) {
	i := &VXLANInfo{}
	return i, attrs(b, func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			i.VNI = carrick.VNI(readU32(v))
		case unix.IFLA_VXLAN_PORT:
			if len(v) >= 2 {
				i.Port = binary.BigEndian.Uint16(v)
			}
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			i.Local = readAddr(v)
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			i.Remote = readAddr(v)
		case unix.IFLA_VXLAN_LEARNING:
			i.Learning = readU8(v) != 0
		case unix.IFLA_VXLAN_PROXY:
			i.Proxy = readU8(v) != 0
		case unix.IFLA_VXLAN_RSC:
			i.RSC = readU8(v) != 0
		case unix.IFLA_VXLAN_L2MISS:
			i.L2Miss = readU8(v) != 0
		case unix.IFLA_VXLAN_L3MISS:
			i.L3Miss = readU8(v) != 0
		case unix.IFLA_VXLAN_COLLECT_METADATA:
			i.External = readU8(v) != 0
		case unix.IFLA_VXLAN_GBP:
			i.GBP = true // a flag: its presence is its value
		}
		return nil
	})
}

// readAddr reads 4 or 16 bytes; anything else is no address. The unspecified
// address, which the kernel sends for "none", is none as well.
func readAddr(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// decodeFDB reads an RTM_NEWNEIGH of family AF_BRIDGE.
func decodeFDB(body []byte) (FDBEntry, error) {
	if len(body) < sizeofNdmsg {
		return FDBEntry{}, errMalformed
	}
	e := FDBEntry{
		Link:  int(int32(readU32(body[4:]))),
		State: NeighState(readU16(body[8:])),
		Self:  body[10]&unix.NTF_SELF != 0,
		Odd:   body[10]&^(unix.NTF_SELF|unix.NTF_MASTER) != 0,
	}
	return e, attrs(body[sizeofNdmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.NDA_LLADDR:
			if len(v) == len(e.MAC) {
				e.MAC = carrick.MAC(v)
			}
		case unix.NDA_DST:
			e.VTEP = readAddr(v)
		case unix.NDA_MASTER:
			e.Of = int(readU32(v))
		case unix.NDA_VLAN:
			e.VLAN = readU16(v)
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX, ndaNhID:
			e.Odd = true
		}
		return nil
	})
}

// decodeNeighbour reads an RTM_NEWNEIGH of family AF_INET or AF_INET6.
func decodeNeighbour(body []byte) (Neighbour, error) {
	if len(body) < sizeofNdmsg {
		return Neighbour{}, errMalformed
	}
	n := Neighbour{
		Link:  int(int32(readU32(body[4:]))),
		State: NeighState(readU16(body[8:])),
		Odd:   body[10] != 0,
	}
	return n, attrs(body[sizeofNdmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.NDA_DST:
			n.Addr, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			if len(v) == len(n.MAC) {
				n.MAC = carrick.MAC(v)
			}
		}
		return nil
	})
}

// decodeNSID reads RTM_NEWNSID; a namespace that was never met is -1.
func decodeNSID(body []byte) (NSID, error) {
	id := NoNSID
	if len(body) < sizeofRtgenmsg {
		return id, errMalformed
	}
	return id, attrs(body[sizeofRtgenmsg:], func(typ uint16, v []byte) error {
		if typ == unix.NETNSA_NSID && len(v) == 4 {
			id = NSID(int32(readU32(v)))
		}
		return nil
	})
}

const (
	sizeofRtgenmsg = 4  // struct rtgenmsg of linux/rtnetlink.h, padded
	sizeofNdmsg    = 12 // struct ndmsg of linux/neighbour.h
	ndaNhID        = 13 // NDA_NH_ID, which x/sys lacks
)
