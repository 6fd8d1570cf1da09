package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// An address that moves with its container is borrowed by one host after the other.
// A borrower keeps it for a while after its last use, lest a restart has to ask
// again; when the owner wants it back, for itself or for a third host, it says so.

// ErrKept: a borrowed address is not given back, because it is in use or the borrower
// could not be asked.
var ErrKept = errors.New("address not given back")

// Reclaim asks the borrower of an address of this host's block to give it back, and
// returns when it is back or why it is not: [ErrKept] if it is in use there or the
// borrower cannot be asked, or the store's error. An address that is not lent is back.
func (c *Cluster) Reclaim(ctx context.Context, id carrick.NetworkID, pool netip.Prefix, addr netip.Addr) error {
	rec, err := c.jr.Network(id)
	if err != nil {
		return err
	}
	borrower := c.lentTo(id, addr)
	if borrower == "" {
		return nil
	}
	if _, err := c.askOne(ctx, borrower, rec.Conf, ask{Network: id, Pool: pool, Addr: addr, Back: true}); err != nil {
		return err
	}
	// The return comes as a request of the borrower's, like any other.
	wctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	for attempt := 0; c.lentTo(id, addr) == borrower; attempt++ {
		if err := backoff(wctx, min(attempt, 2), 100*time.Millisecond); err != nil {
			return fmt.Errorf("%w: host %s has given it back, and it has not arrived within %s: try again", ErrKept, c.HostName(borrower), askLimit)
		}
	}
	return nil
}

// lentTo is who has borrowed an address of this host, "" if nobody has.
func (c *Cluster) lentTo(id carrick.NetworkID, addr netip.Addr) carrick.HostID {
	l := c.jr.Leases(id)[addr]
	if l.Released != 0 {
		return ""
	}
	return l.Lent
}

// reclaim is an address that is being asked back for a third host.
type reclaim struct {
	done bool
	err  error
	at   time.Time // of its end
}

// reclaimLimit is how long that may take: less than whoever asks waits, or he would hear
// that the owner does not answer, and not who it was that did not.
const reclaimLimit = askLimit - askLimit/6

// errReclaiming: the borrower of an address is being asked for it.
var errReclaiming = errors.New("its borrower is asked for it")

// reclaimFor asks an address back in the background, since the return itself comes
// the way that this question came. Until that has ended it returns errReclaiming, and
// then once what came of it. That is for this question only: it may be granted before
// what came of it is looked at, and by the next question somebody else has the address.
func (c *Cluster) reclaimFor(q ask) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.reclaims, func(_ string, r *reclaim) bool { // for which nobody came
		return r.done && time.Since(r.at) >= askLimit
	})
	r := c.reclaims[q.ID]
	if r != nil && r.done {
		delete(c.reclaims, q.ID)
		return r.err
	}
	if r != nil || c.run == nil {
		return errReclaiming
	}
	r = &reclaim{}
	c.reclaims[q.ID] = r
	run := c.run
	run.group.Go(func() error {
		ctx, cancel := context.WithTimeout(run.ctx, reclaimLimit)
		defer cancel()
		err := c.Reclaim(ctx, q.Network, q.Pool, q.Addr)
		c.mu.Lock()
		r.done, r.err, r.at = true, err, time.Now()
		c.mu.Unlock()
		select {
		case c.askAgain <- struct{}{}:
		default:
		}
		return nil
	})
	return errReclaiming
}

// yield gives a borrowed address back to its owner, who asks for it, unless it is in
// use, and answers.
func (c *Cluster) yield(ctx context.Context, owner carrick.HostID, q ask) error {
	if c.jr.Meta().Fenced {
		return errors.New("this host has not regained its own addresses")
	}
	reason, err := c.letGo(ctx, owner, q)
	if err != nil {
		return err
	}
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, _ uint32) error {
		key := keyAsk(c.self, owner)
		r, v, err := get[askRecord](ctx, c, key)
		i := slices.IndexFunc(r.Asks, func(x ask) bool { return x.ID == q.ID })
		if err != nil || i < 0 || r.Asks[i].Answer != "" {
			return err // withdrawn
		}
		r.Asks = slices.Clone(r.Asks)
		r.Asks[i].Answer = granted
		if reason != "" {
			r.Asks[i].Answer, r.Asks[i].Reason = refused, reason
		}
		var encErr error
		t.Version(key, v)
		put(t, &encErr, key, &r)
		return encErr
	})
	return err
}

// letGo gives a borrowed address up and tells the store, or says why not. One that
// is not here has been given back before.
func (c *Cluster) letGo(ctx context.Context, owner carrick.HostID, q ask) (reason string, err error) {
	b := netip.PrefixFrom(q.Addr, q.Addr.BitLen())
	if err := c.giveUp(q.Network, b); err != nil {
		return "", err
	}
	rec, err := c.jr.Network(q.Network)
	if err != nil {
		return "", nil //nolint:nilerr // the network was left, and the address with it
	}
	if slices.Contains(rec.Blocks, b) {
		return inUse(q.Addr, c.jr.Leases(q.Network)[q.Addr]), nil
	}
	if i := slices.IndexFunc(rec.Freeing, func(f journal.Freed) bool { return f.Block == b }); i >= 0 {
		if err := c.free(ctx, rec.Conf, rec.Freeing[i]); err != nil {
			return "", err
		}
		c.log.Info("borrowed address given back, as its owner asks", "network", rec.Conf.Label(), "addr", q.Addr, "owner", c.HostName(owner))
	}
	return "", nil
}
