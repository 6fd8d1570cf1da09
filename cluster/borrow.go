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
	"github.com/carrick-net/carrick/kvstore"
)

// ErrRefused: the owner of an address's block did not grant it, or could not be
// asked.
var ErrRefused = errors.New("address not granted by its block's owner")

const (
	// askLimit is how long one owner may take to answer. It is within what an engine
	// waits for its driver.
	askLimit = 3 * time.Second
	// askOwners bounds how many owners are asked for any address: in a large network
	// that is nearly full, the ones with most to spare have been asked by then.
	askOwners = 16
)

// Borrow asks the owner of an address's block for it, and has it as a block of
// one address when it returns. An invalid want asks for any address of the pool
// with this prefix, of whoever has one to spare. It returns the address.
// Errors: [ErrRefused] with the owner's reason, or the store's.
func (c *Cluster) Borrow(ctx context.Context, id carrick.NetworkID, pool netip.Prefix, want netip.Addr) (netip.Addr, error) {
	rec, err := c.jr.Network(id)
	if err != nil {
		return netip.Addr{}, err
	}
	recs, err := c.blockRecords(ctx, id)
	if err != nil {
		return netip.Addr{}, err
	}
	if want.IsValid() {
		owner := recs[blockOf(rec.Conf, want)].value.Host
		if owner == "" || owner == c.self {
			return netip.Addr{}, fmt.Errorf("%s: %w: its block has no owner any more, try again", want, ErrRefused)
		}
		return c.askOne(ctx, owner, rec.Conf, ask{Network: id, Pool: pool, Addr: want})
	}
	var last error
	for i, owner := range c.lenders(rec.Conf, pool, recs) {
		if i == askOwners {
			break
		}
		a, err := c.askOne(ctx, owner, rec.Conf, ask{Network: id, Pool: pool})
		if !errors.Is(err, ErrRefused) {
			return a, err
		}
		last = err
	}
	if last == nil {
		last = fmt.Errorf("%w: no other host has a block", ErrRefused)
	}
	return netip.Addr{}, last
}

// lenders lists the owners of blocks of a pool, the ones with most free addresses
// first, as far as this host can tell from what they published and lent.
func (c *Cluster) lenders(n carrick.Network, pool netip.Prefix, recs map[netip.Prefix]read[blockRecord]) []carrick.HostID {
	free := map[carrick.HostID]int{}
	for b, r := range recs {
		if r.value.Host == "" || !pool.Contains(b.Addr()) {
			continue
		}
		if !borrowed(n, b) {
			free[r.value.Host] += 1 << min(b.Addr().BitLen()-b.Bits(), 20)
		} else if o := recs[blockOf(n, b.Addr())].value.Host; o != "" {
			free[o]--
		}
	}
	v, _, err := c.View(n.ID)
	if err == nil {
		for h, eps := range v.Endpoints {
			for _, e := range eps {
				for _, a := range e.Addrs {
					if recs[blockOf(n, a)].value.Host == h && pool.Contains(a) {
						free[h]--
					}
				}
			}
		}
	}
	delete(free, c.self)
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []carrick.HostID
	for h := range free {
		if c.alive[h] {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b carrick.HostID) int {
		return cmp.Or(cmp.Compare(free[b], free[a]), cmp.Compare(a, b))
	})
	return out
}

// askOne asks one owner and takes what it grants into the journal; or a borrower to
// give an address back.
func (c *Cluster) askOne(ctx context.Context, owner carrick.HostID, n carrick.Network, q ask) (netip.Addr, error) {
	c.mu.Lock()
	alive := c.alive[owner] || !c.aliveOK
	c.mu.Unlock()
	name, no, has := c.HostName(owner), ErrRefused, "has the block"
	if q.Back {
		no, has = ErrKept, "borrowed it"
	}
	if !alive {
		return netip.Addr{}, fmt.Errorf("%w: host %s, which %s, is lost: start its agent, or free what it has with carrick node rm %s if it is gone for good", no, name, has, name)
	}
	defer c.pend(n.ID, netip.Prefix{})()
	q.ID = string(carrick.NewHostID())
	num := c.number()
	defer c.asking(q.ID)()
	if err := c.writeAsks(ctx, owner, func(asks []ask) []ask { return append(asks, q) }); err != nil {
		return netip.Addr{}, fmt.Errorf("ask host %s for an address: %w", name, err)
	}
	began := time.Now()
	wctx, cancel := context.WithTimeout(ctx, askLimit)
	a, err := c.awaitAnswer(wctx, owner, q.ID)
	cancel()
	if err != nil {
		// Withdraw it, unless it is answered by now. Whatever cannot be cleared up here
		// settle gives back.
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		var found bool
		werr := c.writeAsks(cctx, owner, func(asks []ask) []ask {
			if i := slices.IndexFunc(asks, func(x ask) bool { return x.ID == q.ID }); i >= 0 {
				a, found = asks[i], true
			}
			return without(asks, q.ID)
		})
		if werr != nil || !found || a.Answer == "" {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%w: host %s did not answer within %s", no, name, time.Since(began).Round(100*time.Millisecond))
			}
			return netip.Addr{}, err
		}
	}
	if a.Answer == granted && !q.Back {
		// Journal first: an answer that is cleared away unread is a leak.
		if err := c.adoptBlock(q.Network, netip.PrefixFrom(a.Addr, a.Addr.BitLen()), a.Gen, num, nil); err != nil {
			return netip.Addr{}, err
		}
	}
	if err := c.writeAsks(ctx, owner, func(asks []ask) []ask { return without(asks, q.ID) }); err != nil {
		c.log.Debug("answer not cleared away yet", "owner", name, "err", err)
	}
	if a.Answer != granted {
		return netip.Addr{}, fmt.Errorf("%w: host %s: %s", no, name, a.Reason)
	}
	c.log.Debug("address granted", "network", n.Label(), "addr", a.Addr, "owner", name)
	return a.Addr, nil
}

// asking keeps clearAsks from a question until the returned function is called.
func (c *Cluster) asking(id string) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[id] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.asked, id)
	}
}

// clearAsks withdraws this host's questions that nobody here waits for any more:
// those of before a restart, and those whose withdrawal failed. What was granted
// to one is given back by compareBlocks.
func (c *Cluster) clearAsks(ctx context.Context) error {
	v, err := c.store.List(ctx, kvstore.Under(prefixAsks))
	c.heard(err)
	if err != nil {
		return fmt.Errorf("read requests: %w", err)
	}
	stale := func(q ask) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !q.Return && !c.asked[q.ID]
	}
	for _, e := range v.Entries {
		owner, requester, ok := partiesOfAsk(e.Key)
		if !ok || requester != c.self {
			continue
		}
		r, err := decode[askRecord](e.Key, e.Value)
		if err != nil || !slices.ContainsFunc(r.Asks, stale) {
			continue // what is not understood is the owner's to report
		}
		if err := c.writeAsks(ctx, owner, func(asks []ask) []ask { return slices.DeleteFunc(asks, stale) }); err != nil {
			return fmt.Errorf("withdraw requests: %w", err)
		}
	}
	return nil
}

func without(asks []ask, id string) []ask {
	return slices.DeleteFunc(asks, func(x ask) bool { return x.ID == id })
}

// awaitAnswer waits for the answer to one question.
func (c *Cluster) awaitAnswer(ctx context.Context, owner carrick.HostID, id string) (ask, error) {
	var since kvstore.Revision
	for {
		v, err := c.store.Watch(ctx, kvstore.OneKey(keyAsk(owner, c.self)), since)
		c.heard(err)
		if err != nil {
			return ask{}, err
		}
		since = v.Revision
		var r askRecord
		if len(v.Entries) > 0 {
			if r, err = decode[askRecord](v.Entries[0].Key, v.Entries[0].Value); err != nil {
				return ask{}, err
			}
		}
		i := slices.IndexFunc(r.Asks, func(x ask) bool { return x.ID == id })
		switch {
		case i < 0 && since != 0 && len(v.Entries) == 0:
			return ask{}, fmt.Errorf("%w: the question was dropped", ErrRefused)
		case i >= 0 && r.Asks[i].Answer != "":
			return r.Asks[i], nil
		}
		if ctx.Err() != nil {
			return ask{}, ctx.Err()
		}
	}
}

// writeAsks changes what this host asks of another.
func (c *Cluster) writeAsks(ctx context.Context, owner carrick.HostID, change func([]ask) []ask) error {
	key := keyAsk(owner, c.self)
	for attempt := 0; ; attempt++ {
		r, v, err := get[askRecord](ctx, c, key)
		if err != nil {
			return err
		}
		var encErr error
		before := len(r.Asks)
		r.V, r.Asks = schema, change(slices.Clone(r.Asks))
		if len(r.Asks) == before && before == 0 {
			return nil
		}
		t := (&kvstore.Txn{}).Version(key, v)
		if len(r.Asks) == 0 {
			t.Delete(key)
		} else {
			put(t, &encErr, key, &r)
		}
		if encErr != nil {
			return encErr
		}
		_, err = c.commit(ctx, t)
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= createTries {
			return err
		}
	}
}
