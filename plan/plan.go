// Package plan turns facts into desire: what this host's kernel should hold for
// one network, given a whole snapshot of what the cluster says.
//
// It is pure. There is no clock, no I/O and no randomness in it, and the same
// facts give the same plan in the same order, so that a plan can be compared,
// printed and golden-tested. It knows the vocabulary and nothing else: neither
// where the facts come from nor who applies the plan.
package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
)

// Names of the devices in a network's namespace. Every object inside such a
// namespace is Carrick's, which is how a restart recognises them.
const (
	BridgeName = "br0"
	VXLANName  = "vxlan0"
)

// NamespacePrefix begins the name of every network namespace Carrick makes;
// the network's id follows.
const NamespacePrefix = "carrick-"

// TCP4 and TCP6 are the bytes of a packet that are not TCP's payload: IP and TCP
// headers without options.
const (
	TCP4 = 40
	TCP6 = 60
)

// Network is the desired state of one network on one host, whole: an applier
// makes the kernel hold this and nothing else. The zero value of everything
// after Namespace (Present false) means that the host holds nothing of the
// network.
type Network struct {
	ID        carrick.NetworkID
	Namespace string
	Present   bool // false: the namespace and all in it should not exist
	// Partial: the facts were not whole. The kernel should hold this and may hold
	// more, which is left alone. Present is true then.
	Partial bool

	// Underlay is all there is of a network that stands on a device of each host; then
	// there is no namespace, and everything below but Problems is of no meaning.
	Underlay *Underlay
	// Routed is likewise all there is of a network whose hosts route.
	Routed *Routed

	Bridge Bridge
	VXLAN  VXLAN
	Ports  []Port // sorted by name

	FDB     []FDBRow    // of the vxlan device: which VTEP a MAC is behind ("self")
	Bridged []BridgeRow // of the bridge: which port a MAC is behind ("master")
	Neigh   []NeighRow  // of the vxlan device, which answers ARP from them ("proxy")
	// Here are the addresses of this host's own ports that are not down. Nothing in
	// the kernel stands for them: their containers answer. They are what to tell
	// the others of, who may remember the address with another MAC.
	Here []HereRow

	// Remote is more rows of these three tables, by the host they lead to: none has
	// a key that is in another or in the tables themselves. Sorted by host.
	Remote []*Remote

	// Clamp is the largest packet that TCP may be told to send through the vxlan
	// device, in bytes, if that is less than the network's MTU; 0: it is not. What
	// is set is the MSS of SYNs in both directions, so that one side is enough.
	Clamp int

	// Storm is how many broadcast and multicast frames a second each port may send;
	// 0: as many as it likes. What is above it goes nowhere. What comes by the vxlan
	// device was bounded where it came from.
	Storm int

	// Sysctls are settings of the namespace that the rest relies on, sorted by name.
	Sysctls []Sysctl

	// Problems are contradictions in the facts that the plan worked around. They
	// are for people and do not stop the applier.
	Problems []string
}

// Remote is the rows that lead to the containers of one other host. It is never
// modified: plans made one after the other share it, so that equal pointers mean
// equal rows, and whoever compares two plans looks at what differs and not at
// everything.
type Remote struct {
	Host  carrick.HostID
	VTEP  netip.Addr
	MACs  []carrick.MAC // each behind VTEP, and at the bridge behind the vxlan device; sorted
	Neigh []NeighRow    // sorted
}

// Flat returns the same plan with all rows in its own tables.
func (n Network) Flat() Network {
	if len(n.Remote) == 0 {
		n.Remote = nil
		return n
	}
	n.FDB, n.Bridged, n.Neigh = slices.Clone(n.FDB), slices.Clone(n.Bridged), slices.Clone(n.Neigh)
	for _, r := range n.Remote {
		for _, m := range r.MACs {
			n.FDB = append(n.FDB, FDBRow{m, r.VTEP})
			n.Bridged = append(n.Bridged, BridgeRow{m, n.VXLAN.Name})
		}
		n.Neigh = append(n.Neigh, r.Neigh...)
	}
	n.Remote = nil
	n.sortRows()
	return n
}

// Bridge is the network's bridge. It has no address, not even a link-local one,
// and forwards multicast to every port, unless Snoop: then IPv4 multicast beyond
// 224.0.0.0/24 goes to the ports whose containers joined the group, and to the
// vxlan device. (Without an address it asks nobody about IPv6 groups, and a bridge
// that knows of nobody who asks floods.)
type Bridge struct {
	Name  string
	MTU   int
	Snoop bool
}

// VXLAN is the network's vxlan device. Its UDP socket belongs to the host's
// namespace. It does not learn, answers ARP from its neighbour rows and drops
// ARP for addresses it has no row for. Its bridge port receives every broadcast
// and multicast (it must see ARP to answer it); what leaves the host is decided
// by the rows of the zero MAC alone, and unknown unicast never reaches it.
type VXLAN struct {
	Name  string
	VNI   carrick.VNI
	Port  uint16
	Local netip.Addr
	MTU   int
}

// Port is the bridge end of one local endpoint's veth pair.
type Port struct {
	Endpoint carrick.EndpointID
	Name     string      // in the network's namespace
	Outer    string      // the other end, in the host's namespace until Docker moves it
	MAC      carrick.MAC // of the other end
	MTU      int         // of both ends
	// Create allows the applier to make the pair. After Join the other end is
	// Docker's, and a missing pair is a problem to report.
	Create bool
	// Down: the port is cut off, and forwards nothing. The pair stays.
	Down bool
}

// FDBRow sends frames for MAC to a VTEP. The zero MAC stands for broadcast,
// multicast and unknown destinations and may have many rows, so rows are keyed
// by (MAC, VTEP).
type FDBRow struct {
	MAC  carrick.MAC
	VTEP netip.Addr
}

// BridgeRow pins a MAC to a port of the bridge.
type BridgeRow struct {
	MAC  carrick.MAC
	Port string
}

// NeighRow is a permanent neighbour entry.
type NeighRow struct {
	Addr netip.Addr
	MAC  carrick.MAC
}

// HereRow is an address of a local endpoint.
type HereRow struct {
	Endpoint carrick.EndpointID
	NeighRow
}

// Sysctl is a setting of the namespace, with its name as sysctl(8) has it.
type Sysctl struct {
	Name, Value string
	// Optional: a kernel that does not have the setting does as it says.
	Optional bool
	// Also is another value that does as well, "" if there is none.
	Also string
}

// String prints the plan as the ip and bridge commands that would make it, one
// per line, in the order an applier follows. Tests compare this text.
func (n Network) String() string {
	n = n.Flat()
	var b strings.Builder
	ns := n.Namespace
	if !n.Present {
		fmt.Fprintf(&b, "ip netns del %s\n", ns)
		return b.String()
	}
	if n.Partial {
		b.WriteString("# besides what may be there already:\n")
	}
	if n.Underlay != nil {
		return b.String() + n.Underlay.text(n.ID, n.Problems)
	}
	if n.Routed != nil {
		return b.String() + n.Routed.text(n.ID, n.Problems)
	}
	fmt.Fprintf(&b, "ip netns add %s\n", ns)
	snoop, router, leave := 0, "", ""
	if n.Bridge.Snoop {
		snoop, router, leave = 1, " mcast_router 2", " mcast_fast_leave on"
	}
	fmt.Fprintf(&b, "ip -n %s link add %s mtu %d up addrgenmode none type bridge mcast_snooping %d\n", ns, n.Bridge.Name, n.Bridge.MTU, snoop)
	v := n.VXLAN
	fmt.Fprintf(&b, "ip link add %s netns %s mtu %d up addrgenmode none type vxlan id %d dstport %d local %s nolearning proxy\n", v.Name, ns, v.MTU, v.VNI, v.Port, v.Local)
	fmt.Fprintf(&b, "bridge -n %s link set dev %s master %s learning off flood off%s\n", ns, v.Name, n.Bridge.Name, router)
	for _, p := range n.Ports {
		if p.Create {
			fmt.Fprintf(&b, "ip link add %s address %s mtu %d type veth peer name %s netns %s\n", p.Outer, p.MAC, p.MTU, p.Name, ns)
		}
		state := "up"
		if p.Down {
			state = "down"
		}
		fmt.Fprintf(&b, "ip -n %s link set %s master %s mtu %d %s alias %s\n", ns, p.Name, n.Bridge.Name, p.MTU, state, p.Endpoint)
		fmt.Fprintf(&b, "bridge -n %s link set dev %s learning off flood off%s\n", ns, p.Name, leave)
	}
	for _, r := range n.Bridged {
		fmt.Fprintf(&b, "bridge -n %s fdb replace %s dev %s master static\n", ns, r.MAC, r.Port)
	}
	for _, r := range n.FDB {
		fmt.Fprintf(&b, "bridge -n %s fdb append %s dev %s dst %s self permanent\n", ns, r.MAC, v.Name, r.VTEP)
	}
	for _, r := range n.Neigh {
		fmt.Fprintf(&b, "ip -n %s neigh replace %s lladdr %s dev %s nud permanent\n", ns, r.Addr, r.MAC, v.Name)
	}
	for _, r := range n.Here {
		fmt.Fprintf(&b, "# here: %s lladdr %s port %s\n", r.Addr, r.MAC, r.Endpoint.PortName())
	}
	if n.Clamp != 0 {
		fmt.Fprintf(&b, "ip netns exec %s nft add rule bridge carrick forward { iifname, oifname } %s tcp flags syn tcp option maxseg size set %d (IPv6 %d)\n",
			ns, v.Name, n.Clamp-TCP4, n.Clamp-TCP6)
	}
	if n.Storm != 0 {
		fmt.Fprintf(&b, "ip netns exec %s nft add rule bridge carrick-storm prerouting meta pkttype { broadcast, multicast } iifname != %s update @ports { iif limit rate over %d/second burst %d packets } drop\n",
			ns, v.Name, n.Storm, n.Storm)
	}
	for _, c := range n.Sysctls {
		ignore := ""
		if c.Optional {
			ignore = "-e " // unknown keys
		}
		fmt.Fprintf(&b, "ip netns exec %s sysctl %s-w %s=%s\n", ns, ignore, c.Name, c.Value)
	}
	for _, p := range n.Problems {
		fmt.Fprintf(&b, "# %s\n", p)
	}
	return b.String()
}
