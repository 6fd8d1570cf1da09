package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
)

// Loaded waits for a followed network's first snapshot, together with the list
// of hosts, and says whether they are there. It waits until ctx ends, but once for
// each network, and not at all while the store does not answer.
func (c *Cluster) Loaded(ctx context.Context, id carrick.NetworkID) bool {
	c.mu.Lock()
	n := c.state(id)
	c.mu.Unlock()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c.mu.Lock()
		loaded := n.isLoad && c.hostsOK
		hopeless := n.waited || c.lastErr != nil || c.regErr != nil
		next := n.loaded
		if n.isLoad {
			next = c.hostsRead
		}
		c.mu.Unlock()
		if loaded || hopeless {
			return loaded
		}
		select {
		case <-next:
		case <-tick.C: // by now it may be known that the store is away
		case <-ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			n.waited = true
			return false
		}
	}
}

// View returns a network's whole snapshot: the others' endpoints as the store
// says, this host's as its journal says. complete is false, and the view partial,
// while the store's part was not read since the start: it is what was heard before
// then. Such a view may be added to the kernel, and nothing may be removed because
// of it. The error is journal.ErrNotFound for a network that
// is not on this host.
func (c *Cluster) View(id carrick.NetworkID) (v carrick.View, complete bool, err error) {
	rec, err := c.jr.Network(id)
	if err != nil {
		return carrick.View{}, false, err
	}
	local := c.jr.Endpoints(id)
	v = carrick.View{
		Network:   rec.Conf,
		Hosts:     map[carrick.HostID]carrick.Host{c.self: c.SelfHost()},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Joined:    map[carrick.EndpointID]bool{},
		Fenced:    map[carrick.EndpointID]bool{},
		Sandboxes: map[carrick.EndpointID]string{},
		Partial:   true,
	}
	for _, e := range local {
		v.Endpoints[c.self] = append(v.Endpoints[c.self], e.Endpoint)
		if e.Joined {
			v.Joined[e.ID] = true
		}
		if e.Fenced {
			v.Fenced[e.ID] = true
		}
		if e.Sandbox != "" {
			v.Sandboxes[e.ID] = e.Sandbox
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nets[id]
	if n == nil {
		return v, false, nil
	}
	v.Partial = !n.isLoad || !c.hostsOK
	for h, f := range n.remote {
		if _, ok := c.hosts[h]; h == c.self || !ok && v.Partial {
			continue // of before its removal, maybe
		}
		if f.list == nil {
			f.list = f.sorted()
			n.remote[h] = f
		}
		v.Endpoints[h] = f.list
		if host, ok := c.hosts[h]; ok {
			host.Alive = c.alive[h]
			v.Hosts[h] = host
		}
	}
	return v, !v.Partial, nil
}

// FindEndpoint looks for an endpoint among those of a network that this host knows
// of, its own and the others', and says whose it is. It makes no snapshot: the
// network may be large, and an engine waits for the answer. match must not call the
// Cluster.
func (c *Cluster) FindEndpoint(id carrick.NetworkID, match func(carrick.Endpoint) bool) (carrick.Endpoint, carrick.HostID, bool) {
	for _, e := range c.jr.Endpoints(id) {
		if match(e.Endpoint) {
			return e.Endpoint, c.self, true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nets[id]
	if n == nil {
		return carrick.Endpoint{}, "", false
	}
	partial := !n.isLoad || !c.hostsOK
	for h, f := range n.remote {
		if _, ok := c.hosts[h]; h == c.self || !ok && partial {
			continue // as in View
		}
		for _, e := range f.eps {
			if match(e) {
				return e, h, true
			}
		}
	}
	return carrick.Endpoint{}, "", false
}

func sortHosts(hs []carrick.Host) {
	slices.SortFunc(hs, func(a, b carrick.Host) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}
