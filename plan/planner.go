package plan

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// Planner makes the plans of one network, one after the other, each from all
// facts, and each what [Make] would make of them: Flat of the one equals the other.
// What differs is the price. Hosts whose endpoints are the very slice that they
// were before, and of which nobody else claims anything, contribute the [Remote]
// that they did before, so that a change costs what changed. Hosts with a
// contradiction among them are planned anew each time.
//
// So slices of a view's endpoints must not be modified once it was handed in.
// A Planner must not be used from several goroutines at once; the zero value is
// ready.
type Planner struct {
	net   carrick.NetworkID
	me    carrick.HostID
	turn  uint64
	own   []carrick.Endpoint // this host's, whose claims are counted
	hosts map[carrick.HostID]*planned
	macs  claims[carrick.MAC]
	addrs claims[netip.Addr]
}

// planned is what a planner knows of one other host.
type planned struct {
	turn     uint64             // of the last plan it was in
	eps      []carrick.Endpoint // whose claims are counted
	carries6 bool
	remote   *Remote // nil: not made since the endpoints changed
}

// Make makes the plan of now.
func (p *Planner) Make(v carrick.View, me carrick.HostID) Network {
	if p.net != v.Network.ID || p.me != me || len(v.Endpoints[me]) == 0 {
		*p = Planner{net: v.Network.ID, me: me}
	}
	return build(v, me, p)
}

// look counts what is claimed now and gives others their remotes, but for those
// with a claim that is made twice.
func (p *Planner) look(local []carrick.Endpoint, fenced map[carrick.EndpointID]bool, others []other, carries6 bool) {
	if p.hosts == nil {
		p.hosts = map[carrick.HostID]*planned{}
		p.macs.init()
		p.addrs.init()
	}
	p.turn++
	p.count(p.own, -1)
	p.own = p.own[:0]
	for _, e := range local {
		if !fenced[e.ID] {
			p.own = append(p.own, e)
		}
	}
	p.count(p.own, 1)
	for _, o := range others {
		h := p.hosts[o.ID]
		if h == nil {
			h = &planned{}
			p.hosts[o.ID] = h
		}
		h.turn = p.turn
		if !same(h.eps, o.eps) {
			p.count(h.eps, -1)
			p.count(o.eps, 1)
			h.eps, h.remote = o.eps, nil
		}
	}
	for id, h := range p.hosts {
		if h.turn != p.turn {
			p.count(h.eps, -1)
			delete(p.hosts, id)
		}
	}
	for i := range others {
		o := &others[i]
		h := p.hosts[o.ID]
		switch {
		case p.disputed(h.eps):
			h.remote = nil
		case h.remote == nil || h.carries6 != carries6 || h.remote.VTEP != o.VTEP:
			h.carries6, h.remote = carries6, newRemote(o, carries6)
		}
		o.remote = h.remote
	}
}

// same says whether two slices are one.
func same(a, b []carrick.Endpoint) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func newRemote(o *other, carries6 bool) *Remote {
	r := &Remote{Host: o.ID, VTEP: o.VTEP, MACs: make([]carrick.MAC, 0, len(o.eps))}
	for _, e := range o.eps {
		r.MACs = append(r.MACs, e.MAC)
		r.Neigh = appendNeigh(r.Neigh, e, e.Addrs, carries6, true)
	}
	slices.SortFunc(r.MACs, func(a, b carrick.MAC) int { return bytes.Compare(a[:], b[:]) })
	slices.SortFunc(r.Neigh, func(a, b NeighRow) int { return a.Addr.Compare(b.Addr) })
	return r
}

func (p *Planner) count(eps []carrick.Endpoint, by int32) {
	for _, e := range eps {
		p.macs.count(e.MAC, by)
		for _, a := range e.Addrs {
			p.addrs.count(a, by)
		}
	}
}

// disputed says whether anything that endpoints claim is claimed twice.
func (p *Planner) disputed(eps []carrick.Endpoint) bool {
	if len(p.macs.twice) == 0 && len(p.addrs.twice) == 0 {
		return false
	}
	return slices.ContainsFunc(eps, func(e carrick.Endpoint) bool {
		return p.macs.twice[e.MAC] || slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return p.addrs.twice[a] })
	})
}

// claims counts how often each key is claimed.
type claims[K comparable] struct {
	of    map[K]int32
	twice map[K]bool // those that are claimed more than once
}

func (c *claims[K]) init() { c.of, c.twice = map[K]int32{}, map[K]bool{} }

func (c *claims[K]) count(key K, by int32) {
	n := c.of[key] + by
	if n == 0 {
		delete(c.of, key)
	} else {
		c.of[key] = n
	}
	if n > 1 {
		c.twice[key] = true
	} else {
		delete(c.twice, key)
	}
}
