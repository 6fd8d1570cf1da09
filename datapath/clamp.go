package datapath

import (
	"errors"
	"fmt"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/plan"
)

// filter brings the namespace's packet filter to the plan: one table that holds
// down TCP, if the way to some host needs it, one that bounds storms, and no others.
// It is read when everything is, and written when it differs.
func (r *run) filter() error {
	a := r.a
	f := a.o.cfg.Filter
	want := clampOf(r.want)
	if f == nil {
		if want != (nft.Clamp{}) {
			r.problem("TCP is not held to %d bytes: this agent was built without a packet filter", want.MTU)
		}
		return nil
	}
	known := a.applied != nil && a.applied.clamp == want
	if r.rep.Resync == "" && known && a.applied.storm == stormOf(r.want) {
		return nil
	}
	have, err := f.Read(r.ctx, a.ns)
	if err == nil {
		err = errors.Join(r.foreignTables(have.Others), r.storm(have))
	}
	if err == nil && (have.Clamp != want || have.Damaged) && !r.keepClamp(have) {
		if err = f.Set(r.ctx, a.ns, want); err == nil {
			r.rep.Changes.Rules++
			if known {
				r.rep.Note(Finding{Kind: KindRules, Object: "carrick", Found: clampText(have.Clamp, have.Damaged), Want: clampText(want, false)})
			}
		}
	}
	if errors.Is(err, nft.ErrNotSupported) {
		if want != (nft.Clamp{}) {
			r.lasting("TCP is not held to %d bytes, which is all that the way to some host carries, so connections may hang: %v", want.MTU, err)
		}
		if r.want.Storm != 0 {
			r.lasting("what a container sends to all is not bounded, so that one can keep all hosts busy: %v", err)
		}
		return nil
	}
	return err
}

// keepClamp says whether a plan that does not know all hosts leaves a clamp that is
// there alone: it may be for one of the others.
func (r *run) keepClamp(have nft.State) bool {
	return r.want.Partial && !have.Damaged && have.Clamp != (nft.Clamp{}) && (r.want.Clamp == 0 || have.Clamp.MTU < r.want.Clamp)
}

// foreignTables removes what others put into the namespace: all in it is ours, and a
// rule there can drop what nobody else would miss.
func (r *run) foreignTables(list []nft.Table) error {
	if r.want.Partial {
		return nil
	}
	var errs []error
	for _, t := range list {
		if err := r.a.o.cfg.Filter.Remove(r.ctx, r.a.ns, t); err != nil {
			errs = append(errs, err)
			continue
		}
		r.rep.Changes.Rules++
		if r.a.applied != nil {
			r.rep.Note(Finding{Kind: KindRules, Object: fmt.Sprint(t), Found: "of somebody else"})
		}
	}
	return errors.Join(errs...)
}

// clampText is what people call a clamp; "" is none.
func clampText(c nft.Clamp, damaged bool) string {
	switch {
	case damaged:
		return "damaged"
	case c == (nft.Clamp{}):
		return ""
	}
	return fmt.Sprintf("for TCP at %s of at most %d bytes", c.Device, c.MTU)
}

// clampOf is a plan's clamp as a filter takes it.
func clampOf(p plan.Network) nft.Clamp {
	if p.Clamp == 0 {
		return nft.Clamp{}
	}
	return nft.Clamp{Device: p.VXLAN.Name, MTU: p.Clamp}
}
