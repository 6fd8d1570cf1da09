package datapath

import (
	"context"
	"errors"
	"slices"

	"github.com/carrick-net/carrick/internal/nl"
)

// links is what a namespace's links were when last read or written.
type links struct {
	byIndex map[int]*nl.Link
	byName  map[string]*nl.Link
}

func newLinks(list []nl.Link) *links {
	l := &links{byIndex: make(map[int]*nl.Link, len(list)), byName: make(map[string]*nl.Link, len(list))}
	for _, x := range list {
		l.put(x)
	}
	return l
}

func (l *links) put(x nl.Link) *nl.Link {
	l.byIndex[x.Index] = &x
	l.byName[x.Name] = &x
	return &x
}

func (l *links) drop(x *nl.Link) {
	delete(l.byIndex, x.Index)
	if l.byName[x.Name] == x {
		delete(l.byName, x.Name)
	}
}

func (l *links) rename(x *nl.Link, name string) {
	delete(l.byName, x.Name)
	x.Name = name
	l.byName[name] = x
}

// sorted lists the links by index.
func (l *links) sorted() []*nl.Link {
	out := make([]*nl.Link, 0, len(l.byIndex))
	for _, x := range l.byIndex {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *nl.Link) int { return a.Index - b.Index })
	return out
}

// shape is what a link should look like.
type shape struct {
	name   string
	mtu    int
	master nl.Ref // the zero Ref: none
	alias  string
	down   bool
	port   nl.PortFlags // if it has a master
}

// minMTU6 is IPv6's least MTU (RFC 8200 §5). The kernel takes IPv6 off a link
// whose MTU goes below it, with all addresses, neighbours and settings, and puts
// a new one on when the MTU rises again (addrconf_notify).
const minMTU6 = 1280

// settle makes a link look like want, and says whether anything was amiss. Up
// comes last, and in a message of its own: the kernel raises a link before it
// looks at the address generation mode, and would give it a link-local address.
func (r *run) settle(l *nl.Link, want shape) (changed bool, err error) {
	if (l.MTU < minMTU6) != (want.mtu < minMTU6) {
		changed = true
		if err := r.crossMTU(l, want.mtu); err != nil {
			return true, err
		}
	}
	set := nl.SetLink{Link: l.Ref}
	if l.Name != want.name {
		// Renaming a link that is up is refused before Linux 6.2.
		if err := r.down(l); err != nil {
			return true, err
		}
		set.Rename = want.name
	}
	if l.Master != want.master.Index {
		changed = true
		m := want.master
		if err := r.set(nl.SetLink{Link: l.Ref, Master: &m}); err != nil {
			return true, err
		}
		l.Master, l.Port = m.Index, nil
	}
	if l.MTU != want.mtu {
		set.MTU = want.mtu
	}
	if want.alias != "" && l.Alias != want.alias {
		set.Alias = want.alias
	}
	set.NoAddrGen = !l.NoAddrGen
	if want.master.Index != 0 && (l.Port == nil || *l.Port != want.port) {
		p := want.port
		set.Port = &p
	}
	if set != (nl.SetLink{Link: l.Ref}) {
		changed = true
		if err := r.set(set); err != nil {
			return true, err
		}
		if set.Rename != "" {
			r.a.links.rename(l, set.Rename)
		}
		l.MTU, l.NoAddrGen = want.mtu, true
		if set.Alias != "" {
			l.Alias = set.Alias
		}
		if set.Port != nil {
			p := *set.Port
			l.Port = &p
		}
	}
	if want.down && l.Up {
		return true, r.down(l)
	}
	if !want.down && !l.Up {
		changed = true
		if err := r.set(nl.SetLink{Link: l.Ref, Up: nl.On}); err != nil {
			return true, err
		}
		l.Up = true
	}
	return changed, nil
}

// crossMTU sets an MTU across the border at which IPv6 comes and goes. While
// it comes the link is down, lest it get an address; and only then can be seen
// what is to be set.
func (r *run) crossMTU(l *nl.Link, mtu int) error {
	if mtu >= minMTU6 {
		if err := r.down(l); err != nil {
			return err
		}
	}
	if err := r.set(nl.SetLink{Link: l.Ref, MTU: mtu}); err != nil {
		return err
	}
	now, err := r.a.h.Link(r.ctx, l.Ref)
	if err != nil {
		return err
	}
	l.MTU, l.NoAddrGen = now.MTU, now.NoAddrGen
	r.renewed(l)
	r.lost()
	return nil
}

// lost has the rows read back that may have gone with what was just done to a
// link. If the plan wanted it done, they are nobody's doing.
func (r *run) lost() {
	if r.a.applied == nil || r.a.applied.vxlan != r.want.VXLAN {
		r.a.rows.Forget()
	}
	r.a.rows.QueueResync()
}

// down takes a link down. The kernel then forgets its neighbours (neigh_ifdown),
// permanent ones as well.
func (r *run) down(l *nl.Link) error {
	if !l.Up {
		return nil
	}
	if err := r.set(nl.SetLink{Link: l.Ref, Up: nl.Off}); err != nil {
		return err
	}
	l.Up = false
	r.lost()
	return nil
}

// set sends one change of a link in the network's namespace.
func (r *run) set(c nl.SetLink) error {
	r.a.touched[c.Link.Index] = true
	return one(r.ctx, r.a.h, c)
}

// made reads back a link that was just made, for its index.
func (r *run) made(name string) (*nl.Link, error) {
	l, err := r.a.h.Link(r.ctx, nl.Ref{Name: name})
	if err != nil {
		return nil, err
	}
	r.a.touched[l.Index] = true
	r.renewed(&l)
	return r.a.links.put(l), nil
}

// remove deletes a link, which may be gone already.
func (r *run) remove(l *nl.Link) error {
	r.a.touched[l.Index] = true // it goes down before it goes, with an event each
	err := one(r.ctx, r.a.h, nl.DelLink{Link: l.Ref})
	if errors.Is(err, nl.ErrNotFound) {
		r.suspicious, err = true, nil // memory was wrong
	}
	if err != nil {
		return err
	}
	r.a.links.drop(l)
	r.a.rows.Gone(l.Name, l.Name == r.want.VXLAN.Name)
	return nil
}

// one sends one change.
func one(ctx context.Context, h nl.Handle, c nl.Change) error {
	if errs := h.Send(ctx, c); errs != nil {
		return errs[0]
	}
	return nil
}
