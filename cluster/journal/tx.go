package journal

import (
	"encoding/json"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick"
)

// Tx collects changes that reach the disk together or not at all. Getters see
// the changes made so far. It is valid inside [Journal.Update] only.
type Tx struct {
	j         *Journal
	networks  map[carrick.NetworkID]*Network // nil: deleted
	endpoints map[carrick.EndpointID]*Endpoint
	leases    map[leaseKey]*Lease
	hosts     map[carrick.HostID]*carrick.Host
	releases  uint64
	meta      Meta
}

// Update runs fn and makes its changes durable before it returns. If fn or the
// disk fails nothing has changed, neither on disk nor in memory.
func (j *Journal) Update(fn func(*Tx) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	tx := &Tx{
		j:         j,
		networks:  map[carrick.NetworkID]*Network{},
		endpoints: map[carrick.EndpointID]*Endpoint{},
		leases:    map[leaseKey]*Lease{},
		hosts:     map[carrick.HostID]*carrick.Host{},
		releases:  j.releases,
		meta:      j.meta,
	}
	if err := fn(tx); err != nil {
		return err
	}
	if len(tx.networks)+len(tx.endpoints)+len(tx.leases)+len(tx.hosts) == 0 && tx.meta == j.meta {
		return nil
	}
	if err := j.write(tx.write); err != nil {
		return err
	}
	merge(j.networks, tx.networks)
	merge(j.endpoints, tx.endpoints)
	j.mergeLeases(tx.leases)
	merge(j.hosts, tx.hosts)
	j.releases, j.meta = tx.releases, tx.meta
	return nil
}

func merge[K comparable, V any](into map[K]V, from map[K]*V) {
	for k, v := range from {
		if v == nil {
			delete(into, k)
		} else {
			into[k] = *v
		}
	}
}

func (tx *Tx) write(db *bbolt.Tx) error {
	if err := writeBucket(db, bucketNetworks, tx.networks, func(id carrick.NetworkID) string { return string(id) }); err != nil {
		return err
	}
	if err := writeBucket(db, bucketEndpoints, tx.endpoints, func(id carrick.EndpointID) string { return string(id) }); err != nil {
		return err
	}
	if err := writeBucket(db, bucketHosts, tx.hosts, func(id carrick.HostID) string { return string(id) }); err != nil {
		return err
	}
	if tx.meta != tx.j.meta {
		raw, err := json.Marshal(tx.meta)
		if err != nil {
			return err
		}
		if err := db.Bucket(bucketMeta).Put(keyMeta, raw); err != nil {
			return err
		}
	}
	return writeBucket(db, bucketLeases, tx.leases, func(k leaseKey) string { return string(k.net) + "/" + k.addr.String() })
}

func writeBucket[K comparable, V any](db *bbolt.Tx, name []byte, changes map[K]*V, key func(K) string) error {
	b := db.Bucket(name)
	for k, v := range changes {
		if v == nil {
			if err := b.Delete([]byte(key(k))); err != nil {
				return err
			}
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := b.Put([]byte(key(k)), raw); err != nil {
			return err
		}
	}
	return nil
}

// lookup finds k among a transaction's changes, then in the journal.
func lookup[K comparable, V any](changes map[K]*V, base map[K]V, k K) (V, bool) {
	if v, ok := changes[k]; ok {
		if v == nil {
			var none V
			return none, false
		}
		return *v, true
	}
	v, ok := base[k]
	return v, ok
}

// Network returns a network's record.
func (tx *Tx) Network(id carrick.NetworkID) (Network, bool) {
	n, ok := lookup(tx.networks, tx.j.networks, id)
	return n.clone(), ok
}

// PutNetwork stores a network's record.
func (tx *Tx) PutNetwork(n Network) { n = n.clone(); tx.networks[n.Conf.ID] = &n }

// DeleteNetwork removes a network with its leases and endpoints.
func (tx *Tx) DeleteNetwork(id carrick.NetworkID) {
	tx.networks[id] = nil
	for k, e := range tx.j.endpoints {
		if e.Network == id {
			tx.endpoints[k] = nil
		}
	}
	for k, e := range tx.endpoints {
		if e != nil && e.Network == id {
			tx.endpoints[k] = nil
		}
	}
	for a := range tx.Leases(id) {
		tx.DeleteLease(id, a)
	}
}

// Endpoint returns an endpoint's record.
func (tx *Tx) Endpoint(id carrick.EndpointID) (Endpoint, bool) {
	return lookup(tx.endpoints, tx.j.endpoints, id)
}

// Endpoints returns a network's local endpoints, with the transaction's changes,
// in no order.
func (tx *Tx) Endpoints(id carrick.NetworkID) []Endpoint {
	var out []Endpoint
	for k, e := range tx.j.endpoints {
		if _, changed := tx.endpoints[k]; !changed && e.Network == id {
			out = append(out, e)
		}
	}
	for _, e := range tx.endpoints {
		if e != nil && e.Network == id {
			out = append(out, *e)
		}
	}
	return out
}

// PutEndpoint stores an endpoint's record.
func (tx *Tx) PutEndpoint(e Endpoint) { tx.endpoints[e.ID] = &e }

// DeleteEndpoint removes an endpoint and unbinds its addresses, which stay given
// out until they are released.
func (tx *Tx) DeleteEndpoint(id carrick.EndpointID) {
	e, ok := tx.Endpoint(id)
	if !ok {
		return
	}
	tx.endpoints[id] = nil
	for _, a := range e.Addrs {
		if l, ok := tx.Lease(e.Network, a); ok && l.Endpoint == id {
			l.Endpoint = ""
			tx.PutLease(l)
		}
	}
}

// Lease returns an address's record.
func (tx *Tx) Lease(id carrick.NetworkID, a netip.Addr) (Lease, bool) {
	return lookup(tx.leases, tx.j.leases, leaseKey{id, a})
}

// PutLease stores an address's record.
func (tx *Tx) PutLease(l Lease) { tx.leases[leaseKey{l.Network, l.Addr}] = &l }

// DeleteLease forgets an address: its block is no longer this host's.
func (tx *Tx) DeleteLease(id carrick.NetworkID, a netip.Addr) { tx.leases[leaseKey{id, a}] = nil }

// Release marks an address as resting since now: it will be reused after every
// address that was released before it. The stamp of its last use stays.
func (tx *Tx) Release(id carrick.NetworkID, a netip.Addr, now time.Time) {
	old, _ := tx.Lease(id, a)
	tx.releases++
	tx.PutLease(Lease{Network: id, Addr: a, Released: tx.releases, At: now, Gen: old.Gen})
}

// Leases returns every address of a network this host remembers, with the
// transaction's changes.
func (tx *Tx) Leases(id carrick.NetworkID) map[netip.Addr]Lease {
	out := map[netip.Addr]Lease{}
	for k, l := range tx.j.leases {
		if k.net == id {
			out[k.addr] = l
		}
	}
	for k, l := range tx.leases {
		switch {
		case k.net != id:
		case l == nil:
			delete(out, k.addr)
		default:
			out[k.addr] = *l
		}
	}
	return out
}

// Stamp advances the clock and returns the stamp of a use that begins now.
func (tx *Tx) Stamp() carrick.Gen {
	tx.meta.Clock++
	return carrick.MakeGen(tx.meta.Epoch.Num, tx.meta.Clock)
}

// Witness advances the clock to at least that of a stamp heard from elsewhere.
func (tx *Tx) Witness(g carrick.Gen) { tx.meta.Clock = max(tx.meta.Clock, g.Clock()) }

// Meta returns what the journal remembers besides networks.
func (tx *Tx) Meta() Meta { return tx.meta }

// SetMeta replaces it.
func (tx *Tx) SetMeta(m Meta) { tx.meta = m }

// Host returns the record of a host this one has heard of.
func (tx *Tx) Host(id carrick.HostID) (carrick.Host, bool) { return lookup(tx.hosts, tx.j.hosts, id) }

// PutHost remembers a host.
func (tx *Tx) PutHost(h carrick.Host) { tx.hosts[h.ID] = &h }

// DeleteHost forgets a host: it was removed from the cluster.
func (tx *Tx) DeleteHost(id carrick.HostID) { tx.hosts[id] = nil }
