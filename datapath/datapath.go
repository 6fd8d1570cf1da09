// Package datapath makes a host's kernel hold what a plan says, one network at
// a time: namespace, bridge, vxlan device, ports, flags and rows.
//
// There is one way in: hand [Applier.Apply] the whole desired state of a
// network, as often as you like. It compares it with what it remembers of the
// kernel and sends the difference; it reads the kernel back in full the first
// time, after any error, when a link changed behind its back, and when told to.
// It knows the kernel and plans. It does not know facts, stores, Docker or why
// a plan says what it says.
package datapath

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// Config is what an [Overlay] works with.
type Config struct {
	Kernel     nl.Kernel   // nl.Linux{} outside tests
	Namespaces netns.Store // netns.NewDir outside tests
	Log        *slog.Logger
}

// Overlay is a host's vxlan networks. Safe for concurrent use.
type Overlay struct{}

// Open prepares the host: it opens the host's namespace and changes nothing.
func Open(ctx context.Context, cfg Config) (*Overlay, error) { panic("todo") }

// Network returns the applier of one network, always the same one for the same
// id. Nothing is read or changed before its first Apply.
func (o *Overlay) Network(id carrick.NetworkID) *Applier { panic("todo") }

// List returns the networks that have a namespace on this host, sorted by id,
// whoever made them.
func (o *Overlay) List(ctx context.Context) ([]Existing, error) { panic("todo") }

// Sweep deletes the namespaces of all networks that are not in keep, and
// returns which. Only call it with a snapshot known to be complete: a container
// whose network is swept loses it.
func (o *Overlay) Sweep(ctx context.Context, keep map[carrick.NetworkID]bool) ([]carrick.NetworkID, error) {
	panic("todo")
}

// Underlay finds the VTEP: advertise is an address of this host, the name of an
// interface, or "" for the source address of the default route.
func (o *Overlay) Underlay(ctx context.Context, advertise string) (Underlay, error) { panic("todo") }

// HostPrefixes lists the prefixes that this host reaches or holds, default
// routes and link-local ones left out: pools must not overlap them.
func (o *Overlay) HostPrefixes(ctx context.Context) ([]netip.Prefix, error) { panic("todo") }

// Close ends all appliers. The kernel keeps what it holds: traffic goes on.
func (o *Overlay) Close() error { panic("todo") }

// Underlay is where a host's VTEP is.
type Underlay struct {
	Addr      netip.Addr
	Interface string
	MTU       int // bytes, of the interface
}

// Existing is a network found in the kernel.
type Existing struct {
	ID        carrick.NetworkID
	Namespace string
	VNI       carrick.VNI // 0 if it has no vxlan device
	Ports     []string    // names of ports, sorted
}

// Applier converges one network. Safe for concurrent use; calls of Apply and
// Audit go one after another.
type Applier struct{}

// Apply makes the kernel hold want and nothing else of this network. It is
// idempotent: with an equal plan, and no resync queued, it sends nothing. It
// keeps want's slices, which must not be modified afterwards.
//
// The report is valid even with an error. The error is about the network as a
// whole: whenever the kernel does not hold what want says outside of single
// ports. A port that fails is in the report under its endpoint and does not
// make Apply fail. After either, the next Apply reads the kernel back: call it
// again after a while.
func (a *Applier) Apply(ctx context.Context, want plan.Network) (Report, error) { panic("todo") }

// Audit reads the kernel back in full and repairs it to the last plan applied;
// without one it does nothing.
func (a *Applier) Audit(ctx context.Context) (Report, error) { panic("todo") }

// QueueResync makes the next Apply read the kernel back in full.
func (a *Applier) QueueResync(reason string) { panic("todo") }

// Changed receives when a link of the network was changed by somebody else, or
// when events were lost: a resync is queued, and Apply or Audit should be
// called. One value stands for any number of changes.
func (a *Applier) Changed() <-chan struct{} { panic("todo") }

// Report is what one Apply did.
type Report struct {
	Network carrick.NetworkID
	// Endpoints has the verdict of every port of the plan: nil is realised.
	Endpoints map[carrick.EndpointID]error
	// Changes is what was made, altered or removed; Drift is the part of it that
	// repaired what somebody else had done since the last Apply: the plan had
	// said the same before.
	Changes Counts
	Drift   Counts
	// Resync is why the kernel was read back in full, "" if it was not.
	Resync string
	// Problems are for people: what is wrong that no Apply repairs, with the
	// remedy.
	Problems []string
}

// Counts counts objects by kind.
type Counts struct {
	Namespaces int
	Links      int // made, removed or altered
	FDB        int // rows of the vxlan device
	Bridged    int // rows of the bridge
	Neigh      int // neighbours
}

// Total is the sum of all kinds.
func (c Counts) Total() int { return c.Namespaces + c.Links + c.FDB + c.Bridged + c.Neigh }
