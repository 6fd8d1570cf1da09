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

// applier returns a network's applier. A network has one mode for good; of one that the
// journal does not have (any more), what the kernel had of it at the start decides.
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

// collect removes what no network of this host needs of what they share. It waits until
// the host is registered: one that lost its memory does not know its networks.
func (r *Reconciler) collect(ctx context.Context) {
	jr := r.cfg.Facts.Journal()
	if r.cfg.Underlay == nil || !jr.Registered() {
		return
	}
	w := underlay.Wanted{Parents: map[string]bool{}, Children: map[string]bool{}}
	for _, rec := range jr.Networks() {
		if !rec.Conf.Mode.Underlay() {
			continue
		}
		// Also one that is leaving: its devices are still to go.
		for _, e := range jr.Endpoints(rec.Conf.ID) {
			w.Children[e.ID.OuterName()] = true
		}
		if rec.Leaving {
			continue
		}
		if parents, err := carrick.ParseParents(rec.Conf.Parent); err == nil {
			if p, ok := parents.For(r.cfg.Name); ok {
				w.Parents[p.Name] = true
			}
		}
		for _, p := range rec.Conf.Pools {
			w.Prefixes = append(w.Prefixes, p.Prefix)
		}
	}
	if err := r.cfg.Underlay.Collect(ctx, w); err != nil {
		r.cfg.Log.Warn("what networks on the host's devices left was not removed", "err", err)
	}
}
