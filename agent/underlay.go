package agent

import (
	"context"
	"errors"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/plan"
)

// applier makes the kernel hold the plans of one network: see [datapath.Applier] and
// [underlay.Applier] and [routed.Applier].
type applier interface {
	Apply(ctx context.Context, want plan.Network) (datapath.Report, error)
	QueueResync(reason string)
	Changed() <-chan struct{}
	Close() error
}

// place is where in the kernel a network is.
type place int

const (
	inOverlay place = iota // a namespace of its own
	onDevices              // devices of the host
	inHost                 // the host's own namespace, which routes
)

// place returns where a network is. Of one that the journal does not have (any more), what
// the kernel had of it at the start decides.
func (r *Reconciler) place(id carrick.NetworkID) place {
	r.mu.Lock()
	at := r.elsewhere[id]
	r.mu.Unlock()
	if rec, err := r.cfg.Facts.Journal().Network(id); err == nil {
		at = inOverlay
		switch {
		case rec.Conf.Mode.Underlay():
			at = onDevices
		case rec.Conf.Mode == carrick.ModeRouted:
			at = inHost
		}
	}
	if at == onDevices && r.cfg.Underlay == nil || at == inHost && r.cfg.Routed == nil {
		return inOverlay
	}
	return at
}

// applier returns a network's applier.
func (r *Reconciler) applier(id carrick.NetworkID) applier {
	switch r.place(id) {
	case onDevices:
		return r.cfg.Underlay.Network(id)
	case inHost:
		return r.cfg.Routed.Network(id)
	}
	return r.cfg.Overlay.Network(id)
}

// fitting returns the applier for the network's mode. The one that the worker began with
// may be of another kind: it began when the journal did not have the network, which has
// been joined since.
func (w *worker) fitting(a applier) applier {
	if _, err := w.r.cfg.Facts.Journal().Network(w.id); err != nil || placeOf(a) == w.r.place(w.id) {
		return a
	}
	if err := a.Close(); err != nil {
		w.r.cfg.Log.Debug("applier not closed", "network", w.id, "err", err)
	}
	return w.r.applier(w.id)
}

// placeOf is where an applier works.
func placeOf(a applier) place {
	switch a.(type) {
	case *underlay.Applier:
		return onDevices
	case *routed.Applier:
		return inHost
	}
	return inOverlay
}

// collect removes what no network of this host needs of what they share, or what a crash
// left of one.
func (r *Reconciler) collect(ctx context.Context) {
	var errs []error
	if r.cfg.Underlay != nil {
		errs = append(errs, r.cfg.Underlay.Collect(ctx, r.wanted))
	}
	r.mu.Lock()
	swept := r.swept
	r.mu.Unlock()
	if r.cfg.Routed != nil && swept { // before, nobody knows whose pairs there are
		errs = append(errs, r.cfg.Routed.Collect(ctx, r.wantedRouted))
	}
	if err := errors.Join(errs...); err != nil {
		r.cfg.Log.Warn("what networks left in the host's namespace was not removed", "err", err)
	}
}

// wantedRouted is what this host's routed networks need, as its journal says now. The
// prefixes in which routes are theirs are those of every network that has some: one of
// another mode counts as wanted where it has an endpoint.
func (r *Reconciler) wantedRouted() routed.Wanted {
	jr := r.cfg.Facts.Journal()
	w := routed.Wanted{Pairs: map[string]bool{}, Networks: map[carrick.NetworkID]bool{}, Foreign: map[carrick.NetworkID]bool{}}
	for _, id := range jr.Strangers() {
		w.Foreign[id] = true
	}
	for _, rec := range jr.Networks() {
		if !rec.Conf.Routes() && !rec.Conf.HostAccess {
			continue
		}
		eps := jr.Endpoints(rec.Conf.ID)
		for _, p := range rec.Conf.Pools {
			w.Known = append(w.Known, p.Prefix)
			if len(eps) > 0 {
				w.Prefixes = append(w.Prefixes, p.Prefix)
			}
		}
		if rec.Conf.Mode != carrick.ModeRouted || len(eps) == 0 {
			continue
		}
		w.Networks[rec.Conf.ID] = true
		for _, e := range eps {
			w.Pairs[e.ID.HostName()] = true
		}
	}
	return w
}

// wanted is what this host's networks need of what they share, as its journal says now.
func (r *Reconciler) wanted() underlay.Wanted {
	jr := r.cfg.Facts.Journal()
	w := underlay.Wanted{Parents: map[string]bool{}, Children: map[string]bool{}, Legs: map[string]bool{}}
	for _, rec := range jr.Networks() {
		eps := jr.Endpoints(rec.Conf.ID)
		if len(eps) > 0 && (rec.Conf.Routes() || rec.Conf.HostAccess) { // of whatever mode
			for _, p := range rec.Conf.Pools {
				w.Prefixes = append(w.Prefixes, p.Prefix)
			}
		}
		if !rec.Conf.Mode.Underlay() {
			continue
		}
		for _, e := range eps {
			w.Children[e.ID.OuterName()] = true
			if e.ID == carrick.LegID(rec.Conf.ID, r.cfg.Facts.Self()) {
				w.Legs[plan.LegName(rec.Conf.ID)] = true
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
