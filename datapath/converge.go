package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// converge brings the network's namespace to the plan: first what others stand
// on, additions before removals.
func (r *run) converge() error {
	a := r.a
	if err := r.namespace(); err != nil {
		return r.all(err)
	}
	if r.rep.Resync != "" || a.links == nil {
		if err := r.read(); err != nil {
			return r.all(err)
		}
		r.strangers()
	}
	br, err := r.bridge()
	if err != nil {
		return r.all(fmt.Errorf("bridge %s: %w", r.want.Bridge.Name, err))
	}
	vxerr := r.vxlan(br)
	if vxerr != nil {
		vxerr = fmt.Errorf("vxlan device %s: %w", r.want.VXLAN.Name, vxerr)
	}
	r.ports(br)
	old := r.unwanted()
	syserr := r.sysctls()
	addrerr := r.addresses()
	rowerr := r.tables()
	ruleerr := r.filter()
	delerr := r.removePorts(old)
	if vxerr != nil {
		_ = r.all(vxerr)
	}
	r.remember()
	return errors.Join(vxerr, addrerr, syserr, rowerr, ruleerr, delerr)
}

// all gives every endpoint that has no error of its own the network's.
func (r *run) all(err error) error {
	for _, p := range r.want.Ports {
		if r.rep.Endpoints[p.Endpoint] == nil {
			r.rep.Endpoints[p.Endpoint] = fmt.Errorf("endpoint %s: %w", p.Endpoint.Short(), err)
		}
	}
	return err
}

// namespace opens or makes the namespace, and at a resync makes sure that its
// name still leads to it.
func (r *run) namespace() error {
	a := r.a
	a.absent = false
	store, name := a.o.cfg.Namespaces, r.want.Namespace
	switch {
	case a.ns == nil:
		ns, err := store.Open(r.ctx, name)
		if errors.Is(err, netns.ErrNotFound) {
			if ns, err = store.Create(r.ctx, name); err == nil {
				r.rep.Changes.Namespaces++
			}
		}
		if errors.Is(err, netns.ErrExists) { // somebody was faster
			ns, err = store.Open(r.ctx, name)
		}
		if err != nil {
			return err
		}
		a.ns = ns
	case r.rep.Resync != "":
		if err := r.named(); err != nil {
			return err
		}
	}
	if a.h != nil {
		return nil
	}
	h, err := a.o.cfg.Kernel.Open(r.ctx, a.ns)
	if err != nil {
		return err
	}
	// Before links are read, so that nothing happens in between.
	ev, err := h.Subscribe(r.ctx)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	a.h, a.events, a.touched, a.rows = h, ev, map[int]bool{}, fdb.New()
	a.o.watch(a, ev)
	return nil
}

// named gives the namespace its name back if somebody took it: the namespace is
// alive as long as it is open here, and containers talk through it.
func (r *run) named() error {
	a := r.a
	store, name := a.o.cfg.Namespaces, r.want.Namespace
	now, err := store.Open(r.ctx, name)
	found := "" // missing
	switch {
	case errors.Is(err, netns.ErrNotFound):
	case err != nil:
		return err
	default:
		found = now.ID().String()
		same := now.ID() == a.ns.ID()
		if err := now.Close(); err != nil || same {
			return err
		}
	}
	if err := store.Pin(r.ctx, a.ns, name); err != nil {
		return err
	}
	r.rep.Changes.Namespaces++
	if a.applied != nil {
		r.rep.Note(Finding{Kind: KindNamespace, Object: name, Found: found, Want: a.ns.ID().String()})
	}
	return nil
}

// read reads the links, and makes the tables read theirs when it is their turn.
func (r *run) read() error {
	a := r.a
	list, err := a.h.Links(r.ctx)
	if err != nil {
		return err
	}
	if a.hostID, err = a.h.NSID(r.ctx, a.o.host); err != nil {
		return err
	}
	a.links, a.found, a.sysctls = newLinks(list), nil, nil
	a.rows.QueueResync()
	return nil
}

// strangers removes links that nobody planned: those that are neither our
// devices nor veths.
func (r *run) strangers() {
	if r.want.Partial {
		return
	}
	for _, l := range r.a.links.sorted() {
		switch {
		case l.Name == r.want.Bridge.Name && l.Kind == nl.KindBridge:
		case l.Kind == nl.KindVXLAN && l == r.device():
		case l.Kind == nl.KindVeth: // see ports and unwanted
		case l.Kind == "" && l.Master == 0 || fallback(l):
			// The loopback device, hardware, and what the kernel puts into every
			// namespace: none of them can be deleted.
		default:
			if err := r.remove(l); err != nil {
				r.lasting("%s: link %s of kind %q does not belong here and cannot be removed: %v", r.want.Namespace, l.Name, l.Kind, err)
				continue
			}
			r.rep.Changes.Links++
			if r.a.applied != nil {
				r.rep.Note(foreign(l))
			}
		}
	}
}

// fallback says whether a link is one of those that tunnel modules put into
// every new namespace (net.core.fb_tunnels_only_for_init_net) and that stay when
// deleted.
func fallback(l *nl.Link) bool {
	switch l.Name {
	case "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0":
		return l.Master == 0
	}
	return false
}

// problem reports what this run saw.
func (r *run) problem(format string, args ...any) {
	r.rep.Problems = append(r.rep.Problems, fmt.Sprintf(format, args...))
}

// lasting reports what only reading the kernel shows, again after each run
// until the next reading.
func (r *run) lasting(format string, args ...any) {
	r.a.found = append(r.a.found, fmt.Sprintf(format, args...))
}

func (r *run) bridge() (nl.Ref, error) {
	want := r.want.Bridge
	l := r.a.links.byName[want.Name]
	if l != nil && l.Kind != nl.KindBridge {
		if err := r.remove(l); err != nil {
			return nl.Ref{}, err
		}
		l = nil
	}
	made := l == nil
	if made {
		err := one(r.ctx, r.a.h, nl.AddBridge{Name: want.Name})
		if err == nil {
			l, err = r.made(want.Name)
		}
		if err != nil {
			return nl.Ref{}, err
		}
	}
	shape := shape{name: want.Name, mtu: want.MTU}
	d := r.differs(l, shape)
	if made {
		d = missing(nl.KindBridge)
	}
	changed, err := r.setForwarding(l, want, &d)
	if err != nil {
		return nl.Ref{}, err
	}
	fixed, err := r.settle(l, shape)
	r.count(made || changed || fixed, r.a.applied != nil && r.a.applied.bridge == want, d.finding(want.Name))
	return l.Ref, err
}

// vxlan makes the device, again if what cannot be altered is not as it should
// be.
func (r *run) vxlan(br nl.Ref) error {
	want := r.want.VXLAN
	l := r.device()
	changed, d := false, missing(nl.KindVXLAN)
	for l != nil && !r.good(l) {
		if !changed {
			d = r.otherwise(l)
		}
		if err := r.remove(l); err != nil {
			return err
		}
		l, changed = r.device(), true
	}
	if l == nil {
		var err error
		if l, err = r.newVXLAN(br); err != nil {
			return err
		}
		changed = true
	}
	shape := shape{name: want.Name, mtu: want.MTU, master: br, port: portOf(r.want.Bridge, true)}
	if !changed {
		d = r.differs(l, shape)
		d.flags(l, shape.port)
	}
	fixed, err := r.settle(l, shape)
	r.count(changed || fixed, r.a.applied != nil && r.a.applied.vxlan == want && r.asBefore(), d.finding(want.Name))
	return r.a.o.whoHasPort(r.ctx, want, err)
}

// newVXLAN makes the device under a passing name: until Linux 6.14 the kernel
// looked for the name in the host's namespace, where somebody may have a vxlan0,
// and indeed one of the passing names. What of the network's own namespace is in
// the way goes, also if the plan is partial: it cannot be anything's.
func (r *run) newVXLAN(br nl.Ref) (*nl.Link, error) {
	want := r.want.VXLAN
	passing := fmt.Sprintf("ckvx%d", want.VNI)
	for _, l := range r.a.links.sorted() {
		if strings.HasPrefix(l.Name, passing) || l.VXLAN != nil && l.VXLAN.VNI == want.VNI && l.VXLAN.Port == want.Port {
			if err := r.remove(l); err != nil {
				return nil, err
			}
		}
	}
	host := r.a.o.hostH
	var err error
	for _, suffix := range []string{"", "a", "b", "c"} {
		passing := passing + suffix
		err = one(r.ctx, host, nl.AddVXLAN{Name: passing, Target: r.a.ns, Master: br,
			MTU: want.MTU, VNI: want.VNI, Port: want.Port, Local: want.Local.Unmap()})
		if err == nil {
			l, err := r.made(passing)
			if err == nil { // now the two namespaces know one another
				r.a.hostID, err = r.a.h.NSID(r.ctx, r.a.o.host)
			}
			return l, err
		}
		if !errors.Is(err, nl.ErrExists) {
			return nil, err
		}
		if _, lerr := host.Link(r.ctx, nl.Ref{Name: passing}); lerr != nil {
			break // it was not the name
		}
	}
	return nil, r.a.o.whoHasVNI(r.ctx, want, r.want.Namespace, err)
}

// device finds the vxlan device: by its name or, if somebody renamed it or a
// crash left it without, by being just what is wanted.
func (r *run) device() *nl.Link {
	if l := r.a.links.byName[r.want.VXLAN.Name]; l != nil {
		return l
	}
	for _, l := range r.a.links.sorted() {
		if r.good(l) {
			return l
		}
	}
	return nil
}

// good says whether the vxlan device's fixed attributes are right, the
// namespace of its UDP socket among them.
func (r *run) good(l *nl.Link) bool {
	want := r.want.VXLAN
	return l.VXLAN != nil && l.PeerNS == r.a.hostID && l.PeerNS != nl.NoNSID && *l.VXLAN == nl.VXLANInfo{
		VNI: want.VNI, Port: want.Port, Local: want.Local.Unmap(), Proxy: true,
	}
}

// otherwise says what of a vxlan device's fixed attributes is wrong.
func (r *run) otherwise(l *nl.Link) (d diff) {
	want := r.want.VXLAN
	switch {
	case l.VXLAN == nil:
		d.note("of kind "+cmp.Or(l.Kind, "none"), "of kind "+nl.KindVXLAN)
	case l.PeerNS != r.a.hostID || l.PeerNS == nl.NoNSID:
		d.note("with its socket in another namespace", "with it in the host's")
	default:
		d.note(l.VXLAN.String(), nl.VXLANInfo{VNI: want.VNI, Port: want.Port, Local: want.Local.Unmap(), Proxy: true}.String())
	}
	return d
}

// missing is the difference between nothing and a link.
func missing(kind string) diff { return diff{want: []string{"of kind " + kind}} }

// count counts one link, and if its plan is as it was before, what was found.
func (r *run) count(changed, before bool, f Finding) {
	if !changed {
		return
	}
	r.rep.Changes.Links++
	if r.rep.Resync != "" && before {
		r.rep.Note(f)
	}
}

// tables brings the rows up to date. The rows of a container's own port are
// part of its endpoint's verdict.
func (r *run) tables() error {
	dev := fdb.Devices{Ports: make(map[string]nl.Ref, len(r.want.Ports)+1)}
	usable := func(name string) {
		if l := r.a.links.byName[name]; l != nil && l.Master != 0 {
			dev.Ports[name] = l.Ref
		}
	}
	usable(r.want.VXLAN.Name)
	dev.VXLAN = dev.Ports[r.want.VXLAN.Name]
	byPort := make(map[string]plan.Port, len(r.want.Ports))
	for _, p := range r.want.Ports {
		byPort[p.Name] = p
		usable(p.Name)
	}
	res, err := r.a.rows.Apply(r.ctx, r.a.h, dev, fdb.Rows{FDB: r.want.FDB, Bridged: r.want.Bridged, Neigh: r.want.Neigh, Remote: r.want.Remote, Partial: r.want.Partial})
	r.rep.Rows(res, r.a.applied != nil)
	r.rep.Problems = append(r.rep.Problems, res.Problems...)
	r.suspicious = r.suspicious || res.Stale
	r.announce(res)
	for name, perr := range res.Ports {
		if p, ok := byPort[name]; ok && r.rep.Endpoints[p.Endpoint] == nil {
			r.rep.Endpoints[p.Endpoint] = fmt.Errorf("endpoint %s: %w", p.Endpoint.Short(), perr)
		}
	}
	return err
}

// unwanted lists the veths that are no endpoint's. The tables forget their rows:
// the kernel drops them with the port. A partial plan lacks the ports of those
// endpoints for sure that an earlier one had; of others found here nothing is
// known.
func (r *run) unwanted() []*nl.Link {
	planned := make(map[string]bool, len(r.want.Ports))
	for _, p := range r.want.Ports {
		planned[p.Name] = true
	}
	var out []*nl.Link
	for _, l := range r.a.links.sorted() {
		if l.Kind == nl.KindVeth && !planned[l.Name] && (!r.want.Partial || r.planned(l.Name)) {
			out = append(out, l)
			r.a.rows.Gone(l.Name, false)
		}
	}
	return out
}

// planned says whether the plan before this one had a port, realised or not.
func (r *run) planned(name string) bool {
	return r.a.applied != nil && r.a.applied.asked[name]
}

func (r *run) removePorts(old []*nl.Link) error {
	var errs []error
	for _, l := range old {
		if err := r.remove(l); err != nil {
			errs = append(errs, err)
			continue
		}
		r.rep.Changes.Links++
		// What the last plan asked for went with the plan.
		if r.rep.Resync != "" && r.a.applied != nil && !r.planned(l.Name) {
			r.rep.Note(foreign(l))
		}
	}
	return errors.Join(errs...)
}

// remember notes what the kernel now holds of the plan.
func (r *run) remember() {
	done := &applied{
		bridge: r.want.Bridge, vxlan: r.want.VXLAN, clamp: clampOf(r.want), storm: stormOf(r.want),
		ports: make(map[string]plan.Port, len(r.want.Ports)), asked: make(map[string]bool, len(r.want.Ports)),
	}
	for _, p := range r.want.Ports {
		done.asked[p.Name] = true
		if r.rep.Endpoints[p.Endpoint] == nil {
			p.Create = false // no part of what the kernel holds
			done.ports[p.Name] = p
		}
	}
	done.sysctls = maps.Clone(r.a.sysctls)
	maps.DeleteFunc(done.sysctls, func(_, v string) bool { return v == "" })
	r.a.applied = done
}
