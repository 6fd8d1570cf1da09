// Package agent decides when the kernel is brought in line with the facts, in
// what order and how often again. It is the one place besides plan where facts
// and effects meet: a snapshot goes in, a plan is made, an applier is handed the
// plan.
//
// Everything that happens (a start, a change in the store, a Join, a retry, an
// audit, a link that flapped) ends in the same pass over one network. There is
// no other way to the kernel.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/plan"
)

// Facts is what the agent needs of the cluster.
type Facts interface {
	Self() carrick.HostID
	Ready() <-chan struct{}
	// View returns a network's snapshot and whether the store's part is in it, else
	// it says itself that it is partial; journal.ErrNotFound if the network is not on
	// this host.
	View(carrick.NetworkID) (v carrick.View, complete bool, err error)
	Follow(carrick.NetworkID)
	Unfollow(carrick.NetworkID)
	Journal() *journal.Journal
}

// Ways is what the kernel and probes know of the ways to other hosts.
type Ways interface {
	// MTUs is the largest outer packet to each of some VTEPs, in bytes, as far as it
	// is known.
	MTUs(ctx context.Context, vteps []netip.Addr) map[netip.Addr]int
}

// Config is what a Reconciler needs. All fields but the durations, Underlay and
// Name, Routed, Ways and Observe are required.
type Config struct {
	Facts   Facts
	Overlay *datapath.Overlay
	// Underlay has the networks that stand on devices of the host; nil: there are none.
	Underlay *underlay.Host
	Name     string // this host's, as networks on its devices call it
	// Routed has the networks whose hosts route; nil: there are none.
	Routed *routed.Host
	Log    *slog.Logger
	// Ways says how large a packet the ways to other hosts carry; nil: not known.
	Ways Ways
	// Observe is told of every pass, and of what was found of the host itself, which
	// is no network's; nil: nobody.
	Observe func(Audit)
	// Audit is how often each network is read back in full; 0 = 60 s.
	Audit time.Duration
	// Linger is how long an idle network is followed after its last endpoint left;
	// 0 = 60 s.
	Linger time.Duration
}

// Reconciler keeps this host's networks in the kernel. Safe for concurrent use.
type Reconciler struct {
	cfg Config

	stopped chan struct{} // closed when Run has ended

	mu      sync.Mutex
	run     *errgroup.Group               // nil outside Run; guarded by mu
	ctx     context.Context               // of run; guarded by mu
	workers map[carrick.NetworkID]*worker // guarded by mu
	// found are networks that were in the kernel when Run began; guarded by mu.
	found map[carrick.NetworkID]bool
	// elsewhere says where those of them are that have no namespace of their own; guarded
	// by mu.
	elsewhere map[carrick.NetworkID]place
	// swept: it is known which networks in the kernel are strangers; guarded by mu.
	swept bool
	// problems are about the host rather than a network; guarded by mu.
	problems []string
	// hostDrift is of the host's own settings; guarded by mu.
	hostDrift []Drift
}

// New returns a Reconciler that does nothing until Run.
func New(cfg Config) *Reconciler {
	if cfg.Audit == 0 {
		cfg.Audit = time.Minute
	}
	if cfg.Linger == 0 {
		cfg.Linger = time.Minute
	}
	return &Reconciler{cfg: cfg, stopped: make(chan struct{}), workers: map[carrick.NetworkID]*worker{}, found: map[carrick.NetworkID]bool{}, elsewhere: map[carrick.NetworkID]place{}}
}

func (r *Reconciler) String() string { return "reconcile" }

// Run adopts what the kernel holds, keeps it right until ctx ends, and leaves it
// there: traffic goes on without the agent. It runs once.
func (r *Reconciler) Run(ctx context.Context) error {
	defer close(r.stopped)
	existing, err := r.cfg.Overlay.List(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the networks in the kernel: %w", err)
	}
	elsewhere, err := r.listElsewhere(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	r.mu.Lock()
	r.run, r.ctx = g, gctx
	for _, e := range existing {
		r.found[e.ID] = true
	}
	maps.Copy(r.elsewhere, elsewhere)
	for id, at := range elsewhere {
		if at == inHost {
			r.found[id] = true
		}
	}
	for id, w := range r.workers {
		r.start(id, w)
	}
	r.mu.Unlock()
	for _, n := range r.cfg.Facts.Journal().Networks() {
		if len(r.cfg.Facts.Journal().Endpoints(n.Conf.ID)) > 0 {
			r.cfg.Facts.Follow(n.Conf.ID)
			r.Changed(n.Conf.ID)
		}
	}
	g.Go(func() error { return r.sweep(gctx) })
	g.Go(func() error { return r.auditing(gctx) })
	<-ctx.Done()
	err = g.Wait()
	r.mu.Lock()
	r.run, r.ctx = nil, nil
	r.mu.Unlock()
	return err
}

// listElsewhere lists the networks in the kernel that have no namespace of their own.
func (r *Reconciler) listElsewhere(ctx context.Context) (map[carrick.NetworkID]place, error) {
	out := map[carrick.NetworkID]place{}
	if r.cfg.Routed != nil {
		ids, err := r.cfg.Routed.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the routed networks in the kernel: %w", err)
		}
		for _, id := range ids {
			out[id] = inHost
		}
	}
	if r.cfg.Underlay != nil {
		ids, err := r.cfg.Underlay.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the networks on the host's devices: %w", err)
		}
		for _, id := range ids {
			if _, routed := out[id]; !routed {
				out[id] = onDevices
			}
		}
	}
	return out, nil
}

// sweep has a pass made over every network that is in the kernel and has no
// worker: its plan, made of the journal at that moment, is that nothing exists.
// It waits until the host is registered, because one that lost its memory is
// refused there; and what was in the kernel when the journal was made is left
// alone for good, because nobody knows what runs in it.
func (r *Reconciler) sweep(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.cfg.Facts.Ready():
	}
	jr := r.cfg.Facts.Journal()
	r.mu.Lock()
	found := slices.Sorted(maps.Keys(r.found))
	var devices []carrick.NetworkID
	for id, at := range r.elsewhere {
		if at == onDevices {
			devices = append(devices, id)
		}
	}
	r.mu.Unlock()
	// Nobody runs in a device that is in the host's namespace.
	for _, id := range devices {
		r.Changed(id)
	}
	strangers := jr.Strangers()
	if !jr.Registered() {
		strangers = found
	}
	strangers = slices.DeleteFunc(strangers, func(id carrick.NetworkID) bool { return !slices.Contains(found, id) })
	if err := jr.SetStrangers(strangers); err != nil {
		return err
	}
	r.mu.Lock()
	r.swept = true
	r.mu.Unlock()
	if len(strangers) > 0 {
		r.note(fmt.Sprintf("%d networks in the kernel are older than the state directory and left alone: restart their containers, then remove what remains (ip netns del %s...; of routed ones, ip link del of links whose alias begins with carrick/, ip route flush proto 67)",
			len(strangers), plan.Namespace(strangers[0])))
	}
	r.collect(ctx)
	for _, id := range found {
		if !slices.Contains(strangers, id) {
			r.Changed(id)
		}
	}
	return nil
}

func (r *Reconciler) note(problem string) {
	r.cfg.Log.Warn(problem)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, problem)
}

// Changed asks for a pass over a network. It never blocks.
func (r *Reconciler) Changed(id carrick.NetworkID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worker(id).wake()
}

// ChangedAll asks for a pass over every network here: something of the host itself
// has changed. It never blocks.
func (r *Reconciler) ChangedAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		w.wake()
	}
}

// Realize asks for a pass over a network and waits for its verdict on one
// endpoint: nil when the kernel holds it, else the kernel's reason.
func (r *Reconciler) Realize(ctx context.Context, id carrick.NetworkID, ep carrick.EndpointID) error {
	verdict := make(chan error, 1)
	r.mu.Lock()
	w := r.worker(id)
	w.mu.Lock()
	w.waiters = append(w.waiters, waiter{ep: ep, verdict: verdict})
	w.mu.Unlock()
	w.wake()
	r.mu.Unlock()
	select {
	case err := <-verdict:
		return err
	case <-ctx.Done():
	case <-r.stopped:
		return errors.New("the agent is stopping")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Errorf("the kernel was not ready in time: %w", errors.Join(ctx.Err(), w.state.Err))
}

// worker returns a network's worker, starting it if needed. r.mu must be held.
func (r *Reconciler) worker(id carrick.NetworkID) *worker {
	w := r.workers[id]
	if w == nil {
		w = &worker{r: r, id: id, kick: make(chan struct{}, 1)}
		r.workers[id] = w
		r.start(id, w)
	}
	return w
}

// start needs r.mu.
func (r *Reconciler) start(_ carrick.NetworkID, w *worker) {
	if r.run == nil || w.started {
		return
	}
	w.started = true
	ctx := r.ctx
	r.run.Go(func() error {
		w.loop(ctx)
		return nil
	})
}

// NetworkState is what the last pass over a network found.
type NetworkState struct {
	ID        carrick.NetworkID
	Plan      plan.Network
	At        time.Time // zero: no pass yet
	Err       error
	Endpoints map[carrick.EndpointID]error
	Problems  []string
	Drift     datapath.Counts // repaired since the agent started
	Recent    []Drift         // the last of it, oldest first
	// Ways is how the other hosts of a routed network are reached, by VTEP.
	Ways     map[netip.Addr]datapath.Way
	Read     time.Time     // when the kernel was last read in full; zero: not yet
	ReadTook time.Duration // that pass
}

// Networks returns the state of every network with a worker, sorted by id.
func (r *Reconciler) Networks() []NetworkState {
	r.mu.Lock()
	workers := make([]*worker, 0, len(r.workers))
	for _, w := range r.workers {
		workers = append(workers, w)
	}
	r.mu.Unlock()
	out := make([]NetworkState, 0, len(workers))
	for _, w := range workers {
		w.mu.Lock()
		out = append(out, w.state)
		w.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b NetworkState) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// Problems returns what is wrong with the host as a whole.
func (r *Reconciler) Problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.problems)
}

func retryDelay(attempt int) time.Duration {
	return min(50*time.Millisecond<<min(attempt, 7), 5*time.Second)
}
