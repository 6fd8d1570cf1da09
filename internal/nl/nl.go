// Package nl speaks rtnetlink in Carrick's types: it lists, changes and watches
// the links, forwarding rows and neighbours of one network namespace.
//
// It is the only importer of a netlink library and knows the kernel's messages
// and their traps, so that nobody else has to. It knows nothing of plans,
// networks or endpoints and decides nothing: what is sent is what the caller
// said, one [Change] at a time.
package nl

import (
	"context"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/netns"
)

// Kernel opens handles. [Linux] is the real one; package nltest has a fake.
type Kernel interface {
	// Open returns a handle whose messages are sent inside ns, which must stay
	// open as long as the handle.
	Open(ctx context.Context, ns netns.Namespace) (Handle, error)
}

// Handle sends requests to the kernel inside one network namespace.
//
// It is safe for concurrent use; requests go one after another. Errors are
// *[OpError] and wrap the kernel's errno, and one of [ErrNotFound],
// [ErrExists], [ErrNotSupported] where that is what the errno meant.
type Handle interface {
	// Links lists all links of the namespace by index.
	Links(ctx context.Context) ([]Link, error)
	// Link returns one link, by index, or by name if the index is 0; ErrNotFound
	// if there is none.
	Link(ctx context.Context, ref Ref) (Link, error)
	// Peer returns the other end of a veth of this namespace, wherever it is:
	// its name, MTU, MAC and whether it is up. Reading needs no access to that
	// other namespace but CAP_NET_ADMIN over it.
	Peer(ctx context.Context, veth Link) (Link, error)
	// FDB lists the rows of every bridge and vxlan device, in the kernel's order.
	FDB(ctx context.Context) ([]FDBEntry, error)
	// Neighbours lists the IPv4 and IPv6 neighbours of one link.
	Neighbours(ctx context.Context, link Ref) ([]Neighbour, error)
	// Proxies lists the IPv6 addresses for which links of the namespace answer.
	Proxies(ctx context.Context) ([]Proxy, error)
	// VFs reads which MAC a physical function lets each of its virtual functions send
	// from, by number; zero: its driver says none. It is empty for any other link.
	VFs(ctx context.Context, pf Ref) (map[int]carrick.MAC, error)
	// NSID is the number by which this namespace knows another; NoNSID if it has
	// never met it.
	NSID(ctx context.Context, other netns.Namespace) (NSID, error)
	// Addresses lists the addresses of all links.
	Addresses(ctx context.Context) ([]Address, error)
	// Sysctls reads settings of the namespace, by their names as sysctl(8) has them,
	// all below net. What the kernel does not have is missing in the answer.
	Sysctls(ctx context.Context, names ...string) (map[string]string, error)
	// Routes lists the unicast routes of the main table, and those of Carrick's that lead
	// nowhere.
	Routes(ctx context.Context) ([]Route, error)
	// Way asks how a packet to an address leaves, sent from another one, if that is
	// valid.
	Way(ctx context.Context, to, from netip.Addr) (Way, error)
	// Notices watches what decides on ways from now on.
	Notices(ctx context.Context) (Notices, error)
	// Send sends changes in order and returns an error per change, or nil if all
	// went well. A failed change does not keep the rest from being sent. When
	// ctx ends or the socket breaks, the rest get that error.
	Send(ctx context.Context, changes ...Change) []error
	// Subscribe watches the namespace's links from now on.
	Subscribe(ctx context.Context) (Events, error)
	// Close ends the handle. The second call does nothing.
	Close() error
}

// Events is a subscription to a namespace's link changes, our own included.
// One call of Poll at a time, and one of Wait, which may be under way meanwhile;
// Close may be called at any time.
type Events interface {
	// Wait blocks until Poll has something to say, and takes nothing away. ErrClosed
	// follows Close; any other error but ctx's says that the subscription is broken.
	Wait(ctx context.Context) error
	// Poll returns all events that are there, perhaps none, without waiting. The
	// kernel queues the event of a change before it acknowledges the change, so
	// after Send all of Send's are there. ErrOverrun says that the kernel dropped
	// some: everything must be read again, and the subscription goes on. ErrClosed
	// follows Close.
	Poll() ([]LinkEvent, error)
	Close() error
}

// LinkEvent says that a link changed.
type LinkEvent struct {
	Link Link
	Gone bool // the link left the namespace; only Index and Name are set
	// PortOnly marks a message of the bridge about its port: of Link, only
	// Index, Name, Master and Port are set.
	PortOnly bool
}

// NSID is a namespace's number as seen from another one.
type NSID int

// NoNSID says that one namespace does not know the other.
const NoNSID NSID = -1

// Ref names a link. Index counts, Name is for people: a device that was deleted
// and made again under the same name has another index.
type Ref struct {
	Index int
	Name  string
}

// Link kinds as IFLA_INFO_KIND has them.
const (
	KindBridge = "bridge"
	KindVXLAN  = "vxlan"
	KindVeth   = "veth"
)

// Link is what the kernel says of one device.
type Link struct {
	Ref
	Kind   string // "" for hardware and the loopback device
	MTU    int    // bytes
	Up     bool   // administratively
	Master int    // index of the bridge it is a port of; 0 = none
	Alias  string
	MAC    carrick.MAC
	// Device is the address of the hardware below, as 0000:01:10.0 on PCI; "" if there
	// is none, or the kernel does not say (IFLA_PARENT_DEV_NAME, since 5.13).
	Device string
	// Peer is the index of a veth's other end, in the namespace PeerNS; of the device
	// a vxlan device is bound to, 0 = none; or of the parent of a device that stands
	// on one.
	Peer   int
	PeerNS NSID // NoNSID: this namespace
	// NoAddrGen says that the kernel makes no IPv6 link-local address for it, or
	// that it has no IPv6 at all.
	NoAddrGen bool

	Port   *PortFlags  // if it is a port of a bridge
	Bridge *BridgeInfo // if Kind is KindBridge
	VXLAN  *VXLANInfo  // if Kind is KindVXLAN

	Macvlan MacvlanMode // if Kind is KindMacvlan
	IPvlan  *IPvlanInfo // if Kind is KindIPvlan
	VLAN    uint16      // the 802.1q id, if Kind is KindVLAN
}

// BridgeInfo is what of a bridge decides how it forwards.
type BridgeInfo struct {
	MulticastSnooping bool
	VLANFiltering     bool
	DefaultPVID       uint16 // 0 = rows are not doubled for a VLAN
	STP               bool
	Multicast         Multicast // zero unless MulticastSnooping
}

// Multicast is how a bridge that snoops learns who wants what. Times are in steps
// of 10 ms.
type Multicast struct {
	Querier       bool          // it asks, if nobody else does
	IGMP          uint8         // version of its questions to IPv4, 2 or 3
	QueryInterval time.Duration // how often; at least 1 s
	QueryResponse time.Duration // within what time members answer
	QuerierAway   time.Duration // after which another querier is taken to be gone
	Membership    time.Duration // how long a member that is silent is still one
}

// PortFlags is how a bridge treats one of its ports.
type PortFlags struct {
	Learning       bool
	Flood          bool // unknown unicast
	MulticastFlood bool
	BroadcastFlood bool
	Hairpin        bool
	Isolated       bool
	NeighSuppress  bool
	Locked         bool
	Router         bool // it gets all multicast, for good; else when queries come from there
	FastLeave      bool // one member behind it that leaves a group is the last one
}

// VXLANInfo is what of a vxlan device cannot be changed in place.
type VXLANInfo struct {
	VNI      carrick.VNI
	Port     uint16
	Local    netip.Addr // zero = not set
	Remote   netip.Addr // zero = not set
	Learning bool
	Proxy    bool
	RSC      bool
	L2Miss   bool
	L3Miss   bool
	External bool // collects metadata, takes every VNI of its port
	GBP      bool
}

// Over6 says whether the device's packets are IPv6: its addresses say so, and
// without any it is IPv4 (vxlan_config_validate).
func (v VXLANInfo) Over6() bool { return v.Local.Is6() || v.Remote.Is6() }

// FDBEntry is one row of a forwarding database.
type FDBEntry struct {
	Link  int // index of the port or vxlan device
	MAC   carrick.MAC
	VTEP  netip.Addr // of a vxlan device's row
	Self  bool       // the device's own row
	Of    int        // index of the bridge whose row it is (master); 0 = none
	State NeighState
	VLAN  uint16
	// Odd marks a row with a port, VNI, device, next hop or flag of its own,
	// which a row that Carrick writes never has.
	Odd bool
}

// NeighState is the kernel's NUD_* bits.
type NeighState uint16

// States of rows that do not age. For a bridge's row StatePermanent means that
// the MAC is the bridge's own, and StateNoARP is what iproute2 calls static.
const (
	StateReachable NeighState = 0x02
	StateNoARP     NeighState = 0x40
	StatePermanent NeighState = 0x80
)

// Neighbour is one row of the ARP or ND table.
type Neighbour struct {
	Link  int
	Addr  netip.Addr
	MAC   carrick.MAC
	State NeighState
	Odd   bool // with a flag that Carrick never sets
}

// Address is an address of a link.
type Address struct {
	Link   int
	Prefix netip.Prefix // the address itself, not masked
}

// Proxy is an address that is elsewhere and for which a link answers neighbour
// solicitations.
type Proxy struct {
	Link int
	Addr netip.Addr
}

// Route is a route of the main table.
type Route struct {
	Dst    netip.Prefix // masked; /0 for a default route
	Link   int          // of the first next hop; 0 if there is none
	Via    netip.Addr   // of the first next hop; zero = on the link
	Source netip.Addr   // preferred source; zero = not set
	// Protocol is who wrote it: rtm_protocol, see [RouteProtocol].
	Protocol uint8
	Metric   uint32
	MTU      int // bytes; 0 = not set
	// Unreachable: it leads nowhere; see [Path].
	Unreachable bool
	// OnLink: Via was taken to be on the link whatever its addresses say.
	OnLink bool
}
