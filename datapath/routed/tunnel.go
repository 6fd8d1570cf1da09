package routed

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// tunnel brings the tunnel to the plan; the zero Ref if there is none.
func (r *run) tunnel() (nl.Ref, error) {
	t := r.u.Tunnel
	if t == nil {
		return nl.Ref{}, nil
	}
	o := r.a.o
	alias := plan.TunnelAlias(r.a.id)
	fits := nl.VXLANInfo{VNI: t.VNI, Port: t.Port, Local: t.Local}
	var l nl.Link
	made := true
	for _, x := range r.links {
		if x.Alias != alias && x.Name != t.Name || x.Kind != nl.KindVXLAN {
			continue
		}
		if x.VXLAN == nil || *x.VXLAN != fits || x.Name != t.Name {
			r.drift(x.Name, fmt.Sprintf("%+v", x.VXLAN), "a vxlan device as planned")
			if err := one(r.ctx, o.h, nl.DelLink{Link: x.Ref}); err != nil && !errors.Is(err, nl.ErrNotFound) {
				return nl.Ref{}, err
			}
			continue
		}
		l, made = x, false
	}
	if made {
		if r.a.last != nil && r.a.last.Tunnel != nil {
			r.drift(t.Name, "", "a vxlan device")
		}
		var err error
		if l, err = r.makeTunnel(t); err != nil {
			return nl.Ref{}, err
		}
		r.a.rows.Forget()
	}
	set := nl.SetLink{Link: l.Ref}
	if l.Alias != alias {
		set.Alias = alias
	}
	if l.MTU != t.MTU {
		set.MTU = t.MTU
	}
	if l.MAC != t.MAC {
		set.MAC = t.MAC
	}
	if !l.Up {
		set.Up = nl.On
	}
	if set != (nl.SetLink{Link: l.Ref}) {
		if !made {
			r.drift(l.Name, fmt.Sprintf("mtu %d %s alias %q up %v", l.MTU, l.MAC, l.Alias, l.Up), fmt.Sprintf("mtu %d %s, up", t.MTU, t.MAC))
		}
		if err := one(r.ctx, o.h, set); err != nil {
			return nl.Ref{}, err
		}
		r.rep.Changes.Links++
	}
	if made || r.rep.Resync != "" {
		if err := r.sysctls(plan.TunnelSysctls(t.Name, len(r.u.Proxied) > 0), !made && r.a.last != nil); err != nil {
			return nl.Ref{}, err
		}
	}
	r.watch[l.Name] = state{index: l.Index, mtu: t.MTU, master: l.Master, up: true, alias: alias}
	var rows fdb.Rows
	rows.Partial = r.want.Partial
	for _, p := range t.Peers {
		rows.FDB = append(rows.FDB, plan.FDBRow{MAC: p.MAC, VTEP: p.VTEP})
		for _, a := range p.Hops {
			rows.Neigh = append(rows.Neigh, plan.NeighRow{Addr: a, MAC: p.MAC})
		}
	}
	res, err := r.a.rows.Apply(r.ctx, o.h, fdb.Devices{VXLAN: l.Ref}, rows)
	r.rep.Rows(res, r.a.last != nil)
	if err != nil {
		return nl.Ref{}, err
	}
	return l.Ref, nil
}

// drift notes what somebody else did to a link, if the last run had left it right.
func (r *run) drift(name, found, want string) {
	if r.a.last != nil && r.a.last.Tunnel != nil && r.u.Tunnel != nil && sameTunnel(r.a.last.Tunnel, r.u.Tunnel) {
		r.rep.Note(datapath.Finding{Kind: datapath.KindLink, Object: name, Found: found, Want: want})
	}
}

// sameTunnel compares all but the peers.
func sameTunnel(a, b *plan.Tunnel) bool {
	return a.Name == b.Name && a.VNI == b.VNI && a.Port == b.Port && a.Local == b.Local && a.MAC == b.MAC && a.MTU == b.MTU
}

// makeTunnel makes the tunnel, down.
func (r *run) makeTunnel(t *plan.Tunnel) (nl.Link, error) {
	o := r.a.o
	if i := slices.IndexFunc(r.links, func(l nl.Link) bool { return l.Name == t.Name && l.Kind != nl.KindVXLAN }); i >= 0 {
		return nl.Link{}, fmt.Errorf("the host has a link %s (kind %q) already: ip link del %s: %w", t.Name, r.links[i].Kind, t.Name, datapath.ErrConflict)
	}
	o.making.Lock()
	defer o.making.Unlock()
	err := one(r.ctx, o.h, nl.AddVXLAN{Name: t.Name, MTU: t.MTU, VNI: t.VNI, Port: t.Port, Local: t.Local})
	if errors.Is(err, nl.ErrExists) {
		return nl.Link{}, fmt.Errorf("VNI %d on UDP port %d of this host is taken by a vxlan device of somebody else's (ip -d link show type vxlan): %w: %w", t.VNI, t.Port, datapath.ErrConflict, err)
	}
	if err != nil {
		return nl.Link{}, err
	}
	ctx := context.WithoutCancel(r.ctx) // not half
	l, err := o.h.Link(ctx, nl.Ref{Name: t.Name})
	if err != nil {
		return nl.Link{}, err
	}
	l.Alias = plan.TunnelAlias(r.a.id)
	return l, one(ctx, o.h, nl.SetLink{Link: l.Ref, Alias: l.Alias})
}
