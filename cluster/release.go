package cluster

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// idleBlock is a block of a network none of whose addresses is in use.
type idleBlock struct {
	network carrick.NetworkID
	block   netip.Prefix
}

// giveUpIdle moves blocks that have not been needed for their rest to those to be
// freed. idle is since when they have been seen unused, kept by the caller.
func (c *Cluster) giveUpIdle(idle map[idleBlock]time.Time, now time.Time) error {
	for _, n := range c.jr.Networks() {
		if n.Leaving || c.jr.Meta().Fenced {
			continue
		}
		leases := c.jr.Leases(n.Conf.ID)
		for _, b := range n.Blocks {
			key := idleBlock{n.Conf.ID, b}
			if !unused(b, leases) {
				delete(idle, key)
				continue
			}
			since, seen := idle[key]
			if !seen {
				idle[key] = now
				continue
			}
			rest := c.cfg.Rest
			if borrowed(n.Conf, b) {
				rest /= 10 // its owner lets it rest
			}
			for a, l := range leases {
				if b.Contains(a) && l.At.After(since) {
					since = l.At // in use between two looks
				}
			}
			if now.Sub(since) < rest {
				continue
			}
			if err := c.giveUp(n.Conf.ID, b); err != nil {
				return err
			}
			delete(idle, key)
		}
	}
	return nil
}

// unused says whether no address of a block is given out or lent.
func unused(b netip.Prefix, leases map[netip.Addr]journal.Lease) bool {
	for a, l := range leases {
		if l.Released == 0 && b.Contains(a) {
			return false
		}
	}
	return true
}

// giveUp moves an unused block of this host to those to be freed, unless the rest
// of its blocks would be more than half used without it.
func (c *Cluster) giveUp(id carrick.NetworkID, block netip.Prefix) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if !ok || rec.Leaving || !slices.Contains(rec.Blocks, block) {
			return nil
		}
		leases := tx.Leases(id)
		if !unused(block, leases) {
			return nil
		}
		var pool netip.Prefix
		for _, p := range rec.Conf.Pools {
			if p.Prefix.Contains(block.Addr()) {
				pool = p.Prefix
			}
		}
		taken, room := 0, 0
		for _, b := range rec.Blocks {
			if b != block && pool.Contains(b.Addr()) {
				room += 1 << min(b.Addr().BitLen()-b.Bits(), 20)
			}
		}
		gen := carrick.Gen(0)
		for a, l := range leases {
			if l.Released == 0 && pool.Contains(a) {
				taken++
			}
			if block.Contains(a) {
				gen = max(gen, l.Gen)
			}
		}
		if !borrowed(rec.Conf, block) && taken > 0 && taken*2 > room {
			return nil
		}
		for a := range leases {
			if block.Contains(a) {
				tx.DeleteLease(id, a)
			}
		}
		rec.Blocks = slices.DeleteFunc(rec.Blocks, func(b netip.Prefix) bool { return b == block })
		rec.Freeing = append(rec.Freeing, journal.Freed{Block: block, Gen: gen})
		tx.PutNetwork(rec)
		return nil
	})
}

// freeAll tells the store about blocks given up.
func (c *Cluster) freeAll(ctx context.Context) error {
	for _, n := range c.jr.Networks() {
		if n.Leaving || len(n.Freeing) == 0 {
			continue
		}
		for _, f := range n.Freeing {
			if err := c.free(ctx, n.Conf, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) free(ctx context.Context, n carrick.Network, f journal.Freed) error {
	_, err := c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		net, err := c.readNetwork(ctx, n.ID)
		if err != nil || net.blocks[f.Block].value.Host != c.self {
			return err // it is so already
		}
		if rec, err := c.jr.Network(n.ID); err != nil || slices.Contains(rec.Blocks, f.Block) || c.isPending(n, f.Block) {
			return nil // taken again meanwhile
		}
		var encErr error
		if err := c.freeBlock(ctx, t, &encErr, n, net, f.Block, max(f.Gen, net.blocks[f.Block].value.Gen, carrick.MakeGen(num, 0)), 0); err != nil {
			return err
		}
		return encErr
	})
	if err != nil {
		return err
	}
	return c.jr.Update(func(tx *journal.Tx) error {
		if rec, ok := tx.Network(n.ID); ok {
			rec.Freeing = slices.DeleteFunc(rec.Freeing, func(x journal.Freed) bool { return x.Block == f.Block })
			tx.PutNetwork(rec)
		}
		return nil
	})
}

// compareBlocks brings this host's books about the blocks of a network and the
// store's together: claims of its own that its journal does not have are given
// back, and loans in its blocks are the same on both sides.
func (c *Cluster) compareBlocks(ctx context.Context, id carrick.NetworkID) error {
	if err := c.answering.Acquire(ctx, 1); err != nil {
		return err
	}
	defer c.answering.Release(1)
	r, before, err := c.readEpoch(ctx)
	if err != nil {
		return err
	}
	seen := r.epoch()
	recs, err := c.blockRecords(ctx, id)
	if err != nil {
		return err
	}
	if c.hasUnknownLoans(id, recs) {
		// A grant whose outcome was never heard may be carried out yet, until the epoch
		// moves on: only then is its absence final.
		if err := c.moveEpoch(ctx); err != nil {
			return err
		}
		seen = c.seenEpoch()
		if recs, err = c.blockRecords(ctx, id); err != nil {
			return err
		}
	} else if _, after, err := c.readEpoch(ctx); err != nil || after != before {
		return err // something is changing; next time
	}
	return c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if !ok || rec.Leaving || tx.Meta().Fenced || c.seenEpoch() != seen {
			return nil // or something has changed: next time
		}
		changed := false
		for b, r := range recs {
			freeing := slices.ContainsFunc(rec.Freeing, func(f journal.Freed) bool { return f.Block == b })
			switch {
			case r.value.Host == c.self && !slices.Contains(rec.Blocks, b) && !freeing && !c.isPending(rec.Conf, b):
				rec.Freeing = append(rec.Freeing, journal.Freed{Block: b, Gen: r.value.Gen})
				changed = true
			case r.value.Host != "" && r.value.Host != c.self && borrowed(rec.Conf, b) && slices.Contains(rec.Blocks, blockOf(rec.Conf, b.Addr())):
				c.bookLoan(tx, rec.Conf, b.Addr(), r.value)
			}
		}
		for a, l := range tx.Leases(id) {
			if l.Lent != "" && recs[netip.PrefixFrom(a, a.BitLen())].value.Host != l.Lent {
				l.Lent = ""
				tx.PutLease(l)
				tx.Release(id, a, time.Now())
			}
		}
		if changed {
			tx.PutNetwork(rec)
		}
		return nil
	})
}

// bookLoan makes the journal say that an address of this host is lent, as the
// store does. One that is in use here since the loan was given back, or before it
// was made, is not: in the latter case it is the borrower's, and an endpoint that
// has it here is in dispute.
func (c *Cluster) bookLoan(tx *journal.Tx, n carrick.Network, a netip.Addr, r blockRecord) {
	l, ok := tx.Lease(n.ID, a)
	used := ok && l.Released == 0 && l.Lent == ""
	switch {
	case ok && l.Lent == r.Host:
		return
	case used && l.Gen >= r.Gen:
		c.log.Warn("an address in use here is lent to another host according to the store", "network", n.Label(), "addr", a, "host", c.HostName(r.Host))
		return
	case used:
		c.log.Error("an address in use here was lent to another host meanwhile", "network", n.Label(), "addr", a, "host", c.HostName(r.Host))
	}
	tx.PutLease(journal.Lease{Network: n.ID, Addr: a, Lent: r.Host, Gen: r.Gen})
}

func (c *Cluster) bookLoans(tx *journal.Tx, n carrick.Network, lent map[netip.Addr]blockRecord) {
	for a, r := range lent {
		c.bookLoan(tx, n, a, r)
	}
}

// hasUnknownLoans says whether the journal has loans that the store has not.
func (c *Cluster) hasUnknownLoans(id carrick.NetworkID, recs map[netip.Prefix]read[blockRecord]) bool {
	for a, l := range c.jr.Leases(id) {
		if l.Lent != "" && recs[netip.PrefixFrom(a, a.BitLen())].value.Host != l.Lent {
			return true
		}
	}
	return false
}

// moveEpoch makes a structural change of nothing: every transaction that was
// built before it can no longer be carried out.
func (c *Cluster) moveEpoch(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		r, v, err := c.readEpoch(ctx)
		if err != nil {
			return err
		}
		next := r.next()
		var encErr error
		t := (&kvstore.Txn{}).Version(keyEpoch, v)
		put(t, &encErr, keyEpoch, &next)
		if encErr != nil {
			return encErr
		}
		if _, err = c.commit(ctx, t); err == nil {
			c.sawEpoch(next)
			return nil
		}
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= structuralTries {
			return err
		}
		if err := backoff(ctx, min(attempt, 4), 200*time.Millisecond); err != nil {
			return err
		}
	}
}
