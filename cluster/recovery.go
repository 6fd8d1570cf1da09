package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// startRecovery begins a new incarnation, if nobody else does: r at version is the
// store's epoch as just read. The hosts to wait for are written first, so that
// nobody can find the recovery begun and nobody missing.
func (c *Cluster) startRecovery(ctx context.Context, known journal.Epoch, r epochRecord, version kvstore.Revision) error {
	next := epochRecord{
		envelope: envelope{schema}, Inc: string(carrick.NewHostID()), Num: max(known.Num, r.Num, c.number()) + 1,
		Seq: max(known.Seq, r.Seq), Recovering: time.Now().UTC(),
	}.next()
	if err := c.expect(ctx, next, version); err != nil {
		return fmt.Errorf("start the recovery: %w", err)
	}
	var encErr error
	t := (&kvstore.Txn{}).Version(keyEpoch, version)
	put(t, &encErr, keyEpoch, &next)
	if encErr != nil {
		return encErr
	}
	if _, err := c.commit(ctx, t); err != nil {
		return fmt.Errorf("start the recovery: %w", err)
	}
	return nil
}

// expect adds every host that this one's journal knows to those a recovery waits
// for, and every one that the store still knows of from before, while the epoch is
// at version. A host may have come shortly before the loss, and nobody have heard
// of it but the store.
func (c *Cluster) expect(ctx context.Context, r epochRecord, version kvstore.Revision) error {
	v, err := c.store.List(ctx, kvstore.Under(prefixRecovery))
	c.heard(err)
	if err != nil {
		return err
	}
	present := map[carrick.HostID]kvstore.Entry{}
	for _, e := range v.Entries {
		present[carrick.HostID(strings.TrimPrefix(e.Key, prefixRecovery))] = e
	}
	gone, err := c.store.List(ctx, kvstore.Under(prefixRemoved))
	c.heard(err)
	if err != nil {
		return err
	}
	stored, err := c.store.List(ctx, kvstore.Under(prefixHosts))
	c.heard(err)
	if err != nil {
		return err
	}
	known := c.jr.Hosts()
	for _, e := range stored.Entries {
		if h, err := decode[hostRecord](e.Key, e.Value); err == nil && h.Num < r.Num && h.Life >= known[h.ID].Life {
			known[h.ID] = h.Host
		}
	}
	removed := c.jr.Removed()
	for _, e := range gone.Entries {
		if rec, err := decode[removedRecord](e.Key, e.Value); err == nil && rec.Host.Life >= removed[rec.Host.ID].Life {
			removed[rec.Host.ID] = rec.Host
		}
	}
	for id, h := range removed {
		if known[id].Life <= h.Life { // else it has come back since
			delete(known, id) // named as gone for good
		}
	}
	known[c.self] = c.SelfHost()
	var missing []carrick.HostID
	for id := range known {
		e, ok := present[id]
		if ok {
			if rec, err := decode[recoveryRecord](e.Key, e.Value); err == nil && rec.Inc == r.Inc {
				continue
			}
		}
		missing = append(missing, id)
	}
	slices.Sort(missing)
	for chunk := range slices.Chunk(missing, 50) {
		var encErr error
		t := (&kvstore.Txn{}).Version(keyEpoch, version)
		for _, id := range chunk {
			t.Version(keyRecovery(id), present[id].Version)
			put(t, &encErr, keyRecovery(id), &recoveryRecord{envelope: envelope{schema}, Inc: r.Inc})
		}
		if encErr != nil {
			return encErr
		}
		if _, err := c.commit(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// awaited lists the hosts that have not written their part again.
func (c *Cluster) awaited(ctx context.Context, inc string) ([]carrick.HostID, error) {
	v, err := c.store.List(ctx, kvstore.Under(prefixRecovery))
	c.heard(err)
	if err != nil {
		return nil, err
	}
	var out []carrick.HostID
	for _, e := range v.Entries {
		id := carrick.HostID(strings.TrimPrefix(e.Key, prefixRecovery))
		if r, err := decode[recoveryRecord](e.Key, e.Value); err == nil && r.Inc == inc && !r.Done && carrick.ValidID(string(id)) {
			out = append(out, id)
		}
	}
	return out, nil
}

// takePart writes this host's part again under a recovering epoch: who it is, and
// its networks as the journal has them.
func (c *Cluster) takePart(ctx context.Context, r epochRecord) error {
	now, version, err := get[epochRecord](ctx, c, keyEpoch)
	switch {
	case err != nil:
		return err
	case now.Inc != r.Inc || now.Recovering.IsZero():
		return fmt.Errorf("recovery %d: another state of the store now", r.Num)
	}
	if err := c.expect(ctx, r, version); err != nil {
		return fmt.Errorf("recovery %d: name the hosts: %w", r.Num, err)
	}
	if err := c.register(ctx); err != nil {
		return fmt.Errorf("recovery %d: register: %w", r.Num, err)
	}
	if err := c.tellRemoved(ctx, version); err != nil {
		return fmt.Errorf("recovery %d: tell of removed hosts: %w", r.Num, err)
	}
	// From here on stamps and publications carry the new number.
	c.mu.Lock()
	c.writeNum = r.Num
	c.mu.Unlock()
	// What the past has given this host is in the journal by now, or never will be.
	if err := c.jr.Update(func(*journal.Tx) error { return nil }); err != nil {
		return err
	}
	under := c.underEpoch(version, r.Num)
	fenced := c.jr.Meta().Fenced
	for _, n := range c.jr.Networks() {
		// Nobody removes now; it is left when the recovery is over. And what a fenced host
		// has may be another's, who must be the first to say so: it regains what is left.
		if n.Leaving || fenced {
			continue
		}
		err := c.confirm(ctx, n.Conf.ID, under, true)
		if errors.Is(err, errContested) {
			continue // it is told; the rest of the cluster need not wait
		}
		if err != nil {
			return fmt.Errorf("recovery %d: network %s: %w", r.Num, n.Conf.Label(), err)
		}
		if err := c.publishAgain(ctx, n.Conf.ID); err != nil {
			return fmt.Errorf("recovery %d: %w", r.Num, err)
		}
	}
	if err := c.setDone(ctx, r, version); err != nil {
		return fmt.Errorf("recovery %d: %w", r.Num, err)
	}
	if err := c.enterEpoch(now); err != nil {
		return err
	}
	c.log.Info("this host's part is in the store again", "incarnation", r.Num)
	return nil
}

// tellRemoved writes again which hosts were removed: one that comes back must be
// cut off first, though the store has forgotten why.
func (c *Cluster) tellRemoved(ctx context.Context, version kvstore.Revision) error {
	untold := c.jr.Removed()
	if len(untold) == 0 {
		return nil
	}
	told, err := c.store.List(ctx, kvstore.Under(prefixRemoved))
	c.heard(err)
	if err != nil {
		return err
	}
	versions := map[carrick.HostID]kvstore.Revision{}
	for _, e := range told.Entries {
		if r, err := decode[removedRecord](e.Key, e.Value); err == nil {
			if versions[r.Host.ID] = e.Version; r.Host.Life >= untold[r.Host.ID].Life {
				delete(untold, r.Host.ID)
			}
		}
	}
	for id, h := range untold {
		rec, recVer, err := get[hostRecord](ctx, c, keyHost(id))
		if err != nil {
			return err
		}
		if recVer != 0 && rec.Life > h.Life {
			continue // it is back, and knows
		}
		_, waited, err := get[recoveryRecord](ctx, c, keyRecovery(id))
		if err != nil {
			return err
		}
		var encErr error
		t := (&kvstore.Txn{}).Version(keyEpoch, version).Version(keyRemoved(id), versions[id]).Version(keyHost(id), recVer).Version(keyRecovery(id), waited)
		put(t, &encErr, keyRemoved(id), &removedRecord{envelope: envelope{schema}, Host: h, At: time.Now().UTC()})
		if waited != 0 {
			t.Delete(keyRecovery(id))
		}
		if encErr != nil {
			return encErr
		}
		if _, err := c.commit(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// setDone says that this host's part is in the store.
func (c *Cluster) setDone(ctx context.Context, r epochRecord, version kvstore.Revision) error {
	_, own, err := get[recoveryRecord](ctx, c, keyRecovery(c.self))
	if err != nil {
		return err
	}
	var encErr error
	t := (&kvstore.Txn{}).Version(keyEpoch, version).Version(keyRecovery(c.self), own)
	put(t, &encErr, keyRecovery(c.self), &recoveryRecord{envelope: envelope{schema}, Inc: r.Inc, Done: true})
	if encErr != nil {
		return encErr
	}
	_, err = c.commit(ctx, t)
	return err
}

// underEpoch commits while the epoch is at exactly this version.
func (c *Cluster) underEpoch(version kvstore.Revision, num uint32) committer {
	return func(ctx context.Context, build builder) error {
		for attempt := 0; ; attempt++ {
			t := (&kvstore.Txn{}).Version(keyEpoch, version)
			if err := build(ctx, t, num); err != nil {
				return err
			}
			if len(t.Ops) == 0 {
				return nil
			}
			_, err := c.commit(ctx, t)
			var conflict *kvstore.ConflictError
			if !errors.As(err, &conflict) || attempt >= createTries {
				return err
			}
			if _, now, gerr := get[epochRecord](ctx, c, keyEpoch); gerr != nil || now != version {
				return errors.Join(err, gerr) // another epoch: begin again from there
			}
		}
	}
}

// endRecovery makes the epoch normal again if every host has written its part.
func (c *Cluster) endRecovery(ctx context.Context, r epochRecord, version kvstore.Revision) error {
	v, err := c.store.List(ctx, kvstore.Under(prefixRecovery))
	c.heard(err)
	if err != nil {
		return err
	}
	hosts := map[carrick.HostID]bool{}
	done := false
	for _, e := range v.Entries {
		id := carrick.HostID(strings.TrimPrefix(e.Key, prefixRecovery))
		rec, err := decode[recoveryRecord](e.Key, e.Value)
		if err != nil || rec.Inc != r.Inc {
			continue
		}
		hosts[id] = true
		if !rec.Done {
			if id == c.self {
				return c.takePart(ctx, r) // what it wrote may be as lost as its word that it did
			}
			return nil
		}
		done = done || id == c.self
	}
	if !done {
		return nil // a host that is new to the cluster waits like everybody else
	}
	if err := c.sweepStale(ctx, r, version, hosts); errors.Is(err, kvstore.ErrConflict) {
		return nil // somebody writes something of it, or was faster; look again
	} else if err != nil {
		return fmt.Errorf("end the recovery: %w", err)
	}
	next := r.next()
	next.Recovering = time.Time{}
	var encErr error
	t := (&kvstore.Txn{}).Version(keyEpoch, version).DeletePrefix(prefixRecovery)
	put(t, &encErr, keyEpoch, &next)
	if encErr != nil {
		return encErr
	}
	if _, err := c.commit(ctx, t); err != nil {
		if errors.Is(err, kvstore.ErrConflict) {
			return nil // somebody else was faster
		}
		return fmt.Errorf("end the recovery: %w", err)
	}
	c.sawEpoch(next)
	c.log.Info("the store is whole again", "incarnation", r.Num, "hosts", len(hosts))
	return nil
}

// sweepStale removes what the store has from before its loss and no host wrote
// again: blocks, and hosts and networks of which no journal knows any more, and the
// wish that a network be removed.
func (c *Cluster) sweepStale(ctx context.Context, r epochRecord, version kvstore.Revision, hosts map[carrick.HostID]bool) error {
	v, err := c.store.List(ctx, kvstore.Under(layout))
	c.heard(err)
	if err != nil {
		return err
	}
	hosts = maps.Clone(hosts)
	for _, e := range v.Entries {
		// Who came to the cluster meanwhile has nothing to write again, and is here.
		if h, err := decode[hostRecord](e.Key, e.Value); strings.HasPrefix(e.Key, prefixHosts) && err == nil && h.Num == r.Num {
			hosts[h.ID] = true
		}
	}
	var keys []kvstore.Entry // to delete
	var prefixes []string    // of networks without a host
	used := map[carrick.NetworkID]bool{}
	nets := map[carrick.NetworkID]bool{} // and whether somebody wrote them again
	for _, e := range v.Entries {
		id, rest, ok := netOfKey(e.Key)
		if !ok {
			continue
		}
		if rest == "conf" {
			conf, err := decode[confRecord](e.Key, e.Value)
			nets[id] = err != nil || conf.Num == r.Num // what is not understood is not for this host to end
		} else if !nets[id] {
			nets[id] = false
		}
		if h, ok := strings.CutPrefix(rest, "alias/"); ok && hosts[carrick.HostID(h)] {
			used[id] = true
		}
	}
	for id, again := range nets {
		if used[id] = used[id] && again; !used[id] {
			prefixes = append(prefixes, prefixNet(id))
		}
	}
	var encErr error
	var rewrite []func(*kvstore.Txn)
	for _, e := range v.Entries {
		if id, rest, ok := netOfKey(e.Key); ok {
			if used[id] && c.staleInNet(id, rest, e, r.Num, hosts) {
				keys = append(keys, e)
			}
			continue
		}
		switch {
		case strings.HasPrefix(e.Key, prefixHosts):
			if !hosts[carrick.HostID(strings.TrimPrefix(e.Key, prefixHosts))] {
				keys = append(keys, e)
			}
		case strings.HasPrefix(e.Key, keyName("")), strings.HasPrefix(e.Key, layout+"vtep/"):
			if h, err := decode[holderRecord](e.Key, e.Value); err != nil || !hosts[h.Host] {
				keys = append(keys, e)
			}
		case strings.HasPrefix(e.Key, layout+"vni/"):
			if n, err := decode[vniRecord](e.Key, e.Value); err != nil || !used[n.Network] {
				keys = append(keys, e)
			}
		case strings.HasPrefix(e.Key, prefixSpecs):
			s, err := decode[specRecord](e.Key, e.Value)
			switch {
			case err != nil || !used[s.Network.ID]:
				keys = append(keys, e)
			case s.Removal != nil: // of the past: it may have come to nothing since
				rewrite = append(rewrite, func(t *kvstore.Txn) {
					s.keep(t, &encErr, e.Version, s.Removal.Host, "the store lost its past before the network was gone everywhere: remove it again if it is still to go")
				})
			}
		case strings.HasPrefix(e.Key, prefixAsks):
			keys = append(keys, e) // whoever still wants something asks again
		case strings.HasPrefix(e.Key, keyTenant("")):
			space, err := decode[tenantRecord](e.Key, e.Value)
			kept := slices.DeleteFunc(slices.Clone(space.Prefixes), func(p tenantPrefix) bool { return !used[p.Network] })
			switch {
			case err != nil || len(kept) == 0:
				keys = append(keys, e)
			case len(kept) < len(space.Prefixes):
				space.Prefixes = kept
				rewrite = append(rewrite, func(t *kvstore.Txn) { t.Version(e.Key, e.Version); put(t, &encErr, e.Key, &space) })
			}
		}
	}
	var ops []func(*kvstore.Txn)
	for _, e := range keys {
		ops = append(ops, func(t *kvstore.Txn) { t.Version(e.Key, e.Version).Delete(e.Key) })
	}
	for _, p := range prefixes {
		ops = append(ops, func(t *kvstore.Txn) { t.DeletePrefix(p) })
	}
	ops = append(ops, rewrite...)
	for chunk := range slices.Chunk(ops, 50) {
		t := (&kvstore.Txn{}).Version(keyEpoch, version)
		for _, op := range chunk {
			op(t)
		}
		if encErr != nil {
			return encErr
		}
		if _, err := c.commit(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// staleInNet says whether a key of a network that goes on is a leftover. A host
// that is not waited for may register meanwhile; what it writes has the new
// number.
func (c *Cluster) staleInNet(id carrick.NetworkID, rest string, e kvstore.Entry, num uint32, hosts map[carrick.HostID]bool) bool {
	switch {
	case strings.HasPrefix(rest, "ipam/"):
		b, err := decode[blockRecord](e.Key, e.Value)
		if err != nil {
			c.log.Error("block record dropped", "network", id, "err", err)
		}
		return err != nil || b.Num < num
	case strings.HasPrefix(rest, "alias/"):
		return !hosts[carrick.HostID(strings.TrimPrefix(rest, "alias/"))]
	case strings.HasPrefix(rest, "host/"):
		eps, err := decode[endpointsRecord](e.Key, e.Value)
		return err != nil || eps.Num < num
	}
	return false
}

// comeLate is for a host that nobody waited for: the recovery ended without it.
// Its claims are confirmed one by one before it allocates again.
func (c *Cluster) comeLate(ctx context.Context, r epochRecord) error {
	if err := c.holdBack(false); err != nil {
		return err
	}
	if err := c.register(ctx); err != nil {
		return err
	}
	if err := c.enterEpoch(r); err != nil {
		return err
	}
	_, err := c.regain(ctx)
	return err
}
