package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// registerEvery is how often a host that is not registered tries, at least.
const registerEvery = 2 * time.Second

// registerUntilDone registers this host, waiting for the store as long as it
// takes. Only an identity conflict ends it with an error.
func (c *Cluster) registerUntilDone(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := c.enrol(ctx)
		if errors.Is(err, ErrIdentity) {
			return c.lastWords(ctx, err)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.mu.Lock()
		c.regErr = err
		c.mu.Unlock()
		if attempt == 0 {
			close(c.refused)
			c.log.Warn("not registered with the store yet, trying on", "store", c.store, "err", err)
		}
		if err := backoff(ctx, attempt, registerEvery); err != nil {
			return err
		}
	}
}

// lastWords returns an error that ends the agent. A fenced host's kernel is to hear
// of the fence before that: nobody would cut its containers off afterwards.
func (c *Cluster) lastWords(ctx context.Context, err error) error {
	if c.jr.Meta().Fenced {
		_ = wait(ctx, fenceTime)
	}
	return err
}

// fenceTime is enough for the kernel to be brought in line with a fence.
const fenceTime = 10 * time.Second

// enrol registers the host and makes it take part in the store's epoch, whatever
// that is.
func (c *Cluster) enrol(ctx context.Context) error {
	known := c.seenEpoch()
	r, v, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil {
		return err
	}
	switch judge(known, r, v) {
	case epochNew, epochFine:
		if err := c.register(ctx); err != nil {
			return err
		}
	case epochLost, epochForeign: // look registers when it is time to
	}
	_, err = c.look(ctx)
	if errors.Is(err, ErrRecovering) || err != nil && c.seenEpoch() != (journal.Epoch{}) && !errors.Is(err, ErrIdentity) && !IsUnavailable(err) {
		// The host is known; watchEpoch goes on with what is left.
		c.log.Warn("epoch of the store not settled yet", "err", err)
		return nil
	}
	return err
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
	known := c.seenEpoch()
	epoch, epochVersion, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil {
		return err
	}
	if epochVersion == 0 && known == (journal.Epoch{}) {
		// The very first host. One that remembers an epoch starts a recovery instead.
		epoch = epochRecord{Inc: string(carrick.NewHostID()), Num: 1}.next()
		t.Absent(keyEpoch)
		put(t, &encErr, keyEpoch, &epoch)
	}
	removed, removedVersion, err := get[removedRecord](ctx, c, keyRemoved(c.self))
	if err != nil {
		return err
	}
	if removedVersion != 0 {
		// It may register again, and is held back until it has regained what it had.
		if err := c.fence(removed.Host.Life); err != nil {
			return err
		}
		t.Version(keyRemoved(c.self), removedVersion).Delete(keyRemoved(c.self))
	}
	if err := c.moveIn(ctx, t, &encErr); err != nil {
		return err
	}
	old, oldVersion, err := get[hostRecord](ctx, c, keyHost(c.self))
	if err != nil {
		return err
	}
	if err := c.refuseTwin(ctx, old); err != nil {
		return err
	}
	if err := c.claim(ctx, t, &encErr, epoch, keyName(c.cfg.Name), "name "+c.cfg.Name, "--node"); err != nil {
		return err
	}
	if err := c.claim(ctx, t, &encErr, epoch, keyVTEP(c.cfg.VTEP), "VTEP address "+c.cfg.VTEP.String(), "--advertise"); err != nil {
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
	rec := &hostRecord{envelope: envelope{schema}, Num: epoch.Num, Host: c.SelfHost(), Machine: c.cfg.Machine, Grace: c.cfg.Grace}
	t.Version(keyHost(c.self), oldVersion)
	put(t, &encErr, keyHost(c.self), rec)
	if encErr != nil {
		return encErr
	}
	if _, err = c.commit(ctx, t); err != nil {
		return err
	}
	select {
	case c.announceAgain <- struct{}{}:
	default:
	}
	return c.jr.Update(func(tx *journal.Tx) error {
		m := tx.Meta()
		m.Registered = true
		tx.SetMeta(m)
		return nil
	})
}

// claim adds to t the claim of a name or address for this host, or returns
// [ErrIdentity] naming both hosts if another holds it. What a holder has not written
// again in a recovery is of the past, and may have become this host's since.
func (c *Cluster) claim(ctx context.Context, t *kvstore.Txn, encErr *error, epoch epochRecord, key, what, option string) error {
	held, version, err := get[holderRecord](ctx, c, key)
	if err != nil {
		return err
	}
	if version != 0 && held.Host != c.self && !epoch.Recovering.IsZero() && c.jr.Meta().Registered {
		other, otherVersion, err := get[hostRecord](ctx, c, keyHost(held.Host))
		if err != nil {
			return err
		}
		if other.Num < epoch.Num {
			t.Version(keyHost(held.Host), otherVersion).Version(key, version)
			put(t, encErr, key, &holderRecord{envelope{schema}, c.self})
			return nil
		}
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

// watchHosts keeps the list of hosts. It only ever learns: a record that is gone
// or cannot be read any more means that the store lost something or was written
// by a newer agent, and is no reason to cut off that host's containers.
func (c *Cluster) watchHosts(ctx context.Context) error {
	return c.watch(ctx, kvstore.Under(prefixHosts), func(v kvstore.View) error {
		if err := c.membership.Acquire(ctx, 1); err != nil {
			return err
		}
		defer c.membership.Release(1)
		hosts := map[carrick.HostID]carrick.Host{}
		graces := map[carrick.HostID]time.Duration{}
		for _, e := range v.Entries {
			r, err := decode[hostRecord](e.Key, e.Value)
			if err != nil {
				c.log.Error("host record ignored", "err", err)
				continue
			}
			hosts[r.ID], graces[r.ID] = r.Host, r.Grace
		}
		if err := c.rememberHosts(hosts); err != nil {
			return err
		}
		c.mu.Lock()
		maps.Copy(c.hosts, hosts)
		c.graces, c.present = graces, hosts
		var gone []carrick.Host
		for id, r := range c.removing {
			if _, ok := hosts[id]; !ok && id != c.self {
				gone = append(gone, r.Host)
			}
		}
		if !c.hostsOK {
			c.hostsOK = true
			close(c.hostsRead)
		}
		c.mu.Unlock()
		for _, h := range gone {
			if err := c.forgetHost(h); err != nil {
				return err
			}
		}
		c.changedAll()
		return nil
	})
}

// rememberHosts puts into the journal what is new about other hosts. A recovery
// waits for everybody who is there.
func (c *Cluster) rememberHosts(hosts map[carrick.HostID]carrick.Host) error {
	known, removed := c.jr.Hosts(), c.jr.Removed()
	news := maps.Clone(hosts)
	delete(news, c.self)
	maps.DeleteFunc(news, func(id carrick.HostID, h carrick.Host) bool {
		was, gone := removed[id]
		return known[id] == h || gone && was.Life >= h.Life // of before its removal
	})
	if len(news) == 0 {
		return nil
	}
	return c.jr.Update(func(tx *journal.Tx) error {
		for _, h := range news {
			tx.PutHost(journal.Host{Host: h})
		}
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
// while: what fn could not use may have been replaced by then. It is read again as
// well when this host enters another incarnation of the store: revisions of a lost
// past say nothing, and a store that grew again may show any of them.
func (c *Cluster) watch(ctx context.Context, sel kvstore.Selector, fn func(kvstore.View) error) error {
	var since kvstore.Revision
	for attempt := 0; ; {
		past, err := c.watchOnce(ctx, sel, &since, fn)
		if ctx.Err() != nil {
			return nil
		}
		if past {
			since = 0
			continue
		}
		if err != nil {
			// The store may have gone back meanwhile, and the revision be another state's.
			since = 0
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

// watchOnce waits for one state. past means that the store it waited for is
// another one by now.
func (c *Cluster) watchOnce(ctx context.Context, sel kvstore.Selector, since *kvstore.Revision, fn func(kvstore.View) error) (past bool, err error) {
	c.mu.Lock()
	incarnation := c.incarnation
	c.mu.Unlock()
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(incarnation, cancel)()
	v, err := c.store.Watch(wctx, sel, *since)
	if incarnation.Err() != nil {
		return true, nil
	}
	c.heard(err)
	if err != nil || v.Revision == *since || ctx.Err() != nil {
		return false, err
	}
	if err := fn(v); err != nil {
		return false, err
	}
	*since = v.Revision
	return false, nil
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
	c.mu.Lock()
	mtu := c.mtu
	c.mu.Unlock()
	return carrick.Host{ID: c.self, Name: c.cfg.Name, VTEP: c.cfg.VTEP, MTU: mtu, Version: c.cfg.Version, Probes: c.cfg.Probes, Life: c.jr.Meta().Life, Alive: true}
}
