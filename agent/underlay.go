package agent

import (
	"context"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/plan"
)

// applier makes the kernel hold the plans of one network: see [datapath.Applier] and
// [underlay.Applier].
type applier interface {
	Apply(ctx context.Context, want plan.Network) (datapath.Report, error)
	QueueResync(reason string)
	Changed() <-chan struct{}
	Close() error
}

// applier returns a network's applier. Of one that the journal does not have (any more),
// what the kernel had of it at the start decides.
func (r *Reconciler) applier(id carrick.NetworkID) applier {
	r.mu.Lock()
	devices := r.onDevices[id]
	r.mu.Unlock()
	if rec, err := r.cfg.Facts.Journal().Network(id); err == nil {
		devices = rec.Conf.Mode.Underlay()
	}
	if devices && r.cfg.Underlay != nil {
		return r.cfg.Underlay.Network(id)
	}
	return r.cfg.Overlay.Network(id)
}

// fitting returns the applier for the network's mode. The one that the worker began with
// may be of the other kind: it began when the journal did not have the network, which has
// been joined since.
func (w *worker) fitting(a applier) applier {
	rec, err := w.r.cfg.Facts.Journal().Network(w.id)
	if err != nil || w.r.cfg.Underlay == nil {
		return a
	}
	if _, devices := a.(*underlay.Applier); devices == rec.Conf.Mode.Underlay() {
		return a
	}
	if err := a.Close(); err != nil {
		w.r.cfg.Log.Debug("applier not closed", "network", w.id, "err", err)
	}
	return w.r.applier(w.id)
}

// collect removes what no network of this host needs of what they share.
func (r *Reconciler) collect(ctx context.Context) {
	if r.cfg.Underlay == nil {
		return
	}
	if err := r.cfg.Underlay.Collect(ctx, r.wanted); err != nil {
		r.cfg.Log.Warn("what networks on the host's devices left was not removed", "err", err)
	}
}

// wanted is what this host's networks need of what they share, as its journal says now.
func (r *Reconciler) wanted() underlay.Wanted {
	jr := r.cfg.Facts.Journal()
	w := underlay.Wanted{Parents: map[string]bool{}, Children: map[string]bool{}}
	for _, rec := range jr.Networks() {
		if !rec.Conf.Mode.Underlay() {
			continue
		}
		eps := jr.Endpoints(rec.Conf.ID)
		for _, e := range eps {
			w.Children[e.ID.OuterName()] = true
		}
		if len(eps) > 0 && rec.Conf.Routes() {
			for _, p := range rec.Conf.Pools {
				w.Prefixes = append(w.Prefixes, p.Prefix)
			}
		}
		if rec.Leaving && len(eps) == 0 {
			continue
		}
		parents, err := carrick.ParseParents(rec.Conf.Parent)
		p, ok := parents.For(r.cfg.Name)
		if err != nil || !ok {
			w.AllParents = true // its containers stand on something that it does not name (any more)
			continue
		}
		w.Parents[p.Name] = true
	}
	return w
}
