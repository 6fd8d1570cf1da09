package datapath

import (
	"errors"
	"fmt"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// ports brings every endpoint's port to the plan; each has its own verdict.
func (r *run) ports(br nl.Ref) {
	// A port that lost its name can be told by its alias.
	renamed, planned := map[string]*nl.Link{}, map[string]bool{}
	for _, p := range r.want.Ports {
		planned[string(p.Endpoint)] = true
	}
	for _, l := range r.a.links.sorted() {
		if l.Kind == nl.KindVeth && l.Alias != "" {
			renamed[l.Alias] = l
		}
	}
	for _, p := range r.want.Ports {
		err := r.freeName(p, planned)
		if err == nil {
			err = r.port(br, p, renamed[string(p.Endpoint)])
		}
		if err != nil {
			err = fmt.Errorf("endpoint %s: %w", p.Endpoint.Short(), err)
		}
		r.rep.Endpoints[p.Endpoint] = err
	}
}

// freeName makes sure that a port's name is nobody else's. The port of another
// endpoint of the plan, to which somebody gave this name, will get its own back.
func (r *run) freeName(p plan.Port, planned map[string]bool) error {
	l := r.a.links.byName[p.Name]
	if l == nil || adoptable(l, p) {
		return nil
	}
	if l.Kind == nl.KindVeth && planned[l.Alias] {
		aside := fmt.Sprintf("ckp%d", l.Index)
		if err := r.down(l); err != nil {
			return err
		}
		if err := r.set(nl.SetLink{Link: l.Ref, Rename: aside}); err != nil {
			return err
		}
		r.a.links.rename(l, aside)
		return nil
	}
	// Of another endpoint whose id begins alike, or not a veth at all.
	if err := r.remove(l); err != nil {
		return err
	}
	r.rep.Changes.Links++
	return nil
}

func (r *run) port(br nl.Ref, p plan.Port, aliased *nl.Link) error {
	l := r.a.links.byName[p.Name]
	if l == nil && aliased != nil && r.a.links.byIndex[aliased.Index] == aliased {
		l = aliased
	}
	before, was := plan.Port{}, false
	if r.a.applied != nil {
		before, was = r.a.applied.ports[p.Name]
	}
	made := l == nil
	if made {
		if !p.Create {
			r.a.rows.Gone(p.Name, false) // with the pair, which was Docker's
			r.problem("endpoint %s: its veth pair is gone, so its container has lost this network: docker restart CONTAINER", p.Endpoint.Short())
			return fmt.Errorf("%w (port %s): docker restart CONTAINER", ErrPairMissing, p.Name)
		}
		var err error
		if l, err = r.pair(br, p); err != nil {
			return err
		}
	}
	if made || !l.Up && !p.Down {
		r.raised[p.Endpoint] = made
	}
	before.Create = p.Create
	was = was && before == p && r.asBefore()
	shape := shape{name: p.Name, mtu: p.MTU, master: br, alias: string(p.Endpoint), down: p.Down, port: portOf(r.want.Bridge, false)}
	d := r.differs(l, shape)
	d.flags(l, shape.port)
	if made {
		d = missing(nl.KindVeth)
	}
	changed, err := r.settle(l, shape)
	if err == nil && !made && (r.rep.Resync != "" || !was) {
		var far bool
		far, err = r.outer(l, p, &d)
		changed = changed || far
	}
	r.count(made || changed, was, d.finding(p.Name))
	return err
}

// adoptable says whether a link of the port's name is the endpoint's: unless
// its alias says that it is another's, whose id begins alike. Without an alias
// it was left by a crash; with one of another form somebody wrote over it, and a
// container may depend on it.
func adoptable(l *nl.Link, p plan.Port) bool {
	return l.Kind == nl.KindVeth && (l.Alias == string(p.Endpoint) || !carrick.ValidDockerID(l.Alias))
}

// pair makes the endpoint's veth pair.
func (r *run) pair(br nl.Ref, p plan.Port) (*nl.Link, error) {
	host := r.a.o.hostH
	add := nl.AddVeth{Name: p.Name, Target: r.a.ns, Master: br, MTU: p.MTU, Outer: p.Outer, OuterMAC: p.MAC}
	err := one(r.ctx, host, add)
	if errors.Is(err, nl.ErrExists) {
		var ours bool
		if ours, err = r.inPairsWay(p, err); ours {
			err = one(r.ctx, host, add)
		}
	}
	if err != nil {
		return nil, err
	}
	return r.made(p.Name)
}

// inPairsWay removes the pair that has the outer end's name, if its other end is
// here, so that it is ours, and no endpoint's. Else it explains what has a name
// that the pair needs; kernels before 6.14 want both to be free in the host's
// namespace.
func (r *run) inPairsWay(p plan.Port, cause error) (removed bool, err error) {
	for _, name := range []string{p.Outer, p.Name} {
		far, err := r.a.o.hostH.Link(r.ctx, nl.Ref{Name: name})
		if err != nil {
			continue
		}
		for _, l := range r.a.links.sorted() {
			if l.Kind != nl.KindVeth || l.Peer != far.Index || l.PeerNS != r.a.hostID || far.Kind != nl.KindVeth {
				continue
			}
			if r.isPort(l) {
				return false, cause // it gets its own name back, and the next run finds this one free
			}
			return true, r.remove(l)
		}
		return false, inTheWay(cause, "the host has a link %s (kind %q, alias %q) already: ip link del %s", far.Name, far.Kind, far.Alias, far.Name)
	}
	return false, cause
}

// isPort says whether a link is an endpoint's port in the plan.
func (r *run) isPort(l *nl.Link) bool {
	for _, p := range r.want.Ports {
		if l.Name == p.Name || l.Alias == string(p.Endpoint) {
			return true
		}
	}
	return false
}

// outer looks at the other end of the pair. In the host's namespace it is still
// ours to put right; in a container it is Docker's, and a wrong MTU or MAC there
// is reported.
func (r *run) outer(l *nl.Link, p plan.Port, d *diff) (changed bool, err error) {
	// Docker may have moved it since the port was read.
	now, err := r.a.h.Link(r.ctx, l.Ref)
	if err != nil {
		return false, err
	}
	l.Peer, l.PeerNS = now.Peer, now.PeerNS
	far, err := r.a.h.Peer(r.ctx, *l)
	if errors.Is(err, nl.ErrNotFound) {
		return false, nil // moved this very moment
	}
	if err != nil {
		return false, err
	}
	if l.PeerNS != r.a.hostID {
		if far.MTU != p.MTU {
			r.lasting("endpoint %s: the container's end %s has MTU %d, the network %d, so larger packets may vanish: docker restart CONTAINER", p.Endpoint.Short(), far.Name, far.MTU, p.MTU)
		}
		if far.MAC != p.MAC {
			r.lasting("endpoint %s: the container's end %s has MAC %s, the network expects %s: docker restart CONTAINER", p.Endpoint.Short(), far.Name, far.MAC, p.MAC)
		}
		return false, nil
	}
	set := nl.SetLink{Link: far.Ref}
	if far.Name != p.Outer {
		if far.Up { // a link that is up keeps its name before Linux 6.2
			if err := one(r.ctx, r.a.o.hostH, nl.SetLink{Link: far.Ref, Up: nl.Off}); err != nil {
				return false, err
			}
		}
		set.Rename = p.Outer
	}
	if far.MTU != p.MTU {
		set.MTU = p.MTU
	}
	if far.MAC != p.MAC && p.MAC != (carrick.MAC{}) {
		set.MAC = p.MAC
	}
	if set == (nl.SetLink{Link: far.Ref}) {
		return false, nil
	}
	d.note(fmt.Sprintf("its outer end %s mtu %d %s", far.Name, far.MTU, far.MAC), fmt.Sprintf("%s mtu %d %s", p.Outer, p.MTU, p.MAC))
	err = one(r.ctx, r.a.o.hostH, set)
	if errors.Is(err, nl.ErrExists) {
		err = inTheWay(err, "the host has a link %s already, and the endpoint's own is called %s: ip link del %s", p.Outer, far.Name, p.Outer)
	}
	return true, err
}
