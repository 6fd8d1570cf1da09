package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/plan"
)

// joinTries is how many passes may fail before a Join is told so: one failure
// may be a race with something that is just going away.
const joinTries = 3

// worker does the passes over one network, one at a time.
type worker struct {
	r       *Reconciler
	id      carrick.NetworkID
	kick    chan struct{} // holds one value: a pass is due
	started bool          // guarded by Reconciler.mu
	planner plan.Planner  // used by loop alone

	mu      sync.Mutex
	waiters []waiter     // guarded by mu
	audits  []chan Audit // buffered; guarded by mu
	state   NetworkState // guarded by mu
}

type waiter struct {
	ep      carrick.EndpointID
	tries   int
	verdict chan error // buffered
}

func (w *worker) wake() {
	select {
	case w.kick <- struct{}{}:
	default: // one is due already
	}
}

func (w *worker) loop(ctx context.Context) {
	applier := w.r.applier(w.id)
	// retry is nil while nothing failed, idle while the host has the network.
	var retry, idle <-chan time.Time
	failures := 0
	for {
		select {
		case <-ctx.Done():
			w.refuse(ctx.Err())
			return
		case <-w.kick:
		case <-applier.Changed():
		case <-retry:
		case <-idle:
			if w.retire(applier) {
				return
			}
		}
		applier = w.fitting(applier)
		present, ok := w.pass(ctx, applier)
		retry = nil
		if !ok {
			retry = time.After(retryDelay(failures))
			failures++
		} else {
			failures = 0
		}
		switch {
		case present || !ok:
			idle = nil
		case idle == nil:
			idle = time.After(w.r.cfg.Linger)
		}
	}
}

// retire ends the worker of an idle network, unless somebody just asked. The
// applier is closed before another worker can ask for one: nobody may use it
// after that.
func (w *worker) retire(applier applier) bool {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiters) > 0 || len(w.audits) > 0 || len(w.kick) > 0 || len(w.r.cfg.Facts.Journal().Endpoints(w.id)) > 0 {
		return false
	}
	if err := applier.Close(); err != nil {
		w.r.cfg.Log.Debug("applier not closed", "network", w.id, "err", err)
	}
	delete(w.r.workers, w.id)
	w.r.cfg.Facts.Unfollow(w.id)
	return true
}

// pass makes the plan of now and hands it to the applier. It returns whether the
// host should hold the network, and whether all went well.
func (w *worker) pass(ctx context.Context, applier applier) (present, ok bool) {
	w.mu.Lock()
	waiters := w.waiters
	w.waiters = nil
	w.mu.Unlock()
	audits := w.takeAudits(applier)

	want, err := w.plan(ctx)
	var did Audit
	if err != nil {
		did.Err = err
	} else {
		begin := time.Now()
		did.Report, did.Err = applier.Apply(ctx, want)
		did.Took = time.Since(begin)
		if w.r.cfg.Observe != nil {
			w.r.cfg.Observe(did)
		}
	}
	w.record(want, did)
	w.answer(waiters, did.Report, did.Err)
	for _, a := range audits {
		a <- did
	}
	if did.Err == nil {
		w.r.forgetFound(w.id)
		if placeOf(applier) != inOverlay && !want.Present {
			w.r.collect(ctx)
		}
	}
	return want.Present, did.Err == nil && did.Failed() == nil
}

// plan makes the plan of now: a partial one until the network's facts have been
// read from the store, whose arrival starts another pass.
func (w *worker) plan(ctx context.Context) (plan.Network, error) {
	v, _, err := w.r.cfg.Facts.View(w.id)
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return plan.Network{ID: w.id, Namespace: plan.Namespace(w.id)}, nil
	case err != nil:
		return plan.Network{}, err
	}
	if w.r.cfg.Ways != nil {
		v.Paths = w.r.cfg.Ways.MTUs(ctx, vteps(v, w.r.cfg.Facts.Self()))
	}
	want := w.planner.Make(v, w.r.cfg.Facts.Self())
	if want.Present {
		// Whoever asked for the facts may have seen them dropped since: a network
		// in the kernel is followed, whatever else happened.
		w.r.cfg.Facts.Follow(w.id)
	}
	return want, nil
}

// vteps lists where a network's other hosts are, if this one is in it.
func vteps(v carrick.View, me carrick.HostID) []netip.Addr {
	if len(v.Endpoints[me]) == 0 {
		return nil
	}
	out := make([]netip.Addr, 0, len(v.Hosts))
	for id, h := range v.Hosts {
		if id != me {
			out = append(out, h.VTEP)
		}
	}
	return out
}

func (w *worker) record(want plan.Network, did Audit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	report, err, now := did.Report, did.Err, time.Now()
	drift := w.state.Drift
	drift.Add(report.Drift)
	read, took := w.state.Read, w.state.ReadTook
	if report.Resync != "" && err == nil {
		read, took = now, did.Took
	}
	if err != nil && (w.state.Err == nil || w.state.Err.Error() != err.Error()) {
		w.r.cfg.Log.Warn("network not as it should be, trying again", "network", w.id, "err", err)
	}
	if err == nil && w.state.Err != nil {
		w.r.cfg.Log.Info("network is as it should be", "network", w.id)
	}
	for id, e := range report.Endpoints {
		if old := w.state.Endpoints[id]; e != nil && (old == nil || old.Error() != e.Error()) {
			w.r.cfg.Log.Debug("endpoint not as it should be", "network", w.id, "endpoint", id.Short(), "err", e)
		}
	}
	for _, p := range report.Problems {
		if !slices.Contains(w.state.Problems, p) {
			w.r.cfg.Log.Warn("problem", "network", w.id, "problem", p)
		}
	}
	w.state = NetworkState{
		ID: w.id, Plan: want, At: now, Err: err,
		Endpoints: report.Endpoints, Problems: report.Problems, Ways: report.Ways,
		Drift: drift, Recent: recent(w.state.Recent, report, now), Read: read, ReadTook: took,
	}
}

// answer gives every waiter its endpoint's verdict, or keeps it for another try.
// The verdict is about the endpoint alone: what else is wrong with the network
// must not fail its containers.
func (w *worker) answer(waiters []waiter, report datapath.Report, err error) {
	var again []waiter
	for _, x := range waiters {
		verdict, tried := report.Endpoints[x.ep]
		switch {
		case tried:
		case err != nil:
			verdict = err
		default:
			x.verdict <- fmt.Errorf("endpoint %s was removed meanwhile", x.ep.Short())
			continue
		}
		x.tries++
		if verdict != nil && x.tries < joinTries {
			again = append(again, x)
			continue
		}
		x.verdict <- verdict
	}
	if len(again) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters = append(again, w.waiters...)
}

// refuse answers all waiters when the worker ends.
func (w *worker) refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.waiters {
		x.verdict <- fmt.Errorf("the agent is stopping: %w", err)
	}
	w.waiters = nil
	for _, a := range w.audits {
		a <- Audit{Err: fmt.Errorf("the agent is stopping: %w", err)}
	}
	w.audits = nil
}

// forgetFound: after one good pass the network is as its facts say.
func (r *Reconciler) forgetFound(id carrick.NetworkID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.found, id)
	delete(r.elsewhere, id)
}
