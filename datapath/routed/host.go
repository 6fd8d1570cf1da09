// Package routed makes a host's kernel hold what a plan says of networks whose hosts
// route: in the host's namespace, a veth pair per endpoint and a route to each, routes to
// the containers of other hosts, a tunnel to those that are on no segment of this one, and
// rules by which Docker lets their packets pass.
//
// There is one way in, as in package datapath: hand [Applier.Apply] the whole desired
// state of a network, as often as you like. It looks at the host's links each time, and at
// everything when something changed and when told to.
//
// How a restart knows what is ours: the host's end of a pair by its alias (see
// [plan.ChildAlias]), or, left by a crash without one, by its name, which an endpoint of
// the journal has; a tunnel by its alias or its name; a route by its protocol, in the
// prefixes of a network of the journal; a rule by its comment, and a table by its own name,
// which name the network.
// Who removes them: the network's last plan, which is that nothing exists; and
// [Host.Collect], for what a crash left. Settings of a link, proxies and rows go with it.
package routed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/route"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// Accepts keeps the rules by which Docker lets a network's packets pass: see nft.User.
type Accepts interface {
	Set(ctx context.Context, ns netns.Namespace, name string, prefixes []netip.Prefix) (changed int, whole bool, err error)
	Names(ctx context.Context, ns netns.Namespace) ([]string, error)
}

// Sources has the kernel drop what containers send over IPv6 from addresses that are not
// theirs: see nft.Sources.
type Sources interface {
	Set(ctx context.Context, ns netns.Namespace, name string, devices []string) (changed bool, err error)
	Names(ctx context.Context, ns netns.Namespace) ([]string, error)
}

// Config is what a [Host] works with.
type Config struct {
	Kernel     nl.Kernel   // nl.Linux{} outside tests
	Namespaces netns.Store // whose Host is where everything is
	Accepts    Accepts     // nft.User{} outside tests
	Sources    Sources     // nft.Sources{} outside tests
	// Joined says whether an endpoint's Join has returned, or is about to, so that a plan
	// that has its pair made may be older than that; nil: plans never are.
	Joined func(carrick.EndpointID) bool
	Log    *slog.Logger // nil: no log
}

// Host is a host's routed networks. Safe for concurrent use.
type Host struct {
	cfg  Config
	host netns.Namespace
	h    nl.Handle
	ev   nl.Events

	// watching counts the goroutine that Close ends.
	watching sync.WaitGroup
	cancel   context.CancelFunc

	// making is held while a link is made and gets its alias, and while what is nobody's
	// is collected.
	making sync.Mutex

	mu       sync.Mutex // guards networks; above every Applier's mu
	networks map[carrick.NetworkID]*Applier
}

// Open watches the host's namespace and changes nothing.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	host, err := cfg.Namespaces.Host(ctx)
	if err != nil {
		return nil, err
	}
	h, err := cfg.Kernel.Open(ctx, host)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the host's namespace: %w", err), host.Close())
	}
	ev, err := h.Subscribe(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch the host's links: %w", err), h.Close(), host.Close())
	}
	o := &Host{cfg: cfg, host: host, h: h, ev: ev, networks: map[carrick.NetworkID]*Applier{}}
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o.cancel = cancel
	o.watching.Go(func() { o.watch(wctx) })
	return o, nil
}

// Network returns the applier of one network, always the same one for the same id.
// Nothing is read or changed before its first Apply.
func (o *Host) Network(id carrick.NetworkID) *Applier {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.networks[id]
	if a == nil {
		a = newApplier(o, id)
		o.networks[id] = a
	}
	return a
}

// Close ends all appliers. The kernel keeps what it holds. Nothing may be called after
// it.
func (o *Host) Close() error {
	o.cancel()
	err := o.ev.Close()
	o.watching.Wait()
	return errors.Join(err, o.h.Close(), o.host.Close())
}

// watch has networks looked at when a link of theirs changes.
func (o *Host) watch(ctx context.Context) {
	for {
		if err := o.ev.Wait(ctx); err != nil {
			if ctx.Err() == nil && !errors.Is(err, nl.ErrClosed) {
				o.cfg.Log.Warn("links of the host are not watched any more: what happens to them is found by audits", "err", err)
			}
			return
		}
		events, err := o.ev.Poll()
		o.mu.Lock()
		list := slices.Collect(maps.Values(o.networks))
		o.mu.Unlock()
		for _, a := range list {
			if err != nil || slices.ContainsFunc(events, a.concerns) {
				a.wake()
			}
		}
	}
}

// names are those that have rules in Docker's chain or a table.
func (o *Host) names(ctx context.Context) ([]string, error) {
	accepts, err := o.cfg.Accepts.Names(ctx, o.host)
	sources, err2 := o.cfg.Sources.Names(ctx, o.host)
	names := slices.Concat(accepts, sources)
	slices.Sort(names)
	return slices.Compact(names), errors.Join(err, err2)
}

// List returns the networks that have a link in the host's namespace, or a rule, sorted.
func (o *Host) List(ctx context.Context) ([]carrick.NetworkID, error) {
	links, err := o.h.Links(ctx)
	if err != nil {
		return nil, err
	}
	names, err := o.names(ctx)
	if err != nil {
		return nil, err
	}
	var out []carrick.NetworkID
	for _, l := range links {
		if id, ok := networkOf(l); ok {
			out = append(out, id)
		}
	}
	for _, n := range names {
		if carrick.ValidID(n) {
			out = append(out, carrick.NetworkID(n))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// networkOf returns the network of a link that is ours.
func networkOf(l nl.Link) (carrick.NetworkID, bool) {
	if id, _, ok := plan.ParseChildAlias(l.Alias); ok && l.Kind == nl.KindVeth {
		return id, true
	}
	id, ok := plan.ParseTunnelAlias(l.Alias)
	return id, ok && l.Kind == nl.KindVXLAN
}

// Wanted is what this host's routed networks need.
type Wanted struct {
	// Known are the prefixes of all of them; Prefixes those of networks with an endpoint
	// here. Routes lead into no other known prefix.
	Known, Prefixes []netip.Prefix
	Pairs           map[string]bool // names of the hosts' ends
	Networks        map[carrick.NetworkID]bool
	// Foreign are networks that are not this agent's to touch, whatever they have.
	Foreign map[carrick.NetworkID]bool
}

// tunnel says whether a name is that of a network's tunnel.
func (w Wanted) tunnel(name string) bool {
	for id := range w.Networks {
		if plan.TunnelName(id) == name {
			return true
		}
	}
	return false
}

// Collect removes what a crash left: routes into prefixes of networks without an endpoint
// here, links that are ours and no endpoint's or network's, and rules of networks that have
// neither a record nor a link. wanted is asked when nothing is being made.
func (o *Host) Collect(ctx context.Context, wanted func() Wanted) error {
	o.making.Lock()
	defer o.making.Unlock()
	w := wanted()
	links, err := o.h.Links(ctx)
	if err != nil {
		return err
	}
	var changes []nl.Change
	there := map[carrick.NetworkID]bool{}
	for _, l := range links {
		id, ours := networkOf(l)
		_, ep, named := plan.ParseChildAlias(l.Alias)
		var stray bool
		switch {
		case ours && w.Foreign[id]:
		case ours && named:
			stray = !w.Pairs[ep.HostName()]
		case ours:
			stray = !w.Networks[id]
		default:
			stray = half(l) && !w.Pairs[l.Name] && !w.tunnel(l.Name)
		}
		if stray {
			changes = append(changes, nl.DelLink{Link: l.Ref})
		} else if ours {
			there[id] = true
		}
	}
	known := w.Known
	if len(w.Foreign) == 0 {
		// A crash may have come after the journal forgot the network.
		left, err := route.Prefixes(ctx, o.h)
		if err != nil {
			return err
		}
		known = append(left, known...)
	}
	strays, err := route.Stray(ctx, o.h, known, w.Prefixes)
	if err != nil {
		return err
	}
	errs := ignoring(nl.ErrNotFound, o.h.Send(ctx, append(changes, strays...)...))
	names, err := o.names(ctx)
	errs = append(errs, err)
	w = wanted() // a network that has begun since has its rules before it has a link
	for _, n := range names {
		if id := carrick.NetworkID(n); carrick.ValidID(n) && !w.Networks[id] && !w.Foreign[id] && !there[id] {
			_, _, err := o.cfg.Accepts.Set(ctx, o.host, n, nil)
			_, err2 := o.cfg.Sources.Set(ctx, o.host, n, nil)
			errs = append(errs, err, err2)
		}
	}
	return errors.Join(errs...)
}

// half says whether a link is one that a crash left without an alias: the host's end of a
// pair, see carrick.EndpointID.HostName, or a tunnel, see [plan.TunnelName].
func half(l nl.Link) bool {
	form := map[string]struct {
		prefix string
		digits int
	}{nl.KindVeth: {"cr", 11}, nl.KindVXLAN: {"ckt", 12}}[l.Kind]
	id, ok := strings.CutPrefix(l.Name, form.prefix)
	return l.Alias == "" && ok && form.digits > 0 && len(id) == form.digits && strings.Trim(id, "0123456789abcdef") == ""
}

// ignoring leaves errors out that are of a kind.
func ignoring(kind error, errs []error) []error {
	return slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, kind) })
}

// Held is an endpoint's pair.
type Held struct {
	Home bool // the container's end is in the host's namespace: nobody uses it
	Up   bool // the host's end
}

// Inspect reads which pairs of a network there are, and changes nothing.
func (o *Host) Inspect(ctx context.Context, id carrick.NetworkID) (map[carrick.EndpointID]Held, error) {
	links, err := o.h.Links(ctx)
	if err != nil {
		return nil, err
	}
	out := map[carrick.EndpointID]Held{}
	for _, l := range links {
		if n, ep, ok := plan.ParseChildAlias(l.Alias); ok && n == id && l.Kind == nl.KindVeth {
			out[ep] = Held{Home: l.PeerNS == nl.NoNSID, Up: l.Up}
		}
	}
	return out, nil
}
