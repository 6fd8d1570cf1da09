package datapath

import (
	"time"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// portOf is how the bridge treats a port: it neither learns where a MAC is, since
// the rows say so, nor floods frames to MACs that no row knows. What is meant for
// all reaches all.
//
// If the bridge snoops, the vxlan device gets all multicast, since those who
// joined elsewhere are the others' business, and a container that leaves a group
// is believed at once: behind a port there is one.
func portOf(b plan.Bridge, vxlan bool) nl.PortFlags {
	return nl.PortFlags{
		MulticastFlood: true, BroadcastFlood: true,
		Router: b.Snoop && vxlan, FastLeave: b.Snoop && !vxlan,
	}
}

// snooping is how a bridge learns who joined which group. It asks often and has
// the answers soon, because a port that was down is forgotten with its groups; the
// vxlan device carries the questions to the other hosts, of whom one asks. That
// one may go away: whoever was heard once stays a member until it leaves or its
// port goes.
func snooping() nl.Multicast {
	return nl.Multicast{
		Querier: true, IGMP: 3, QueryInterval: 10 * time.Second, QueryResponse: time.Second,
		QuerierAway: 25 * time.Second, Membership: time.Hour,
	}
}

// forwarding is what a bridge should be like.
func forwarding(b plan.Bridge) nl.BridgeInfo {
	if !b.Snoop {
		return nl.BridgeInfo{}
	}
	return nl.BridgeInfo{MulticastSnooping: true, Multicast: snooping()}
}

// setForwarding makes a bridge forward as it should: what is on and should not be
// goes off, and no more is said, because a kernel built without VLAN filtering
// refuses to be told that it is off.
func (r *run) setForwarding(l *nl.Link, want plan.Bridge, d *diff) (changed bool, err error) {
	to := forwarding(want)
	if l.Bridge == nil || *l.Bridge == to {
		return false, nil
	}
	d.note(l.Bridge.String(), to.String())
	set := nl.SetBridge{Link: l.Ref, Off: *l.Bridge}
	if want.Snoop {
		m := to.Multicast
		set.Off.MulticastSnooping, set.Snoop = false, &m
	}
	if err := one(r.ctx, r.a.h, set); err != nil {
		return false, err
	}
	r.a.touched[l.Index] = true
	l.Bridge = &to
	return true, nil
}

// asBefore says whether the plan before this one wanted the bridge to treat its
// ports alike.
func (r *run) asBefore() bool {
	return r.a.applied != nil && r.a.applied.bridge.Snoop == r.want.Bridge.Snoop
}

// stormOf is a plan's bound of what a port sends to all, as a filter takes it.
func stormOf(p plan.Network) nft.Storm {
	if p.Storm == 0 {
		return nft.Storm{}
	}
	return nft.Storm{Except: p.VXLAN.Name, Rate: uint32(p.Storm)}
}

// storm brings that bound to the plan, given what there is.
func (r *run) storm(have nft.State) error {
	want := stormOf(r.want)
	if have.Storm == want && !have.StormDamaged {
		return nil
	}
	if err := r.a.o.cfg.Filter.SetStorm(r.ctx, r.a.ns, want); err != nil {
		return err
	}
	r.rep.Changes.Rules++
	if r.a.applied != nil && r.a.applied.storm == want {
		found := "missing"
		switch {
		case have.StormDamaged:
			found = "damaged"
		case have.Storm != (nft.Storm{}):
			found = have.Storm.String()
		}
		r.rep.Note(Finding{Kind: KindRules, Object: nft.StormTable, Found: found, Want: want.String()})
	}
	return nil
}
