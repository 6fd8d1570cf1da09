// Package underlay makes a host's kernel hold what a plan says of networks whose
// containers stand on a device of the host: a macvlan or ipvlan device per endpoint, or
// a virtual function that the endpoint is lent, the 802.1q sub-interface below them, and
// routes to containers of other hosts.
//
// There is one way in, as in package datapath: hand [Applier.Apply] the whole desired
// state of a network, as often as you like. It looks at the host's links each time, and
// into the containers' namespaces the first time, when something changed there, and
// when told to.
//
// How a restart knows what is ours: a device by its alias (see [plan.ChildAlias]),
// wherever Docker moved it; one that a crash left without an alias by its name, which
// an endpoint of the journal has; a sub-interface by its alias; a route by its protocol
// ([nl.RouteProtocol]). Who removes them: the network's last plan, which is that
// nothing exists; and [Host.Collect], for what several networks share.
//
// A virtual function is hardware: it is never deleted, but given back, by the same two.
// A restart knows one that is lent by its alias, which is set before anything else and
// says what it was before (see [plan.FunctionAlias]); one that lost it by its name.
package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/route"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// Config is what a [Host] works with.
type Config struct {
	Kernel     nl.Kernel   // nl.Linux{} outside tests
	Namespaces netns.Store // whose Host is where engines keep devices until a container starts
	// Root makes what an engine says of a sandbox a path as this process sees it; nil:
	// it is one.
	Root func(sandbox string) string
	// Local is this host's address among the hosts: networks with routes need it on their
	// parent. Zero: not known.
	Local netip.Addr
	// Joined says whether an endpoint's Join has returned, or is about to, so that its
	// device may be out of sight; nil: plans are never older than that.
	Joined func(carrick.EndpointID) bool
	Name   string       // of this host, for people; "": errors do not say it
	PCI    string       // directory of the PCI devices; "": /sys/bus/pci/devices
	Log    *slog.Logger // nil: no log
}

// Host is a host's networks that stand on its devices. Safe for concurrent use.
type Host struct {
	cfg  Config
	host netns.Namespace
	h    nl.Handle
	ev   nl.Events

	// watching counts the goroutine that Close ends.
	watching sync.WaitGroup
	cancel   context.CancelFunc

	// parents is held while a parent is made or taken away, for networks share them, and
	// while a child is made and gets its alias. It guards what follows.
	parents sync.Mutex
	// known are the parents and prefixes that networks of this host had while this agent
	// ran. What else is there was somebody's whom this agent does not remember.
	known Wanted
	// out has who has which virtual function, by PCI address, as far as this agent has
	// seen it: only for people, since out of sight is out of sight.
	out map[string]lent

	quiet sync.Mutex // below every other lock; guards returning
	// returning has the indices of virtual functions that are being given back, or were
	// and have not been lent since.
	returning map[int]bool

	mu       sync.Mutex // guards networks; above every Applier's mu
	networks map[carrick.NetworkID]*Applier
}

// Open watches the host's namespace and changes nothing.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Root == nil {
		cfg.Root = func(s string) string { return s }
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
		a = &Applier{o: o, id: id, changed: make(chan struct{}, 1), reason: "first look", settled: map[carrick.EndpointID]plan.Child{}}
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

// watch has networks looked at when a link of the host changes that they stand on, or
// that is theirs.
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

// List returns the networks that have a device in the host's namespace, sorted: one in
// a container is found by the journal that knows its endpoint.
func (o *Host) List(ctx context.Context) ([]carrick.NetworkID, error) {
	links, err := o.h.Links(ctx)
	if err != nil {
		return nil, err
	}
	found := map[carrick.NetworkID]bool{}
	for _, l := range links {
		if id, _, ok := plan.ParseChildAlias(l.Alias); ok && l.Kind != nl.KindVeth {
			found[id] = true
		}
		if id, ok := plan.ParseLegAlias(l.Alias); ok {
			found[id] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// Wanted is what this host's networks need of what they share.
type Wanted struct {
	Parents    map[string]bool // by name
	AllParents bool            // it cannot be said which are not
	Prefixes   []netip.Prefix  // into which routes may lead
	Children   map[string]bool // names that the devices of endpoints have
	Legs       map[string]bool // names that the host's own devices have
}

// Collect removes what nobody needs any more of what is shared or was left by a crash:
// sub-interfaces that we made and routes, of networks that this agent has known; and
// devices in the host's namespace that are ours and no endpoint's. wanted is asked when
// nothing is being made.
func (o *Host) Collect(ctx context.Context, wanted func() Wanted) error {
	o.parents.Lock()
	defer o.parents.Unlock()
	w := wanted()
	for p := range w.Parents {
		o.know(p)
	}
	for _, p := range w.Prefixes {
		if !slices.Contains(o.known.Prefixes, p) {
			o.known.Prefixes = append(o.known.Prefixes, p)
		}
	}
	links, err := o.h.Links(ctx)
	if err != nil {
		return err
	}
	var changes []nl.Change
	var lent []nl.Link
	for _, l := range links {
		if l.Kind == nl.KindVeth { // of a routed network
			continue
		}
		_, ep, named := plan.ParseChildAlias(l.Alias)
		stray := l.Alias == "" && ours(l) && !w.Children[l.Name] || named && !w.Children[ep.OuterName()]
		unused := l.Kind == nl.KindVLAN && l.Alias == plan.VLANAlias && o.known.Parents[l.Name] && !w.Parents[l.Name] && !w.AllParents
		if o.borrowed(l) { // hardware is given back
			if named && stray || !named && !w.Children[l.Name] {
				lent = append(lent, l)
			}
			continue
		}
		if isLeg(l) && !w.Legs[l.Name] {
			stray = true
		}
		if stray || unused || l.Name == probeName && l.Kind != "" {
			changes = append(changes, nl.DelLink{Link: l.Ref})
		}
	}
	stray, err := route.Stray(ctx, o.h, o.known.Prefixes, w.Prefixes)
	if err != nil {
		return err
	}
	changes = append(changes, stray...)
	return errors.Join(append(ignoring(nl.ErrNotFound, o.h.Send(ctx, changes...)), o.giveBackList(ctx, lent))...)
}

// know notes that a network of this host has a parent. Called with parents held.
func (o *Host) know(parent string) {
	if o.known.Parents == nil {
		o.known.Parents = map[string]bool{}
	}
	o.known.Parents[parent] = true
}

// ours says whether a link has the kind and the name of a child: see
// carrick.EndpointID.OuterName.
func ours(l nl.Link) bool {
	return (l.Kind == nl.KindMacvlan || l.Kind == nl.KindIPvlan) && outerName(l.Name)
}

// isLeg says whether a link is a host's own in a network, by its alias, or by its name if
// a crash left it without: see [plan.LegName].
func isLeg(l nl.Link) bool {
	_, leg := plan.ParseLegAlias(l.Alias)
	id, ok := strings.CutPrefix(l.Name, "ckl")
	half := l.Alias == "" && ok && len(id) == 12 && strings.Trim(id, "0123456789abcdef") == ""
	return l.Kind == nl.KindMacvlan && (leg || half)
}

// outerName says whether a name has the form of an endpoint's device's.
func outerName(name string) bool {
	id, ok := strings.CutPrefix(name, "ck")
	return ok && len(id) == 11 && strings.Trim(id, "0123456789abcdef") == ""
}

// ignoring leaves errors out that are of a kind.
func ignoring(kind error, errs []error) []error {
	return slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, kind) })
}

// Held is an endpoint's device, wherever it is.
type Held struct {
	Home bool // in the host's namespace: nobody uses it
	Up   bool
}

// Inspect reads which devices of a network there are, and changes nothing: those in the
// host's namespace, and those of endpoints in their sandboxes.
func (o *Host) Inspect(ctx context.Context, id carrick.NetworkID, sandboxes map[carrick.EndpointID]string) (map[carrick.EndpointID]Held, error) {
	links, err := o.h.Links(ctx)
	if err != nil {
		return nil, err
	}
	out := map[carrick.EndpointID]Held{}
	for _, l := range links {
		if n, ep, ok := plan.ParseChildAlias(l.Alias); ok && n == id {
			out[ep] = Held{Home: true, Up: l.Up}
		}
	}
	for ep, path := range sandboxes {
		if _, home := out[ep]; home {
			continue
		}
		s, err := o.open(ctx, path)
		if errors.Is(err, netns.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect network %s: %w", id, err)
		}
		if l, ok := s.find(id, ep); ok {
			out[ep] = Held{Up: l.Up}
		}
		s.close()
	}
	return out, nil
}

// sandbox is a container's namespace, opened to look into it.
type sandbox struct {
	ns    netns.Namespace
	h     nl.Handle
	links []nl.Link
	home  nl.NSID // how it knows the host's namespace
}

// open opens a sandbox and reads its links. netns.ErrNotFound: it has no namespace, or
// not yet.
func (o *Host) open(ctx context.Context, path string) (_ *sandbox, err error) {
	if path == "" {
		return nil, netns.ErrNotFound
	}
	dir, name := filepath.Split(o.cfg.Root(path))
	s := &sandbox{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.ns, err = netns.NewDir(netns.Config{Dir: dir}).Open(ctx, name); err != nil {
		return nil, err
	}
	if s.h, err = o.cfg.Kernel.Open(ctx, s.ns); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", path, err)
	}
	if s.home, err = s.h.NSID(ctx, o.host); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", path, err)
	}
	if s.links, err = s.h.Links(ctx); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", path, err)
	}
	return s, nil
}

func (s *sandbox) close() {
	if s.h != nil {
		_ = s.h.Close()
	}
	if s.ns != nil {
		_ = s.ns.Close()
	}
}

// find returns an endpoint's device.
func (s *sandbox) find(id carrick.NetworkID, ep carrick.EndpointID) (nl.Link, bool) {
	i := slices.IndexFunc(s.links, func(l nl.Link) bool {
		n, e, ok := plan.ParseChildAlias(l.Alias)
		return ok && n == id && e == ep
	})
	if i < 0 {
		return nl.Link{}, false
	}
	return s.links[i], true
}
