// Package status is what people and programs see of an agent: the admin API on a
// unix socket with its client, and /metrics, /healthz and a page over HTTP.
//
// It reads and never decides. What it shows comes from a [Source]; it does not
// know where that has it from.
package status

import (
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
)

// Status is an agent's own state.
type Status struct {
	Version  string         `json:"version"`
	Node     string         `json:"node"`
	Host     carrick.HostID `json:"host"`
	VTEP     netip.Addr     `json:"vtep"`
	Device   string         `json:"device"`
	MTU      int            `json:"mtu"` // of the device
	Started  time.Time      `json:"started"`
	Store    Link           `json:"store"`
	Engine   Link           `json:"engine"`
	Networks int            `json:"networks"` // on this host
	Local    int            `json:"endpoints"`
	// Pending is how many networks have local facts that the store has not heard,
	// Unpublished how many endpoints came or went in them, and PendingSince since
	// when the oldest of that waits.
	Pending      int       `json:"pending"`
	Unpublished  int       `json:"unpublished"`
	PendingSince time.Time `json:"pending_since,omitzero"`
	Epoch        Epoch     `json:"epoch"`
	// Fenced: this host was removed from the cluster and asks for its addresses
	// again. Cut are the endpoints whose ports are down because of that.
	Fenced bool       `json:"fenced"`
	Cut    []Endpoint `json:"cut,omitempty"`
	// Conflicts say what two hosts hold and only one can have.
	Conflicts []string `json:"conflicts,omitempty"`
	// Drift is how many kernel objects were repaired since the start that somebody
	// else had changed, DriftKinds the same by kind, and Recent the last of it,
	// newest first.
	Drift      int            `json:"drift"`
	DriftKinds map[string]int `json:"drift_kinds,omitempty"`
	Recent     []Drift        `json:"drift_recent,omitempty"`
	Audits     Reading        `json:"audits"`
	Names      Names          `json:"names"`
	Problems   []string       `json:"problems"`
}

// Names is how containers' questions for names are answered on this host.
type Names struct {
	Answering int    `json:"answering"`         // containers' namespaces in which we answer
	Waiting   int    `json:"waiting,omitempty"` // that are not there yet
	Failed    int    `json:"failed,omitempty"`  // in which Docker's resolver alone answers
	Error     string `json:"error,omitempty"`   // why, of one of them
	// Questions since the containers started: answered here, passed on to Docker's
	// resolver, and of these not answered by it.
	Answered   uint64 `json:"answered"`
	Forwarded  uint64 `json:"forwarded"`
	Unanswered uint64 `json:"unanswered,omitempty"`
	// Members is how many other agents are heard, Down the hosts that are down for sure,
	// and Gossip why agents do not hear of each other.
	Members int      `json:"members"`
	Down    []string `json:"down,omitempty"`
	Gossip  string   `json:"gossip,omitempty"`
}

// Epoch is the store's state as far as its past goes.
type Epoch struct {
	State string    `json:"state"`          // "normal", "recovering" or "unknown": not heard yet
	Num   uint32    `json:"num,omitempty"`  // of the incarnation; grows with each recovery
	Since time.Time `json:"since,omitzero"` // of the recovery
	Wait  []string  `json:"wait,omitempty"` // hosts that a recovery waits for: names, ids of those without
}

// The states of an epoch.
const (
	EpochNormal     = "normal"
	EpochRecovering = "recovering"
	EpochUnknown    = "unknown"
)

// Healthy says whether nothing needs attention.
func (s Status) Healthy() bool { return len(s.Problems) == 0 }

// Link is a connection to something outside.
type Link struct {
	URL     string    `json:"url"` // "" = not used
	OK      bool      `json:"ok"`
	Contact time.Time `json:"contact,omitzero"` // of the last answer
	Error   string    `json:"error,omitempty"`
}

// Network is a cluster network.
type Network struct {
	ID     carrick.NetworkID `json:"id"`
	Name   string            `json:"name"`
	Tenant string            `json:"tenant"`
	Mode   carrick.Mode      `json:"mode"`
	VNI    carrick.VNI       `json:"vni"` // 0, as the port, of modes without VXLAN
	Port   uint16            `json:"port"`
	MTU    int               `json:"mtu"` // on this host; 0: its parent's
	// Of modes that stand on a device of each host.
	Parent  string `json:"parent,omitempty"`
	Submode string `json:"submode,omitempty"` // macvlan_mode or ipvlan_mode
	Flag    string `json:"flag,omitempty"`    // ipvlan_flag
	// HostAccess: hosts have a leg of their own in it.
	HostAccess bool `json:"host_access,omitempty"`
	// Fallback is what reaches the hosts that a routed network has no route to; "" nothing.
	Fallback carrick.Mode `json:"routed_fallback,omitempty"`
	Internal bool         `json:"internal"`
	Flood    bool         `json:"flood"`
	Snoop    bool         `json:"mcast_snooping"`
	Storm    int          `json:"storm"` // broadcast and multicast frames a second of each container; 0 = no bound
	// Subnet, Range, Gateway and Aux are of the first pool, IPv4 if there is one.
	Subnet  netip.Prefix          `json:"subnet"`
	Range   netip.Prefix          `json:"range,omitzero"`
	Gateway netip.Addr            `json:"gateway,omitzero"`
	Aux     map[string]netip.Addr `json:"aux,omitempty"`
	Pools   []carrick.Pool        `json:"pools"`
	Here    bool                  `json:"here"` // this host has a Docker network for it
	// Fate is what becomes of it on all hosts, in words: it is being removed, or a host
	// did not let it go. "": neither.
	Fate string `json:"fate,omitempty"`
	// The rest is filled by inspect only.
	// Ways is how this host reaches the others of a routed network, if it has a container
	// in it, by their names.
	Ways      map[string]string `json:"ways,omitempty"`
	Aliases   []Alias           `json:"aliases,omitempty"`
	Blocks    []Block           `json:"blocks,omitempty"`
	Endpoints []Endpoint        `json:"endpoints,omitempty"`
	Drift     int               `json:"drift,omitempty"`
	Problems  []string          `json:"problems,omitempty"`
}

// NetworkWanted is what a new network should be, as docker network create has it.
type NetworkWanted struct {
	Name       string                `json:"name"`
	Subnets    []netip.Prefix        `json:"subnets,omitempty"`
	Ranges     []netip.Prefix        `json:"ranges,omitempty"`
	Gateways   []netip.Addr          `json:"gateways,omitempty"`
	Aux        map[string]netip.Addr `json:"aux,omitempty"`
	Options    map[string]string     `json:"options,omitempty"` // -o
	IPAM       map[string]string     `json:"ipam,omitempty"`    // --ipam-opt
	Labels     map[string]string     `json:"labels,omitempty"`
	Internal   bool                  `json:"internal,omitempty"`
	Attachable bool                  `json:"attachable,omitempty"`
	IPv6       bool                  `json:"ipv6,omitempty"`
	NoIPv4     bool                  `json:"no_ipv4,omitempty"`
}

// Alias is one host's Docker network for a cluster network.
type Alias struct {
	Host   string                  `json:"host"` // name, or id if unknown
	Docker carrick.DockerNetworkID `json:"docker"`
	Name   string                  `json:"name,omitempty"`
}

// Block is one host's share of a pool.
type Block struct {
	Prefix netip.Prefix `json:"prefix"`
	Host   string       `json:"host"`
}

// Endpoint is a container's attachment.
type Endpoint struct {
	ID        carrick.EndpointID `json:"id"`
	Network   carrick.NetworkID  `json:"network"`
	NetName   string             `json:"network_name"`
	Addrs     []netip.Addr       `json:"addrs"`
	MAC       carrick.MAC        `json:"mac"`
	Host      string             `json:"host"`
	Local     bool               `json:"local"`
	Container string             `json:"container,omitempty"` // of this host's engine
	Cut       bool               `json:"cut,omitempty"`       // of this host: its port is down, see Status.Cut
	Error     string             `json:"error,omitempty"`     // why the kernel does not hold it
}

// Node is a host of the cluster.
type Node struct {
	ID      carrick.HostID `json:"id"`
	Name    string         `json:"name"`
	VTEP    netip.Addr     `json:"vtep"`
	MTU     int            `json:"mtu"`
	Version string         `json:"version"`
	Alive   bool           `json:"alive"`
	Self    bool           `json:"self"`
	// State is one of the Node constants; Since is since when a host has been lost or
	// removed, or has not been heard of because the store does not answer.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	// Awaited: a recovery of the store waits for it.
	Awaited bool `json:"awaited,omitempty"`
}

// The states of a host.
const (
	NodeAlive   = "alive"
	NodeLost    = "lost"    // its lease ended; its addresses stay its own
	NodeRemoved = "removed" // by carrick node rm
	NodeFenced  = "fenced"  // removed, back, and asking for its addresses again
	NodeUnknown = "unknown" // the store does not say
)
