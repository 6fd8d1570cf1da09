package underlay

import (
	"net/netip"
	"time"

	"github.com/carrick-net/carrick/datapath/route"
	"github.com/carrick-net/carrick/internal/nl"
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

// route brings the routes into the network's prefixes to the plan. A peer that is on no
// segment of this host is a problem, and the rest is reached.
func (r *run) route(leg nl.Ref) error {
	a := r.a
	if len(r.u.Prefixes) == 0 {
		return nil
	}
	want := route.Want{Prefixes: r.u.Prefixes, Partial: r.want.Partial}
	for _, w := range r.u.Routes {
		want.Paths = append(want.Paths, nl.Path{Dst: w.Dst, Via: w.Via})
	}
	if l := r.u.Leg; l != nil && leg.Index == 0 {
		want.Partial = true // what it could not be asked about stays
	} else if l != nil && !l.Down {
		for _, x := range l.To {
			if src, ok := l.Source(x); ok {
				want.Paths = append(want.Paths, nl.Path{Dst: netip.PrefixFrom(x, x.BitLen()), Link: leg, Source: src})
			}
		}
	}
	res, err := a.routes.Apply(r.ctx, a.o.h, want, r.rep)
	for _, dst := range res.Taken {
		r.problem("somebody else has a route to %s, which is a container of another host's: ip route del %s", dst, dst)
	}
	for _, via := range res.Far {
		r.problem("host %s is on no segment of this host, so its containers are not reached: a network of mode %s needs all hosts on one", via, r.u.Kind)
	}
	if len(res.Far) > 0 {
		a.soon()
	}
	return err
}
