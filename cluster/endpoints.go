package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// ErrAddress: an endpoint's address was not given out by this host, or is
// another endpoint's.
var ErrAddress = errors.New("address not allocated to this endpoint")

// AddEndpoint records a new local endpoint and binds its addresses to it. Its
// publication begins at once and is not waited for: the other hosts are usually
// ready before its container starts. Adding an equal endpoint again succeeds. On
// error nothing remains.
func (c *Cluster) AddEndpoint(e journal.Endpoint) error {
	err := c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(e.Network)
		if !ok || rec.Leaving {
			return fmt.Errorf("network %s: %w", e.Network, journal.ErrNotFound)
		}
		if old, ok := tx.Endpoint(e.ID); ok {
			if old.MAC != e.MAC || !slices.Equal(old.Addrs, e.Addrs) || old.Network != e.Network {
				return fmt.Errorf("endpoint %s exists with other addresses %v", e.ID.Short(), old.Addrs)
			}
			return nil
		}
		for _, a := range e.Addrs {
			l, ok := tx.Lease(e.Network, a)
			if !ok || l.Released != 0 || l.Endpoint != "" || l.Lent != "" {
				return fmt.Errorf("%s: %w", a, ErrAddress)
			}
			l.Endpoint = e.ID
			tx.PutLease(l)
			e.Gen = max(e.Gen, l.Gen)
		}
		tx.PutEndpoint(e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("add endpoint %s: %w", e.ID.Short(), err)
	}
	c.PublishLater(e.Network)
	return nil
}

// RemoveEndpoint forgets a local endpoint. Its addresses stay given out until
// ReleaseAddress; the store is told in the background. An unknown endpoint is not
// an error: Docker repeats itself.
func (c *Cluster) RemoveEndpoint(id carrick.EndpointID) error {
	e, err := c.jr.Endpoint(id)
	if err != nil {
		return nil
	}
	err = c.jr.Update(func(tx *journal.Tx) error {
		tx.DeleteEndpoint(id)
		c.endLeg(tx, e.Network)
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove endpoint %s: %w", id.Short(), err)
	}
	c.PublishLater(e.Network)
	c.changed(e.Network)
	return nil
}

// MarkJoined records that an endpoint's Join has returned, and the sandbox that it
// named.
func (c *Cluster) MarkJoined(id carrick.EndpointID, sandbox string) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		e, ok := tx.Endpoint(id)
		if !ok {
			return fmt.Errorf("endpoint %s: %w", id.Short(), journal.ErrNotFound)
		}
		if !e.Joined || e.Sandbox != sandbox {
			e.Joined, e.Sandbox = true, sandbox
			tx.PutEndpoint(e)
		}
		return nil
	})
}

// ReleaseAddress ends the use of an address of this host's blocks; it rests until
// it is given out again. If an endpoint still has it, Docker's DeleteEndpoint was
// lost, and the endpoint goes with it. An address that is not in use is not an
// error.
func (c *Cluster) ReleaseAddress(id carrick.NetworkID, a netip.Addr) error {
	return c.release(id, a, func(journal.Lease) bool { return true })
}

// ReleaseUnbound is ReleaseAddress for an address that no endpoint has; one that
// has an endpoint by now is left alone.
func (c *Cluster) ReleaseUnbound(id carrick.NetworkID, a netip.Addr) error {
	return c.release(id, a, func(l journal.Lease) bool { return l.Endpoint == "" })
}

// ReleaseOrphan is ReleaseUnbound for the use of an address that has this stamp; one that
// has been given out again since is left alone.
func (c *Cluster) ReleaseOrphan(id carrick.NetworkID, a netip.Addr, gen carrick.Gen) error {
	return c.release(id, a, func(l journal.Lease) bool { return l.Endpoint == "" && l.Gen == gen })
}

func (c *Cluster) release(id carrick.NetworkID, a netip.Addr, meant func(journal.Lease) bool) error {
	var withdrawn bool
	err := c.jr.Update(func(tx *journal.Tx) error {
		l, ok := tx.Lease(id, a)
		// What is lent is the borrower's to give back.
		if !ok || l.Released != 0 || l.Lent != "" || !meant(l) {
			return nil
		}
		if l.Endpoint != "" {
			withdrawn = true
			withdraw(tx, l.Endpoint, a)
			c.endLeg(tx, id)
		}
		if rec, ok := tx.Network(id); ok && !inBlocks(rec.Blocks, a) {
			tx.DeleteLease(id, a) // its block is another host's by now, and so is its rest
			return nil
		}
		tx.Release(id, a, time.Now())
		return nil
	})
	if err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	if withdrawn {
		c.PublishLater(id)
		c.changed(id)
	}
	return nil
}

// EndLeg ends this host's own endpoint in a network if it has no other there.
func (c *Cluster) EndLeg(id carrick.NetworkID) {
	if err := c.jr.Update(func(tx *journal.Tx) error { c.endLeg(tx, id); return nil }); err != nil {
		c.log.Warn("this host's own endpoint in a network was not ended", "network", id, "err", err)
		return
	}
	c.PublishLater(id)
	c.changed(id)
}

// endLeg ends this host's own endpoint in a network (see [carrick.LegID]) with its last
// container there.
func (c *Cluster) endLeg(tx *journal.Tx, id carrick.NetworkID) {
	e, ok := tx.Endpoint(carrick.LegID(id, c.self))
	if !ok || len(tx.Endpoints(id)) > 1 {
		return
	}
	rec, known := tx.Network(id)
	tx.DeleteEndpoint(e.ID)
	for _, a := range e.Addrs {
		if l, ok := tx.Lease(id, a); !ok || l.Released != 0 || l.Lent != "" {
			continue
		}
		if known && !inBlocks(rec.Blocks, a) {
			tx.DeleteLease(id, a)
			continue
		}
		tx.Release(id, a, time.Now())
	}
}

// withdraw takes an address of an endpoint out of the facts: with the endpoint,
// except that engines from 28 on give back the IPv6 address of one that lives on
// with its IPv4 address, when a sysctl of the container has turned IPv6 off.
func withdraw(tx *journal.Tx, id carrick.EndpointID, a netip.Addr) {
	e, ok := tx.Endpoint(id)
	if ok && a.Is6() && slices.ContainsFunc(e.Addrs, netip.Addr.Is4) {
		e.Addrs = slices.DeleteFunc(slices.Clone(e.Addrs), func(x netip.Addr) bool { return x == a })
		tx.PutEndpoint(e)
		return
	}
	tx.DeleteEndpoint(id)
}

// Network reads a network's configuration: from the journal if it is on this
// host, else from the store. [ErrUnknownNetwork].
func (c *Cluster) Network(ctx context.Context, id carrick.NetworkID) (carrick.Network, error) {
	if rec, err := c.jr.Network(id); err == nil && !rec.Leaving {
		return rec.Conf, nil
	}
	conf, v, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return carrick.Network{}, err
	}
	if v == 0 {
		return carrick.Network{}, fmt.Errorf("network %s: %w", id, ErrUnknownNetwork)
	}
	return conf.Network, nil
}

// Journal is this host's own memory.
func (c *Cluster) Journal() *journal.Journal { return c.jr }

// SetNames records what a local endpoint's container is called in its network, and
// whether its health check fails. The others are told in the background. An unknown
// endpoint is not an error: it has gone meanwhile, or is another driver's.
func (c *Cluster) SetNames(id carrick.EndpointID, names []string, unhealthy bool) error {
	old, err := c.jr.Endpoint(id)
	if err != nil || old.Unhealthy == unhealthy && slices.Equal(old.Names, names) {
		return nil
	}
	err = c.jr.Update(func(tx *journal.Tx) error {
		e, ok := tx.Endpoint(id)
		if ok {
			e.Names, e.Unhealthy = slices.Clone(names), unhealthy
			tx.PutEndpoint(e)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("names of endpoint %s: %w", id.Short(), err)
	}
	c.PublishLater(old.Network)
	c.changed(old.Network)
	return nil
}
