package underlay

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// farRetry is how soon a host is tried again that was on no segment: this one's address
// there may just not have been set yet.
const farRetry = 10 * time.Second

// soon has the network looked at again after farRetry. There is one timer, however often
// it is asked for. Called with mu held.
func (a *Applier) soon() {
	if a.again == nil {
		a.again = time.AfterFunc(farRetry, a.wake)
		return
	}
	a.again.Reset(farRetry)
}

// unreachable says whether a route was refused because its next hop is on no link: the
// kernel's words differ by family (fib_check_nh, ip6_route_check_nh).
func unreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETDOWN)
}

// route brings the routes into the network's prefixes to the plan. A peer that is on no
// segment of this host is a problem, and the rest is reached.
func (r *run) route() error {
	a := r.a
	if len(r.u.Prefixes) == 0 {
		return nil
	}
	drift := a.last != nil && a.routes == nil // it was read back, and the last plan had its routes
	if a.routes == nil {
		held, err := a.o.routes(r.ctx)
		if err != nil {
			return err
		}
		a.routes = map[plan.RouteRow]bool{}
		for _, h := range held {
			if slices.ContainsFunc(r.u.Prefixes, func(p netip.Prefix) bool { return p.Contains(h.Dst.Addr()) }) {
				a.routes[plan.RouteRow{Dst: h.Dst, Via: h.Via}] = true
			}
		}
	}
	wanted := map[plan.RouteRow]bool{}
	for _, w := range r.u.Routes {
		wanted[w] = true
	}
	before := map[plan.RouteRow]bool{}
	if drift {
		for _, w := range a.last.Routes {
			before[w] = true
		}
	}
	var rows []plan.RouteRow
	var changes []nl.Change
	for _, w := range r.u.Routes {
		if !a.routes[w] {
			rows, changes = append(rows, w), append(changes, nl.SetRoute{Dst: w.Dst, Via: w.Via})
		}
	}
	added := len(rows)
	if !r.want.Partial {
		for w := range a.routes {
			// One to the same address by another host has been replaced.
			if !wanted[w] && !slices.ContainsFunc(r.u.Routes, func(x plan.RouteRow) bool { return x.Dst == w.Dst }) {
				rows, changes = append(rows, w), append(changes, nl.DelRoute{Dst: w.Dst, Via: w.Via})
			}
		}
	}
	errs := a.o.h.Send(r.ctx, changes...)
	far := map[netip.Addr]bool{}
	var failed []error
	for i, w := range rows {
		var err error
		if errs != nil {
			err = errs[i]
		}
		switch {
		case i < added && unreachable(err):
			far[w.Via] = true
			continue
		case i >= added && errors.Is(err, nl.ErrNotFound):
		case err != nil:
			failed = append(failed, err)
			continue
		}
		r.rep.Changes.Routes++
		f := datapath.Finding{Kind: datapath.KindRoute, Object: w.Dst.String(), Want: "via " + w.Via.String()}
		if i >= added {
			f.Found, f.Want = f.Want, ""
		}
		if drift && (i < added) == before[w] {
			r.rep.Note(f)
		}
	}
	for _, via := range slices.SortedFunc(maps.Keys(far), netip.Addr.Compare) {
		r.problem("host %s is on no segment of this host, so its containers are not reached: a network of mode %s needs all hosts on one", via, r.u.Kind)
	}
	if len(far) > 0 || len(failed) > 0 {
		a.routes, a.last = nil, nil // read again, and no drift
		if len(far) > 0 {
			a.soon()
		}
		return errors.Join(failed...)
	}
	a.routes = wanted
	if r.want.Partial {
		a.routes = nil
	}
	return nil
}
