package underlay

import (
	"errors"
	"fmt"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// child brings one endpoint's device to the plan, wherever it is.
func (r *run) child(c plan.Child, parent nl.Link, links []nl.Link) error {
	a, o := r.a, r.a.o
	if a.settled[c.Endpoint] == c {
		return nil
	}
	delete(a.settled, c.Endpoint)
	for _, l := range links {
		id, ep, ok := plan.ParseChildAlias(l.Alias)
		mine := ok && id == a.id && ep == c.Endpoint
		half := l.Name == c.Name && l.Alias == ""
		if r.u.Kind == carrick.ModeSRIOV && l.Kind == "" && (mine || half && o.borrowed(l)) {
			return r.functionAtHome(c, parent, l)
		}
		if mine || half && ours(l) {
			return r.atHome(c, parent, l)
		}
	}
	s, err := o.open(r.ctx, c.Sandbox)
	if err == nil {
		defer s.close()
		l, ok := s.find(a.id, c.Endpoint)
		if !ok && r.u.Kind == carrick.ModeSRIOV {
			l, ok = r.findFunction(c, parent, s)
		}
		if ok {
			return r.inside(c, parent, s, l)
		}
	} else if !errors.Is(err, netns.ErrNotFound) {
		return err
	}
	switch {
	case c.Create:
		return r.create(c, parent)
	case err != nil:
		// Docker may be about to move it, or the container has just ended.
		return nil
	}
	// It may have come home since the links were listed.
	if l, lerr := o.h.Link(r.ctx, nl.Ref{Name: c.Name}); lerr == nil && (ours(l) || o.borrowed(l)) {
		return nil
	}
	r.longer("endpoint %s: its device is gone, so its container has lost this network: docker restart CONTAINER", c.Endpoint.Short())
	return fmt.Errorf("%w (device %s): docker restart CONTAINER", datapath.ErrPairMissing, c.Name)
}

// errCut: a container must not start with addresses that may be somebody else's.
var errCut = errors.New("it is cut off, because its addresses may be another host's by now: start the container again")

// create makes an endpoint's device in the host's namespace.
func (r *run) create(c plan.Child, parent nl.Link) error {
	o := r.a.o
	if c.Down {
		return errCut
	}
	// The plan may be older than Join, after which Docker moves the device out of sight: if
	// Join has not returned by now, what was not found is not there.
	if o.cfg.Joined != nil && o.cfg.Joined(c.Endpoint) {
		r.a.wake()
		return nil
	}
	// Nobody collects it before it has its alias.
	o.parents.Lock()
	defer o.parents.Unlock()
	if !parent.Up {
		return fmt.Errorf("parent %s: %w: ip link set %s up", parent.Name, ErrParentDown, parent.Name)
	}
	if r.u.MTU > parent.MTU {
		return tooLarge(r.u, parent)
	}
	if r.u.Kind == carrick.ModeSRIOV {
		return r.take(c, parent)
	}
	if err := one(r.ctx, o.h, child(r.u, parent.Ref, c)); err != nil {
		return o.explain(r.ctx, r.u, parent, err)
	}
	l, err := o.h.Link(r.ctx, nl.Ref{Name: c.Name})
	if err != nil {
		return err
	}
	r.rep.Changes.Links++
	if r.same(c) {
		r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: c.Name, Want: string(r.u.Kind)})
	}
	return one(r.ctx, o.h, nl.SetLink{Link: l.Ref, Alias: plan.ChildAlias(r.a.id, c.Endpoint)})
}

// atHome puts a device right that is in the host's namespace.
func (r *run) atHome(c plan.Child, parent, l nl.Link) error {
	o := r.a.o
	if c.Down && c.Create {
		return errCut
	}
	if l.Kind != string(r.u.Kind) || l.Peer != parent.Index || l.PeerNS != nl.NoNSID {
		if !c.Create {
			return nil // Docker's, on its way out
		}
		if err := one(r.ctx, o.h, nl.DelLink{Link: l.Ref}); err != nil && !errors.Is(err, nl.ErrNotFound) {
			return err
		}
		return r.create(c, parent)
	}
	set := nl.SetLink{Link: l.Ref}
	if l.Alias != plan.ChildAlias(r.a.id, c.Endpoint) {
		set.Alias = plan.ChildAlias(r.a.id, c.Endpoint)
	}
	if l.Name != c.Name {
		set.Rename = c.Name
	}
	if !c.MAC.IsZero() && l.MAC != c.MAC {
		set.MAC = c.MAC
	}
	if r.u.MTU != 0 && l.MTU != r.u.MTU {
		set.MTU = r.u.MTU
	}
	var changes []nl.Change
	if set != (nl.SetLink{Link: l.Ref}) {
		changes = append(changes, set)
	}
	return r.change(c, o.h, append(changes, r.mode(l)...), describe(l))
}

// mode is what to send for a device that forwards in another way than planned.
func (r *run) mode(l nl.Link) []nl.Change {
	switch {
	case l.Kind == nl.KindMacvlan && l.Macvlan != nl.MacvlanMode(r.u.Submode):
		return []nl.Change{nl.SetMacvlan{Link: l.Ref, Mode: nl.MacvlanMode(r.u.Submode)}}
	case l.Kind == nl.KindIPvlan && l.IPvlan != nil && *l.IPvlan != ipvlan(r.u):
		return []nl.Change{nl.SetIPvlan{Link: l.Ref, IPvlanInfo: ipvlan(r.u)}}
	}
	return nil
}

func describe(l nl.Link) string {
	how := string(l.Macvlan)
	if l.IPvlan != nil {
		how = string(l.IPvlan.Mode) + " " + string(l.IPvlan.Flag)
	}
	return fmt.Sprintf("%s mtu %d %s", how, l.MTU, l.MAC)
}

// change sends what puts a device right, and counts it.
func (r *run) change(c plan.Child, h nl.Handle, changes []nl.Change, was string) error {
	if len(changes) == 0 {
		return nil
	}
	if err := errors.Join(h.Send(r.ctx, changes...)...); err != nil {
		return err
	}
	r.rep.Changes.Links++
	if r.same(c) {
		r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: c.Name, Found: was, Want: "as planned"})
	}
	return nil
}

// cutAlias marks a device that is down because of us: Docker takes devices down itself,
// for the moment in which it names them.
const cutAlias = "/cut"

// inside looks at a device in its container's namespace. How it forwards is ours to put
// right; its MTU and MAC are Docker's, and reported.
func (r *run) inside(c plan.Child, parent nl.Link, s *sandbox, l nl.Link) error {
	if !r.standsOn(l, parent, s.home) {
		if err := r.change(c, s.h, r.cut(c, l), describe(l)); err != nil {
			return err
		}
		r.longer("endpoint %s: the container's %s stands on another device than %s: docker restart CONTAINER", c.Endpoint.Short(), l.Name, parent.Name)
		return nil
	}
	mtu := r.u.MTU
	if mtu == 0 {
		mtu = parent.MTU
	}
	if l.MTU != mtu {
		r.longer("endpoint %s: the container's %s has MTU %d, the network %d, so larger packets may vanish: docker restart CONTAINER", c.Endpoint.Short(), l.Name, l.MTU, mtu)
	}
	if !c.MAC.IsZero() && l.MAC != c.MAC {
		r.longer("endpoint %s: the container's %s has MAC %s, the network expects %s: docker restart CONTAINER", c.Endpoint.Short(), l.Name, l.MAC, c.MAC)
	}
	if r.u.Kind == carrick.ModeSRIOV {
		if err := r.functionInside(c, parent, l); err != nil {
			return err
		}
	}
	if err := r.change(c, s.h, append(r.mode(l), r.cut(c, l)...), describe(l)); err != nil {
		return err
	}
	r.a.settled[c.Endpoint] = c
	return nil
}

// cut is what to send for a device that must be cut off, or no longer.
func (r *run) cut(c plan.Child, l nl.Link) []nl.Change {
	alias, cut := strings.CutSuffix(l.Alias, cutAlias)
	switch {
	case c.Down && (l.Up || !cut):
		return []nl.Change{nl.SetLink{Link: l.Ref, Alias: alias + cutAlias, Up: nl.Off}}
	case !c.Down && cut:
		r.longer("endpoint %s was cut off and is back, without the routes that its container had: docker restart CONTAINER", c.Endpoint.Short())
		return []nl.Change{nl.SetLink{Link: l.Ref, Alias: alias, Up: nl.On}}
	}
	return nil
}
