package underlay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// take gives an endpoint the first virtual function of a physical one that is free. The
// alias comes first: from then on a crash leaves what [Host.Collect] gives back. Called
// with parents held. Errors: [ErrNoFunctions], [ErrFunctionsTaken], or the kernel's.
func (r *run) take(c plan.Child, pf nl.Link) error {
	o := r.a.o
	list, err := o.functions(r.ctx, pf)
	if err != nil {
		return err
	}
	links, err := o.h.Links(r.ctx)
	if err != nil {
		return err
	}
	own, err := o.h.Addresses(r.ctx)
	if err != nil {
		return err
	}
	for _, f := range list {
		l, who := o.holder(f, links, own)
		if who != "" {
			continue
		}
		ctx := context.WithoutCancel(r.ctx) // not half
		was := plan.Function{Name: l.Name, MAC: l.MAC}
		l.Alias = plan.FunctionAlias(r.a.id, c.Endpoint, was)
		o.expect(l, false)
		if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Alias: l.Alias}); err != nil {
			return err
		}
		if _, err := r.equip(ctx, c, pf, f.number, l); err != nil {
			return errors.Join(fmt.Errorf("%sparent %s: %s: %w", o.who(), pf.Name, f.text(), err), o.giveBack(ctx, l))
		}
		o.lend(f.device, r.a.id, c.Endpoint)
		r.rep.Changes.Links++
		if r.same(c) {
			r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: c.Name, Want: string(r.u.Kind)})
		}
		return nil
	}
	return fmt.Errorf("%sparent %s: %w: it has %d (%s): stop a container that has one, or make more (echo N >/sys/class/net/%s/device/sriov_numvfs, for which none may be in use)",
		o.who(), pf.Name, ErrFunctionsTaken, len(list), o.holders(list, links, own), pf.Name)
}

// lend notes who has a virtual function. Called with parents held.
func (o *Host) lend(device string, id carrick.NetworkID, ep carrick.EndpointID) {
	if o.out == nil {
		o.out = map[string]lent{}
	}
	o.out[device] = lent{id, ep}
}

// lentAs says whether a MAC is of a virtual function that a container of this host has. A
// physical function hears its own virtual ones, as a device does not those that stand on
// it; who of ours has which address is not the segment's to say.
func (o *Host) lentAs(ctx context.Context, pf nl.Link, mac carrick.MAC) bool {
	o.parents.Lock()
	defer o.parents.Unlock()
	if len(o.out) == 0 {
		return false
	}
	macs, err := o.h.VFs(ctx, pf.Ref)
	if err != nil {
		return false
	}
	for device := range o.out {
		if of, number, ok := o.physical(device); ok && of == pf.Device && macs[number] == mac {
			return true
		}
	}
	return false
}

// equip makes a virtual function in the host's namespace the endpoint's: its MAC, first
// where its packets are checked, and the name by which Docker moves it. It says what
// differed, "" if nothing did.
func (r *run) equip(ctx context.Context, c plan.Child, pf nl.Link, number int, l nl.Link) (was string, err error) {
	o := r.a.o
	differs := func(what string) {
		if was != "" {
			was += ", "
		}
		was += what
	}
	macs, err := o.h.VFs(ctx, pf.Ref)
	if err != nil {
		return "", err
	}
	if m := macs[number]; m != c.MAC {
		differs("sends from " + m.String())
		if err := one(ctx, o.h, nl.SetVF{PF: pf.Ref, Number: number, MAC: c.MAC}); err != nil {
			return was, err
		}
	}
	set := nl.SetLink{Link: l.Ref}
	if l.Name != c.Name {
		differs("is called " + l.Name)
		set.Rename = c.Name
		if l.Up { // kernels before 6.2 rename nothing that is up
			if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Up: nl.Off}); err != nil {
				return was, err
			}
		}
	}
	mtu := r.u.MTU
	if mtu == 0 {
		mtu = pf.MTU
	}
	if l.MTU != mtu {
		differs(fmt.Sprintf("mtu %d", l.MTU))
		set.MTU = mtu
	}
	if set != (nl.SetLink{Link: l.Ref}) {
		if err := one(ctx, o.h, set); err != nil {
			return was, err
		}
	}
	if l, err = o.h.Link(ctx, l.Ref); err != nil { // its driver may have followed
		return was, err
	}
	if l.MAC != c.MAC {
		differs(l.MAC.String())
		return was, o.setMAC(ctx, l, c.MAC)
	}
	return was, nil
}

// Drivers that reset a virtual function when its MAC is set do so when they come to it.
const (
	resetLimit = time.Second
	resetStep  = 20 * time.Millisecond
)

// setMAC gives a virtual function's device the MAC that its physical function says. Some
// drivers take it when told. Others refuse, because it is not theirs to choose any more
// (EADDRNOTAVAIL of igbvf), and read it when they reset the device, as for taking it down.
func (o *Host) setMAC(ctx context.Context, l nl.Link, mac carrick.MAC) error {
	err := one(ctx, o.h, nl.SetLink{Link: l.Ref, MAC: mac})
	if err == nil {
		return nil
	}
	if rerr := errors.Join(o.h.Send(ctx, nl.SetLink{Link: l.Ref, Up: nl.On}, nl.SetLink{Link: l.Ref, Up: nl.Off})...); rerr != nil {
		return errors.Join(err, rerr)
	}
	for end := time.Now().Add(resetLimit); ; {
		now, rerr := o.h.Link(ctx, l.Ref)
		switch {
		case rerr != nil:
			return errors.Join(err, rerr)
		case now.MAC == mac:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("its driver keeps MAC %s: %w", now.MAC, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(resetStep):
		}
	}
}

// functionAtHome puts a virtual function right that is in the host's namespace: before
// Docker takes it, and after it has come back, under whatever name (default_device_exit_net
// names it dev%d if there is another of its name).
func (r *run) functionAtHome(c plan.Child, pf, l nl.Link) error {
	o := r.a.o
	if c.Down && c.Create {
		return errCut
	}
	o.parents.Lock()
	defer o.parents.Unlock()
	of, number, ok := o.physical(l.Device)
	if !ok || of != pf.Device {
		if !c.Create {
			return nil // given back when the endpoint ends
		}
		return errors.Join(o.giveBack(r.ctx, l), r.take(c, pf))
	}
	o.lend(l.Device, r.a.id, c.Endpoint)
	if _, _, ok := plan.ParseChildAlias(l.Alias); !ok {
		// Somebody took its alias off: what it was is not known any more.
		l.Alias = plan.FunctionAlias(r.a.id, c.Endpoint, plan.Function{Name: functionName(pf, number)})
		if err := r.change(c, o.h, []nl.Change{nl.SetLink{Link: l.Ref, Alias: l.Alias}}, "no alias"); err != nil {
			return err
		}
	}
	was, err := r.equip(r.ctx, c, pf, number, l)
	if was != "" {
		r.rep.Changes.Links++
		// What came back from a container has the name that it had there.
		if err == nil && c.Create && r.same(c) {
			r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: c.Name, Found: was, Want: "as planned"})
		}
	}
	return err
}

// functionInside does for a virtual function in its container's namespace what can only
// be done from the host's: the MAC that it may send from.
func (r *run) functionInside(c plan.Child, pf, l nl.Link) error {
	o := r.a.o
	_, number, ok := o.physical(l.Device)
	if !ok {
		return nil
	}
	o.parents.Lock()
	o.lend(l.Device, r.a.id, c.Endpoint)
	o.parents.Unlock()
	macs, err := o.h.VFs(r.ctx, pf.Ref)
	if err != nil {
		return err
	}
	// Not every driver says.
	if m, said := macs[number]; !said || m == c.MAC || m.IsZero() {
		return nil
	}
	return r.change(c, o.h, []nl.Change{nl.SetVF{PF: pf.Ref, Number: number, MAC: c.MAC}}, "sends from "+macs[number].String())
}

// findFunction finds an endpoint's virtual function in its sandbox of which somebody took
// the alias off, and puts it back.
func (r *run) findFunction(c plan.Child, pf nl.Link, s *sandbox) (nl.Link, bool) {
	for _, l := range s.links {
		of, number, ok := r.a.o.physical(l.Device)
		if _, _, another := plan.ParseChildAlias(l.Alias); !ok || another || of != pf.Device || l.MAC != c.MAC {
			continue
		}
		l.Alias = plan.FunctionAlias(r.a.id, c.Endpoint, plan.Function{Name: functionName(pf, number)})
		if err := r.change(c, s.h, []nl.Change{nl.SetLink{Link: l.Ref, Alias: l.Alias}}, "no alias"); err != nil {
			r.longer("endpoint %s: the container's %s cannot be marked: %v", c.Endpoint.Short(), l.Name, err)
			continue
		}
		return l, true
	}
	return nl.Link{}, false
}

// functionName is what a virtual function of unknown past is called.
func functionName(pf nl.Link, number int) string { return fmt.Sprintf("%sv%d", pf.Name, number) }

// giveBack makes a virtual function in the host's namespace what it was before an
// endpoint had it: down, with the name and MAC of before, and free to choose another MAC.
// The alias goes last, so that a crash leaves something to give back. One that has another
// alias by now is left alone. Called with parents held.
func (o *Host) giveBack(ctx context.Context, lent nl.Link) error {
	fail := func(err error) error { return fmt.Errorf("give virtual function %s back: %w", lent.Name, err) }
	l, err := o.h.Link(ctx, lent.Ref)
	if errors.Is(err, nl.ErrNotFound) || err == nil && l.Alias != lent.Alias {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	o.expect(l, true)
	if l.Up {
		if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Up: nl.Off}); err != nil {
			return fail(err)
		}
	}
	was, _ := plan.ParseFunctionAlias(l.Alias)
	if was.MAC.IsZero() {
		// Not the endpoint's: another function may have that by tomorrow, and a card that
		// has two of a MAC chooses one.
		was.MAC = randomMAC()
	}
	pf, number, found, err := o.physicalLink(ctx, l)
	if err != nil {
		return fail(err)
	}
	if found {
		if err := o.release(ctx, pf, number, was.MAC); err != nil {
			return fail(err)
		}
		if was.Name == "" {
			was.Name = functionName(pf, number)
		}
	}
	if l.MAC != was.MAC {
		// It works with another as well: the next endpoint's is set in any case.
		if err := o.setMAC(ctx, l, was.MAC); err != nil {
			o.cfg.Log.Debug("virtual function keeps its MAC", "device", l.Name, "err", err)
		}
	}
	if was.Name != "" && l.Name != was.Name {
		err := o.rename(ctx, l, was.Name)
		if errors.Is(err, nl.ErrExists) && found && functionName(pf, number) != was.Name {
			err = one(ctx, o.h, nl.SetLink{Link: l.Ref, Rename: functionName(pf, number)})
		}
		if err != nil {
			return fail(err)
		}
	}
	delete(o.out, l.Device)
	if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, NoAlias: true}); err != nil {
		return fail(err)
	}
	return nil
}

// randomMAC is a unicast address that is nobody's (IEEE 802 §8.2.2).
func randomMAC() (m carrick.MAC) {
	_, _ = rand.Read(m[:]) // never fails (Go 1.24)
	m[0] = m[0]&^1 | 2
	return m
}

// rename gives a virtual function the name of before. Another that has it, since it came
// home from a container under that, gets its endpoint's.
func (o *Host) rename(ctx context.Context, l nl.Link, name string) error {
	err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Rename: name})
	if !errors.Is(err, nl.ErrExists) {
		return err
	}
	x, xerr := o.h.Link(ctx, nl.Ref{Name: name})
	_, ep, ours := plan.ParseChildAlias(x.Alias)
	if xerr != nil || !ours || !o.borrowed(x) {
		return err
	}
	if xerr := one(ctx, o.h, nl.SetLink{Link: x.Ref, Rename: ep.OuterName()}); xerr != nil {
		return errors.Join(err, xerr)
	}
	return one(ctx, o.h, nl.SetLink{Link: l.Ref, Rename: name})
}

// expect notes that events about a virtual function are this host's own doing, while it
// is given back, or may not be.
func (o *Host) expect(l nl.Link, own bool) {
	o.quiet.Lock()
	defer o.quiet.Unlock()
	if o.returning == nil {
		o.returning = map[int]bool{}
	}
	if delete(o.returning, l.Index); own {
		o.returning[l.Index] = true
	}
}

// release has a physical function forget which MAC one of its virtual ones sends from, or
// if it must have one say the one of before.
func (o *Host) release(ctx context.Context, pf nl.Link, number int, before carrick.MAC) error {
	err := one(ctx, o.h, nl.SetVF{PF: pf.Ref, Number: number})
	if err == nil {
		return nil
	}
	if again := one(ctx, o.h, nl.SetVF{PF: pf.Ref, Number: number, MAC: before}); again != nil {
		return errors.Join(err, again)
	}
	return nil
}

// physicalLink finds the device of a virtual function's physical one; false if there is
// none in the host's namespace.
func (o *Host) physicalLink(ctx context.Context, l nl.Link) (pf nl.Link, number int, ok bool, err error) {
	device, number, ok := o.physical(l.Device)
	if !ok {
		return nl.Link{}, 0, false, nil
	}
	links, err := o.h.Links(ctx)
	if err != nil {
		return nl.Link{}, 0, false, err
	}
	for _, x := range links {
		if x.Device == device && x.Kind == "" {
			return x, number, true, nil
		}
	}
	return nl.Link{}, 0, false, nil
}

// borrowed says whether a link of the host's namespace is a virtual function that an
// endpoint has, or had: by its alias, or by its name if somebody took that off.
func (o *Host) borrowed(l nl.Link) bool {
	if l.Kind != "" {
		return false
	}
	if _, _, ours := plan.ParseChildAlias(l.Alias); ours {
		return true
	}
	_, _, ok := o.physical(l.Device)
	return ok && l.Alias == "" && outerName(l.Name)
}

// giveBackAll gives some virtual functions back.
func (o *Host) giveBackAll(ctx context.Context, list []nl.Link) error {
	if len(list) == 0 {
		return nil
	}
	o.parents.Lock()
	defer o.parents.Unlock()
	return o.giveBackList(ctx, list)
}

// giveBackList does so with parents held.
func (o *Host) giveBackList(ctx context.Context, list []nl.Link) error {
	var errs []error
	for _, l := range list {
		errs = append(errs, o.giveBack(ctx, l))
	}
	return errors.Join(errs...)
}

// standsOn says whether an endpoint's device is one of the parent's. home is how the
// device's namespace knows the host's.
func (r *run) standsOn(l, parent nl.Link, home nl.NSID) bool {
	if r.u.Kind == carrick.ModeSRIOV {
		pf, _, ok := r.a.o.physical(l.Device)
		return ok && l.Kind == "" && pf == parent.Device
	}
	return l.Kind == string(r.u.Kind) && l.Peer == parent.Index && l.PeerNS == home
}

// cameHome says whether an event is a virtual function of the network's that was in a
// container: it has not the name by which Docker brings it back, before it says so, and
// is not one that is being given back.
func (a *Applier) cameHome(e nl.LinkEvent) bool {
	id, ep, ok := plan.ParseChildAlias(e.Link.Alias)
	if _, lent := plan.ParseFunctionAlias(e.Link.Alias); !ok || !lent || e.Gone || id != a.id || e.Link.Name == ep.OuterName() {
		return false
	}
	a.o.quiet.Lock()
	defer a.o.quiet.Unlock()
	return !a.o.returning[e.Link.Index]
}
