package journal

import (
	"maps"
	"net/netip"
	"reflect"
	"time"

	"github.com/carrick-net/carrick"
)

// Tx collects changes that reach the disk together or not at all. Getters see
// the changes made so far, and those of the transactions before. It is valid
// inside [Journal.Update] only.
type Tx struct {
	base     *tables // read only
	changes  *changes
	releases uint64
	meta     Meta
}

func newTx(base *tables) *Tx {
	return &Tx{base: base, changes: newChanges(), releases: base.releases, meta: base.meta}
}

// done ends the collecting and returns the changes.
func (tx *Tx) done() *changes {
	if !reflect.DeepEqual(tx.meta, tx.base.meta) {
		tx.changes.meta = &tx.meta
	}
	return tx.changes
}

// network is Network without a copy.
func (tx *Tx) network(id carrick.NetworkID) (Network, bool) {
	if n, ok := tx.changes.networks[id]; ok {
		return deref(n)
	}
	n, ok := tx.base.networks[id]
	return n, ok
}

func deref[T any](v *T) (T, bool) {
	if v == nil {
		var none T
		return none, false
	}
	return *v, true
}

// Network returns a network's record.
func (tx *Tx) Network(id carrick.NetworkID) (Network, bool) {
	n, ok := tx.network(id)
	return n.clone(), ok
}

// PutNetwork stores a network's record.
func (tx *Tx) PutNetwork(n Network) { n = n.clone(); tx.changes.networks[n.Conf.ID] = &n }

// DeleteNetwork removes a network with its leases and endpoints.
func (tx *Tx) DeleteNetwork(id carrick.NetworkID) {
	for a := range tx.Leases(id) {
		tx.changes.leases[leaseKey{id, a}] = nil
	}
	for _, e := range tx.Endpoints(id) {
		tx.changes.endpoints[e.ID] = nil
	}
	tx.changes.networks[id] = nil
}

// endpoint is Endpoint without a copy.
func (tx *Tx) endpoint(id carrick.EndpointID) (Endpoint, bool) {
	if e, ok := tx.changes.endpoints[id]; ok {
		return deref(e)
	}
	return tx.base.endpoint(id)
}

// Endpoint returns an endpoint's record.
func (tx *Tx) Endpoint(id carrick.EndpointID) (Endpoint, bool) {
	e, ok := tx.endpoint(id)
	return e.clone(), ok
}

// Endpoints returns a network's local endpoints, with the transaction's changes,
// in no order.
func (tx *Tx) Endpoints(id carrick.NetworkID) []Endpoint {
	var out []Endpoint
	for k, e := range tx.base.endpoints[id] {
		if _, changed := tx.changes.endpoints[k]; !changed {
			out = append(out, e.clone())
		}
	}
	for _, e := range tx.changes.endpoints {
		if e != nil && e.Network == id {
			out = append(out, e.clone())
		}
	}
	return out
}

// PutEndpoint stores an endpoint's record. Its stamp is witnessed.
func (tx *Tx) PutEndpoint(e Endpoint) {
	e = e.clone()
	tx.changes.endpoints[e.ID] = &e
	tx.Witness(e.Gen)
}

// DeleteEndpoint removes an endpoint and unbinds its addresses, which stay given
// out until they are released.
func (tx *Tx) DeleteEndpoint(id carrick.EndpointID) {
	e, ok := tx.endpoint(id)
	if !ok {
		return
	}
	tx.changes.endpoints[id] = nil
	for _, a := range e.Addrs {
		if l, ok := tx.Lease(e.Network, a); ok && l.Endpoint == id {
			l.Endpoint = ""
			tx.PutLease(l)
		}
	}
}

// Lease returns an address's record.
func (tx *Tx) Lease(id carrick.NetworkID, a netip.Addr) (Lease, bool) {
	k := leaseKey{id, a}
	if l, ok := tx.changes.leases[k]; ok {
		return deref(l)
	}
	return tx.base.lease(k)
}

// PutLease stores an address's record. Its stamp is witnessed.
func (tx *Tx) PutLease(l Lease) {
	tx.changes.leases[leaseKey{l.Network, l.Addr}] = &l
	tx.releases = max(tx.releases, l.Released)
	tx.Witness(l.Gen)
}

// DeleteLease forgets an address: its block is no longer this host's.
func (tx *Tx) DeleteLease(id carrick.NetworkID, a netip.Addr) {
	tx.changes.leases[leaseKey{id, a}] = nil
}

// Release marks an address as resting since now: it will be reused after every
// address that was released before it. The stamp of its last use stays.
func (tx *Tx) Release(id carrick.NetworkID, a netip.Addr, now time.Time) {
	old, _ := tx.Lease(id, a)
	tx.PutLease(Lease{Network: id, Addr: a, Released: tx.releases + 1, At: now, Gen: old.Gen})
}

// Leases returns every address of a network this host remembers, with the
// transaction's changes.
func (tx *Tx) Leases(id carrick.NetworkID) map[netip.Addr]Lease {
	out := make(map[netip.Addr]Lease, len(tx.base.leases[id]))
	maps.Copy(out, tx.base.leases[id])
	for k, l := range tx.changes.leases {
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

// maxWitness bounds how far a stamp can take the clock: no cluster comes near it
// by uses of addresses, and past the stamp's width the clock would begin anew.
const maxWitness = 1 << 39

// Stamp advances the clock and returns the stamp of a use that begins now.
func (tx *Tx) Stamp() carrick.Gen {
	tx.meta.Clock++
	return carrick.MakeGen(tx.meta.Epoch.Num, tx.meta.Clock)
}

// Witness advances the clock to at least that of a stamp heard from elsewhere. A
// stamp that is out of reach by honest use, half of the width of a clock, is
// nobody's and does nothing.
func (tx *Tx) Witness(g carrick.Gen) { tx.meta.witness(g) }

func (m *Meta) witness(g carrick.Gen) {
	if c := g.Clock(); c < maxWitness {
		m.Clock = max(m.Clock, c)
	}
}

// Meta returns what the journal remembers besides networks.
func (tx *Tx) Meta() Meta { return tx.meta }

// SetMeta replaces it, but for a clock that has gone on since m was read.
func (tx *Tx) SetMeta(m Meta) {
	m.Clock = max(m.Clock, tx.meta.Clock)
	tx.meta = m
}

// Host returns the record of a host this one has heard of, a removed one included.
func (tx *Tx) Host(id carrick.HostID) (Host, bool) {
	if h, ok := tx.changes.hosts[id]; ok {
		return deref(h)
	}
	h, ok := tx.base.hosts[id]
	return h, ok
}

// PutHost remembers a host.
func (tx *Tx) PutHost(h Host) { tx.changes.hosts[h.ID] = &h }
