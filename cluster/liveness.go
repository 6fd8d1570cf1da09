package cluster

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// uptime is CLOCK_BOOTTIME: it goes on while the machine sleeps, so that a host
// that was suspended knows that its lease is over.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// keepAlive holds the lease and the key that says "this host is alive".
func (c *Cluster) keepAlive(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		lease, err := c.announce(ctx)
		if err == nil {
			if attempt > 0 {
				c.log.Info("liveness announced again")
			}
			attempt = 0
			c.setLeased(true)
			err = c.holdLease(ctx, lease)
			c.setLeased(false)
			if err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if attempt == 0 {
			c.log.Warn("cannot announce liveness", "err", err)
		}
		if backoff(ctx, attempt, 2*time.Second) != nil {
			return nil
		}
	}
}

// holdLease waits until the lease is lost or ctx ends, which is no error.
func (c *Cluster) holdLease(ctx context.Context, lease kvstore.Lease) error {
	for {
		select {
		case <-ctx.Done():
			// A clean stop ends the lease at once. The agent's own context is over.
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := lease.Close(cctx); err != nil {
				c.log.Debug("could not end the liveness lease; it will expire", "err", err)
			}
			return nil
		case <-lease.Lost():
			return kvstore.ErrLeaseLost
		case <-c.announceAgain:
			if err := c.announceWith(ctx, lease); err != nil {
				cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				return errors.Join(err, lease.Close(cctx))
			}
		}
	}
}

func (c *Cluster) announce(ctx context.Context) (kvstore.Lease, error) {
	lease, err := c.store.Lease(ctx, c.cfg.LeaseTTL)
	c.heard(err)
	if err != nil {
		return nil, err
	}
	if err := c.announceWith(ctx, lease); err != nil {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(err, lease.Close(cctx))
	}
	return lease, nil
}

// announceWith takes the key over from an earlier run's lease, whose expiry then
// does not take it away.
func (c *Cluster) announceWith(ctx context.Context, lease kvstore.Lease) error {
	raw, err := encode(&nodeRecord{envelope{schema}, c.self, c.cfg.Machine, c.cfg.VTEP, c.cfg.Boot})
	if err != nil {
		return err
	}
	_, err = c.commit(ctx, (&kvstore.Txn{}).PutLeased(keyNode(c.self), raw, lease.ID()))
	return err
}

func (c *Cluster) setLeased(held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leased && !held {
		c.ended = c.cfg.Uptime()
	}
	c.leased = held
}

// mindGrace gives up what others may take: allocation at half of the grace, the
// endpoints before it ends. What this host counts from is never later than what
// they do: its lease ended here before it ended in the store. last is the journal's
// from before this run: by now it may have registered for the first time.
func (c *Cluster) mindGrace(ctx context.Context, last journal.Meta) error {
	if c.cfg.Grace == 0 {
		return nil
	}
	c.mu.Lock()
	switch c.ended = last.Leased; {
	case !last.Registered:
		c.ended = c.cfg.Uptime() // nothing of it can be anybody else's before it had a lease
	case last.Boot != c.cfg.Boot:
		c.ended = -c.cfg.Grace // a reboot counts as expired
	}
	c.mu.Unlock()
	tick := time.NewTicker(max(c.cfg.Grace/40, 10*time.Millisecond))
	defer tick.Stop()
	for {
		c.mu.Lock()
		leased, since := c.leased, c.cfg.Uptime()-c.ended
		c.mu.Unlock()
		held := c.jr.Meta()
		var err error
		switch {
		case leased && (held.Boot != c.cfg.Boot || c.cfg.Uptime()-held.Leased > c.cfg.Grace/10):
			err = c.jr.Update(func(tx *journal.Tx) error {
				m := tx.Meta()
				m.Boot, m.Leased = c.cfg.Boot, c.cfg.Uptime()
				tx.SetMeta(m)
				return nil
			})
		case !leased && held.Registered && since >= c.cfg.Grace*9/10:
			err = c.holdBack(true)
		case !leased && held.Registered && since >= c.cfg.Grace/2:
			err = c.holdBack(false)
		}
		if err != nil {
			c.log.Error("grace not minded", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watchNodes keeps track of who is alive. A lease seen to end makes its host lost
// at once; after an interruption or a recovery, when its end was not seen, absence
// counts only after a whole lease time.
func (c *Cluster) watchNodes(ctx context.Context) error {
	again := make(chan map[carrick.HostID]bool, 1)
	c.mu.Lock()
	missed := c.missed
	c.mu.Unlock()
	c.spawn(func() error { return c.countAbsence(ctx, again) })
	before := map[carrick.HostID]bool{}
	return c.watch(ctx, kvstore.Under(prefixNodes), func(v kvstore.View) error {
		present := map[carrick.HostID]bool{}
		for _, e := range v.Entries {
			if r, err := decode[nodeRecord](e.Key, e.Value); err == nil {
				present[r.Host] = true
			}
		}
		c.mu.Lock()
		smooth := c.missed == missed && c.recovering.IsZero() && c.aliveOK
		missed = c.missed
		for h := range before {
			if !present[h] && smooth {
				c.absent[h] = time.Now().Add(-2 * c.cfg.LeaseTTL) // seen to end
			}
		}
		c.mu.Unlock()
		before = present
		c.setAlive(present)
		select {
		case <-again:
		default:
		}
		again <- present
		return nil
	})
}

// countAbsence looks again at who is absent when a lease time may be over.
func (c *Cluster) countAbsence(ctx context.Context, views <-chan map[carrick.HostID]bool) error {
	var present map[carrick.HostID]bool
	tick := time.NewTicker(max(c.cfg.LeaseTTL/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case present = <-views:
		case <-tick.C:
			if present != nil {
				c.setAlive(present)
				c.removeExpired(ctx)
			}
		}
	}
}

// setAlive takes over who is present in the store.
func (c *Cluster) setAlive(present map[carrick.HostID]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.contact) >= c.cfg.LeaseTTL {
		c.unheard = time.Now()
	}
	alive := map[carrick.HostID]bool{}
	for h := range present {
		alive[h] = true
		delete(c.absent, h)
	}
	for h := range c.hosts {
		if present[h] {
			continue
		}
		if _, ok := c.absent[h]; !ok || c.lastErr != nil || !c.recovering.IsZero() {
			if old, ok := c.absent[h]; !ok || time.Since(old) < c.cfg.LeaseTTL {
				c.absent[h] = time.Now()
			}
		}
		if time.Since(c.absent[h]) < c.cfg.LeaseTTL && (c.alive[h] || !c.aliveOK) {
			alive[h] = true
		}
	}
	c.alive, c.aliveOK = alive, true
}

// removeExpired removes hosts that allow it and have been lost for the whole of
// their grace, which counts from when this host last heard nothing for so long that
// they may have been back meanwhile.
func (c *Cluster) removeExpired(ctx context.Context) {
	c.mu.Lock()
	var expired []carrick.HostID
	for h, since := range c.absent {
		g := c.graces[h]
		if g == 0 || c.alive[h] || c.lastErr != nil || h == c.self {
			continue
		}
		if _, ok := c.removing[h]; !ok && time.Since(since) > g+3*c.cfg.LeaseTTL && time.Since(c.unheard) > g+3*c.cfg.LeaseTTL {
			expired = append(expired, h)
		}
	}
	c.mu.Unlock()
	for _, h := range expired {
		c.log.Warn("removing a host that was lost for longer than its grace", "host", c.HostName(h))
		if _, err := c.RemoveHost(ctx, string(h), false); err != nil {
			c.log.Warn("host not removed", "err", err)
		}
	}
}
