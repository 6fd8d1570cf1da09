package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/fdb"
)

var (
	// ErrPairMissing says that the veth pair of an endpoint that has joined is
	// gone. The container's end was Docker's, so it is not made again.
	ErrPairMissing = errors.New("the veth pair is gone")
	// ErrConflict says that something of somebody else's is in the way: a vxlan
	// device with the same VNI and port, a program on the UDP port, a link with
	// an endpoint's name. The message names it as well as can be told.
	ErrConflict = errors.New("in conflict with something that is not ours")
)

// Way is how another host of a routed network is reached, in words.
type Way string

// The ways there are.
const (
	WayRoute  Way = "route"
	WayTunnel Way = "vxlan"
	WayBoth   Way = "route, and vxlan for IPv6"
	WayNone   Way = "none: it is on no segment of this host"
)

// Tunnelled says whether the tunnel is in use.
func (w Way) Tunnelled() bool { return w == WayTunnel || w == WayBoth }

// Report is what one Apply did.
type Report struct {
	Network carrick.NetworkID
	// Endpoints has the verdict of every port of the plan: nil is realised. It
	// is also an error when the network itself lacks its bridge or its vxlan
	// device.
	Endpoints map[carrick.EndpointID]error
	// Changes is what was made, altered or removed; Drift is what of the kernel's
	// state differed from what the last Apply had left there, although the plan
	// said the same before: somebody else's doing.
	Changes Counts
	Drift   Counts
	// Found is what the drift was, the first of it: see maxFindings.
	Found []Finding
	// Resync is why the kernel was read back in full, "" if it was not.
	Resync string
	// Ways is how the other hosts of a routed network are reached, by VTEP.
	Ways map[netip.Addr]Way
	// Problems are for people: what is wrong that no Apply repairs, with the
	// remedy.
	Problems []string
}

// Failed joins the errors of single endpoints, nil if all are realised.
func (r Report) Failed() error {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(r.Endpoints)) {
		if err := r.Endpoints[id]; err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// broken says whether an endpoint failed for a reason that trying again may
// cure.
func (r Report) broken() bool {
	for _, err := range r.Endpoints {
		if err != nil && !errors.Is(err, ErrPairMissing) {
			return true
		}
	}
	return false
}

// Counts counts objects by kind.
type Counts struct {
	Namespaces int
	Links      int // made, removed or altered
	Addresses  int // of links
	Sysctls    int
	FDB        int // rows of the vxlan device
	Bridged    int // rows of the bridge
	Neigh      int // neighbours
	Rules      int // tables of the packet filter
	Routes     int // of the host
}

// of is where a kind is counted.
func (c *Counts) of(k Kind) *int {
	switch k {
	case KindNamespace:
		return &c.Namespaces
	case KindLink:
		return &c.Links
	case KindAddress:
		return &c.Addresses
	case KindSysctl:
		return &c.Sysctls
	case KindFDB:
		return &c.FDB
	case KindBridged:
		return &c.Bridged
	case KindRules:
		return &c.Rules
	case KindRoute:
		return &c.Routes
	default: // KindNeighbour
		return &c.Neigh
	}
}

// Of is the count of one kind.
func (c Counts) Of(k Kind) int { return *c.of(k) }

// Total is the sum of all kinds.
func (c Counts) Total() (n int) {
	for _, k := range Kinds() {
		n += c.Of(k)
	}
	return n
}

// String is "2 fdb, 1 link", without the kinds of which there is none.
func (c Counts) String() string {
	var words []string
	for _, k := range Kinds() {
		if n := c.Of(k); n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, k))
		}
	}
	return strings.Join(words, ", ")
}

// Add adds another count, kind by kind.
func (c *Counts) Add(o Counts) {
	for _, k := range Kinds() {
		*c.of(k) += o.Of(k)
	}
}

func (c *Counts) rows(o fdb.Counts) {
	c.FDB += o.FDB
	c.Bridged += o.Bridged
	c.Neigh += o.Neigh
}
