package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/announce"
	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// Applier converges one network. Safe for concurrent use; calls of Apply go one
// after another.
type Applier struct {
	o       *Overlay
	id      carrick.NetworkID
	log     *slog.Logger
	changed chan struct{} // holds one value when somebody should call Apply

	// queue is below mu in the lock order: it may be taken while holding mu,
	// never the other way round.
	queue struct {
		sync.Mutex
		reason string // of a resync; "" is none
	}

	mu     sync.Mutex    // held during Apply; guards the rest
	last   *plan.Network // as last handed in
	absent bool          // the namespace is known not to be there

	ns      netns.Namespace // nil: not open
	h       nl.Handle
	events  nl.Events
	hostID  nl.NSID // how the namespace knows the host's
	links   *links
	rows    *fdb.Tables
	voice   announce.Voice    // nil: nothing was said yet
	touched map[int]bool      // links changed in the run that is under way
	sysctls map[string]string // as last read or written, "" is none; nil: not known
	found   []string          // problems that the last reading showed
	applied *applied          // what the last run left in the kernel; nil: not known
}

// applied is what of a plan was realised. A difference from it that is found by
// reading is drift.
type applied struct {
	bridge  plan.Bridge
	vxlan   plan.VXLAN
	clamp   nft.Clamp
	storm   nft.Storm
	ports   map[string]plan.Port // only those without an error
	asked   map[string]bool      // names of all ports that the plan had
	sysctls map[string]string    // only those the kernel has
}

func newApplier(o *Overlay, id carrick.NetworkID) *Applier {
	a := &Applier{o: o, id: id, log: o.cfg.Log.With("network", string(id)), changed: make(chan struct{}, 1)}
	a.queue.reason = "first look"
	return a
}

// Apply makes the kernel hold want and nothing else of this network; of a partial
// plan, want and whatever else was found. It is idempotent: with an equal plan,
// and no resync queued, it sends nothing. It keeps want's slices, which must not
// be modified afterwards.
//
// The report is valid even with an error. The error is about the network as a
// whole: whenever the kernel does not hold what want says outside of single
// ports. A port that fails is in the report under its endpoint and does not
// make Apply fail. After either, the next Apply reads the kernel back: call it
// again after a while.
func (a *Applier) Apply(ctx context.Context, want plan.Network) (Report, error) {
	if err := a.check(want); err != nil {
		return Report{Network: a.id}, fmt.Errorf("apply to network %q: %w", a.id, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != nil && a.last.Partial && !want.Partial {
		// What was left alone is looked at now. That it goes is nobody's doing.
		a.applied = nil
		a.QueueResync("the facts are whole")
	}
	a.last = &want
	return a.apply(ctx, want)
}

// check refuses plans that cannot be meant: above all one that would have a
// namespace of somebody else's deleted.
func (a *Applier) check(want plan.Network) error {
	if want.ID != a.id || want.Namespace != plan.NamespacePrefix+string(a.id) || !carrick.ValidID(string(a.id)) {
		return fmt.Errorf("the plan is for network %q in namespace %q", want.ID, want.Namespace)
	}
	if !want.Present {
		if want.Partial {
			return errors.New("the plan is that nothing exists, and partial")
		}
		return nil
	}
	v := want.VXLAN
	switch {
	case want.Bridge.Name == "" || v.Name == "" || want.Bridge.Name == v.Name:
		return fmt.Errorf("the plan names the bridge %q and the vxlan device %q", want.Bridge.Name, v.Name)
	case v.VNI < 1 || v.VNI > carrick.MaxVNI || v.Port == 0 || !v.Local.IsValid():
		return fmt.Errorf("the plan's vxlan device has VNI %d, port %d, local address %v", v.VNI, v.Port, v.Local)
	case want.Bridge.MTU < minMTU || v.MTU < minMTU:
		return fmt.Errorf("the plan has MTUs %d and %d; the least is %d", want.Bridge.MTU, v.MTU, minMTU)
	}
	names := map[string]carrick.EndpointID{want.Bridge.Name: "the bridge", v.Name: "the vxlan device"}
	for _, p := range want.Ports {
		if other, ok := names[p.Name]; ok || p.Name == "" || p.MTU < minMTU {
			return fmt.Errorf("the plan has port %q of endpoint %s with MTU %d; the name is also of %q", p.Name, p.Endpoint, p.MTU, other)
		}
		names[p.Name] = p.Endpoint
	}
	return nil
}

// minMTU is IPv4's least MTU (RFC 791 §3.2), below which the kernel takes none.
const minMTU = 68

// QueueResync makes the next Apply read the kernel back in full. It does not
// wait for an Apply that is under way.
func (a *Applier) QueueResync(reason string) {
	a.queue.Lock()
	defer a.queue.Unlock()
	if a.queue.reason == "" {
		a.queue.reason = reason
	}
}

func (a *Applier) takeResync() string {
	a.queue.Lock()
	defer a.queue.Unlock()
	reason := a.queue.reason
	a.queue.reason = ""
	return reason
}

// Changed receives when a link of the network was changed by somebody else, or
// when events were lost: a resync is queued, and Apply should be called. One value stands for any number of changes.
func (a *Applier) Changed() <-chan struct{} { return a.changed }

// apply runs once, and once more with the kernel read back if the first run
// relied on memory and failed, or met something that was not there, or no
// longer, when it looked: then what it knew was wrong.
func (a *Applier) apply(ctx context.Context, want plan.Network) (Report, error) {
	reason := a.takeResync()
	rep, err := a.run(ctx, want, reason)
	if (err != nil || rep.broken()) && (reason == "" || surprised(err) || surprised(rep.Failed())) && ctx.Err() == nil {
		first := rep
		rep, err = a.run(ctx, want, a.takeResync())
		rep.Changes.Add(first.Changes)
		rep.Drift.Add(first.Drift)
		rep.Found = slices.Concat(first.Found, rep.Found)
	}
	if n := rep.Drift.Total(); n > 0 {
		a.log.Warn("repaired what somebody else had changed", "objects", n, "drift", rep.Drift.String(), "what", some(rep.Found, n), "found by", rep.Resync)
	}
	return rep, err
}

// surprised says whether a failure means that something came or went between
// reading and sending. A bridge that is gone is EINVAL as a master, and a link
// that is no port any more takes no rows of its bridge (EOPNOTSUPP).
func surprised(err error) bool {
	return errors.Is(err, nl.ErrExists) || errors.Is(err, nl.ErrNotFound) || errors.Is(err, netns.ErrExists) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// some says what was found, in one line of a log.
func some(found []Finding, n int) string {
	const most = 5
	var words []string
	for _, f := range found[:min(most, len(found))] {
		words = append(words, f.String())
	}
	if more := n - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, "; ")
}

// run is one attempt. With a reason it reads the kernel back first. If anything
// fails, the next one will.
func (a *Applier) run(ctx context.Context, want plan.Network, reason string) (Report, error) {
	r := &run{a: a, ctx: ctx, want: want, raised: map[carrick.EndpointID]bool{}, rep: Report{
		Network:   a.id,
		Endpoints: make(map[carrick.EndpointID]error, len(want.Ports)),
		Resync:    reason,
	}}
	var err error
	if want.Present {
		err = r.converge()
	} else {
		err = a.remove(ctx, &r.rep)
	}
	r.rep.Problems = slices.Concat(want.Problems, a.found, r.rep.Problems)
	if err != nil {
		a.applied = nil
		err = fmt.Errorf("network %s: %w", a.id, err)
	}
	if touched := a.touched; a.events != nil && len(touched) > 0 {
		a.touched = map[int]bool{}
		a.hear(touched)
	}
	if err != nil || r.rep.broken() || r.suspicious {
		a.QueueResync("the last run failed")
	}
	return r.rep, err
}

// run is one attempt to converge. It is used with the applier's mu held.
type run struct {
	a          *Applier
	ctx        context.Context
	want       plan.Network
	rep        Report
	suspicious bool // memory turned out wrong
	// raised has the ports that were made in this run, with true, or raised.
	raised map[carrick.EndpointID]bool
	fresh  map[int]bool // links that have new settings
}

// Close ends the applier; the kernel keeps what it holds. From then on the
// Overlay's Network returns a new one. Nothing may be called after it.
func (a *Applier) Close() error {
	a.o.mu.Lock()
	if a.o.networks[a.id] == a {
		delete(a.o.networks, a.id)
	}
	a.o.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.close()
}

// close gives up the namespace without changing it.
func (a *Applier) close() error {
	var errs []error
	if a.events != nil {
		errs = append(errs, a.events.Close())
	}
	if a.voice != nil {
		errs = append(errs, a.voice.Close())
	}
	if a.h != nil {
		errs = append(errs, a.h.Close())
	}
	if a.ns != nil {
		errs = append(errs, a.ns.Close())
	}
	a.events, a.voice, a.h, a.ns = nil, nil, nil, nil
	a.links, a.rows, a.touched, a.applied, a.found, a.sysctls = nil, nil, nil, nil, nil, nil
	return errors.Join(errs...)
}
