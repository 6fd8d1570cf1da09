package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/route"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// Applier converges one network. Safe for concurrent use; calls of Apply go one after
// another.
type Applier struct {
	o       *Host
	id      carrick.NetworkID
	changed chan struct{} // holds one value when somebody should call Apply

	// queue is below mu in the lock order. It guards reason and watched.
	queue  sync.Mutex
	reason string // of a resync; "" is none
	// watched are the links that the network stands on, by name, as they were last heard
	// of: many an event says nothing new, as when anybody puts a device on them.
	watched map[string]state

	mu   sync.Mutex     // held during Apply; guards the rest
	last *plan.Underlay // what the last Apply wanted and left, if all of it was known
	// prefixes are those into which routes of this network may lead.
	prefixes []netip.Prefix
	// settled has the children that are in their containers and were found right there:
	// they are looked at again at a resync.
	settled map[carrick.EndpointID]plan.Child
	// again wakes the network while a host is on no segment; nil: none ever was.
	again  *time.Timer
	routes route.Table
	// lasting are the problems that the last resync found; they stay until the next.
	lasting []string
}

// Apply makes the kernel hold want and nothing else of this network; of a partial plan,
// want and whatever else was found. It is idempotent. The report is valid even with an
// error, which is about the network as a whole; a child that fails is in the report
// under its endpoint.
func (a *Applier) Apply(ctx context.Context, want plan.Network) (datapath.Report, error) {
	rep := datapath.Report{Network: a.id, Endpoints: map[carrick.EndpointID]error{}}
	if want.ID != a.id || want.Present == (want.Underlay == nil) || !want.Present && want.Partial {
		return rep, fmt.Errorf("apply to network %q: the plan is for network %q, present %v, on a device %v", a.id, want.ID, want.Present, want.Underlay != nil)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	rep.Resync = a.takeResync()
	r := &run{a: a, ctx: ctx, want: want, u: want.Underlay, rep: &rep}
	var err error
	if want.Present {
		err = r.converge()
	} else {
		err = r.remove()
	}
	rep.Problems = slices.Concat(want.Problems, a.lasting, rep.Problems)
	if err != nil {
		err = fmt.Errorf("network %s: %w", a.id, err)
	}
	if err != nil || r.broken() {
		a.QueueResync("the last run failed")
	}
	if n := rep.Drift.Total(); n > 0 {
		a.o.cfg.Log.Warn("repaired what somebody else had changed", "network", a.id, "objects", n, "drift", rep.Drift.String(), "what", rep.Found, "found by", rep.Resync)
	}
	return rep, err
}

// QueueResync makes the next Apply look at everything. It does not wait for an Apply
// that is under way.
func (a *Applier) QueueResync(reason string) {
	a.queue.Lock()
	defer a.queue.Unlock()
	if a.reason == "" {
		a.reason = reason
	}
}

func (a *Applier) takeResync() string {
	a.queue.Lock()
	defer a.queue.Unlock()
	reason := a.reason
	a.reason = ""
	return reason
}

// Changed receives when a link that the network stands on was changed by somebody. One
// value stands for any number of changes.
func (a *Applier) Changed() <-chan struct{} { return a.changed }

// wake asks for an Apply that looks at everything.
func (a *Applier) wake() {
	a.QueueResync("a link of the host changed")
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// concerns says whether an event is about a link that the network stands on.
func (a *Applier) concerns(e nl.LinkEvent) bool {
	a.queue.Lock()
	defer a.queue.Unlock()
	if a.cameHome(e) {
		return true
	}
	was, watched := a.watched[e.Link.Name]
	if e.PortOnly || !watched {
		return false
	}
	now := state{e.Link.Index, e.Link.MTU, e.Link.Master, e.Link.Up, e.Link.MAC, e.Gone}
	a.watched[e.Link.Name] = now
	return now != was
}

// state is what of a link matters to those that stand on it.
type state struct {
	index, mtu, master int
	up                 bool
	mac                carrick.MAC
	gone               bool
}

// watch notes what the network stands on.
func (a *Applier) watch(names ...string) {
	a.queue.Lock()
	defer a.queue.Unlock()
	watched := map[string]state{}
	for _, n := range names {
		if n != "" {
			watched[n] = a.watched[n]
		}
	}
	a.watched = watched
}

// Close ends the applier; the kernel keeps what it holds. From then on the Host's
// Network returns a new one. Nothing may be called after it.
func (a *Applier) Close() error {
	a.o.mu.Lock()
	if a.o.networks[a.id] == a {
		delete(a.o.networks, a.id)
	}
	a.o.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.again != nil {
		a.again.Stop()
	}
	return nil
}

// run is one Apply. It is used with the applier's mu held.
type run struct {
	a    *Applier
	ctx  context.Context
	want plan.Network
	u    *plan.Underlay
	rep  *datapath.Report
}

// broken says whether an endpoint failed for a reason that trying again may cure.
func (r *run) broken() bool {
	for _, err := range r.rep.Endpoints {
		if err != nil && !errors.Is(err, datapath.ErrPairMissing) {
			return true
		}
	}
	return false
}

func (r *run) problem(format string, args ...any) {
	r.rep.Problems = append(r.rep.Problems, fmt.Sprintf(format, args...))
}

// longer notes a problem that the next runs, which do not look, would not find.
func (r *run) longer(format string, args ...any) {
	if p := fmt.Sprintf(format, args...); !slices.Contains(r.a.lasting, p) {
		r.a.lasting = append(r.a.lasting, p)
	}
}

// all gives every endpoint that has no error of its own the network's.
func (r *run) all(err error) error {
	for _, c := range r.u.Children {
		if r.rep.Endpoints[c.Endpoint] == nil {
			r.rep.Endpoints[c.Endpoint] = fmt.Errorf("endpoint %s: %w", c.Endpoint.Short(), err)
		}
	}
	return err
}

// same says whether the last plan wanted the same of the device and of a child: then
// what differs now was changed by somebody else.
func (r *run) same(c plan.Child) bool {
	l := r.a.last
	if l == nil || l.Kind != r.u.Kind || l.Submode != r.u.Submode || l.Flag != r.u.Flag || l.Parent != r.u.Parent || l.MTU != r.u.MTU {
		return false
	}
	return slices.ContainsFunc(l.Children, func(o plan.Child) bool { return o.Endpoint == c.Endpoint && o.MAC == c.MAC && o.Down == c.Down })
}

// converge brings devices and routes to the plan, additions before removals.
func (r *run) converge() error {
	a, o := r.a, r.a.o
	if r.rep.Resync != "" {
		clear(a.settled)
		a.lasting = nil
		a.routes.Reread()
	}
	p := r.u.Parent
	if p.Name == "" {
		return r.without(fmt.Errorf("this host: %w", ErrNoParent)) // the plan says more
	}
	a.watch(p.Name, p.Base, r.legName())
	o.parents.Lock()
	parent, err := o.parent(r.ctx, p)
	o.parents.Unlock()
	if err != nil {
		r.lost(err)
		return r.without(err)
	}
	links, err := o.h.Links(r.ctx)
	if err != nil {
		return r.all(err)
	}
	if !parent.Up {
		r.problem("parent %s is down, so containers of this host reach nobody: ip link set %s up", p.Name, p.Name)
	}
	for _, c := range r.u.Children {
		err := r.child(c, parent, links)
		if err != nil {
			err = fmt.Errorf("endpoint %s: %w", c.Endpoint.Short(), err)
		}
		r.rep.Endpoints[c.Endpoint] = err
	}
	leg, legErr := r.leg(parent, links)
	routeErr := errors.Join(legErr, r.route(leg))
	delErr := r.strangers(links)
	if len(r.u.Prefixes) > 0 {
		a.prefixes = r.u.Prefixes
	}
	if a.last = r.u; r.want.Partial || routeErr != nil {
		a.last = nil // what the next run changes is not somebody else's doing
	}
	return errors.Join(routeErr, delErr)
}

// without does what can be done without a parent: nobody is heard who must not be, and
// what was of endpoints that are no more goes.
func (r *run) without(err error) error {
	o := r.a.o
	errs := []error{err}
	for _, c := range r.u.Children {
		if !c.Down {
			continue
		}
		s, serr := o.open(r.ctx, c.Sandbox)
		if serr != nil {
			continue
		}
		if l, ok := s.find(r.a.id, c.Endpoint); ok {
			errs = append(errs, r.change(c, s.h, r.cut(c, l), describe(l)))
		}
		s.close()
	}
	links, lerr := o.h.Links(r.ctx)
	if lerr == nil {
		lerr = r.strangers(links)
	}
	return r.all(errors.Join(append(errs, lerr)...))
}

// lost tells of containers whose device went with its parent.
func (r *run) lost(err error) {
	for _, c := range r.u.Children {
		if !c.Create {
			r.problem("endpoint %s: %v: once it is there again, docker restart CONTAINER", c.Endpoint.Short(), err)
		}
	}
}

// legName is the name of the host's own device, "" if it has none.
func (r *run) legName() string {
	if r.u.Leg == nil {
		return ""
	}
	return r.u.Leg.Name
}

// strangers removes devices of the network that nobody planned, from the host's
// namespace: where a container's namespace is, only its endpoint knew.
func (r *run) strangers(links []nl.Link) error {
	if r.want.Partial {
		return nil
	}
	planned := map[carrick.EndpointID]bool{}
	if r.u != nil {
		for _, c := range r.u.Children {
			planned[c.Endpoint] = true
		}
	}
	var changes []nl.Change
	var lent []nl.Link
	for _, l := range links {
		id, ep, ok := plan.ParseChildAlias(l.Alias)
		switch {
		case !ok || id != r.a.id || planned[ep]:
		case l.Kind == nl.KindMacvlan || l.Kind == nl.KindIPvlan:
			changes = append(changes, nl.DelLink{Link: l.Ref})
		case l.Kind == "":
			lent = append(lent, l)
		}
	}
	for ep := range r.a.settled {
		if !planned[ep] {
			delete(r.a.settled, ep)
		}
	}
	errs := r.a.o.h.Send(r.ctx, changes...)
	r.rep.Changes.Links += len(changes) + len(lent)
	return errors.Join(append(ignoring(nl.ErrNotFound, errs), r.a.o.giveBackAll(r.ctx, lent))...)
}

// remove deletes what the host's namespace has of a network.
func (r *run) remove() error {
	a := r.a
	links, err := a.o.h.Links(r.ctx)
	if err != nil {
		return err
	}
	var errs []error
	a.last, a.lasting = nil, nil
	a.routes.Forget()
	r.u = &plan.Underlay{Prefixes: a.prefixes}
	if err := r.route(nl.Ref{}); err != nil {
		errs = append(errs, err)
	} else {
		a.prefixes = nil
	}
	r.u = nil
	errs = append(errs, r.strangers(links), r.endLeg(links))
	a.watch()
	return errors.Join(errs...)
}
