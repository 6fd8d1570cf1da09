package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/dad"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// Sentinel errors about a network's device on this host.
var (
	// ErrNoParent: the host has no such device.
	ErrNoParent = errors.New("no such device on this host")
	// ErrParentDown: the device is down, and somebody else's to raise.
	ErrParentDown = errors.New("the device is down")
	// ErrParentBusy: the device is used in a way that excludes this one.
	ErrParentBusy = errors.New("the device is used otherwise")
)

// probeName is of the device that CheckParent makes for a moment.
const probeName = "ckprobe"

// CheckParent says whether a network could stand on a device of this host, by trying:
// the kernel's own reason is the answer. It changes nothing that lasts, but a missing
// 802.1q sub-interface is made, and collected if no network comes to need it. No network
// of this host may have the same device with another ipvlan_mode or ipvlan_flag: those
// are the device's, and a try would change them.
// Errors: [ErrNoParent], [ErrParentDown], [ErrParentBusy], nl.ErrNotSupported.
func (o *Host) CheckParent(ctx context.Context, n carrick.Network, p carrick.Parent) error {
	o.parents.Lock()
	defer o.parents.Unlock()
	u := &plan.Underlay{Kind: n.Mode, Submode: n.Submode, Flag: n.Flag, Parent: p, MTU: n.MTU}
	parent, err := o.parent(ctx, p)
	if err != nil {
		return err
	}
	if !parent.Up {
		return fmt.Errorf("parent %s: %w: ip link set %s up", p.Name, ErrParentDown, p.Name)
	}
	switch {
	case u.MTU > parent.MTU:
		return tooLarge(u, parent)
	case parent.MAC.IsZero() || parent.Kind == nl.KindMacvlan || parent.Kind == nl.KindIPvlan:
		return fmt.Errorf("parent %s: %w: it is no Ethernet device of the host's own: it has %s", p.Name, ErrParentBusy, o.devices(ctx))
	}
	if n.Mode == carrick.ModeSRIOV {
		return o.checkFunctions(ctx, parent)
	}
	if n.Routes() && o.cfg.Local.IsValid() {
		if err := o.leadsHere(ctx, parent); err != nil {
			return fmt.Errorf("-o ipvlan_mode=%s: parent %s: %w", n.Submode, p.Name, err)
		}
	}
	if old, err := o.h.Link(ctx, nl.Ref{Name: probeName}); err == nil { // of a crash
		if err := one(ctx, o.h, nl.DelLink{Link: old.Ref}); err != nil {
			return err
		}
	}
	if err := one(ctx, o.h, child(u, parent.Ref, plan.Child{Name: probeName})); err != nil {
		return o.explain(ctx, u, parent, err)
	}
	ctx = context.WithoutCancel(ctx) // what was made goes
	made, err := o.h.Link(ctx, nl.Ref{Name: probeName})
	if err != nil {
		return err
	}
	return one(ctx, o.h, nl.DelLink{Link: made.Ref})
}

// leadsHere says why other hosts' routes to this host do not end on a device: a child
// hears what comes by its parent and nothing else.
func (o *Host) leadsHere(ctx context.Context, parent nl.Link) error {
	own, err := o.h.Addresses(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(own, func(a nl.Address) bool { return a.Link == parent.Index && a.Prefix.Addr() == o.cfg.Local }) {
		return nil
	}
	return fmt.Errorf("%w: the other hosts' packets for its containers come to %s, which is another device's: use that one, or start the agent with --advertise %s", ErrParentBusy, o.cfg.Local, parent.Name)
}

// Foreign says who on a parent's segment has an address, or is about to, in words for
// people; "" if nobody does: the host itself, or whoever answers (see [dad.Ask], which
// takes 0.4 s). This host's own containers are not heard. Errors: [ErrNoParent], or the
// kernel's.
func (o *Host) Foreign(ctx context.Context, p carrick.Parent, a netip.Addr) (string, error) {
	o.parents.Lock()
	l, err := o.parent(ctx, p)
	o.parents.Unlock()
	if err != nil {
		return "", err
	}
	own, err := o.h.Addresses(ctx)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(own, func(x nl.Address) bool { return x.Prefix.Addr() == a }) {
		return "this host itself", nil
	}
	holder, err := dad.Ask(ctx, o.host, dad.Link{Index: l.Index, MAC: l.MAC}, a)
	if err != nil || holder.IsZero() || o.lentAs(ctx, l, holder) {
		return "", err
	}
	return holder.String() + " on the segment of " + p.Name, nil
}

// parent returns a network's device, and makes it if it is a sub-interface that nobody
// has made. Called with parents held.
func (o *Host) parent(ctx context.Context, p carrick.Parent) (nl.Link, error) {
	o.know(p.Name)
	fail := func(err error) (nl.Link, error) { return nl.Link{}, fmt.Errorf("parent %s: %w", p.Name, err) }
	l, err := o.h.Link(ctx, nl.Ref{Name: p.Name})
	switch {
	case err == nil && p.VLAN != 0 && l.Kind == nl.KindVLAN && l.VLAN != p.VLAN:
		return fail(fmt.Errorf("%w: it is VLAN %d: choose another name, or give it its own", ErrParentBusy, l.VLAN))
	case err == nil && l.Alias == plan.VLANAlias && !l.Up:
		if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Up: nl.On}); err != nil {
			return fail(baseDown(p, err))
		}
		l.Up = true
		return l, nil
	case err == nil:
		return l, nil
	case !errors.Is(err, nl.ErrNotFound):
		return fail(err)
	case p.VLAN == 0:
		return fail(fmt.Errorf("%w: it has %s", ErrNoParent, o.devices(ctx)))
	}
	base, err := o.h.Link(ctx, nl.Ref{Name: p.Base})
	if errors.Is(err, nl.ErrNotFound) {
		return fail(fmt.Errorf("%w, and no %s to make it on: it has %s", ErrNoParent, p.Base, o.devices(ctx)))
	}
	if err != nil {
		return fail(err)
	}
	if err := one(ctx, o.h, nl.AddVLAN{Name: p.Name, Parent: base.Ref, ID: p.VLAN}); err != nil {
		return fail(err)
	}
	ctx = context.WithoutCancel(ctx) // not half
	if l, err = o.h.Link(ctx, nl.Ref{Name: p.Name}); err != nil {
		return fail(err)
	}
	if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Alias: plan.VLANAlias}); err != nil {
		return fail(err)
	}
	if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Up: nl.On}); err != nil {
		return fail(errors.Join(baseDown(p, err), one(ctx, o.h, nl.DelLink{Link: l.Ref})))
	}
	l.Alias, l.Up = plan.VLANAlias, true
	return l, nil
}

// baseDown explains that a sub-interface cannot be raised.
func baseDown(p carrick.Parent, err error) error {
	if errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("%w: ip link set %s up: %w", ErrParentDown, p.Base, err)
	}
	return err
}

// devices names what a network could stand on, for people.
func (o *Host) devices(ctx context.Context) string {
	links, err := o.h.Links(ctx)
	if err != nil {
		return "links that cannot be listed"
	}
	var names []string
	for _, l := range links {
		container := strings.HasPrefix(l.Name, "veth") || l.Kind == nl.KindMacvlan || l.Kind == nl.KindIPvlan
		if !l.MAC.IsZero() && l.Master == 0 && l.Kind != nl.KindBridge && !container {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 {
		return "none that would do"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// explain says why the kernel refused a device on a parent.
func (o *Host) explain(ctx context.Context, u *plan.Underlay, parent nl.Link, err error) error {
	name := parent.Name
	switch {
	case errors.Is(err, unix.EBUSY):
		why := "it is the port of a bridge or a bond, or carries devices of another kind"
		if other := o.standsOn(ctx, u, parent); other != "" {
			why = other
		}
		return fmt.Errorf("parent %s: %w: %s, and a device carries either macvlan or ipvlan devices: use another parent, or a VLAN of it (%s.N): %w", name, ErrParentBusy, why, name, err)
	case errors.Is(err, unix.EINVAL) && u.Kind == carrick.ModeMacvlan && u.Submode == "passthru":
		return fmt.Errorf("parent %s: %w: macvlan_mode=passthru takes a device for one container alone, and it has another: %w", name, ErrParentBusy, err)
	case errors.Is(err, unix.EINVAL) && u.Kind == carrick.ModeMacvlan:
		return fmt.Errorf("parent %s: %w: a container has it for itself (macvlan_mode=passthru): %w", name, ErrParentBusy, err)
	}
	return fmt.Errorf("parent %s: %w", name, err)
}

// tooLarge refuses an MTU that the parent does not carry. Of an ipvlan device the kernel
// would take it, and lose what is larger.
func tooLarge(u *plan.Underlay, parent nl.Link) error {
	return fmt.Errorf("-o mtu=%d: parent %s carries %d: leave the option out, or give that or less", u.MTU, parent.Name, parent.MTU)
}

// standsOn names a device of the other kind on a parent, "" if none is to be seen here.
func (o *Host) standsOn(ctx context.Context, u *plan.Underlay, parent nl.Link) string {
	if parent.Master != 0 {
		if m, err := o.h.Link(ctx, nl.Ref{Index: parent.Master}); err == nil {
			return "it is a port of " + m.Name
		}
	}
	links, err := o.h.Links(ctx)
	if err != nil {
		return ""
	}
	for _, l := range links {
		if (l.Kind == nl.KindMacvlan || l.Kind == nl.KindIPvlan) && l.Kind != string(u.Kind) && l.Peer == parent.Index && l.PeerNS == nl.NoNSID {
			return fmt.Sprintf("it carries %s (%s)", l.Name, l.Kind)
		}
	}
	return ""
}

// child is the change that makes an endpoint's device.
func child(u *plan.Underlay, parent nl.Ref, c plan.Child) nl.Change {
	if u.Kind == carrick.ModeIPvlan {
		return nl.AddIPvlan{Name: c.Name, Parent: parent, IPvlanInfo: ipvlan(u), MTU: u.MTU}
	}
	return nl.AddMacvlan{Name: c.Name, Parent: parent, Mode: nl.MacvlanMode(u.Submode), MAC: c.MAC, MTU: u.MTU}
}

func ipvlan(u *plan.Underlay) nl.IPvlanInfo {
	return nl.IPvlanInfo{Mode: nl.IPvlanMode(u.Submode), Flag: nl.IPvlanFlag(u.Flag)}
}

// one sends one change.
func one(ctx context.Context, h nl.Handle, c nl.Change) error {
	if errs := h.Send(ctx, c); errs != nil {
		return errs[0]
	}
	return nil
}
