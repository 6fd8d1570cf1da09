package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// disputed lists the addresses that endpoints of this host have and that are not
// given out to them by this host: another one owns or has borrowed them by now.
func (c *Cluster) disputed(id carrick.NetworkID) map[netip.Addr]carrick.EndpointID {
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	eps := c.jr.Endpoints(id)
	if len(eps) == 0 {
		return nil
	}
	leases := c.jr.Leases(id)
	var out map[netip.Addr]carrick.EndpointID
	for _, e := range eps {
		for _, a := range e.Addrs {
			if !inBlocks(rec.Blocks, a) || leases[a].Endpoint != e.ID {
				if out == nil {
					out = map[netip.Addr]carrick.EndpointID{}
				}
				out[a] = e.ID
			}
		}
	}
	return out
}

// cutDisputed fences the endpoints whose addresses are in dispute: this host was not
// there, or not allowed to be, when others came to have them.
func (c *Cluster) cutDisputed(id carrick.NetworkID) error {
	disputed := c.disputed(id)
	if len(disputed) == 0 {
		return nil
	}
	err := c.jr.Update(func(tx *journal.Tx) error {
		for _, ep := range disputed {
			if e, ok := tx.Endpoint(ep); ok && !e.Fenced {
				e.Fenced = true
				tx.PutEndpoint(e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.changed(id)
	return nil
}

// settleDisputes asks the owners for disputed addresses, and ends the fence of
// endpoints that have all of theirs.
func (c *Cluster) settleDisputes(ctx context.Context, id carrick.NetworkID) error {
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	for a, ep := range c.disputed(id) {
		err := c.retake(ctx, rec.Conf, a, ep)
		switch {
		case errors.Is(err, ErrRefused):
			c.log.Debug("address stays in dispute", "network", rec.Conf.Label(), "addr", a, "endpoint", ep.Short(), "err", err)
		case err != nil:
			return err
		default:
			c.log.Info("address granted again", "network", rec.Conf.Label(), "addr", a, "endpoint", ep.Short())
		}
	}
	left := c.disputed(id)
	var free []carrick.EndpointID
	for _, e := range c.jr.Endpoints(id) {
		if e.Fenced && !slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { _, ok := left[a]; return ok }) {
			free = append(free, e.ID)
		}
	}
	if len(free) == 0 || c.jr.Meta().Fenced {
		return nil
	}
	err = c.jr.Update(func(tx *journal.Tx) error {
		for _, ep := range free {
			if e, ok := tx.Endpoint(ep); ok {
				e.Fenced = false
				tx.PutEndpoint(e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.PublishLater(id)
	c.changed(id)
	return nil
}

// retake makes a disputed address this host's again: by claiming its block if that
// is nobody's, else by asking the owner.
func (c *Cluster) retake(ctx context.Context, n carrick.Network, a netip.Addr, ep carrick.EndpointID) error {
	i := slices.IndexFunc(n.Pools, func(p carrick.Pool) bool { return p.Prefix.Contains(a) })
	if i < 0 {
		return fmt.Errorf("%s: %w: in no pool of the network", a, ErrRefused)
	}
	if rec, err := c.jr.Network(n.ID); err != nil {
		return err
	} else if !inBlocks(rec.Blocks, a) {
		err := c.ClaimBlock(ctx, n.ID, blockOf(n, a))
		if errors.Is(err, ErrBlockTaken) {
			_, err = c.Borrow(ctx, n.ID, n.Pools[i].Prefix, a)
		}
		if err != nil {
			return err
		}
	}
	return c.rebind(n.ID, a, ep)
}

// rebind gives an address of this host's blocks to the endpoint that has it, unless
// it is given out or lent otherwise: [ErrRefused].
func (c *Cluster) rebind(id carrick.NetworkID, a netip.Addr, ep carrick.EndpointID) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		e, ok := tx.Endpoint(ep)
		l, known := tx.Lease(id, a)
		switch {
		case !ok, known && l.Released == 0 && l.Endpoint == ep:
			return nil
		case known && l.Released == 0 && l.Lent != "":
			return fmt.Errorf("%s: %w: it is lent to host %s", a, ErrRefused, c.HostName(l.Lent))
		case known && l.Released == 0:
			return fmt.Errorf("%s: %w: another endpoint of this host has it", a, ErrRefused)
		}
		e.Gen = tx.Stamp()
		tx.PutEndpoint(e)
		tx.PutLease(journal.Lease{Network: id, Addr: a, Endpoint: ep, Gen: e.Gen})
		return nil
	})
}

// noteConflict remembers why a network cannot be published; "" ends it.
func (c *Cluster) noteConflict(id carrick.NetworkID, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why == "" {
		delete(c.conflicts, id)
		return
	}
	if c.conflicts[id] != why {
		c.log.Error(why)
	}
	c.conflicts[id] = why
}

// Conflicts says what this host cannot settle by itself, for people, sorted.
func (c *Cluster) Conflicts() []string {
	var out []string
	c.mu.Lock()
	for _, why := range c.conflicts {
		out = append(out, why)
	}
	c.mu.Unlock()
	for _, n := range c.jr.Networks() {
		for a, ep := range c.disputed(n.Conf.ID) {
			out = append(out, fmt.Sprintf("network %s: endpoint %s has %s, which belongs to another host by now: restart its container to give it another address", n.Conf.Label(), ep.Short(), a))
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
