package status

import (
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
)

// IPAM is how much of a network's address space is in use.
type IPAM struct {
	Network carrick.NetworkID `json:"network"`
	Name    string            `json:"name"`
	Tenant  string            `json:"tenant"`
	// Whole: the store has just been read. Else this host's part is of now, and what
	// is there of the others is what they were last heard to have, at AsOf.
	Whole bool      `json:"whole"`
	AsOf  time.Time `json:"as_of,omitzero"`
	Pools []PoolUse `json:"pools"`
	// Warnings are for people: pools that are nearly used up.
	Warnings []string `json:"warnings,omitempty"`
}

// PoolUse is how much of a pool is in use. Numbers are of addresses, those of
// large IPv6 pools are cut at 2^64-1.
type PoolUse struct {
	Prefix    netip.Prefix `json:"prefix"`
	Range     netip.Prefix `json:"range,omitzero"`
	BlockBits int          `json:"block_bits"`        // prefix length of its blocks
	Reserved  uint64       `json:"reserved"`          // of the range, and never an endpoint's
	Usable    uint64       `json:"usable"`            // of the range, for endpoints
	InBlocks  uint64       `json:"in_blocks"`         // of these, in blocks that hosts own
	Given     uint64       `json:"given"`             // of these, given out
	Free      uint64       `json:"free"`              // of these, not given out: resting ones included
	Outside   uint64       `json:"outside,omitempty"` // given out with --ip, outside of the range
	Lent      uint64       `json:"lent"`              // single addresses of one host's block that another has
	// Percent of the usable addresses are given out.
	Percent    float64    `json:"percent"`
	FreeBlocks uint64     `json:"free_blocks"` // that nobody owns, as far as is known
	Blocks     []BlockUse `json:"blocks"`      // by address
	Hosts      []HostUse  `json:"hosts"`       // by name
}

// BlockUse is how much of a block is in use.
type BlockUse struct {
	Prefix netip.Prefix `json:"prefix"`
	Host   string       `json:"host,omitempty"` // "" if it rests
	// Freed: its owner gave it up or was removed, and it rests until anybody may
	// claim it.
	Freed  bool   `json:"freed,omitempty"`
	Usable uint64 `json:"usable"`
	Given  uint64 `json:"given"` // by its owner to endpoints of its own
	Lent   uint64 `json:"lent"`
	// Resting is how many rest after a use; nil for other hosts' blocks, of which
	// only their journals know it.
	Resting *uint64 `json:"resting,omitempty"`
}

// HostUse is a host's part of a pool.
type HostUse struct {
	Host     string  `json:"host"`
	Self     bool    `json:"self,omitempty"`
	Blocks   int     `json:"blocks"`
	Usable   uint64  `json:"usable"` // in its blocks
	Given    uint64  `json:"given"`  // to its endpoints
	Lent     uint64  `json:"lent"`   // of its blocks, to others
	Borrowed uint64  `json:"borrowed"`
	Resting  *uint64 `json:"resting,omitempty"` // nil: another host's
}

// Check is what a comparison of all sides found.
type Check struct {
	Node    string            `json:"node"`
	Network carrick.NetworkID `json:"network,omitempty"` // "" = all
	Sides   []Side            `json:"sides"`
	// Findings are what two looks found, the worst first.
	Findings []Finding `json:"findings"`
}

// Facts is what all sides say as one host's agent sees them, for programs that
// compare several hosts', and for bug reports.
type Facts struct {
	Node  string `json:"node"`
	Sides []Side `json:"sides"`
	check.Facts
}

// Side is one of what was compared.
type Side struct {
	Name  string `json:"name"`            // "store", "journal", "engine" or "kernel"
	Error string `json:"error,omitempty"` // why it was not looked at
	Off   bool   `json:"off,omitempty"`   // because it is not used
}

// Finding is a finding with the names for what it is about.
type Finding struct {
	check.Finding
	NetworkName string `json:"network_name,omitempty"`
	HostName    string `json:"host_name,omitempty"`
}

// Fine says whether everything was looked at and nothing needs anybody.
func (c Check) Fine() bool {
	for _, s := range c.Sides {
		if s.Error != "" {
			return false
		}
	}
	for _, f := range c.Findings {
		if f.Severity != check.Note {
			return false
		}
	}
	return true
}

// Released is what became of an address that was to be given back.
type Released struct {
	Network carrick.NetworkID `json:"network"`
	Name    string            `json:"name"`
	Addr    netip.Addr        `json:"addr"`
	// Done: it was given out and no longer is. Else there was nothing to do.
	Done bool `json:"done"`
	// Endpoint that had it and was withdrawn with it, and its container.
	Endpoint  carrick.EndpointID `json:"endpoint,omitempty"`
	Container string             `json:"container,omitempty"`
	// Owner is the host it goes back to; "" = this one.
	Owner string `json:"owner,omitempty"`
	// What happened, for people.
	What string `json:"what"`
}

// Removed is what became free with a host.
type Removed struct {
	Host carrick.HostID `json:"host"`
	Name string         `json:"name"`
	// WasAlive: it was removed by force. Its agent will find out and cut its
	// containers off.
	WasAlive  bool `json:"was_alive,omitempty"`
	Networks  int  `json:"networks"`  // it had
	Blocks    int  `json:"blocks"`    // freed
	Endpoints int  `json:"endpoints"` // withdrawn
	// Later: a recovery of the store is under way; what the host had becomes free
	// when that is over.
	Later bool `json:"later,omitempty"`
}
