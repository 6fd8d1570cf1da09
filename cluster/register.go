package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// registerUntilDone registers this host, waiting for the store as long as it
// takes. Only an identity conflict ends it with an error.
func (c *Cluster) registerUntilDone(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := c.register(ctx)
		if err == nil || errors.Is(err, ErrIdentity) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.mu.Lock()
		c.regErr = err
		c.mu.Unlock()
		if attempt == 0 {
			c.log.Warn("not registered with the store yet, trying on", "store", c.store, "err", err)
		}
		if err := backoff(ctx, attempt, 2*time.Second); err != nil {
			return err
		}
	}
}

// register writes this host's record and its claims on its name and its VTEP
// address, in one transaction, after checking that no other host holds them.
func (c *Cluster) register(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := c.tryRegister(ctx)
		if !errors.Is(err, kvstore.ErrConflict) {
			return err
		}
		if err := backoff(ctx, attempt, time.Second); err != nil {
			return err
		}
	}
}

func (c *Cluster) tryRegister(ctx context.Context) error {
	var encErr error
	t := &kvstore.Txn{}
	_, incVersion, err := get[incarnationRecord](ctx, c, keyIncarnation)
	if err != nil {
		return err
	}
	if incVersion == 0 {
		t.Absent(keyIncarnation)
		put(t, &encErr, keyIncarnation, &incarnationRecord{envelope{schema}, string(carrick.NewHostID())})
	}
	old, oldVersion, err := get[hostRecord](ctx, c, keyHost(c.self))
	if err != nil {
		return err
	}
	if err := c.refuseTwin(ctx, old); err != nil {
		return err
	}
	if err := c.claim(ctx, t, &encErr, keyName(c.cfg.Name), "name "+c.cfg.Name, "--node"); err != nil {
		return err
	}
	if err := c.claim(ctx, t, &encErr, keyVTEP(c.cfg.VTEP), "VTEP address "+c.cfg.VTEP.String(), "--advertise"); err != nil {
		return err
	}
	// What this host held before and no longer uses.
	if oldVersion != 0 && old.Name != c.cfg.Name {
		if err := c.unclaim(ctx, t, keyName(old.Name)); err != nil {
			return err
		}
	}
	if oldVersion != 0 && old.VTEP != c.cfg.VTEP {
		if err := c.unclaim(ctx, t, keyVTEP(old.VTEP)); err != nil {
			return err
		}
	}
	rec := &hostRecord{envelope{schema}, carrick.Host{
		ID: c.self, Name: c.cfg.Name, VTEP: c.cfg.VTEP, MTU: c.cfg.MTU, Version: c.cfg.Version,
	}, c.cfg.Machine}
	t.Version(keyHost(c.self), oldVersion)
	put(t, &encErr, keyHost(c.self), rec)
	if encErr != nil {
		return encErr
	}
	_, err = c.commit(ctx, t)
	return err
}

// claim adds to t the claim of a name or address for this host, or returns
// [ErrIdentity] naming both hosts if another holds it.
func (c *Cluster) claim(ctx context.Context, t *kvstore.Txn, encErr *error, key, what, option string) error {
	held, version, err := get[holderRecord](ctx, c, key)
	if err != nil {
		return err
	}
	if version != 0 && held.Host != c.self {
		return fmt.Errorf("%w: %s of this host (%s, id %s) is held by %s: give this one another with %s, or restore its state directory if it is the same machine",
			ErrIdentity, what, c.cfg.Name, c.self, c.describe(ctx, held.Host), option)
	}
	t.Version(key, version)
	put(t, encErr, key, &holderRecord{envelope{schema}, c.self})
	return nil
}

// unclaim adds to t the end of a claim, if it is still this host's.
func (c *Cluster) unclaim(ctx context.Context, t *kvstore.Txn, key string) error {
	held, version, err := get[holderRecord](ctx, c, key)
	if err != nil || version == 0 || held.Host != c.self {
		return err
	}
	t.Version(key, version).Delete(key)
	return nil
}

// describe names another host for an error message; best effort.
func (c *Cluster) describe(ctx context.Context, id carrick.HostID) string {
	h, version, err := get[hostRecord](ctx, c, keyHost(id))
	if err != nil || version == 0 {
		return "host id " + string(id)
	}
	state := "not alive now"
	if _, v, err := get[nodeRecord](ctx, c, keyNode(id)); err == nil && v != 0 {
		state = "alive"
	}
	return fmt.Sprintf("host %s (id %s, VTEP %s, %s)", h.Name, id, h.VTEP, state)
}

// refuseTwin refuses to run beside a living agent with this host's identity on
// another machine: two disks copied from one. The living one is recognised by
// its lease together with a machine-id or an address that is not ours.
func (c *Cluster) refuseTwin(ctx context.Context, old hostRecord) error {
	live, version, err := get[nodeRecord](ctx, c, keyNode(c.self))
	if err != nil || version == 0 {
		return err
	}
	sameMachine := live.Machine == c.cfg.Machine
	if sameMachine && (live.Boot == c.cfg.Boot || live.VTEP == c.cfg.VTEP) {
		return nil // ours, of before this restart or reboot
	}
	return fmt.Errorf("%w: id %s (%s) is in use by a living agent at VTEP %s on machine-id %s, this is VTEP %s on machine-id %s: "+
		"the state directory was copied; remove this one's so that it becomes a host of its own (or wait %s if the host just changed its address)",
		ErrIdentity, c.self, old.Name, live.VTEP, live.Machine, c.cfg.VTEP, c.cfg.Machine, 2*c.cfg.LeaseTTL)
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
			select {
			case <-ctx.Done():
				// A clean stop ends the lease at once. The agent's own context is over.
				cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
				err := lease.Close(cctx)
				cancel()
				if err != nil {
					c.log.Debug("could not end the liveness lease; it will expire", "err", err)
				}
				return nil
			case <-lease.Lost():
				c.log.Warn("liveness lease lost, announcing again")
				continue
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

func (c *Cluster) announce(ctx context.Context) (kvstore.Lease, error) {
	lease, err := c.store.Lease(ctx, c.cfg.LeaseTTL)
	c.heard(err)
	if err != nil {
		return nil, err
	}
	var encErr error
	raw, encErr := encode(&nodeRecord{envelope{schema}, c.self, c.cfg.Machine, c.cfg.VTEP, c.cfg.Boot})
	if encErr != nil {
		return nil, encErr
	}
	// This takes the key over from an earlier run's lease, whose expiry then does
	// not take it away.
	if _, err = c.commit(ctx, (&kvstore.Txn{}).PutLeased(keyNode(c.self), raw, lease.ID())); err != nil {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(err, lease.Close(cctx))
	}
	return lease, nil
}

// watchHosts keeps the list of hosts. It only ever learns: a record that is gone
// or cannot be read any more means that the store lost something or was written
// by a newer agent, and is no reason to cut off that host's containers.
func (c *Cluster) watchHosts(ctx context.Context) error {
	return c.watch(ctx, kvstore.Under(prefixHosts), func(v kvstore.View) error {
		c.mu.Lock()
		hosts := maps.Clone(c.hosts)
		c.mu.Unlock()
		for _, e := range v.Entries {
			r, err := decode[hostRecord](e.Key, e.Value)
			if err != nil {
				c.log.Error("host record ignored", "err", err)
				continue
			}
			hosts[r.ID] = r.Host
		}
		c.mu.Lock()
		c.hosts = hosts
		if !c.hostsOK {
			c.hostsOK = true
			close(c.hostsRead)
		}
		c.mu.Unlock()
		c.changedAll()
		return nil
	})
}

func (c *Cluster) watchNodes(ctx context.Context) error {
	return c.watch(ctx, kvstore.Under(prefixNodes), func(v kvstore.View) error {
		alive := map[carrick.HostID]bool{}
		for _, e := range v.Entries {
			if r, err := decode[nodeRecord](e.Key, e.Value); err == nil {
				alive[r.Host] = true
			}
		}
		c.mu.Lock()
		c.alive, c.aliveOK = alive, true
		c.mu.Unlock()
		return nil
	})
}

func (c *Cluster) changedAll() {
	c.mu.Lock()
	ids := make([]carrick.NetworkID, 0, len(c.nets))
	for id := range c.nets {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	for _, id := range ids {
		c.changed(id)
	}
}

// watch calls fn with every state of a selection, the first one included, until
// ctx ends. If fn fails the selection is read again from its beginning, after a
// while: what fn could not use may have been replaced by then.
func (c *Cluster) watch(ctx context.Context, sel kvstore.Selector, fn func(kvstore.View) error) error {
	var since kvstore.Revision
	for attempt := 0; ; {
		v, err := c.store.Watch(ctx, sel, since)
		if ctx.Err() != nil {
			return nil
		}
		c.heard(err)
		if err == nil && v.Revision != since {
			if err = fn(v); err == nil {
				since = v.Revision
			} else {
				since = 0
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if attempt == 0 {
				c.log.Warn("watch interrupted", "keys", sel, "err", err)
			}
			attempt++
			if backoff(ctx, attempt, 2*time.Second) != nil {
				return nil
			}
			continue
		}
		if attempt > 0 {
			c.log.Info("watch goes on", "keys", sel)
		}
		attempt = 0
	}
}

// Hosts returns every host of the cluster as last heard, sorted by name, and
// whether the list was ever read.
func (c *Cluster) Hosts() ([]carrick.Host, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]carrick.Host, 0, len(c.hosts))
	for _, h := range c.hosts {
		h.Alive = c.alive[h.ID]
		out = append(out, h)
	}
	sortHosts(out)
	return out, c.hostsOK && c.aliveOK
}

// SelfHost is this host as configured now, which the store may not know yet.
func (c *Cluster) SelfHost() carrick.Host {
	return carrick.Host{ID: c.self, Name: c.cfg.Name, VTEP: c.cfg.VTEP, MTU: c.cfg.MTU, Version: c.cfg.Version, Alive: true}
}
