package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// isRemoved says whether the store has this host as removed, be it in an earlier
// life, as a backup may have it. Registering ends that.
func (c *Cluster) isRemoved(ctx context.Context) (bool, error) {
	_, v, err := get[removedRecord](ctx, c, keyRemoved(c.self))
	return v != 0, err
}

// fence cuts this host's endpoints off if it was removed in its present life, and
// begins another one, which register tells the others of. life is the one that was
// ended.
func (c *Cluster) fence(life uint64) error {
	if life < c.jr.Meta().Life {
		return nil
	}
	c.log.Error("this host was removed from the cluster: its containers are cut off until their addresses are granted again")
	if err := c.holdBack(true); err != nil {
		return err
	}
	return c.jr.Update(func(tx *journal.Tx) error {
		m := tx.Meta()
		m.Life, m.Returned = max(m.Life, life+1), true
		tx.SetMeta(m)
		return nil
	})
}

// holdBack keeps this host from allocating until regain has confirmed what it
// has; with cut its endpoints' ports go down as well. Both are in the journal.
func (c *Cluster) holdBack(cut bool) error {
	var changed []carrick.NetworkID
	need := !c.jr.Meta().Fenced
	for _, n := range c.jr.Networks() {
		if cut && slices.ContainsFunc(c.jr.Endpoints(n.Conf.ID), func(e journal.Endpoint) bool { return !e.Fenced }) {
			changed = append(changed, n.Conf.ID)
			need = true
		}
	}
	if !need {
		return nil
	}
	err := c.jr.Update(func(tx *journal.Tx) error {
		m := tx.Meta()
		m.Fenced = true
		tx.SetMeta(m)
		for _, id := range changed {
			for _, e := range tx.Endpoints(id) {
				if !e.Fenced {
					e.Fenced = true
					tx.PutEndpoint(e)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range changed {
		c.changed(id)
	}
	return nil
}

// regain confirms everything this host has, in a normal epoch, and lets it
// allocate again. again means that something is left to be asked for.
func (c *Cluster) regain(ctx context.Context) (again bool, err error) {
	c.mu.Lock()
	early := c.cfg.Grace > 0 && !c.leased
	c.mu.Unlock()
	if early {
		return true, nil // its grace may be over at any moment
	}
	if c.jr.Meta().Returned && !c.cfg.Apart {
		for _, n := range c.jr.Networks() {
			if err := c.endWith(ctx, n); err != nil {
				return false, fmt.Errorf("regain network %s: %w", n.Conf.Label(), err)
			}
		}
	}
	contested := map[carrick.NetworkID]bool{}
	for _, n := range c.jr.Networks() {
		if n.Leaving {
			continue
		}
		err := c.confirm(ctx, n.Conf.ID, c.normally, false)
		contested[n.Conf.ID] = errors.Is(err, errContested)
		if err != nil && !contested[n.Conf.ID] {
			return false, fmt.Errorf("regain network %s: %w", n.Conf.Label(), err)
		}
	}
	err = c.jr.Update(func(tx *journal.Tx) error {
		m := tx.Meta()
		m.Fenced, m.Returned = false, false
		tx.SetMeta(m)
		return nil
	})
	if err != nil {
		return false, err
	}
	var errs []error
	for _, n := range c.jr.Networks() {
		if n.Leaving {
			continue
		}
		// What the store had of it may have been taken away.
		c.mu.Lock()
		state := c.state(n.Conf.ID)
		c.mu.Unlock()
		c.forgetPublished(state)
		if contested[n.Conf.ID] {
			continue
		}
		errs = append(errs, c.settleDisputes(ctx, n.Conf.ID), c.cutDisputed(n.Conf.ID)) // goes on with every comparison
		c.PublishLater(n.Conf.ID)
	}
	c.log.Info("this host takes part in the cluster again")
	return false, errors.Join(errs...)
}

// endWith ends a network on this host, which was removed from the cluster, if the
// cluster does not have it any more and no container is in it: this host was waited
// for until it was named as gone for good, and brings nothing back. With a container
// it is as if the engine had refused.
func (c *Cluster) endWith(ctx context.Context, n journal.Network) error {
	id := n.Conf.ID
	if _, v, err := get[confRecord](ctx, c, keyConf(id)); err != nil || v != 0 || n.Leaving {
		return err
	}
	ended := false
	err := c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if ended = ok && !rec.Leaving && len(tx.Endpoints(id)) == 0; !ended {
			return nil
		}
		m := tx.Meta()
		m.Ended = slices.Clone(m.Ended)
		for _, a := range rec.Aliases {
			m.Ended = append(m.Ended, a.Docker)
		}
		tx.SetMeta(m)
		tx.DeleteNetwork(id)
		return nil
	})
	if err != nil || !ended {
		return err
	}
	c.log.Warn("network ended while this host was removed from the cluster, and ends here as well", "network", n.Conf.Label(), "subnet", n.Conf.Subnets())
	c.Unfollow(id)
	c.cfg.Cache.Drop(id)
	c.changed(id)
	c.specsChanged()
	return nil
}

// Ended returns networks of the engine that are to be removed: see endWith.
func (c *Cluster) Ended() []carrick.DockerNetworkID { return c.jr.Meta().Ended }

// ForgetEnded tells that the engine does not have one of them any more.
func (c *Cluster) ForgetEnded(id carrick.DockerNetworkID) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		m := tx.Meta()
		m.Ended = slices.DeleteFunc(slices.Clone(m.Ended), func(x carrick.DockerNetworkID) bool { return x == id })
		tx.SetMeta(m)
		return nil
	})
}
