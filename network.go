package carrick

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Network is a network's cluster-wide configuration, equal on every host.
type Network struct {
	ID       NetworkID `json:"id"`
	Name     string    `json:"name,omitempty"` // Docker's name as an engine reported it; "" until one did
	Tenant   string    `json:"tenant"`
	Mode     Mode      `json:"mode"`
	VNI      VNI       `json:"vni"`
	Port     uint16    `json:"port"`               // UDP destination port of the vxlan device
	MTU      int       `json:"mtu,omitempty"`      // bytes a container may send; 0 = what each host's underlay carries
	Internal bool      `json:"internal,omitempty"` // no way out
	Flood    bool      `json:"flood,omitempty"`    // broadcast and multicast are replicated to the network's hosts
	Snoop    bool      `json:"snoop,omitempty"`    // IPv4 multicast goes to the containers that joined a group, and to no others
	Storm    int       `json:"storm,omitempty"`    // see StormRate
	// Of networks that stand on a device of each host (see [Mode.Underlay]):
	Parent  string `json:"parent,omitempty"`  // that device, as [Parents] prints
	Submode string `json:"submode,omitempty"` // macvlan_mode or ipvlan_mode
	Flag    string `json:"flag,omitempty"`    // ipvlan_flag; "" of macvlan
	// HostAccess: a host with a container in the network has a leg there, by which the two
	// reach each other (of mode macvlan; see [LegID]).
	HostAccess bool `json:"host_access,omitempty"`
	// Fallback is what reaches hosts that a routed network has no route to: ModeVXLAN, or
	// "", nothing.
	Fallback Mode `json:"fallback,omitempty"`

	Pools []Pool `json:"pools"` // one of IPv4, one of IPv6, or both in this order
}

// Label names the network for people: its Docker name if known, else its id.
func (n Network) Label() string {
	if n.Name != "" {
		return n.Name
	}
	return string(n.ID)
}

// DefaultStorm is StormRate unless a network says otherwise. It is what a stream of
// 20 Mbit/s in full-size packets needs, and a hundred times what discovery and
// heartbeats do.
const DefaultStorm = 2000

// NoStorm as a network's Storm stands for no bound.
const NoStorm = -1

// StormRate is how many broadcast and multicast frames a second one container may
// send to the others; 0: as many as it likes.
func (n Network) StormRate() int {
	switch {
	case n.Storm == 0:
		return DefaultStorm
	case n.Storm < 0:
		return 0
	}
	return n.Storm
}

// Pool returns the pool of a family, or false if the network has none.
func (n Network) Pool(f Family) (Pool, bool) {
	for _, p := range n.Pools {
		if FamilyOf(p.Prefix.Addr()) == f {
			return p, true
		}
	}
	return Pool{}, false
}

// HasPrefix says whether a prefix is one of the network's.
func (n Network) HasPrefix(p netip.Prefix) bool {
	return slices.ContainsFunc(n.Pools, func(x Pool) bool { return x.Prefix == p })
}

// Subnets lists the network's prefixes for people: "10.42.0.0/16 and fd00::/64".
func (n Network) Subnets() string { return Subnets(n.Pools) }

// Subnets lists the prefixes of pools for people.
func Subnets(pools []Pool) string {
	s := make([]string, 0, len(pools))
	for _, p := range pools {
		s = append(s, p.Prefix.String())
	}
	return strings.Join(s, " and ")
}

// ValidatePools refuses pools that no network can have: each must be sound, and
// there is one IPv4 pool, one IPv6 pool, or one of each, IPv4 first.
func ValidatePools(pools []Pool) error {
	for _, p := range pools {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	switch {
	case len(pools) == 1:
		return nil
	case len(pools) == 2 && pools[0].Prefix.Addr().Is4() && pools[1].Prefix.Addr().Is6():
		return nil
	}
	return fmt.Errorf("pools %q: want one of IPv4, one of IPv6, or both in this order", Subnets(pools))
}

// Family is a version of the Internet protocol: "IPv4" or "IPv6".
type Family string

// The two families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// Families lists them in the order in which everything lists them.
func Families() []Family { return []Family{IPv4, IPv6} }

// FamilyOf returns an address's family. An IPv4-mapped IPv6 address is of IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// MinMTU6 is the least MTU of a link that carries IPv6, in bytes (RFC 8200 §5).
// The kernel takes IPv6 off a device below it.
const MinMTU6 = 1280

// Pool is one prefix of a network.
type Pool struct {
	Prefix  netip.Prefix          `json:"prefix"`           // masked
	Range   netip.Prefix          `json:"range,omitzero"`   // where endpoint addresses come from (--ip-range); zero = Prefix
	Gateway netip.Addr            `json:"gateway,omitzero"` // reserved, never given to an endpoint
	Aux     map[string]netip.Addr `json:"aux,omitempty"`    // --aux-address: reserved by name, never given to an endpoint
	Block   int                   `json:"block"`            // prefix length of the blocks the pool is cut into
}

// Validate refuses a pool that the rest of the program must not see: a prefix
// that is not masked, a block size or range that does not fit it.
func (p Pool) Validate() error {
	switch {
	case !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || p.Prefix.Addr().Is4In6():
		return fmt.Errorf("pool %v", p.Prefix)
	case p.Block < p.Prefix.Bits() || p.Block > p.Prefix.Addr().BitLen() || p.Prefix.Addr().BitLen()-p.Block > maxBlock:
		return fmt.Errorf("block size /%d of pool %v", p.Block, p.Prefix)
	case p.Range.IsValid() && (p.Range.Bits() < p.Prefix.Bits() || !p.Prefix.Contains(p.Range.Addr())):
		return fmt.Errorf("range %v outside pool %v", p.Range, p.Prefix)
	}
	return nil
}

// maxBlock bounds a block to 2^12 addresses: owners look at each address of a
// block, and an IPv6 pool has more than anybody can look at.
const maxBlock = 12

// BlockBits is the prefix length of the blocks of a pool: /16 -> /26, /24 ->
// /29, smaller pools in proportion, IPv6 /122. A block is what one host owns.
func BlockBits(p netip.Prefix) int {
	if p.Addr().Is6() {
		return max(p.Bits(), 122)
	}
	switch {
	case p.Bits() <= 16:
		return 26
	case p.Bits() <= 20:
		return 27
	case p.Bits() <= 22:
		return 28
	case p.Bits() <= 24:
		return 29
	case p.Bits() <= 26:
		return 30
	default:
		return max(p.Bits(), 31)
	}
}

// Reserved says why an address of the pool may never be an endpoint's:
// "network", "broadcast", "gateway" or "auxiliary NAME"; "" if it may.
func (p Pool) Reserved(a netip.Addr) string {
	switch {
	case a == p.Gateway:
		return "gateway"
	case p.Prefix.Addr().Is4() && p.Prefix.Bits() < 31 && a == p.Prefix.Addr():
		return "network"
	case p.Prefix.Addr().Is4() && p.Prefix.Bits() < 31 && a == LastAddr(p.Prefix):
		return "broadcast"
	case p.Prefix.Addr().Is6() && p.Prefix.Bits() < 127 && a == p.Prefix.Addr():
		return "subnet-router anycast"
	}
	name, found := "", false
	for n, x := range p.Aux {
		if x == a && (!found || n < name) {
			name, found = n, true
		}
	}
	if found {
		return "auxiliary " + name
	}
	return ""
}

// Allocatable says whether an address may be chosen for an endpoint that did not
// ask for one.
func (p Pool) Allocatable(a netip.Addr) bool {
	return p.AllocRange().Contains(a) && p.Reserved(a) == ""
}

// Router is the address that stands for the host a container is on, where the network is
// routed: the gateway, or without one the subnet-router anycast address (RFC 4291 §2.6.1).
// No endpoint has it.
func (p Pool) Router() netip.Addr {
	if p.Gateway.IsValid() {
		return p.Gateway
	}
	return p.Prefix.Addr()
}

// Halves are two prefixes that make up an IPv6 pool, the one with the router last: a
// container of a routed network has routes to them by the router, which it prefers to the
// one to the pool itself, where nobody answers. Of an IPv4 pool there are none: a host
// answers ARP for everybody.
func (p Pool) Halves() []netip.Prefix {
	bits := p.Prefix.Bits() + 1
	if p.Prefix.Addr().Is4() || bits > 128 {
		return nil
	}
	low := netip.PrefixFrom(p.Prefix.Addr(), bits)
	high := netip.PrefixFrom(LastAddr(p.Prefix), bits).Masked()
	if low.Contains(p.Router()) {
		return []netip.Prefix{high, low}
	}
	return []netip.Prefix{low, high}
}

// BlockOf returns the block an address of the pool lies in.
func (p Pool) BlockOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, p.Block).Masked() }

// AllocRange is the part of the pool endpoint addresses are picked from.
func (p Pool) AllocRange() netip.Prefix {
	if p.Range.IsValid() {
		return p.Range
	}
	return p.Prefix
}

// Usable counts the addresses of a block that may be chosen for an endpoint. The
// block is one of the pool's, or a single address.
func (p Pool) Usable(block netip.Prefix) int {
	r := p.AllocRange()
	if !block.Overlaps(r) {
		return 0
	}
	if r.Bits() > block.Bits() {
		block = r
	}
	n := 1 << (block.Addr().BitLen() - block.Bits())
	first, last := p.Prefix.Addr(), LastAddr(p.Prefix)
	for i, a := range [...]netip.Addr{first, last, p.Gateway} {
		again := i > 0 && a == first || i > 1 && a == last
		if !again && block.Contains(a) && p.Reserved(a) != "" {
			n--
		}
	}
	var seen []netip.Addr
	for _, a := range p.Aux {
		if a != first && a != last && a != p.Gateway && block.Contains(a) && !slices.Contains(seen, a) {
			seen = append(seen, a)
			n--
		}
	}
	return n
}

// LastAddr returns the highest address of a prefix.
func LastAddr(p netip.Prefix) netip.Addr {
	b, bits := p.Addr().As16(), p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := bits / 8; i < len(b); i++ {
		b[i] |= 0xff >> max(bits-8*i, 0)
	}
	last := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		last = last.Unmap()
	}
	return last
}

// Host is a machine with an engine and an agent, as the cluster sees it.
type Host struct {
	ID      HostID     `json:"id"`
	Name    string     `json:"name"`
	VTEP    netip.Addr `json:"vtep"`
	MTU     int        `json:"mtu"`              // bytes of an outer packet that the host's way to the others carries
	Version string     `json:"version"`          // of the agent
	Probes  bool       `json:"probes,omitempty"` // its agent answers probes
	Life    uint64     `json:"life,omitempty"`   // counts its returns after it was removed
	Alive   bool       `json:"-"`                // its liveness lease is held
}

// Overhead is what VXLAN adds to a container's packet on the way to or from a
// VTEP, in bytes: outer IP, UDP, VXLAN and inner Ethernet headers (20 or 40 + 8 +
// 8 + 14).
func Overhead(vtep netip.Addr) int {
	if vtep.Is6() && !vtep.Is4In6() {
		return 70
	}
	return 50
}

// Carries is the largest packet of a container, in bytes, that the host's underlay
// carries whole.
func (h Host) Carries() int { return h.MTU - Overhead(h.VTEP) }

// Gen stamps one use of an address: the number of the store's incarnation in the
// upper 24 bits, a Lamport clock in the lower 40. Of two facts about one address
// the higher stamp is the later one. 0 is before everything.
type Gen uint64

// MakeGen makes a stamp. Both parts are cut to their width.
func MakeGen(num uint32, clock uint64) Gen { return Gen(uint64(num)<<40 | clock&(1<<40-1)) }

// Num is the number of the incarnation.
func (g Gen) Num() uint32 { return uint32(g >> 40) }

// Clock is the Lamport clock.
func (g Gen) Clock() uint64 { return uint64(g) & (1<<40 - 1) }

// Endpoint is one container's attachment to a network, as published to every
// interested host.
type Endpoint struct {
	ID    EndpointID   `json:"id"`
	Addrs []netip.Addr `json:"addrs"` // IPv4 before IPv6; at least one
	MAC   MAC          `json:"mac"`
	Gen   Gen          `json:"gen,omitempty"` // highest stamp of its addresses' uses
	// Names that resolve to it within its network, the container's own first; nil
	// until the engine has told them. Lower case is not needed: names are compared
	// without regard to case.
	Names []string `json:"names,omitempty"`
	// Unhealthy: the container's health check fails, and its names give no address.
	Unhealthy bool `json:"unhealthy,omitempty"`
}

// Equal says whether two endpoints state the same facts.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.ID == o.ID && e.MAC == o.MAC && e.Gen == o.Gen && slices.Equal(e.Addrs, o.Addrs) &&
		e.Unhealthy == o.Unhealthy && slices.Equal(e.Names, o.Names)
}

// OuterName is the name of the end of the endpoint's veth pair that Docker
// moves into the container and hands back: unique, at most 15 characters, and
// never of the form DstPrefix+N. It is how a restarted agent knows it.
func (id EndpointID) OuterName() string { return "ck" + deviceSuffix(id) }

// PortName is the name of the other end, on the network's bridge.
func (id EndpointID) PortName() string { return "p" + deviceSuffix(id) }

// LegID is the id of the endpoint that is a host's own in a network with HostAccess: it
// has addresses and a MAC as any other, and no container.
func LegID(n NetworkID, h HostID) EndpointID {
	sum := sha256.Sum256([]byte("leg/" + string(n) + "/" + string(h)))
	return EndpointID(hex.EncodeToString(sum[:]))
}

// HostName is the name of the other end in the host's namespace, of a routed network.
func (id EndpointID) HostName() string { return "cr" + deviceSuffix(id) }

// View is all a host needs to know to realise one network: a whole snapshot,
// never a change. Values inside are shared and must not be modified.
type View struct {
	Network Network
	// Hosts has every host that has endpoints in the network, and the local one.
	Hosts map[HostID]Host
	// Endpoints by the host they run on. The local host's are here as well.
	Endpoints map[HostID][]Endpoint
	// Joined has the local endpoints whose Join has returned: from then on the
	// container's end of the pair is Docker's, and a missing pair is reported
	// rather than rebuilt.
	Joined map[EndpointID]bool
	// Sandboxes has the paths of the namespaces that local endpoints are in, as the
	// engine named them at Join.
	Sandboxes map[EndpointID]string
	// Fenced has the local endpoints whose port must be down.
	Fenced map[EndpointID]bool
	// Paths is what this host's kernel and its probes say of the ways to other VTEPs:
	// bytes of the largest outer packet. One that is not in it is as Host.MTU says.
	Paths map[netip.Addr]int
	// Partial: it may lack facts that the kernel has, and nothing may be removed
	// because of what is not in it.
	Partial bool
}
