package routed

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/plan"
)

// accept has Docker let the network's packets pass. Where it has no chain for that it may
// be about to make one; and whoever starts a container now is not to wait for an audit
// because somebody flushed it.
func (r *run) accept(made bool) error {
	a := r.a
	if a.accepted && !made {
		return nil
	}
	n, whole, err := a.o.cfg.Accepts.Set(r.ctx, a.o.host, string(a.id), r.u.Prefixes)
	r.rep.Changes.Rules += n
	if n > 0 && a.last != nil && a.whole {
		r.rep.Note(datapath.Finding{Kind: datapath.KindRules, Object: "in " + nft.UserChain, Want: "that accepts the network's packets"})
	}
	a.accepted, a.whole = err == nil && whole, whole
	if errors.Is(err, nft.ErrLegacy) { // trying again is of no use
		a.accepted = true
		for _, p := range r.u.Prefixes {
			program := "iptables"
			if p.Addr().Is6() {
				program = "ip6tables"
			}
			r.longer("%v: %s -I %s -s %s -d %s -j ACCEPT, unless it is done", err, program, nft.UserChain, p, p)
		}
		return nil
	}
	return err
}

// checkSources has containers speak over IPv6 with their own addresses only. Of IPv4 it is
// a setting of each device.
func (r *run) checkSources() error {
	a := r.a
	devices := []string{}
	if slices.ContainsFunc(r.u.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		for _, p := range r.u.Pairs {
			devices = append(devices, p.Name)
		}
		for _, l := range r.links {
			if id, ep, ok := plan.ParseChildAlias(l.Alias); ok && id == a.id && r.want.Partial {
				devices = append(devices, ep.HostName())
			}
		}
	}
	slices.Sort(devices)
	devices = slices.Compact(devices)
	if r.rep.Resync == "" && a.checked != nil && slices.Equal(a.checked, devices) {
		return nil
	}
	changed, err := a.o.cfg.Sources.Set(r.ctx, a.o.host, string(a.id), devices)
	if changed {
		r.rep.Changes.Rules++
		if a.last != nil && a.held && slices.Equal(a.checked, devices) {
			r.rep.Note(datapath.Finding{Kind: datapath.KindRules, Object: "table ip6 carrick-" + string(a.id), Want: "that lets containers send with their own addresses only"})
		}
	}
	a.checked, a.held = devices, err == nil
	switch {
	case errors.Is(err, nft.ErrNoSources): // trying again is of no use
		r.longer("containers can send over IPv6 with each other's addresses: %v", err)
		return nil
	case err != nil:
		a.checked = nil
	}
	return err
}
