package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
)

// Audit is what one pass found and did.
type Audit struct {
	datapath.Report
	Took time.Duration
	Err  error // the network's
}

// Drift is what one pass found that somebody else had changed, and repaired.
type Drift struct {
	At     time.Time
	Counts datapath.Counts
	Found  []datapath.Finding // the first of it
}

const (
	// maxRecent is how many passes with drift are remembered of a network, and
	// maxSpelled how many objects of each.
	maxRecent  = 10
	maxSpelled = 20
)

// ErrNotHere: the host does not hold the network, so there is nothing to read.
var ErrNotHere = errors.New("no container of this host is in it")

// Audit has a network read back in full now, by a pass like any other, and waits
// for what it found. [ErrNotHere] if there is nothing to read.
func (r *Reconciler) Audit(ctx context.Context, id carrick.NetworkID) (Audit, error) {
	answer := make(chan Audit, 1)
	r.mu.Lock()
	w := r.workers[id]
	if w == nil {
		r.mu.Unlock()
		return Audit{}, fmt.Errorf("audit network %s: %w", id, ErrNotHere)
	}
	w.mu.Lock()
	w.audits = append(w.audits, answer)
	w.mu.Unlock()
	w.wake()
	r.mu.Unlock()
	select {
	case a := <-answer:
		return a, nil
	case <-ctx.Done():
		return Audit{}, fmt.Errorf("audit network %s: %w", id, ctx.Err())
	case <-r.stopped:
		return Audit{}, errors.New("the agent is stopping")
	}
}

// Audited lists the networks that there is something to read of, sorted.
func (r *Reconciler) Audited() []carrick.NetworkID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.workers))
}

// Every is how often each network is audited.
func (r *Reconciler) Every() time.Duration { return r.cfg.Audit }

// takeAudits takes who waits for an audit; if anybody does, the next pass reads.
func (w *worker) takeAudits(applier applier) []chan Audit {
	w.mu.Lock()
	defer w.mu.Unlock()
	audits := w.audits
	w.audits = nil
	if len(audits) > 0 {
		applier.QueueResync("audit")
	}
	return audits
}

// recent adds a pass's drift to what is remembered.
func recent(old []Drift, report datapath.Report, at time.Time) []Drift {
	if report.Drift.Total() == 0 {
		return old
	}
	d := Drift{At: at, Counts: report.Drift, Found: report.Found[:min(len(report.Found), maxSpelled)]}
	return slices.Concat(old[max(0, len(old)+1-maxRecent):], []Drift{d})
}

// auditor asks for each network's audit once in a period, one after another and
// spread over the period: a hundred networks are not read in the same second, and
// an audit that takes long delays the others rather than meeting them.
type auditor struct {
	every    time.Duration
	networks func() []carrick.NetworkID
	audit    func(context.Context, carrick.NetworkID)
	host     func(context.Context) // called once in a period, and first of all
}

func (a auditor) run(ctx context.Context) {
	last := map[carrick.NetworkID]time.Time{}
	next := time.Now()
	hostDue := next
	for {
		if now := time.Now(); !now.Before(hostDue) {
			a.host(ctx)
			hostDue = now.Add(a.every)
		}
		next = next.Add(a.every / time.Duration(max(len(a.networks()), 1)))
		if now := time.Now(); next.Before(now) {
			next = now // what took too long is not caught up with
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		ids := a.networks()
		maps.DeleteFunc(last, func(id carrick.NetworkID, _ time.Time) bool { return !slices.Contains(ids, id) })
		if len(ids) == 0 {
			continue
		}
		oldest := slices.MinFunc(ids, func(x, y carrick.NetworkID) int { return last[x].Compare(last[y]) })
		last[oldest] = time.Now()
		a.audit(ctx, oldest)
	}
}

// auditing audits all networks for as long as ctx lasts.
func (r *Reconciler) auditing(ctx context.Context) error {
	again := false
	auditor{
		every:    r.cfg.Audit,
		networks: r.Audited,
		audit: func(ctx context.Context, id carrick.NetworkID) {
			_, _ = r.Audit(ctx, id) // what is wrong is recorded, and logged, by the pass
		},
		host: func(ctx context.Context) {
			r.raiseLimits(ctx, again)
			r.collect(ctx)
			again = true
		},
	}.run(ctx)
	return nil
}

// raiseLimits raises the host's limits. If that was done before, somebody lowered
// what there is to raise.
func (r *Reconciler) raiseLimits(ctx context.Context, again bool) {
	raised, err := r.cfg.Overlay.RaiseLimits(ctx)
	if err != nil {
		r.cfg.Log.Debug("limits of the neighbour tables not raised", "err", err)
	}
	if len(raised) == 0 {
		return
	}
	for _, f := range raised {
		r.cfg.Log.Info("limit of the host raised", "sysctl", f.Object, "from", f.Found, "to", f.Want)
	}
	report := datapath.Report{Resync: "audit", Changes: datapath.Counts{Sysctls: len(raised)}}
	if again {
		report.Drift, report.Found = report.Changes, raised
		r.mu.Lock()
		r.hostDrift = recent(r.hostDrift, report, time.Now())
		r.mu.Unlock()
	}
	if r.cfg.Observe != nil {
		r.cfg.Observe(Audit{Report: report})
	}
}

// HostDrift is what was found of the host's own settings, the last of it.
func (r *Reconciler) HostDrift() []Drift {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hostDrift
}
