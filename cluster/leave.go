package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// DropAlias ends an engine network of this host. The journal forgets at once;
// the store is told now, or as soon as it can be. With the last alias of the
// last host the network ends. An unknown alias is not an error.
func (c *Cluster) DropAlias(ctx context.Context, docker carrick.DockerNetworkID) error {
	rec, err := c.jr.ByAlias(docker)
	if errors.Is(err, journal.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	id := rec.Conf.ID
	last := false
	err = c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if !ok {
			return nil
		}
		rec.Aliases = slices.DeleteFunc(rec.Aliases, func(a journal.Alias) bool { return a.Docker == docker })
		last = len(rec.Aliases) == 0
		if last {
			// Endpoints that the engine lost without telling go with the network.
			tx.DeleteNetwork(id)
			rec.Leaving, rec.Left = true, append(rec.Left, docker)
		}
		tx.PutNetwork(rec)
		return nil
	})
	if err != nil {
		return err
	}
	if !last {
		return nil
	}
	c.changed(id)
	return c.leave(ctx, id)
}

// leave finishes the removal of a network whose last local alias is gone.
func (c *Cluster) leave(ctx context.Context, id carrick.NetworkID) error {
	rec, err := c.jr.Network(id)
	if err != nil || !rec.Leaving {
		return nil
	}
	if err := c.dropStored(ctx, rec.Conf, rec.Left); err != nil {
		return fmt.Errorf("leave network %s: %w (the store will be told when it answers)", rec.Conf.Label(), err)
	}
	err = c.jr.Update(func(tx *journal.Tx) error {
		if rec, ok := tx.Network(id); ok && rec.Leaving {
			tx.DeleteNetwork(id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.Unfollow(id)
	c.changed(id)
	return nil
}

// dropStored removes this host from a network in the store: its alias, endpoints
// and blocks; and the network itself if no other host has an alias. If the store
// has an alias of this host besides only, it was joined again meanwhile and
// nothing is dropped.
func (c *Cluster) dropStored(ctx context.Context, n carrick.Network, only []carrick.DockerNetworkID) error {
	for attempt := 0; ; attempt++ {
		err := c.tryDrop(ctx, n, only)
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= createTries {
			return err
		}
		if err := backoff(ctx, attempt, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

func (c *Cluster) tryDrop(ctx context.Context, n carrick.Network, only []carrick.DockerNetworkID) error {
	v, err := c.store.List(ctx, kvstore.Under(prefixNet(n.ID)))
	c.heard(err)
	if err != nil {
		return err
	}
	var (
		members      membersRecord
		head         headRecord
		versions     = map[string]kvstore.Revision{}
		othersRemain bool
		blocks       []string
	)
	for _, e := range v.Entries {
		versions[e.Key] = e.Version
		switch {
		case e.Key == keyMembers(n.ID):
			members, err = decode[membersRecord](e.Key, e.Value)
		case e.Key == keyHead(n.ID):
			head, err = decode[headRecord](e.Key, e.Value)
		case e.Key == keyAlias(n.ID, c.self):
			var a aliasRecord
			a, err = decode[aliasRecord](e.Key, e.Value)
			if err == nil && slices.ContainsFunc(a.Aliases, func(d dockerAlias) bool { return !slices.Contains(only, d.Docker) }) {
				return nil // joined again
			}
		case strings.HasPrefix(e.Key, prefixAliases(n.ID)):
			othersRemain = true
		case strings.HasPrefix(e.Key, prefixBlocks(n.ID)):
			var b holderRecord
			if b, err = decode[holderRecord](e.Key, e.Value); err == nil && b.Host == c.self {
				blocks = append(blocks, e.Key)
			}
		}
		if err != nil {
			return err
		}
	}
	confKey, membersKey, headKey, aliasKey, epsKey := keyConf(n.ID), keyMembers(n.ID), keyHead(n.ID), keyAlias(n.ID, c.self), keyNetHost(n.ID, c.self)
	if versions[confKey] == 0 {
		return nil // already gone
	}
	var encErr error
	t := (&kvstore.Txn{}).Version(confKey, versions[confKey]).Version(membersKey, versions[membersKey]).Version(aliasKey, versions[aliasKey])
	if !othersRemain {
		space, spaceVer, err := get[tenantRecord](ctx, c, keyTenant(n.Tenant))
		if err != nil {
			return err
		}
		space.Prefixes = slices.DeleteFunc(space.Prefixes, func(p tenantPrefix) bool { return p.Network == n.ID })
		t.Version(keyTenant(n.Tenant), spaceVer)
		if len(space.Prefixes) == 0 {
			t.Delete(keyTenant(n.Tenant))
		} else {
			put(t, &encErr, keyTenant(n.Tenant), &space)
		}
		if owner, v, err := get[vniRecord](ctx, c, keyVNI(n.VNI)); err != nil {
			return err
		} else if v != 0 && owner.Network == n.ID {
			t.Version(keyVNI(n.VNI), v).Delete(keyVNI(n.VNI))
		}
		t.DeletePrefix(prefixNet(n.ID))
	} else {
		members.V = schema
		members.Change++
		put(t, &encErr, membersKey, &members)
		t.Delete(aliasKey)
		if versions[epsKey] != 0 {
			head.V = schema
			if err := head.push(change{Host: c.self, Reread: true}); err != nil {
				return err
			}
			t.Version(headKey, versions[headKey]).Version(epsKey, versions[epsKey])
			put(t, &encErr, headKey, &head)
			t.Delete(epsKey)
		}
		// More blocks than a transaction holds are freed by the same call's next
		// turn: they have no owner's alias any more, and nobody allocates from them.
		for i, b := range blocks {
			if i == blocksPerTxn {
				break
			}
			t.Delete(b)
		}
	}
	if encErr != nil {
		return encErr
	}
	if _, err := c.commit(ctx, t); err != nil {
		return err
	}
	if othersRemain && len(blocks) > blocksPerTxn {
		return &kvstore.ConflictError{Keys: blocks[blocksPerTxn:]}
	}
	return nil
}

// blocksPerTxn leaves room for the other operations of a removal.
const blocksPerTxn = kvstore.MaxTxnOps - 20
