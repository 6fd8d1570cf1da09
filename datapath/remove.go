package datapath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// remove deletes the network's namespace and all in it. Links go first, one by
// one: the kernel takes a namespace apart when it finds the time, and not at all
// while somebody looks at it, but the VNI and the names of the pairs must be
// free when this returns.
func (a *Applier) remove(ctx context.Context, rep *Report) error {
	if a.absent && rep.Resync == "" {
		return nil
	}
	store, name := a.o.cfg.Namespaces, plan.NamespacePrefix+string(a.id)
	if a.ns == nil {
		ns, err := store.Open(ctx, name)
		switch {
		case err == nil:
			a.ns = ns
		case !errors.Is(err, netns.ErrNotFound):
			return err
		}
	}
	if a.ns != nil {
		if err := a.clear(ctx, rep); err != nil {
			return err
		}
		rep.Changes.Namespaces++
	}
	// Also without a namespace: its half-made file may be there.
	err := store.Delete(ctx, name)
	if err == nil {
		err = a.close()
		a.absent = true
	}
	return err
}

// clear deletes the namespace's links, the ones that hold the VNI first.
func (a *Applier) clear(ctx context.Context, rep *Report) error {
	h := a.h
	if h == nil {
		var err error
		if h, err = a.o.cfg.Kernel.Open(ctx, a.ns); err != nil {
			return err
		}
		defer h.Close()
	}
	list, err := h.Links(ctx)
	if err != nil {
		return err
	}
	var changes []nl.Change
	for _, kind := range []string{nl.KindVXLAN, nl.KindVeth, nl.KindBridge} {
		for _, l := range list {
			if l.Kind == kind {
				changes = append(changes, nl.DelLink{Link: l.Ref})
			}
		}
	}
	errs := h.Send(ctx, changes...)
	for i := range changes {
		if errs == nil || errs[i] == nil {
			rep.Changes.Links++
		} else if errors.Is(errs[i], nl.ErrNotFound) {
			errs[i] = nil // the kernel was faster, e.g. with a pair whose container ended
		}
	}
	return errors.Join(errs...)
}

// Existing is a network found in the kernel.
type Existing struct {
	ID        carrick.NetworkID
	Namespace string
	VNI       carrick.VNI // 0 if it has no vxlan device
	Ports     []string    // names of ports, sorted
}

// List returns the networks that have a namespace on this host, sorted by id,
// whoever made them. A half-made namespace, which a crash left, is listed with
// nothing in it.
func (o *Overlay) List(ctx context.Context) ([]Existing, error) {
	ids, err := o.ids(ctx)
	if err != nil {
		return nil, err
	}
	var out []Existing
	for _, id := range ids {
		e := Existing{ID: id, Namespace: plan.NamespacePrefix + string(id)}
		list, err := o.linksOf(ctx, o.cfg.Namespaces, e.Namespace)
		if err != nil && !errors.Is(err, netns.ErrNotFound) {
			return nil, fmt.Errorf("list network %s: %w", id, err)
		}
		for _, l := range list {
			switch {
			case l.Name == plan.VXLANName && l.VXLAN != nil:
				e.VNI = l.VXLAN.VNI
			case l.Kind == nl.KindVeth:
				e.Ports = append(e.Ports, l.Name)
			}
		}
		slices.Sort(e.Ports)
		out = append(out, e)
	}
	return out, nil
}

// ids lists the networks by the names of namespaces, half-made ones included.
// Names that have our prefix but no id behind it are somebody else's.
func (o *Overlay) ids(ctx context.Context) ([]carrick.NetworkID, error) {
	names, err := o.cfg.Namespaces.List(ctx, plan.NamespacePrefix)
	if err != nil {
		return nil, err
	}
	var ids []carrick.NetworkID
	for _, n := range names {
		if id := strings.TrimPrefix(n, plan.NamespacePrefix); carrick.ValidID(id) {
			ids = append(ids, carrick.NetworkID(id))
		}
	}
	return ids, nil
}

// linksOf reads the links of a named namespace.
func (o *Overlay) linksOf(ctx context.Context, store netns.Store, name string) ([]nl.Link, error) {
	ns, err := store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	h, err := o.cfg.Kernel.Open(ctx, ns)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.Links(ctx)
}
