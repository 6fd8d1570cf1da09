package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// leg brings the host's own device in the network to the plan and returns it; the zero Ref
// if there is none.
func (r *run) leg(parent nl.Link, links []nl.Link) (nl.Ref, error) {
	o, want := r.a.o, r.u.Leg
	if want == nil {
		return nl.Ref{}, r.endLeg(links)
	}
	alias := plan.LegAlias(r.a.id)
	var l nl.Link
	made := true
	for _, x := range links {
		if x.Alias != alias && x.Name != want.Name || x.Kind != string(r.u.Kind) {
			continue
		}
		if x.Name != want.Name || x.Peer != parent.Index || x.PeerNS != nl.NoNSID {
			// Of another parent, or renamed: nobody depends on it, so it is made anew.
			if err := one(r.ctx, o.h, nl.DelLink{Link: x.Ref}); err != nil && !errors.Is(err, nl.ErrNotFound) {
				return nl.Ref{}, err
			}
			r.rep.Changes.Links++
			continue
		}
		l, made = x, false
	}
	if made {
		var err error
		if l, err = r.makeLeg(want, parent); err != nil {
			return nl.Ref{}, fmt.Errorf("this host's own device in the network: %w", err)
		}
	}
	mtu := r.u.MTU
	if mtu == 0 {
		mtu = parent.MTU
	}
	set := nl.SetLink{Link: l.Ref}
	if l.Alias != alias {
		set.Alias = alias
	}
	if l.MAC != want.MAC {
		set.MAC = want.MAC
	}
	if l.MTU != mtu {
		set.MTU = mtu
	}
	switch {
	case want.Down && l.Up:
		set.Up = nl.Off
	case !want.Down && !l.Up:
		set.Up = nl.On
	}
	var changes []nl.Change
	if made || r.rep.Resync != "" {
		settings, err := r.legSysctls(want)
		if err != nil {
			return nl.Ref{}, err
		}
		changes = append(changes, settings...)
	}
	if set != (nl.SetLink{Link: l.Ref}) {
		changes = append(changes, set)
	}
	if m := r.mode(l); len(m) > 0 {
		changes = append(changes, m...)
	}
	addrs, err := r.legAddresses(want, l)
	if err != nil {
		return nl.Ref{}, err
	}
	if changes = append(changes, addrs...); len(changes) > 0 {
		if err := errors.Join(o.h.Send(r.ctx, changes...)...); err != nil {
			return nl.Ref{}, err
		}
		r.rep.Changes.Links++
		if !made && r.sameLeg() {
			r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: l.Name, Found: fmt.Sprintf("%s, up %v, %d changes", describe(l), l.Up, len(changes)), Want: "as planned"})
		}
	}
	if made && r.sameLeg() {
		r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: l.Name, Want: string(r.u.Kind)})
	}
	return l.Ref, nil
}

// sameLeg says whether the last plan wanted the same of the leg: then what differs now was
// changed by somebody else.
func (r *run) sameLeg() bool {
	last := r.a.last
	if last == nil || last.Leg == nil || last.Kind != r.u.Kind || last.Submode != r.u.Submode || last.Parent != r.u.Parent || last.MTU != r.u.MTU {
		return false
	}
	a, b := last.Leg, r.u.Leg
	return a.Endpoint == b.Endpoint && a.MAC == b.MAC && a.Down == b.Down && slices.Equal(a.Addrs, b.Addrs)
}

// makeLeg makes the device, down.
func (r *run) makeLeg(want *plan.Leg, parent nl.Link) (nl.Link, error) {
	o := r.a.o
	o.parents.Lock()
	defer o.parents.Unlock()
	if !parent.Up {
		return nl.Link{}, fmt.Errorf("parent %s: %w: ip link set %s up", parent.Name, ErrParentDown, parent.Name)
	}
	if err := one(r.ctx, o.h, child(r.u, parent.Ref, plan.Child{Name: want.Name, MAC: want.MAC})); err != nil {
		return nl.Link{}, o.explain(r.ctx, r.u, parent, err)
	}
	ctx := context.WithoutCancel(r.ctx) // not half
	l, err := o.h.Link(ctx, nl.Ref{Name: want.Name})
	if err != nil {
		return nl.Link{}, err
	}
	l.Alias = plan.LegAlias(r.a.id)
	return l, one(ctx, o.h, nl.SetLink{Link: l.Ref, Alias: l.Alias})
}

// legSysctls is what to send for the leg's settings.
func (r *run) legSysctls(want *plan.Leg) (changes []nl.Change, err error) {
	wanted := plan.LegSysctls(want.Name, slices.ContainsFunc(want.Addrs, netip.Addr.Is6))
	names := make([]string, 0, len(wanted))
	for _, s := range wanted {
		names = append(names, s.Name)
	}
	is, err := r.a.o.h.Sysctls(r.ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, s := range wanted {
		if v, known := is[s.Name]; known && v != s.Value && (s.Also == "" || v != s.Also) {
			changes = append(changes, nl.SetSysctl{Name: s.Name, Value: s.Value})
		}
	}
	return changes, nil
}

// legAddresses is what to send for the leg's addresses: the planned ones, and no others
// but the kernel's own link-local one.
func (r *run) legAddresses(want *plan.Leg, l nl.Link) (changes []nl.Change, err error) {
	all, err := r.a.o.h.Addresses(r.ctx)
	if err != nil {
		return nil, err
	}
	held := map[netip.Prefix]bool{}
	for _, x := range all {
		if x.Link == l.Index {
			held[x.Prefix] = true
		}
	}
	for _, a := range want.Addrs {
		p := netip.PrefixFrom(a, a.BitLen())
		if !held[p] {
			changes = append(changes, nl.AddAddress{Link: l.Ref, Prefix: p})
		}
		delete(held, p)
	}
	for p := range held {
		if !p.Addr().IsLinkLocalUnicast() {
			changes = append(changes, nl.DelAddress{Link: l.Ref, Prefix: p})
		}
	}
	return changes, nil
}

// endLeg removes the network's leg, if there is one.
func (r *run) endLeg(links []nl.Link) error {
	var changes []nl.Change
	for _, l := range links {
		if id, ok := plan.ParseLegAlias(l.Alias); ok && id == r.a.id && l.Kind == nl.KindMacvlan && !r.want.Partial {
			changes = append(changes, nl.DelLink{Link: l.Ref})
		}
	}
	r.rep.Changes.Links += len(changes)
	return errors.Join(ignoring(nl.ErrNotFound, r.a.o.h.Send(r.ctx, changes...))...)
}
