package journal

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// tables are all records of a journal, by network where they belong to one, so
// that one network's cost does not depend on the others. What follows from the
// records (aliases, homes, usages, releases) is kept beside them and changed in
// one place, apply.
type tables struct {
	identity  Identity
	meta      Meta
	strangers []carrick.NetworkID
	hosts     map[carrick.HostID]Host
	networks  map[carrick.NetworkID]Network
	endpoints map[carrick.NetworkID]map[carrick.EndpointID]Endpoint
	leases    map[carrick.NetworkID]map[netip.Addr]Lease

	aliases  map[carrick.DockerNetworkID]carrick.NetworkID
	homes    map[carrick.EndpointID]carrick.NetworkID // of endpoints
	usages   map[usageKey]*usage
	releases uint64 // highest Released so far
}

func newTables() *tables {
	return &tables{
		hosts:     map[carrick.HostID]Host{},
		networks:  map[carrick.NetworkID]Network{},
		endpoints: map[carrick.NetworkID]map[carrick.EndpointID]Endpoint{},
		leases:    map[carrick.NetworkID]map[netip.Addr]Lease{},
		aliases:   map[carrick.DockerNetworkID]carrick.NetworkID{},
		homes:     map[carrick.EndpointID]carrick.NetworkID{},
		usages:    map[usageKey]*usage{},
	}
}

// members lists the hosts that were removed, or were not.
func (t *tables) members(removed bool) map[carrick.HostID]carrick.Host {
	out := map[carrick.HostID]carrick.Host{}
	for id, h := range t.hosts {
		if h.Removed == removed {
			out[id] = h.Host
		}
	}
	return out
}

func (t *tables) endpoint(id carrick.EndpointID) (Endpoint, bool) {
	e, ok := t.endpoints[t.homes[id]][id]
	return e, ok
}

func (t *tables) lease(k leaseKey) (Lease, bool) {
	l, ok := t.leases[k.net][k.addr]
	return l, ok
}

// changes are records to be written; nil is a deletion. A field that is nil has
// no change.
type changes struct {
	identity  *Identity
	meta      *Meta
	strangers *[]carrick.NetworkID
	hosts     map[carrick.HostID]*Host
	networks  map[carrick.NetworkID]*Network
	endpoints map[carrick.EndpointID]*Endpoint
	leases    map[leaseKey]*Lease
}

func newChanges() *changes {
	return &changes{
		hosts:     map[carrick.HostID]*Host{},
		networks:  map[carrick.NetworkID]*Network{},
		endpoints: map[carrick.EndpointID]*Endpoint{},
		leases:    map[leaseKey]*Lease{},
	}
}

func (c *changes) none() bool {
	return c.identity == nil && c.meta == nil && c.strangers == nil && len(c.hosts)+len(c.networks)+len(c.endpoints)+len(c.leases) == 0
}

// add puts later changes over these.
func (c *changes) add(later *changes) {
	if later.identity != nil {
		c.identity = later.identity
	}
	if later.meta != nil {
		c.meta = later.meta
	}
	if later.strangers != nil {
		c.strangers = later.strangers
	}
	maps.Copy(c.hosts, later.hosts)
	maps.Copy(c.networks, later.networks)
	maps.Copy(c.endpoints, later.endpoints)
	maps.Copy(c.leases, later.leases)
}

// apply makes changes part of the tables.
func (t *tables) apply(c *changes) {
	if c.identity != nil {
		t.identity = *c.identity
	}
	if c.meta != nil {
		t.meta = *c.meta
	}
	if c.strangers != nil {
		t.strangers = slices.Clone(*c.strangers)
	}
	for id, h := range c.hosts {
		if h == nil {
			delete(t.hosts, id)
		} else {
			t.hosts[id] = *h
		}
	}
	for id, n := range c.networks {
		t.putNetwork(id, n)
	}
	for id, e := range c.endpoints {
		t.putEndpoint(id, e)
	}
	t.putLeases(c.leases)
}

func (t *tables) putNetwork(id carrick.NetworkID, n *Network) {
	old := t.networks[id]
	for _, a := range old.Aliases {
		if t.aliases[a.Docker] == id {
			delete(t.aliases, a.Docker)
		}
	}
	if n == nil {
		delete(t.networks, id)
	} else {
		t.networks[id] = *n
		for _, a := range n.Aliases {
			t.aliases[a.Docker] = id
		}
	}
	if n == nil || !samePools(old.Conf.Pools, n.Conf.Pools) {
		t.recount(id)
	}
}

func (t *tables) putEndpoint(id carrick.EndpointID, e *Endpoint) {
	if home, ok := t.homes[id]; ok && (e == nil || e.Network != home) {
		delete(t.homes, id)
		drop(t.endpoints, home, id)
	}
	if e != nil {
		t.homes[id] = e.Network
		put(t.endpoints, e.Network, id, *e)
	}
}

// put and drop keep a map of maps without empty ones.

func put[G, K comparable, V any](m map[G]map[K]V, group G, k K, v V) {
	if m[group] == nil {
		m[group] = map[K]V{}
	}
	m[group][k] = v
}

func drop[G, K comparable, V any](m map[G]map[K]V, group G, k K) {
	delete(m[group], k)
	if len(m[group]) == 0 {
		delete(m, group)
	}
}

// all returns the changes that make empty tables into these.
func (t *tables) all() *changes {
	c := newChanges()
	identity, meta, strangers := t.identity, t.meta, slices.Clone(t.strangers)
	c.identity, c.meta, c.strangers = &identity, &meta, &strangers
	for id, h := range t.hosts {
		c.hosts[id] = &h
	}
	for id, n := range t.networks {
		c.networks[id] = &n
	}
	for _, eps := range t.endpoints {
		for id, e := range eps {
			c.endpoints[id] = &e
		}
	}
	for net, ls := range t.leases {
		for a, l := range ls {
			c.leases[leaseKey{net, a}] = &l
		}
	}
	return c
}

// clone returns tables that share no map with these, what follows from the
// records made anew.
func (t *tables) clone() *tables {
	out := newTables()
	out.apply(t.all())
	return out
}
