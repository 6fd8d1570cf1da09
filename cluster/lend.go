package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// watchAsks answers what other hosts ask of this one, until ctx ends. What cannot
// be answered now, in a recovery say, is looked at again soon.
func (c *Cluster) watchAsks(ctx context.Context) error {
	wake := make(chan []kvstore.Entry, 1)
	c.spawn(func() error {
		return c.watchUnder(ctx, prefixAsksOf(c.self), func(v kvstore.View) error {
			select {
			case <-wake:
			default:
			}
			wake <- v.Entries
			return nil
		})
	})
	var entries []kvstore.Entry
	for {
		var again <-chan time.Time
		if len(entries) > 0 {
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case entries = <-wake:
		case <-c.askAgain:
		case <-again:
		}
		if left := c.answerAll(ctx, entries); !left {
			entries = nil
		}
	}
}

// answerAll answers every open question of some records, and says whether any is
// left.
func (c *Cluster) answerAll(ctx context.Context, entries []kvstore.Entry) (left bool) {
	if c.answering.Acquire(ctx, 1) != nil {
		return true
	}
	defer c.answering.Release(1)
	for _, e := range entries {
		_, requester, ok := partiesOfAsk(e.Key)
		r, err := decode[askRecord](e.Key, e.Value)
		if !ok || err != nil {
			c.log.Error("request of another host ignored", "key", e.Key, "err", err)
			continue
		}
		for _, q := range r.Asks {
			if q.Answer != "" {
				continue
			}
			switch {
			case q.Return:
				err = c.takeBack(ctx, requester, q)
			case q.Back:
				err = c.yield(ctx, requester, q)
			default:
				err = c.answer(ctx, requester, q)
			}
			if err != nil {
				c.log.Debug("request not answered yet", "of", c.HostName(requester), "network", q.Network, "addr", q.Addr, "err", err)
				left = true
			}
		}
	}
	return left
}

// errWithdrawn: nobody waits for the answer any more.
var errWithdrawn = errors.New("request withdrawn")

// answer grants an address, or says why not. The journal marks it as lent before
// the store says so: what another host may use is never given out here.
func (c *Cluster) answer(ctx context.Context, requester carrick.HostID, q ask) error {
	if c.jr.Meta().Fenced {
		return errors.New("this host has not regained its own addresses")
	}
	if _, _, err := c.readEpoch(ctx); err != nil {
		return err
	}
	var kept error
	if b := c.lentTo(q.Network, q.Addr); q.Addr.IsValid() && b != "" && b != requester {
		if kept = c.reclaimFor(q); errors.Is(kept, errReclaiming) {
			return kept
		}
	}
	var lease, before journal.Lease
	var gone bool // the requester is no host any more
	reason, apart := "", ""
	err := c.jr.Update(func(tx *journal.Tx) error {
		if lease, reason = c.pickLoan(tx, requester, q); reason != "" && kept != nil {
			reason += ": " + kept.Error()
		}
		if reason == "" {
			before, _ = tx.Lease(lease.Network, lease.Addr)
			tx.PutLease(lease)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		key := keyAsk(c.self, requester)
		r, v, err := get[askRecord](ctx, c, key)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(r.Asks, func(x ask) bool { return x.ID == q.ID })
		if i < 0 || r.Asks[i].Answer != "" {
			return errWithdrawn
		}
		var encErr error
		r.Asks = slices.Clone(r.Asks)
		t.Version(key, v)
		_, hostVer, err := get[hostRecord](ctx, c, keyHost(requester))
		switch {
		case err != nil:
			return err
		case hostVer == 0: // it was removed: nobody would ever give the address back
			gone = true
			if r.Asks = without(r.Asks, q.ID); len(r.Asks) == 0 {
				t.Delete(key)
			} else {
				put(t, &encErr, key, &r)
			}
			return encErr
		}
		gone = false
		// Who leaves a network gives back what is in its name, once: nothing may come
		// after that. A question can be as late as any other write.
		aliasKey := keyAlias(q.Network, requester)
		_, aliasVer, err := get[aliasRecord](ctx, c, aliasKey)
		if err != nil {
			return err
		}
		apart = ""
		if aliasVer == 0 {
			apart = "the store does not say that " + c.HostName(requester) + " has the network"
		}
		switch {
		case reason == "" && apart == "":
			t.Version(aliasKey, aliasVer)
			if err := c.putLoan(ctx, t, &encErr, requester, lease, num); err != nil {
				return err
			}
			r.Asks[i].Answer, r.Asks[i].Addr, r.Asks[i].Gen = granted, lease.Addr, lease.Gen
		default:
			r.Asks[i].Answer, r.Asks[i].Reason = refused, cmp.Or(reason, apart)
		}
		put(t, &encErr, key, &r)
		return encErr
	})
	switch {
	case errors.Is(err, errWithdrawn), errors.Is(err, ErrBlockTaken):
		// Known not to have been written.
		if reason == "" {
			return c.takeGrantBack(requester, lease, before)
		}
		return nil
	case err != nil:
		return err // it stays lent here; settle compares
	}
	if gone || apart != "" {
		if reason == "" {
			return c.takeGrantBack(requester, lease, before)
		}
		return nil
	}
	if reason == "" {
		c.log.Info("address lent", "network", q.Network, "addr", lease.Addr, "to", c.HostName(requester))
	}
	return nil
}

// putLoan adds the loan to a transaction, if its block and its address are this
// host's in the store as well.
func (c *Cluster) putLoan(ctx context.Context, t *kvstore.Txn, encErr *error, requester carrick.HostID, l journal.Lease, num uint32) error {
	rec, err := c.jr.Network(l.Network)
	if err != nil {
		return err
	}
	blockKey := keyBlock(l.Network, blockOf(rec.Conf, l.Addr))
	block, blockVer, err := get[blockRecord](ctx, c, blockKey)
	if err != nil {
		return err
	}
	if block.Host != c.self {
		c.suspect()
		return fmt.Errorf("%s: %w", blockKey, ErrBlockTaken)
	}
	key := keyBlock(l.Network, netip.PrefixFrom(l.Addr, l.Addr.BitLen()))
	have, ver, err := get[blockRecord](ctx, c, key)
	if err != nil {
		return err
	}
	if have.Host != "" && have.Host != requester {
		return fmt.Errorf("%s: %w", key, ErrBlockTaken)
	}
	t.Version(blockKey, blockVer).Version(key, ver)
	put(t, encErr, key, &blockRecord{envelope: envelope{schema}, Host: requester, Num: num, Gen: l.Gen})
	return nil
}

// pickLoan chooses the address to lend, or says why there is none.
func (c *Cluster) pickLoan(tx *journal.Tx, requester carrick.HostID, q ask) (l journal.Lease, reason string) {
	rec, ok := tx.Network(q.Network)
	if !ok || rec.Leaving {
		return l, "it has left the network"
	}
	i := slices.IndexFunc(rec.Conf.Pools, func(p carrick.Pool) bool { return p.Prefix == q.Pool })
	if i < 0 {
		return l, fmt.Sprintf("the network has no pool %s", q.Pool)
	}
	pool := rec.Conf.Pools[i]
	var own []netip.Prefix
	for _, b := range rec.Blocks {
		if pool.Prefix.Contains(b.Addr()) && b.Bits() == pool.Block {
			own = append(own, b)
		}
	}
	if q.Addr.IsValid() {
		return c.lendThis(tx, requester, q, pool, own)
	}
	leases := tx.Leases(q.Network)
	var oldest journal.Lease
	for _, b := range own {
		for a := b.Addr(); a.IsValid() && b.Contains(a); a = a.Next() {
			if !pool.AllocRange().Contains(a) || pool.Reserved(a) != "" {
				continue
			}
			l, used := leases[a]
			switch {
			case !used:
				return journal.Lease{Network: q.Network, Addr: a, Lent: requester, Gen: tx.Stamp()}, ""
			case l.Released == 0 || time.Since(l.At) < c.cfg.Rest:
			case oldest.Released == 0 || l.Released < oldest.Released:
				oldest = l
			}
		}
	}
	if oldest.Released == 0 {
		return l, "it has no address to spare that has rested for " + c.cfg.Rest.String()
	}
	return journal.Lease{Network: q.Network, Addr: oldest.Addr, Lent: requester, Gen: tx.Stamp()}, ""
}

// lendThis is pickLoan for an address that was asked for.
func (c *Cluster) lendThis(tx *journal.Tx, requester carrick.HostID, q ask, pool carrick.Pool, own []netip.Prefix) (l journal.Lease, reason string) {
	if why := pool.Reserved(q.Addr); why != "" {
		return l, fmt.Sprintf("%s is the %s address", q.Addr, why)
	}
	if !inBlocks(own, q.Addr) {
		return l, fmt.Sprintf("%s is not in its blocks", q.Addr)
	}
	old, used := tx.Lease(q.Network, q.Addr)
	switch {
	case used && old.Released == 0 && old.Lent == requester:
	case used && old.Released == 0 && old.Lent != "":
		return l, fmt.Sprintf("%s is in use: it is lent to host %s", q.Addr, c.HostName(old.Lent))
	case used && old.Released == 0:
		return l, inUse(q.Addr, old)
	}
	return journal.Lease{Network: q.Network, Addr: q.Addr, Lent: requester, Gen: tx.Stamp()}, ""
}

// inUse says by what an address is used that is not lent.
func inUse(a netip.Addr, l journal.Lease) string {
	if l.Endpoint != "" {
		return fmt.Sprintf("%s is in use by endpoint %s", a, l.Endpoint.Short())
	}
	return fmt.Sprintf("%s is in use by a container that is starting or stopping", a)
}

// takeGrantBack ends a loan that was made in the journal and not in the store; the
// address rests from now on. If it was lent to the same host before, it still is:
// an answer that was given without this host hearing so looks like this one. A loan
// made again since is left alone.
func (c *Cluster) takeGrantBack(to carrick.HostID, lease, before journal.Lease) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		l, ok := tx.Lease(lease.Network, lease.Addr)
		if !ok || l.Lent != to || l.Gen > lease.Gen {
			return nil
		}
		if before.Lent == to {
			tx.PutLease(before)
			return nil
		}
		l.Lent = ""
		tx.PutLease(l)
		tx.Release(l.Network, l.Addr, time.Now())
		return nil
	})
}

// takeBack ends a loan that the borrower, or who removed it, gives back.
func (c *Cluster) takeBack(ctx context.Context, from carrick.HostID, q ask) error {
	if _, _, err := c.readEpoch(ctx); err != nil {
		return err
	}
	err := c.jr.Update(func(tx *journal.Tx) error {
		tx.Witness(q.Gen)
		l, ok := tx.Lease(q.Network, q.Addr)
		if !ok || l.Lent != from || l.Gen > q.Gen {
			return nil // taken back before; it may even have been lent again since
		}
		l.Lent, l.Gen = "", q.Gen
		tx.PutLease(l)
		tx.Release(q.Network, q.Addr, time.Now())
		return nil
	})
	if err != nil {
		return err
	}
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, _ uint32) error {
		key := keyAsk(c.self, from)
		r, v, err := get[askRecord](ctx, c, key)
		if err != nil || !slices.ContainsFunc(r.Asks, func(x ask) bool { return x.ID == q.ID }) {
			return err
		}
		loanKey := keyBlock(q.Network, netip.PrefixFrom(q.Addr, q.Addr.BitLen()))
		loan, loanVer, err := get[blockRecord](ctx, c, loanKey)
		if err != nil {
			return err
		}
		if loan.Host == from && loan.Gen <= q.Gen {
			t.Version(loanKey, loanVer).Delete(loanKey)
		}
		var encErr error
		t.Version(key, v)
		if r.Asks = without(slices.Clone(r.Asks), q.ID); len(r.Asks) == 0 {
			t.Delete(key)
		} else {
			put(t, &encErr, key, &r)
		}
		return encErr
	})
	return err
}

// giveBack adds the return of a borrowed address to a transaction.
func (c *Cluster) giveBack(ctx context.Context, t *kvstore.Txn, encErr *error, owner, borrower carrick.HostID, id carrick.NetworkID, b netip.Prefix, gen carrick.Gen) error {
	q := ask{ID: string(carrick.NewHostID()), Network: id, Pool: b, Addr: b.Addr(), Return: true, Gen: gen}
	key := keyAsk(owner, borrower)
	for i, op := range t.Ops {
		if op.Key == key { // another return of the same transaction
			r, err := decode[askRecord](key, op.Value)
			if err != nil {
				return err
			}
			r.Asks = append(r.Asks, q)
			t.Ops[i].Value, err = encode(&r)
			return err
		}
	}
	r, v, err := get[askRecord](ctx, c, key)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(r.Asks, func(x ask) bool { return x.Return && x.Network == id && x.Addr == q.Addr }) {
		return nil // the owner has not come to it yet
	}
	r.V, r.Asks = schema, append(slices.Clone(r.Asks), q)
	t.Version(key, v)
	put(t, encErr, key, &r)
	return nil
}
