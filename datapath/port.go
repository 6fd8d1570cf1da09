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
	renamed := map[string]*nl.Link{}
	for _, l := range r.a.links.sorted() {
		if l.Kind == nl.KindVeth && l.Alias != "" {
			renamed[l.Alias] = l
		}
	}
	for _, p := range r.want.Ports {
		err := r.port(br, p, renamed[string(p.Endpoint)])
		if err != nil {
			err = fmt.Errorf("endpoint %s: %w", p.Endpoint.Short(), err)
		}
		r.rep.Endpoints[p.Endpoint] = err
	}
}

func (r *run) port(br nl.Ref, p plan.Port, aliased *nl.Link) error {
	l := r.a.links.byName[p.Name]
	if l != nil && !adoptable(l, p) {
		// Of another endpoint whose id begins alike, or not a veth at all.
		if err := r.remove(l); err != nil {
			return err
		}
		r.rep.Changes.Links++
		l = nil
	}
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
	was = was && before == p
	changed, err := r.settle(l, shape{name: p.Name, mtu: p.MTU, master: br, alias: string(p.Endpoint), down: p.Down})
	if err == nil && !made && (r.rep.Resync != "" || !was) {
		var far bool
		far, err = r.outer(l, p)
		changed = changed || far
	}
	r.count(made || changed, was)
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
	err := one(r.ctx, host, nl.AddVeth{Name: p.Name, Target: r.a.ns, Master: br, MTU: p.MTU, Outer: p.Outer, OuterMAC: p.MAC})
	if errors.Is(err, nl.ErrExists) {
		for _, name := range []string{p.Outer, p.Name} {
			if l, lerr := host.Link(r.ctx, nl.Ref{Name: name}); lerr == nil {
				return nil, fmt.Errorf("%w: the host has a link %s (kind %q, alias %q) already: ip link del %s: %w",
					ErrConflict, l.Name, l.Kind, l.Alias, l.Name, err)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return r.made(p.Name)
}

// outer looks at the other end of the pair. In the host's namespace it is still
// ours to put right; in a container it is Docker's, and a wrong MTU or MAC there
// is reported.
func (r *run) outer(l *nl.Link, p plan.Port) (changed bool, err error) {
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
	if far.Name != p.Outer && !far.Up {
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
	return true, one(r.ctx, r.a.o.hostH, set)
}
