// Package route keeps the routes that Carrick writes into a host's main table: those
// into the prefixes of one network.
//
// How a restart knows them as ours: by their protocol, [nl.RouteProtocol]. Who removes
// them: a [Table] that is told of none, and whoever collects what no network has (see
// [Stray]).
package route

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
)

// Table is the routes of one network. The zero Table has read nothing. It is for one
// caller at a time.
type Table struct {
	held map[nl.Path]bool // what the kernel has; nil: to be read
	left map[nl.Path]bool // what the last Apply left, if that was all of what was wanted
	// theirs are routes of others' that are where some of ours would be, as last read.
	theirs map[place]bool
}

// place is what there is one route to, if it is written over.
type place struct {
	dst    netip.Prefix
	metric uint32
}

// Reread has the next Apply read the kernel. What then differs from what the last one
// left was somebody else's doing.
func (t *Table) Reread() { t.held = nil }

// Forget is Reread, and what differs is nobody's doing.
func (t *Table) Forget() { t.held, t.left = nil, nil }

// Want is what routes there are to be.
type Want struct {
	Paths []nl.Path
	// Prefixes are those into which no other route of Carrick's leads.
	Prefixes []netip.Prefix
	// Partial: routes that are not wanted stay.
	Partial bool
	// Again: if a next hop is on no segment nothing is removed yet, because the caller
	// will have other paths for it and call once more.
	Again bool
}

// Result is what Apply found.
type Result struct {
	// Far are next hops that are on no segment of this host, sorted.
	Far []netip.Addr
	// Taken are destinations to which somebody else has a route, which stays; sorted.
	Taken []netip.Prefix
}

// Apply brings the routes to what is wanted, additions before removals, and notes in rep
// what it changed. When it reads the kernel, each route by a next hop is written once more,
// so that the kernel looks for the next hop anew. After an error, or with a next hop that is
// on no segment, the next call reads.
func (t *Table) Apply(ctx context.Context, h nl.Handle, want Want, rep *datapath.Report) (res Result, err error) {
	drift := t.left != nil && t.held == nil
	reread := t.held == nil
	if reread {
		if t.held, t.theirs, err = read(ctx, h, want); err != nil {
			t.held = nil
			return res, err
		}
	}
	wanted := map[nl.Path]bool{}
	var add []nl.Path
	for _, p := range want.Paths {
		if t.theirs[place{p.Dst, metric(p)}] {
			res.Taken = append(res.Taken, p.Dst)
			continue
		}
		wanted[key(p)] = true
		if !t.held[key(p)] || reread && p.Via.IsValid() && p.Link.Index == 0 {
			add = append(add, p)
		}
	}
	slices.SortFunc(res.Taken, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var failed []error
	var set []nl.Path
	for i, err := range send(ctx, h, add, func(p nl.Path) nl.Change { return nl.SetRoute{Path: p} }) {
		p := add[i]
		switch {
		case p.Via.IsValid() && p.Link.Index == 0 && unreachable(err):
			if !slices.Contains(res.Far, p.Via) {
				res.Far = append(res.Far, p.Via)
			}
			delete(wanted, key(p)) // and whatever is there leads nowhere
			continue
		case err != nil:
			failed = append(failed, err)
			continue
		}
		set = append(set, p)
		if t.held[key(p)] {
			continue
		}
		rep.Changes.Routes++
		if drift && t.left[key(p)] {
			rep.Note(datapath.Finding{Kind: datapath.KindRoute, Object: p.Dst.String(), Want: "as " + p.String()})
		}
	}
	slices.SortFunc(res.Far, netip.Addr.Compare)
	if len(res.Far) > 0 && want.Again {
		t.held = nil // and what was left counts as before
		return res, errors.Join(failed...)
	}
	var del []nl.Path
	for p := range t.held {
		if !want.Partial && !wanted[p] && !replaced(p, set) {
			del = append(del, p)
		}
	}
	for i, err := range send(ctx, h, del, func(p nl.Path) nl.Change { return nl.DelRoute{Path: p} }) {
		if err != nil && !errors.Is(err, nl.ErrNotFound) {
			failed = append(failed, err)
			continue
		}
		rep.Changes.Routes++
		if drift && !t.left[key(del[i])] {
			rep.Note(datapath.Finding{Kind: datapath.KindRoute, Object: del[i].Dst.String(), Found: "as " + del[i].String()})
		}
	}
	t.held, t.left = wanted, wanted
	if len(failed) > 0 || len(res.Far) > 0 || want.Partial {
		t.Forget() // what the kernel has, or has besides, is not known
	}
	return res, errors.Join(failed...)
}

// send sends a change for each route and returns an error, or nil, for each.
func send(ctx context.Context, h nl.Handle, paths []nl.Path, change func(nl.Path) nl.Change) []error {
	changes := make([]nl.Change, 0, len(paths))
	for _, p := range paths {
		changes = append(changes, change(p))
	}
	if errs := h.Send(ctx, changes...); errs != nil {
		return errs
	}
	return make([]error, len(paths))
}

// read lists the kernel's routes of ours into a network's prefixes, and where others' are.
func read(ctx context.Context, h nl.Handle, want Want) (held map[nl.Path]bool, theirs map[place]bool, err error) {
	all, err := h.Routes(ctx)
	if err != nil {
		return nil, nil, err
	}
	held, theirs = map[nl.Path]bool{}, map[place]bool{}
	for _, r := range all {
		switch {
		case !into(want.Prefixes, r.Dst):
		case r.Protocol == nl.RouteProtocol:
			held[path(r)] = true
		default:
			theirs[place{r.Dst, metric(path(r))}] = true
		}
	}
	return held, theirs, nil
}

// Stray returns what removes the routes of ours into some prefixes that lead into none of
// others.
func Stray(ctx context.Context, h nl.Handle, known, wanted []netip.Prefix) ([]nl.Change, error) {
	held, _, err := read(ctx, h, Want{Prefixes: known})
	if err != nil {
		return nil, err
	}
	var out []nl.Change
	for p := range held {
		if !into(wanted, p.Dst) {
			out = append(out, nl.DelRoute{Path: p})
		}
	}
	return out, nil
}

// Prefixes returns what of a host's table routes of ours make unreachable: the prefixes of
// routed networks.
func Prefixes(ctx context.Context, h nl.Handle) ([]netip.Prefix, error) {
	all, err := h.Routes(ctx)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range all {
		if r.Protocol == nl.RouteProtocol && r.Unreachable {
			out = append(out, r.Dst)
		}
	}
	return out, nil
}

func into(prefixes []netip.Prefix, dst netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Bits() <= dst.Bits() && p.Contains(dst.Addr()) })
}

// replaced says whether a route was altered by one of those just set, which has its
// destination and metric.
func replaced(p nl.Path, set []nl.Path) bool {
	return slices.ContainsFunc(set, func(x nl.Path) bool { return x.Dst == p.Dst && metric(x) == metric(p) })
}

// path is how a route would have been written that the kernel has.
func path(r nl.Route) nl.Path {
	p := nl.Path{Dst: r.Dst, Via: r.Via, Unreachable: r.Unreachable, Source: r.Source, Metric: r.Metric, MTU: r.MTU}
	if !r.Unreachable && (r.OnLink || !r.Via.IsValid()) {
		p.Link.Index = r.Link
	}
	p.Metric = metric(p)
	return p
}

// key is a path without what is for people or said by default.
func key(p nl.Path) nl.Path {
	p.Link.Name = ""
	p.Metric = metric(p)
	return p
}

// metric is a path's, 0 for the one that the kernel gives a route of IPv6 without
// (IP6_RT_PRIO_USER).
func metric(p nl.Path) uint32 {
	const user6 = 1024
	if p.Dst.Addr().Is6() && p.Metric == user6 {
		return 0
	}
	return p.Metric
}

// unreachable says whether a route was refused because its next hop is on no link: the
// kernel's words differ by family (fib_check_nh, ip6_route_check_nh).
func unreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETDOWN)
}
