package routed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// errCut: a container must not start with addresses that may be somebody else's.
var errCut = errors.New("it is cut off, because its addresses may be another host's by now: start the container again")

// pair brings one endpoint's pair to the plan and returns the host's end.
func (r *run) pair(p plan.Pair) (nl.Ref, error) {
	alias := plan.ChildAlias(r.a.id, p.Endpoint)
	i := slices.IndexFunc(r.links, func(l nl.Link) bool {
		return l.Kind == nl.KindVeth && (l.Alias == alias || l.Name == p.Name && l.Alias == "")
	})
	var l nl.Link
	made := i < 0
	if made {
		var err error
		if l, err = r.make(p); err != nil {
			return nl.Ref{}, err
		}
	} else {
		l = r.links[i]
	}
	was, wasFine := r.a.fine[p.Endpoint]
	wasFine = wasFine && was.index == l.Index && was.mtu == p.MTU && was.down == p.Down && r.a.last != nil
	delete(r.a.fine, p.Endpoint)

	var changes []nl.Change
	var found, want []string
	note := func(f, w string) { found, want = append(found, f), append(want, w) }
	set := nl.SetLink{Link: l.Ref}
	if l.Alias != alias {
		set.Alias = alias
		note(fmt.Sprintf("alias %q", l.Alias), fmt.Sprintf("alias %q", alias))
	}
	if l.Name != p.Name {
		set.Rename = p.Name
		note("called "+l.Name, "its name")
		if l.Up { // a link that is up keeps its name before Linux 6.2
			changes = append(changes, nl.SetLink{Link: l.Ref, Up: nl.Off})
			l.Up = false
		}
	}
	if l.MTU != p.MTU {
		set.MTU = p.MTU
		note(fmt.Sprintf("mtu %d", l.MTU), fmt.Sprintf("mtu %d", p.MTU))
	}
	if l.Master != 0 {
		set.Master = &nl.Ref{}
		note("a bridge's port", "nomaster")
	}
	if set != (nl.SetLink{Link: l.Ref}) {
		changes = append(changes, set)
	}
	l.Name, l.Alias, l.MTU, l.Master = p.Name, alias, p.MTU, 0
	if p.Down && l.Up {
		changes = append(changes, nl.SetLink{Link: l.Ref, Up: nl.Off})
		note("up", "down")
		l.Up = false
	}
	if err := r.send(changes); err != nil {
		return nl.Ref{}, err
	}
	if made || !wasFine || r.rep.Resync != "" {
		if err := r.sysctls(plan.RoutedSysctls(p.Name, len(r.u.Proxied) > 0), wasFine && !made); err != nil {
			return nl.Ref{}, err
		}
		if err := r.outer(p, l, note); err != nil {
			return nl.Ref{}, err
		}
	}
	if !p.Down && !l.Up {
		if err := r.send([]nl.Change{nl.SetLink{Link: l.Ref, Up: nl.On}}); err != nil {
			return nl.Ref{}, err
		}
		if !made {
			note("down", "up")
		}
		l.Up = true
	}
	if made || len(found) > 0 {
		r.rep.Changes.Links++
	}
	if wasFine && len(found) > 0 {
		r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: p.Name, Found: strings.Join(found, ", "), Want: strings.Join(want, ", ")})
	}
	r.a.fine[p.Endpoint] = settled{l.Index, p.MTU, p.Down}
	r.watch[p.Name] = stateOf(l)
	if p.Down && p.Create {
		return nl.Ref{}, errCut
	}
	return l.Ref, nil
}

func (r *run) send(changes []nl.Change) error {
	if len(changes) == 0 {
		return nil
	}
	return errors.Join(r.a.o.h.Send(r.ctx, changes...)...)
}

// make makes an endpoint's pair, both ends down.
func (r *run) make(p plan.Pair) (nl.Link, error) {
	o := r.a.o
	if !p.Create {
		r.longer("endpoint %s: its veth pair is gone, so its container has lost this network: docker restart CONTAINER", p.Endpoint.Short())
		return nl.Link{}, fmt.Errorf("%w (%s): docker restart CONTAINER", datapath.ErrPairMissing, p.Name)
	}
	if p.Down {
		return nl.Link{}, errCut
	}
	if o.cfg.Joined != nil && o.cfg.Joined(p.Endpoint) {
		// The plan is older than Join, and the pair was there then.
		r.a.wake()
		return nl.Link{}, fmt.Errorf("%w (%s)", datapath.ErrPairMissing, p.Name)
	}
	o.making.Lock()
	defer o.making.Unlock()
	if err := one(r.ctx, o.h, nl.AddVeth{Name: p.Name, MTU: p.MTU, Outer: p.Outer, OuterMAC: p.MAC}); err != nil {
		if errors.Is(err, nl.ErrExists) {
			return nl.Link{}, r.inTheWay(p, err)
		}
		return nl.Link{}, err
	}
	ctx := context.WithoutCancel(r.ctx) // not half
	l, err := o.h.Link(ctx, nl.Ref{Name: p.Name})
	if err != nil {
		return nl.Link{}, err
	}
	if err := one(ctx, o.h, nl.SetLink{Link: l.Ref, Alias: plan.ChildAlias(r.a.id, p.Endpoint)}); err != nil {
		return nl.Link{}, err
	}
	l.Alias = plan.ChildAlias(r.a.id, p.Endpoint)
	if was, ok := r.a.fine[p.Endpoint]; ok && r.a.last != nil && was.mtu == p.MTU {
		r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: p.Name, Want: "a veth pair"})
	}
	return l, nil
}

// inTheWay says what has a name that a pair needs.
func (r *run) inTheWay(p plan.Pair, err error) error {
	for _, name := range []string{p.Name, p.Outer} {
		if l, lerr := r.a.o.h.Link(r.ctx, nl.Ref{Name: name}); lerr == nil {
			return fmt.Errorf("the host has a link %s (kind %q, alias %q) already: ip link del %s: %w: %w", l.Name, l.Kind, l.Alias, l.Name, datapath.ErrConflict, err)
		}
	}
	return err
}

// sysctls brings settings of a link to what the plan relies on.
func (r *run) sysctls(wanted []plan.Sysctl, drift bool) error {
	names := make([]string, 0, len(wanted))
	for _, s := range wanted {
		names = append(names, s.Name)
	}
	is, err := r.a.o.h.Sysctls(r.ctx, names...)
	if err != nil {
		return err
	}
	for _, s := range wanted {
		v, known := is[s.Name]
		if v == s.Value || v == s.Also && v != "" || !known { // the kernel has no IPv6, which is said elsewhere
			continue
		}
		if err := one(r.ctx, r.a.o.h, nl.SetSysctl{Name: s.Name, Value: s.Value}); err != nil {
			return err
		}
		r.rep.Changes.Sysctls++
		if drift {
			r.rep.Note(datapath.Finding{Kind: datapath.KindSysctl, Object: s.Name, Found: v, Want: s.Value})
		}
	}
	return nil
}

// outer looks at the other end of a pair. In the host's namespace it is still ours to put
// right; in a container it is Docker's, and a wrong MTU or MAC there is reported.
func (r *run) outer(p plan.Pair, l nl.Link, note func(found, want string)) error {
	o := r.a.o
	now, err := o.h.Link(r.ctx, l.Ref) // Docker may have moved it since the links were listed
	if err != nil {
		return err
	}
	far, err := o.h.Peer(r.ctx, now)
	if errors.Is(err, nl.ErrNotFound) {
		return nil // moved this very moment
	}
	if err != nil {
		return err
	}
	if now.PeerNS != nl.NoNSID {
		if far.MTU != p.MTU {
			r.longer("endpoint %s: the container's end %s has MTU %d, the network %d, so larger packets may vanish: docker restart CONTAINER", p.Endpoint.Short(), far.Name, far.MTU, p.MTU)
		}
		if !p.MAC.IsZero() && far.MAC != p.MAC {
			r.longer("endpoint %s: the container's end %s has MAC %s, the network expects %s: docker restart CONTAINER", p.Endpoint.Short(), far.Name, far.MAC, p.MAC)
		}
		return nil
	}
	if !p.Create {
		return nil // Docker's, on its way out
	}
	set := nl.SetLink{Link: far.Ref}
	if far.Name != p.Outer {
		if far.Up {
			if err := one(r.ctx, o.h, nl.SetLink{Link: far.Ref, Up: nl.Off}); err != nil {
				return err
			}
		}
		set.Rename = p.Outer
	}
	if far.MTU != p.MTU {
		set.MTU = p.MTU
	}
	if far.MAC != p.MAC {
		set.MAC = p.MAC
	}
	if set == (nl.SetLink{Link: far.Ref}) {
		return nil
	}
	note(fmt.Sprintf("its outer end %s mtu %d %s", far.Name, far.MTU, far.MAC), fmt.Sprintf("%s mtu %d %s", p.Outer, p.MTU, p.MAC))
	return one(r.ctx, o.h, set)
}

// proxies has the hosts' ends answer for the network's router.
func (r *run) proxies(ends map[string]nl.Ref) error {
	if len(r.u.Proxied) == 0 {
		return nil
	}
	all, err := r.a.o.h.Proxies(r.ctx)
	if err != nil {
		return err
	}
	held := map[nl.Proxy]bool{}
	for _, p := range all {
		held[p] = true
	}
	before := map[string]bool{}
	if r.a.last != nil {
		for _, p := range r.a.last.Pairs {
			before[p.Name] = true
		}
	}
	var errs []error
	for name, end := range ends {
		wanted := map[netip.Addr]bool{}
		for _, a := range r.u.Proxied {
			wanted[a] = true
			if held[nl.Proxy{Link: end.Index, Addr: a}] {
				continue
			}
			err := one(r.ctx, r.a.o.h, nl.SetProxy{Link: end, Addr: a})
			if errs = append(errs, err); err == nil {
				r.rep.Changes.Neigh++
			}
			if err == nil && before[name] {
				r.rep.Note(datapath.Finding{Kind: datapath.KindNeighbour, Object: "proxy " + a.String(), Want: "dev " + name})
			}
		}
		for _, p := range all {
			if p.Link != end.Index || wanted[p.Addr] {
				continue
			}
			err := one(r.ctx, r.a.o.h, nl.DelProxy{Link: end, Addr: p.Addr})
			if errors.Is(err, nl.ErrNotFound) {
				err = nil
			}
			errs = append(errs, err)
			r.rep.Changes.Neigh++
			r.rep.Note(datapath.Finding{Kind: datapath.KindNeighbour, Object: "proxy " + p.Addr.String(), Found: "dev " + name})
		}
	}
	return errors.Join(errs...)
}

// one sends one change.
func one(ctx context.Context, h nl.Handle, c nl.Change) error {
	if errs := h.Send(ctx, c); errs != nil {
		return errs[0]
	}
	return nil
}
