package routed

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
	"github.com/carrick-net/carrick/datapath/fdb"
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
	// watched are the network's links, and the one that routes are by, by name, as they
	// were last heard of.
	watched map[string]state

	mu sync.Mutex // held during Apply; guards the rest
	// last is what the last Apply wanted and left, if that is known.
	last *plan.Routed
	// fine are the pairs that were found right, or put right, with the index of the host's
	// end: what of them no list of links shows is looked at again at a resync.
	fine map[carrick.EndpointID]settled
	// prefixes are those into which routes of this network may lead.
	prefixes []netip.Prefix
	routes   route.Table
	rows     *fdb.Tables // of the tunnel
	// far are next hops that are on no segment of this host.
	far map[netip.Addr]bool
	// again wakes the network while there are some; nil: there never were.
	again *time.Timer
	// device is what Local was found on, "" if it was not: with it go the routes.
	device string
	// accepted: the rules are as the last look left them; whole: every family had a chain
	// for them.
	accepted, whole bool
	// checked are the devices whose IPv6 sources the last look had checked; nil: that is not
	// known. held: the kernel does it.
	checked []string
	held    bool
	// lasting are the problems that the last resync found; they stay until the next.
	lasting []string
}

// settled is a pair that is as it should be.
type settled struct {
	index int
	mtu   int
	down  bool
}

// state is what of a link matters.
type state struct {
	index, mtu, master int
	up                 bool
	alias              string
	gone               bool
}

func stateOf(l nl.Link) state {
	return state{index: l.Index, mtu: l.MTU, master: l.Master, up: l.Up, alias: l.Alias}
}

func newApplier(o *Host, id carrick.NetworkID) *Applier {
	return &Applier{o: o, id: id, changed: make(chan struct{}, 1), reason: "first look", fine: map[carrick.EndpointID]settled{}, rows: fdb.New(), far: map[netip.Addr]bool{}}
}

// Apply makes the kernel hold want and nothing else of this network; of a partial plan,
// want and whatever else was found. It is idempotent. The report is valid even with an
// error, which is about the network as a whole; a pair that fails is in the report under
// its endpoint.
func (a *Applier) Apply(ctx context.Context, want plan.Network) (datapath.Report, error) {
	rep := datapath.Report{Network: a.id, Endpoints: map[carrick.EndpointID]error{}}
	if want.ID != a.id || want.Present == (want.Routed == nil) || !want.Present && want.Partial {
		return rep, fmt.Errorf("apply to network %q: the plan is for network %q, present %v, routed %v", a.id, want.ID, want.Present, want.Routed != nil)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	rep.Resync = a.takeResync()
	r := &run{a: a, ctx: ctx, want: want, u: want.Routed, rep: &rep}
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

// Changed receives when a link of the network was changed by somebody else. One value
// stands for any number of changes.
func (a *Applier) Changed() <-chan struct{} { return a.changed }

// wake asks for an Apply that looks at everything.
func (a *Applier) wake() {
	a.QueueResync("a link changed")
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// soon is wake after farRetry. There is one timer, however often it is asked for. Called
// with mu held.
func (a *Applier) soon() {
	if a.again == nil {
		a.again = time.AfterFunc(farRetry, a.wake)
		return
	}
	a.again.Reset(farRetry)
}

// farRetry is how soon a host is tried again that was on no segment: this one's address
// there may just not have been set yet.
const farRetry = 10 * time.Second

// concerns says whether an event is about a link of the network, and news.
func (a *Applier) concerns(e nl.LinkEvent) bool {
	a.queue.Lock()
	defer a.queue.Unlock()
	was, watched := a.watched[e.Link.Name]
	if e.PortOnly || !watched {
		return false
	}
	now := stateOf(e.Link)
	now.gone = e.Gone
	if e.Gone && e.Link.Index != was.index {
		return false // one of that name before
	}
	a.watched[e.Link.Name] = now
	return now != was
}

// watch notes what the network's links are like, so that the news of that is none.
func (a *Applier) watch(links map[string]state) {
	a.queue.Lock()
	defer a.queue.Unlock()
	a.watched = links
}

// Close ends the applier; the kernel keeps what it holds. From then on the Host's Network
// returns a new one. Nothing may be called after it.
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
	a     *Applier
	ctx   context.Context
	want  plan.Network
	u     *plan.Routed
	rep   *datapath.Report
	links []nl.Link // of the host, as they were before
	watch map[string]state
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

// longer notes a problem that the next runs, which do not look, would not find.
func (r *run) longer(format string, args ...any) {
	if p := fmt.Sprintf(format, args...); !slices.Contains(r.a.lasting, p) {
		r.a.lasting = append(r.a.lasting, p)
	}
}

// converge brings everything to the plan, additions before removals.
func (r *run) converge() error {
	a, o := r.a, r.a.o
	resync := r.rep.Resync != ""
	if resync {
		a.lasting, a.accepted = nil, false
		a.routes.Reread()
		a.rows.QueueResync()
	}
	r.watch = map[string]state{}
	a.prefixes = r.u.Prefixes
	var err error
	if r.links, err = o.h.Links(r.ctx); err != nil {
		for _, p := range r.u.Pairs {
			r.rep.Endpoints[p.Endpoint] = fmt.Errorf("endpoint %s: %w", p.Endpoint.Short(), err)
		}
		return err
	}
	if resync {
		if err := errors.Join(r.forwards(), r.findDevice()); err != nil {
			return err
		}
	}
	for _, l := range r.links {
		if l.Name == a.device {
			r.watch[l.Name] = stateOf(l)
		}
	}
	tunnel, err := r.tunnel()
	errs := []error{err}
	ends := map[string]nl.Ref{}
	links := r.rep.Changes.Links
	partial := err != nil // what is there of what could not be looked at stays
	for _, p := range r.u.Pairs {
		end, err := r.pair(p)
		switch {
		case err == nil:
			ends[p.Name] = end
		case !errors.Is(err, errCut) && !errors.Is(err, datapath.ErrPairMissing):
			partial = true
		}
		if err != nil {
			err = fmt.Errorf("endpoint %s: %w", p.Endpoint.Short(), err)
		}
		r.rep.Endpoints[p.Endpoint] = err
	}
	// Rules after links: whoever collects rules of nobody's looks for links.
	errs = append(errs, r.checkSources(), r.accept(r.rep.Changes.Links > links), r.proxies(ends), r.route(ends, tunnel, partial), r.strangers())
	a.watch(r.watch)
	err = errors.Join(errs...)
	if a.last = r.u; r.want.Partial || err != nil {
		a.last = nil // what the next run changes is not somebody else's doing
	}
	return err
}

// forwards tells of a host that is set not to forward.
func (r *run) forwards() error {
	is, err := r.a.o.h.Sysctls(r.ctx, forwarding(true), forwarding(false))
	if err != nil {
		return err
	}
	for _, p := range r.u.Prefixes {
		four := p.Addr().Is4()
		if why := notForwarding(is, four); why != "" {
			r.longer("%v, so its containers reach nobody over %s: %s", ErrNotForwarding, carrick.FamilyOf(p.Addr()), why)
		}
	}
	return nil
}

// findDevice finds the device that routes to the other hosts are by.
func (r *run) findDevice() error {
	addrs, err := r.a.o.h.Addresses(r.ctx)
	if err != nil {
		return err
	}
	r.a.device = ""
	for _, x := range addrs {
		if x.Prefix.Addr() != r.u.Local {
			continue
		}
		for _, l := range r.links {
			if l.Index == x.Link {
				r.a.device = l.Name
			}
		}
	}
	return nil
}

// route brings the routes into the network's prefixes to the plan. A peer that is on no
// segment of this host is reached by the tunnel, or is a problem.
func (r *run) route(ends map[string]nl.Ref, tunnel nl.Ref, partial bool) error {
	a, o := r.a, r.a.o
	if r.rep.Resync != "" {
		// Where there is a tunnel it is asked, not tried: a try that fails would take the way
		// by the tunnel away.
		clear(a.far)
		if tunnel.Index != 0 {
			var err error
			if a.far, err = r.beyond(); err != nil {
				return err
			}
		}
	}
	want := r.paths(ends, tunnel)
	want.Partial, want.Again = want.Partial || partial, tunnel.Index != 0
	res, err := a.routes.Apply(r.ctx, o.h, want, r.rep)
	for _, via := range res.Far {
		a.far[via] = true
	}
	if len(res.Far) > 0 && tunnel.Index != 0 {
		want = r.paths(ends, tunnel)
		want.Partial = want.Partial || partial
		res, err = a.routes.Apply(r.ctx, o.h, want, r.rep)
	}
	for _, dst := range res.Taken {
		r.rep.Problems = append(r.rep.Problems, fmt.Sprintf("somebody else has a route to %s, which is a container's: ip route del %s", dst, dst))
	}
	for _, via := range res.Far {
		if r.u.Tunnel == nil {
			r.rep.Problems = append(r.rep.Problems, fmt.Sprintf("host %s is on no segment of this host, so its containers are not reached: put all hosts of the network on one, or make it again with -o routed_fallback=vxlan", via))
		}
	}
	if len(res.Far) > 0 {
		a.soon()
	}
	r.tell(tunnel)
	return err
}

// tell reports how the other hosts are reached.
func (r *run) tell(tunnel nl.Ref) {
	r.rep.Ways = map[netip.Addr]datapath.Way{}
	hops := map[netip.Addr]netip.Addr{} // on the tunnel, to VTEPs
	if r.u.Tunnel != nil {
		for _, p := range r.u.Tunnel.Peers {
			for _, hop := range p.Hops {
				hops[hop] = p.VTEP
			}
		}
	}
	for _, w := range r.u.Routes {
		host, way := w.Via, datapath.WayRoute
		if w.Tunnelled {
			host, way = hops[w.Via], datapath.WayTunnel
		} else if r.a.far[w.Via] {
			way = datapath.WayTunnel
		}
		if way == datapath.WayTunnel && tunnel.Index == 0 {
			way = datapath.WayNone
		}
		if was, ok := r.rep.Ways[host]; ok && was != way {
			way = datapath.WayBoth
		}
		r.rep.Ways[host] = way
	}
}

// paths are the routes that are wanted.
func (r *run) paths(ends map[string]nl.Ref, tunnel nl.Ref) route.Want {
	want := route.Want{Prefixes: r.u.Prefixes, Partial: r.want.Partial}
	for _, p := range r.u.Prefixes {
		want.Paths = append(want.Paths, nl.Path{Dst: p, Unreachable: true, Metric: plan.UnreachableMetric})
	}
	for _, p := range r.u.Pairs {
		end, there := ends[p.Name]
		for _, x := range p.Addrs {
			if there {
				want.Paths = append(want.Paths, nl.Path{Dst: netip.PrefixFrom(x, x.BitLen()), Link: end})
			}
		}
	}
	for _, w := range r.u.Routes {
		path := nl.Path{Dst: w.Dst, Via: w.Via, MTU: w.MTU}
		if w.Tunnelled || r.u.Tunnel != nil && r.a.far[w.Via] {
			if tunnel.Index == 0 {
				continue // it could not be made, which is an error already
			}
			path.Link, path.MTU = tunnel, 0
		}
		want.Paths = append(want.Paths, path)
	}
	return want
}

// beyond finds the next hops that are on no segment of this host: the best route to them
// has a next hop of its own, or there is none.
func (r *run) beyond() (map[netip.Addr]bool, error) {
	routes, err := r.a.o.h.Routes(r.ctx)
	if err != nil {
		return nil, err
	}
	far := map[netip.Addr]bool{}
	for _, w := range r.u.Routes {
		if _, done := far[w.Via]; done || w.Tunnelled {
			continue
		}
		var best *nl.Route
		for i, x := range routes {
			longer := best == nil || x.Dst.Bits() > best.Dst.Bits() || x.Dst.Bits() == best.Dst.Bits() && x.Metric < best.Metric
			if x.Dst.Contains(w.Via) && longer {
				best = &routes[i]
			}
		}
		if best == nil || best.Via.IsValid() || best.Unreachable {
			far[w.Via] = true
		}
	}
	return far, nil
}

// strangers removes links of the network that nobody planned.
func (r *run) strangers() error {
	if r.want.Partial {
		return nil
	}
	planned := map[carrick.EndpointID]bool{}
	if r.u != nil {
		for _, p := range r.u.Pairs {
			planned[p.Endpoint] = true
		}
	}
	var changes []nl.Change
	for _, l := range r.links {
		id, ours := networkOf(l)
		if !ours || id != r.a.id {
			continue
		}
		_, ep, pair := plan.ParseChildAlias(l.Alias)
		if pair && !planned[ep] || !pair && (r.u == nil || r.u.Tunnel == nil) {
			changes = append(changes, nl.DelLink{Link: l.Ref})
		}
	}
	for ep := range r.a.fine {
		if !planned[ep] {
			delete(r.a.fine, ep)
		}
	}
	errs := r.a.o.h.Send(r.ctx, changes...)
	r.rep.Changes.Links += len(changes)
	return errors.Join(ignoring(nl.ErrNotFound, errs)...)
}

// remove deletes what the host has of a network: what cannot be told to be the network's
// without the rest goes first.
func (r *run) remove() error {
	a := r.a
	var err error
	if r.links, err = a.o.h.Links(r.ctx); err != nil {
		return err
	}
	a.last, a.lasting = nil, nil
	a.routes.Forget()
	var errs []error
	if len(a.prefixes) > 0 {
		_, err := a.routes.Apply(r.ctx, a.o.h, route.Want{Prefixes: a.prefixes}, r.rep)
		errs = append(errs, err)
	}
	n, _, err := a.o.cfg.Accepts.Set(r.ctx, a.o.host, string(a.id), nil)
	changed, err2 := a.o.cfg.Sources.Set(r.ctx, a.o.host, string(a.id), nil)
	if r.rep.Changes.Rules += n; changed {
		r.rep.Changes.Rules++
	}
	errs = append(errs, err, err2)
	a.checked, a.held = nil, false
	a.watch(nil)
	errs = append(errs, r.strangers())
	a.rows.Forget()
	clear(a.far)
	a.accepted = false
	if err = errors.Join(errs...); err == nil {
		a.prefixes = nil
	}
	return err
}
