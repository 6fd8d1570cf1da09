package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// Sentinel errors of removing a host.
var (
	// ErrAlive: the host to be removed has renewed its lease.
	ErrAlive = errors.New("host is alive")
	// ErrFenced: this host was removed, or could not renew its lease for longer than
	// its grace allows, and may not give out addresses until it has regained its own.
	ErrFenced = errors.New("this host is fenced: it has not regained its addresses (carrick status)")
	// ErrUnknownHost: no such host.
	ErrUnknownHost = errors.New("no such host")
)

// Removed says what the removal of a host freed.
type Removed struct {
	Host      carrick.Host
	Networks  int // it had an alias of
	Blocks    int // freed; others may claim them when they have rested
	Endpoints int // withdrawn
	// Later: the store is recovering; what the host had is freed when that is over.
	Later bool
}

// RemoveHost takes a host, by name or id, out of the cluster: its record, name,
// address and endpoints go, its blocks become free after their rest. If it comes
// back it is fenced until it has regained its addresses. Errors: [ErrUnknownHost],
// [ErrAlive] unless forced, the store's. Removing again finishes what an
// interrupted removal left.
func (c *Cluster) RemoveHost(ctx context.Context, ref string, force bool) (Removed, error) {
	host, err := c.findHost(ctx, ref)
	if err != nil {
		return Removed{}, err
	}
	if host.ID == c.self {
		return Removed{}, fmt.Errorf("remove host %s: it is this one: stop its agent and remove it from another", ref)
	}
	out := Removed{Host: host}
	for attempt := 0; ; attempt++ {
		out.Later, err = c.tryRemove(ctx, host, force)
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= structuralTries {
			break
		}
		if err := backoff(ctx, min(attempt, 4), 200*time.Millisecond); err != nil {
			return Removed{}, err
		}
	}
	if err != nil {
		return Removed{}, fmt.Errorf("remove host %s: %w", host.Name, err)
	}
	if out.Later {
		c.suspect() // the recovery may have waited for it alone
		return out, nil
	}
	if err := c.purge(ctx, host.ID, &out); err != nil {
		return out, fmt.Errorf("host %s is removed; freeing what it had goes on in the background: %w", host.Name, err)
	}
	return out, nil
}

// findHost resolves a name or an id, also of a host that only this one remembers.
func (c *Cluster) findHost(ctx context.Context, ref string) (carrick.Host, error) {
	if carrick.ValidID(ref) {
		id := carrick.HostID(ref)
		r, v, err := get[hostRecord](ctx, c, keyHost(id))
		if err != nil {
			return carrick.Host{}, err
		}
		if v != 0 {
			return r.Host, nil
		}
		if r, v, err := get[removedRecord](ctx, c, keyRemoved(id)); err != nil || v != 0 {
			return r.Host, err
		}
		if h, ok := c.jr.Hosts()[id]; ok {
			return h, nil
		}
	}
	held, v, err := get[holderRecord](ctx, c, keyName(ref))
	if err != nil {
		return carrick.Host{}, err
	}
	if v != 0 {
		r, v, err := get[hostRecord](ctx, c, keyHost(held.Host))
		if err != nil || v != 0 {
			return r.Host, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		if h.Name == ref {
			return h, nil
		}
	}
	for _, r := range c.removing {
		if r.Host.Name == ref {
			return r.Host, nil
		}
	}
	return carrick.Host{}, fmt.Errorf("host %q: %w: carrick node ls shows those there are", ref, ErrUnknownHost)
}

// tryRemove writes that a host is removed, in any state of the epoch.
func (c *Cluster) tryRemove(ctx context.Context, h carrick.Host, force bool) (later bool, err error) {
	known := c.seenEpoch()
	r, version, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil {
		return false, err
	}
	if j := judge(known, r, version); j != epochFine {
		c.suspect()
		return false, fmt.Errorf("%w: it was just noticed, try again", ErrRecovering)
	}
	var encErr error
	t := (&kvstore.Txn{}).Version(keyEpoch, version)
	_, nodeVer, err := get[nodeRecord](ctx, c, keyNode(h.ID))
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	alive := nodeVer != 0 || c.alive[h.ID]
	c.mu.Unlock()
	if alive && !force {
		return false, fmt.Errorf("%w (or was less than %s ago): stop its agent first, or use --force, which cuts its containers off the network", ErrAlive, 2*c.cfg.LeaseTTL)
	}
	if !force {
		t.Absent(keyNode(h.ID)) // or it comes back at this moment
	}
	rec, recVer, err := get[hostRecord](ctx, c, keyHost(h.ID))
	if err != nil {
		return false, err
	}
	_, removedVer, err := get[removedRecord](ctx, c, keyRemoved(h.ID))
	if err != nil {
		return false, err
	}
	t.Version(keyHost(h.ID), recVer).Version(keyRemoved(h.ID), removedVer)
	if recVer != 0 {
		t.Delete(keyHost(h.ID))
		for _, key := range []string{keyName(rec.Name), keyVTEP(rec.VTEP)} {
			held, v, err := get[holderRecord](ctx, c, key)
			if err != nil {
				return false, err
			}
			if v != 0 && held.Host == h.ID {
				t.Version(key, v).Delete(key)
			}
		}
	}
	if nodeVer != 0 {
		t.Delete(keyNode(h.ID))
	}
	if recVer != 0 {
		h = rec.Host
	} else {
		h.Life += unknownLives
	}
	put(t, &encErr, keyRemoved(h.ID), &removedRecord{envelope: envelope{schema}, Host: h, At: time.Now().UTC()})
	later = !r.Recovering.IsZero()
	next := r.next()
	if later {
		t.Delete(keyRecovery(h.ID))
	} else {
		put(t, &encErr, keyEpoch, &next)
	}
	if encErr != nil {
		return false, encErr
	}
	if _, err := c.commit(ctx, t); err != nil {
		return false, err
	}
	if !later {
		c.sawEpoch(next)
	}
	return later, nil
}

// forgetHost drops a removed host from what this one knows, unless it has been heard
// of in a later life: then it is the store that has forgotten its return.
func (c *Cluster) forgetHost(h carrick.Host) error {
	id := h.ID
	if c.jr.Hosts()[id].Life > h.Life {
		return nil
	}
	if old, ok := c.jr.Removed()[id]; !ok || old.Life < h.Life {
		err := c.jr.Update(func(tx *journal.Tx) error {
			tx.PutHost(journal.Host{Host: h, Removed: true})
			return nil
		})
		if err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.hosts, id)
	delete(c.alive, id)
	delete(c.absent, id)
	delete(c.graces, id)
	return nil
}

// purge frees everything a removed host has in the store. It may be done by
// several hosts, and again.
func (c *Cluster) purge(ctx context.Context, id carrick.HostID, out *Removed) error {
	nets, err := c.StoredNetworks(ctx)
	if err != nil {
		return err
	}
	for _, n := range nets {
		for more := true; more; {
			if more, err = c.purgeNetwork(ctx, n, id, out); err != nil {
				return fmt.Errorf("network %s: %w", n.Label(), err)
			}
		}
	}
	v, err := c.store.List(ctx, kvstore.Under(prefixAsksOf(id)))
	c.heard(err)
	if err != nil {
		return err
	}
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, _ uint32) error {
		r, ver, err := get[removedRecord](ctx, c, keyRemoved(id))
		if err != nil || ver == 0 || r.Done {
			return err // back already, or done by somebody else
		}
		var encErr error
		r.Done = true
		t.Version(keyRemoved(id), ver)
		put(t, &encErr, keyRemoved(id), &r)
		t.Delete(resident(prefixAsksOf(id)))
		for i, e := range v.Entries {
			if i == blocksPerTxn {
				break // whoever asks a host that is gone withdraws it
			}
			t.Delete(e.Key)
		}
		return encErr
	})
	return err
}

// purgeNetwork frees what a removed host has in one network, as much as fits into
// a transaction, and says whether there is more.
func (c *Cluster) purgeNetwork(ctx context.Context, n carrick.Network, id carrick.HostID, out *Removed) (more bool, err error) {
	var freed, withdrawn int
	var had bool
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		more, freed, withdrawn, had = false, 0, 0, false
		if r, v, err := get[removedRecord](ctx, c, keyRemoved(id)); err != nil || v == 0 || r.Done {
			return err // it is back: what it has now is its own
		} else {
			t.Version(keyRemoved(id), v)
		}
		net, err := c.readNetwork(ctx, n.ID)
		if err != nil || net.conf.version == 0 {
			return err
		}
		var encErr error
		gen := carrick.MakeGen(num, 0)
		if eps, ok := net.endpoints[id]; ok {
			withdrawn = len(eps.value.Endpoints)
			for _, e := range eps.value.Endpoints {
				gen = max(gen, e.Gen)
			}
		}
		for b, rec := range net.blocks {
			if rec.value.Host != id {
				continue
			}
			if len(t.Ops) > 60 {
				more = true
				break
			}
			key := keyBlock(n.ID, b)
			t.Version(key, rec.version)
			if owner := net.ownerOf(n, b); borrowed(n, b) && owner != "" && owner != id {
				if err := c.giveBack(ctx, t, &encErr, owner, id, n.ID, b, max(gen, rec.value.Gen)); err != nil {
					return err
				}
				t.Conds = slices.DeleteFunc(t.Conds, func(k kvstore.Cond) bool { return k.Key == key })
				continue
			} else if borrowed(n, b) {
				t.Delete(key)
				continue
			}
			freed++
			put(t, &encErr, key, &blockRecord{envelope: envelope{schema}, Num: num, Gen: max(gen, rec.value.Gen), Until: time.Now().UTC().Add(c.cfg.Rest)})
		}
		alias, ok := net.aliases[id]
		if more || !ok && withdrawn == 0 {
			return encErr
		}
		had = ok
		if ok && len(net.aliases) == 1 {
			// Its last host is gone, and the network with it.
			t.Conds, t.Ops = t.Conds[:2], nil // the epoch, and that it is removed still
			return c.dropNetwork(ctx, t, n, net)
		}
		t.Version(keyMembers(n.ID), net.members.version).Version(keyHead(n.ID), net.head.version)
		if ok {
			t.Version(keyAlias(n.ID, id), alias.version).Delete(keyAlias(n.ID, id))
		}
		net.members.value.V = schema
		net.members.value.Change++
		put(t, &encErr, keyMembers(n.ID), &net.members.value)
		t.Delete(keyNetHost(n.ID, id))
		head := net.head.value
		if err := head.push(num, change{Host: id, Reread: true}); err != nil {
			return err
		}
		put(t, &encErr, keyHead(n.ID), &head)
		return encErr
	})
	if err == nil {
		out.Blocks += freed
		out.Endpoints += withdrawn
		if had {
			out.Networks++
		}
	}
	return more, err
}

// watchRemoved keeps the list of removed hosts, notices this one's own removal,
// and finishes removals that were interrupted.
func (c *Cluster) watchRemoved(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	c.spawn(func() error {
		return c.watchUnder(ctx, prefixRemoved, func(v kvstore.View) error {
			if err := c.membership.Acquire(ctx, 1); err != nil {
				return err
			}
			defer c.membership.Release(1)
			removed := map[carrick.HostID]removedRecord{}
			for _, e := range v.Entries {
				if r, err := decode[removedRecord](e.Key, e.Value); err == nil {
					removed[r.Host.ID] = r
				}
			}
			c.mu.Lock()
			c.removing = removed
			var gone []carrick.Host
			for id, r := range removed {
				if _, ok := c.present[id]; !ok && id != c.self {
					gone = append(gone, r.Host)
				}
			}
			c.mu.Unlock()
			if _, ok := removed[c.self]; ok {
				c.suspect()
			}
			for _, h := range gone {
				if err := c.forgetHost(h); err != nil {
					return err
				}
			}
			select {
			case wake <- struct{}{}:
			default:
			}
			return nil
		})
	})
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	seen := map[carrick.HostID]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-tick.C:
			c.mu.Lock()
			var left []carrick.HostID
			for id, r := range c.removing {
				if !r.Done && id != c.self && c.recovering.IsZero() {
					left = append(left, id)
				}
			}
			c.mu.Unlock()
			for _, id := range left {
				if !seen[id] { // the remover is at it
					seen[id] = true
					continue
				}
				if err := c.purge(ctx, id, &Removed{}); err != nil {
					c.log.Debug("removal not finished yet", "host", id, "err", err)
				}
			}
		}
	}
}

// unknownLives is more often than a host can have come back without being heard
// of. A host is removed in its present life; one whose record is not there, in a
// recovery, may have had more than are known.
const unknownLives = 1 << 20
