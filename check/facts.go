package check

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// Facts is what was seen, of as many sides as could be looked at.
type Facts struct {
	Store *Store                  `json:"store,omitempty"` // nil: not looked at
	Hosts map[carrick.HostID]Host `json:"hosts,omitempty"`
}

// Host is what one host says. Sides that are nil were not looked at.
type Host struct {
	Name string `json:"name,omitempty"`
	// Gone: it was removed from the cluster and has not met the store since. What
	// runs on it does not count.
	Gone    bool     `json:"gone,omitempty"`
	Journal *Journal `json:"journal,omitempty"`
	Engine  *Engine  `json:"engine,omitempty"`
	Kernel  *Kernel  `json:"kernel,omitempty"`
}

// Store is what the store says, all of it.
type Store struct {
	Epoch    Epoch                              `json:"epoch"`
	Hosts    map[carrick.HostID]carrick.Host    `json:"hosts"`
	Alive    map[carrick.HostID]bool            `json:"alive"`
	Removed  map[carrick.HostID]bool            `json:"removed,omitempty"`
	Names    map[string]carrick.HostID          `json:"names"`
	VTEPs    map[netip.Addr]carrick.HostID      `json:"vteps"`
	Tenants  map[string][]Prefix                `json:"tenants"`
	VNIs     map[carrick.VNI]carrick.NetworkID  `json:"vnis"`
	Networks map[carrick.NetworkID]StoreNetwork `json:"networks"`
	// Specs has the networks that engines are told of, and whether they are to be
	// removed.
	Specs   map[carrick.NetworkID]bool `json:"specs,omitempty"`
	Asks    []Ask                      `json:"asks,omitempty"`
	Damaged []Damage                   `json:"damaged,omitempty"`
}

// Ask is what one host wants of another: an address, or to give one back.
type Ask struct {
	Owner     carrick.HostID    `json:"owner"`
	Requester carrick.HostID    `json:"requester"`
	Network   carrick.NetworkID `json:"network"`
	Addr      netip.Addr        `json:"addr,omitzero"` // none: any
	Return    bool              `json:"return,omitempty"`
	Answer    string            `json:"answer,omitempty"` // "" = none yet
}

// Damage is a record that could not be read.
type Damage struct {
	Key string `json:"key"` // below the prefix of the store's URL
	Why string `json:"why"`
}

// Epoch is the store's identity and how many structural changes it has seen.
// The zero value is none.
type Epoch struct {
	Inc        string `json:"inc,omitempty"`
	Num        uint32 `json:"num,omitempty"`
	Seq        uint64 `json:"seq,omitempty"`
	Nonce      string `json:"nonce,omitempty"`
	Recovering bool   `json:"recovering,omitempty"`
	// Waiting are the hosts that a recovery waits for.
	Waiting []carrick.HostID `json:"waiting,omitempty"`
}

// Prefix is a part of a tenant's address space.
type Prefix struct {
	Prefix  netip.Prefix      `json:"prefix"`
	Network carrick.NetworkID `json:"network"`
}

// StoreNetwork is what the store has of a network.
type StoreNetwork struct {
	Conf      *carrick.Network                             `json:"conf,omitempty"` // nil: missing or damaged
	Aliases   map[carrick.HostID][]carrick.DockerNetworkID `json:"aliases,omitempty"`
	Blocks    map[netip.Prefix]Block                       `json:"blocks,omitempty"`
	Endpoints map[carrick.HostID][]carrick.Endpoint        `json:"endpoints,omitempty"`
}

// Block is a block's owner.
type Block struct {
	Host carrick.HostID `json:"host"`
	// Freed: it was a removed host's and rests until anybody may claim it.
	Freed bool `json:"freed,omitempty"`
}

// Journal is what a host remembers.
type Journal struct {
	Epoch    Epoch                                `json:"epoch"`
	Fenced   bool                                 `json:"fenced,omitempty"`
	Networks map[carrick.NetworkID]JournalNetwork `json:"networks"`
	// Behind: the host cannot reach the store, or has not compared its journal with
	// it since the agent started.
	Behind bool `json:"behind,omitempty"`
}

// JournalNetwork is a network in a journal.
type JournalNetwork struct {
	Conf      carrick.Network           `json:"conf"`
	Aliases   []carrick.DockerNetworkID `json:"aliases,omitempty"`
	Blocks    []netip.Prefix            `json:"blocks,omitempty"`
	Freeing   []netip.Prefix            `json:"freeing,omitempty"` // given up here, maybe not in the store
	Leaving   bool                      `json:"leaving,omitempty"`
	Leases    map[netip.Addr]Lease      `json:"leases,omitempty"`
	Endpoints []Endpoint                `json:"endpoints,omitempty"`
	// Pending: the store does not have all of it yet.
	Pending bool `json:"pending,omitempty"`
}

// Lease is an address of a host's blocks.
type Lease struct {
	Endpoint carrick.EndpointID `json:"endpoint,omitempty"`
	Resting  bool               `json:"resting,omitempty"`
	Lent     carrick.HostID     `json:"lent,omitempty"`
}

// Endpoint is an endpoint in a journal.
type Endpoint struct {
	carrick.Endpoint
	Docker carrick.DockerNetworkID `json:"docker"`
	Joined bool                    `json:"joined,omitempty"`
	Fenced bool                    `json:"fenced,omitempty"`
}

// Engine is what a host's Docker engine says.
type Engine struct {
	// Networks of Carrick's driver, with the engine's names for them.
	Networks map[carrick.DockerNetworkID]string `json:"networks"`
	// Containers that run, one entry for each of their endpoints in these networks.
	Containers []Container `json:"containers"`
}

// Container is a running container's attachment to a network.
type Container struct {
	Endpoint carrick.EndpointID      `json:"endpoint"`
	Network  carrick.DockerNetworkID `json:"network"`
	Name     string                  `json:"name"`
	Addrs    []netip.Addr            `json:"addrs"`
	MAC      carrick.MAC             `json:"mac,omitzero"` // zero: the engine does not say
}

// Kernel is what a host's kernel holds, by network.
type Kernel struct {
	Networks map[carrick.NetworkID]KernelNetwork `json:"networks"`
}

// KernelNetwork is a network in the kernel.
type KernelNetwork struct {
	Ports map[carrick.EndpointID]Port `json:"ports"`
	// FDB says behind which VTEP a MAC is. The rows for everybody (the zero MAC)
	// are left out.
	FDB   map[carrick.MAC]netip.Addr `json:"fdb"`
	Neigh map[netip.Addr]carrick.MAC `json:"neigh"`
}

// Port is a local endpoint's bridge port.
type Port struct {
	Up bool `json:"up"`
}

// borrowed says whether a block of a pool is a single address lent by another
// host.
func borrowed(p carrick.Pool, b netip.Prefix) bool {
	return b.IsSingleIP() && p.Block < b.Bits()
}

// poolOf returns the pool of a network an address lies in.
func poolOf(n carrick.Network, a netip.Addr) (carrick.Pool, bool) {
	for _, p := range n.Pools {
		if p.Prefix.Contains(a) {
			return p, true
		}
	}
	return carrick.Pool{}, false
}

// sorted returns a map's keys in order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func sortedAddrs[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}

func sortedPrefixes[V any](m map[netip.Prefix]V) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare)
}
