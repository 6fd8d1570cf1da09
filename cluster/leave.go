package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	if err := c.dropStored(ctx, rec.Conf, rec.Left, carrick.MakeGen(0, c.jr.Meta().Clock)); err != nil {
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
	c.cfg.Cache.Drop(id)
	c.changed(id)
	c.specsChanged() // it may be wanted here nonetheless
	return nil
}

// dropStored removes this host from a network in the store: its alias, endpoints,
// blocks and loans; and the network itself if no other host has an alias. If the
// store has an alias of this host besides only, it was joined again meanwhile and
// nothing is dropped.
func (c *Cluster) dropStored(ctx context.Context, n carrick.Network, only []carrick.DockerNetworkID, gen carrick.Gen) error {
	for more := true; more; {
		_, err := c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
			var err error
			more, err = c.buildDrop(ctx, t, n, only, max(gen, carrick.MakeGen(num, 0)))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// buildDrop adds as much of dropStored as fits into a transaction: blocks first,
// while the alias still keeps others from ending the network. more says that
// something is left.
func (c *Cluster) buildDrop(ctx context.Context, t *kvstore.Txn, n carrick.Network, only []carrick.DockerNetworkID, gen carrick.Gen) (more bool, err error) {
	net, err := c.readNetwork(ctx, n.ID)
	if err != nil || net.conf.version == 0 {
		return false, err // already gone
	}
	alias := net.aliases[c.self]
	if slices.ContainsFunc(alias.value.Aliases, func(d dockerAlias) bool { return !slices.Contains(only, d.Docker) }) {
		return false, nil // joined again
	}
	t.Version(keyAlias(n.ID, c.self), alias.version)
	if alias.version != 0 && len(net.aliases) == 1 {
		return false, c.dropNetwork(ctx, t, n, net)
	}
	var encErr error
	for b, rec := range net.blocks {
		if rec.value.Host != c.self {
			continue
		}
		if len(t.Ops) > 60 {
			return true, encErr
		}
		if err := c.freeBlock(ctx, t, &encErr, n, net, b, max(gen, rec.value.Gen), c.cfg.Rest); err != nil {
			return false, err
		}
	}
	if alias.version == 0 && net.endpoints[c.self].version == 0 {
		return false, encErr
	}
	members := net.members.value
	members.V = schema
	members.Change++
	t.Version(keyMembers(n.ID), net.members.version)
	put(t, &encErr, keyMembers(n.ID), &members)
	if alias.version != 0 {
		t.Delete(keyAlias(n.ID, c.self))
	}
	if eps := net.endpoints[c.self]; eps.version != 0 {
		head := net.head.value
		if err := head.push(c.number(), change{Host: c.self, Reread: true}); err != nil {
			return false, err
		}
		t.Version(keyHead(n.ID), net.head.version).Version(keyNetHost(n.ID, c.self), eps.version)
		put(t, &encErr, keyHead(n.ID), &head)
		t.Delete(keyNetHost(n.ID, c.self))
	}
	return false, encErr
}

// blocksPerTxn leaves room for the other operations of a removal.
const blocksPerTxn = kvstore.MaxTxnOps - 20
