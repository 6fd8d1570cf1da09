package journal

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// usage counts what the leases of one pool say, so that giving out an address
// does not look at each of them. It says nothing that they do not say, is never
// stored, and changes together with them and in one place. Only addresses that may
// be chosen for an endpoint count.
type usage struct {
	pool  carrick.Pool
	known map[netip.Prefix]int // addresses with a lease, by the block of the pool they lie in
	taken int                  // addresses given out or lent
	// queue has the resting addresses in the order of their release, and some that
	// rested once: an entry counts if the address's lease still says the same.
	queue   []rest
	resting int // entries of queue that count
}

type rest struct {
	addr  netip.Addr
	order uint64
}

type usageKey struct {
	net    carrick.NetworkID
	prefix netip.Prefix
}

// usageOf finds the pool of an address among those of a network, or nil.
func (t *tables) usageOf(k leaseKey) (usageKey, *usage) {
	for _, p := range t.networks[k.net].Conf.Pools {
		if !p.Prefix.Contains(k.addr) {
			continue
		}
		key := usageKey{k.net, p.Prefix}
		u := t.usages[key]
		if u == nil {
			u = &usage{pool: p, known: map[netip.Prefix]int{}}
			t.usages[key] = u
		}
		return key, u
	}
	return usageKey{}, nil
}

// putLeases makes changes of leases part of the tables, which have the networks
// already.
func (t *tables) putLeases(changes map[leaseKey]*Lease) {
	touched := map[usageKey]*usage{}
	// In the order of release, so that queues grow at their ends.
	order := func(k leaseKey) uint64 {
		if now := changes[k]; now != nil {
			return now.Released
		}
		return 0
	}
	keys := slices.SortedFunc(maps.Keys(changes), func(a, b leaseKey) int { return cmp.Compare(order(a), order(b)) })
	for _, k := range keys {
		now := changes[k]
		if key, u := t.usageOf(k); u != nil {
			old, had := t.lease(k)
			u.change(k.addr, old, had, now)
			touched[key] = u
		}
		if now == nil {
			drop(t.leases, k.net, k.addr)
			continue
		}
		put(t.leases, k.net, k.addr, *now)
		t.releases = max(t.releases, now.Released)
	}
	for key, u := range touched {
		u.trim(func(r rest) bool { return t.leases[key.net][r.addr].Released == r.order })
	}
}

// recount counts the leases of a network whose pools have changed, or which was
// not there.
func (t *tables) recount(id carrick.NetworkID) {
	maps.DeleteFunc(t.usages, func(k usageKey, _ *usage) bool { return k.net == id })
	leases := slices.SortedFunc(maps.Values(t.leases[id]), func(a, b Lease) int { return cmp.Compare(a.Released, b.Released) })
	for _, l := range leases {
		if _, u := t.usageOf(leaseKey{id, l.Addr}); u != nil {
			u.change(l.Addr, Lease{}, false, &l)
		}
	}
}

func samePools(a, b []carrick.Pool) bool {
	return slices.EqualFunc(a, b, func(p, q carrick.Pool) bool {
		return p.Prefix == q.Prefix && p.Range == q.Range && p.Gateway == q.Gateway && p.Block == q.Block && maps.Equal(p.Aux, q.Aux)
	})
}

// change counts an address's lease as it is now instead of as it was.
func (u *usage) change(a netip.Addr, old Lease, had bool, now *Lease) {
	if !u.pool.Allocatable(a) {
		return
	}
	block := u.pool.BlockOf(a)
	if had {
		u.known[block]--
		if old.Released == 0 {
			u.taken--
		} else {
			u.resting--
		}
	}
	if now != nil {
		u.known[block]++
		if now.Released == 0 {
			u.taken++
		} else {
			u.resting++
			if !had || old.Released != now.Released {
				u.enqueue(rest{a, now.Released})
			}
		}
	}
	if u.known[block] == 0 {
		delete(u.known, block)
	}
}

// enqueue puts an entry in its place, which is nearly always the end.
func (u *usage) enqueue(r rest) {
	i, there := slices.BinarySearchFunc(u.queue, r, func(a, b rest) int {
		return cmp.Or(cmp.Compare(a.order, b.order), a.addr.Compare(b.addr))
	})
	if !there {
		u.queue = slices.Insert(u.queue, i, r)
	}
}

// trim drops entries that no longer count: those at the front, where they would
// be met each time, and all when they are many.
func (u *usage) trim(counts func(rest) bool) {
	front := 0
	for front < len(u.queue) && !counts(u.queue[front]) {
		front++
	}
	u.queue = u.queue[front:]
	if len(u.queue) > 2*u.resting+64 {
		u.queue = slices.DeleteFunc(u.queue, func(r rest) bool { return !counts(r) })
	}
}

// Taken counts the addresses of a network's pool that are given out or lent and
// might have been chosen for it: not those that only an explicit wish can have.
func (j *Journal) Taken(id carrick.NetworkID, pool netip.Prefix) int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if u := j.durable.usages[usageKey{id, pool}]; u != nil {
		return u.taken
	}
	return 0
}

// pool returns a network's pool of a prefix.
func (tx *Tx) pool(id carrick.NetworkID, prefix netip.Prefix) (carrick.Pool, bool) {
	n, ok := tx.network(id)
	i := slices.IndexFunc(n.Conf.Pools, func(p carrick.Pool) bool { return p.Prefix == prefix })
	if !ok || i < 0 {
		return carrick.Pool{}, false
	}
	return n.Conf.Pools[i], true
}

// changed yields the leases of a part of a pool that the transaction has changed,
// with what the journal had.
func (tx *Tx) changed(id carrick.NetworkID, pool carrick.Pool, part netip.Prefix) iter.Seq2[*Lease, *Lease] {
	return func(yield func(was, is *Lease) bool) {
		for k, is := range tx.changes.leases {
			if k.net != id || !part.Contains(k.addr) || !pool.Allocatable(k.addr) {
				continue
			}
			var was *Lease
			if old, had := tx.base.lease(k); had {
				was = &old
			}
			if !yield(was, is) {
				return
			}
		}
	}
}

// Taken is [Journal.Taken] with the transaction's changes.
func (tx *Tx) Taken(id carrick.NetworkID, prefix netip.Prefix) int {
	pool, ok := tx.pool(id, prefix)
	if !ok {
		return 0
	}
	n := 0
	if u := tx.base.usages[usageKey{id, prefix}]; u != nil {
		n = u.taken
	}
	for was, is := range tx.changed(id, pool, prefix) {
		if was != nil && was.Released == 0 {
			n--
		}
		if is != nil && is.Released == 0 {
			n++
		}
	}
	return n
}

// Known counts the addresses of a block of a network's pool that have a lease,
// given out, lent or resting, and may be chosen for an endpoint.
func (tx *Tx) Known(id carrick.NetworkID, block netip.Prefix) int {
	n, ok := tx.network(id)
	i := slices.IndexFunc(n.Conf.Pools, func(p carrick.Pool) bool { return p.Prefix.Contains(block.Addr()) })
	if !ok || i < 0 {
		return 0
	}
	pool := n.Conf.Pools[i]
	count := 0
	if u := tx.base.usages[usageKey{id, pool.Prefix}]; u != nil {
		count = u.known[block]
	}
	for was, is := range tx.changed(id, pool, block) {
		if was != nil {
			count--
		}
		if is != nil {
			count++
		}
	}
	return count
}

// Resting yields the addresses of a network's pool that rest and may be chosen
// for an endpoint, the longest-rested one first.
func (tx *Tx) Resting(id carrick.NetworkID, prefix netip.Prefix) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		pool, ok := tx.pool(id, prefix)
		if !ok {
			return
		}
		var queue []rest
		if u := tx.base.usages[usageKey{id, prefix}]; u != nil {
			queue = u.queue
		}
		var fresh []rest // released in this transaction, which is after all others
		for was, is := range tx.changed(id, pool, prefix) {
			if is != nil && is.Released != 0 && (was == nil || was.Released != is.Released) {
				fresh = append(fresh, rest{is.Addr, is.Released})
			}
		}
		slices.SortFunc(fresh, func(a, b rest) int { return cmp.Compare(a.order, b.order) })
		for _, list := range [][]rest{queue, fresh} {
			for _, r := range list {
				if l, ok := tx.Lease(id, r.addr); !ok || l.Released != r.order {
					continue
				}
				if !yield(r.addr) {
					return
				}
			}
		}
	}
}
