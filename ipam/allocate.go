package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
)

// claiming takes the one place to claim blocks of a network, and returns how to
// leave it.
func (d *Driver) claiming(ctx context.Context, id carrick.NetworkID) (func(), error) {
	d.mu.Lock()
	place := d.claims[id]
	if place == nil {
		place = make(chan struct{}, 1)
		d.claims[id] = place
	}
	d.mu.Unlock()
	select {
	case place <- struct{}{}:
		return func() { <-place }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("network %s: waiting for a block of addresses: %w", id, ctx.Err())
	}
}

// use reads an address's state within a transaction of the journal.
func use(tx *journal.Tx, id carrick.NetworkID) func(netip.Addr) Use {
	return func(a netip.Addr) Use {
		l, ok := tx.Lease(id, a)
		return Use{Taken: ok && l.Released == 0, Released: l.Released}
	}
}

// Allocate gives out an address of a network of this host: want, or one of this
// host's blocks, claiming the next block when they are full. The address is on
// disk when it returns, and not given out if ctx has ended. Errors: [ErrOutside],
// [ErrReserved], [ErrInUse], [ErrFull], or the store's when a block is needed.
func (d *Driver) Allocate(ctx context.Context, id carrick.NetworkID, want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		return want, d.allocateExplicit(ctx, id, want)
	}
	addr, err := d.allocateAny(ctx, id)
	if !errors.Is(err, ErrFull) {
		return addr, err
	}
	leave, err := d.claiming(ctx, id)
	if err != nil {
		return netip.Addr{}, err
	}
	defer leave()
	for {
		// Whoever was here before may have claimed enough for all.
		addr, err := d.allocateAny(ctx, id)
		if !errors.Is(err, ErrFull) {
			return addr, err
		}
		if err := d.claimNext(ctx, id); err != nil {
			return netip.Addr{}, err
		}
	}
}

func (d *Driver) allocateAny(ctx context.Context, id carrick.NetworkID) (addr netip.Addr, err error) {
	nearlyFull := false
	err = d.cfg.Cluster.Journal().Update(func(tx *journal.Tx) error {
		if err := ctx.Err(); err != nil {
			return err // the engine was answered already
		}
		n, ok := tx.Network(id)
		if !ok || n.Leaving {
			return fmt.Errorf("network %s: %w", id, journal.ErrNotFound)
		}
		pool := n.Conf.Pools[0]
		addr, ok = Pick(pool, n.Blocks, use(tx, id))
		if !ok {
			return ErrFull
		}
		tx.PutLease(journal.Lease{Network: id, Addr: addr, Gen: tx.Stamp()})
		total, taken := Free(pool, n.Blocks, use(tx, id))
		nearlyFull = taken*4 >= total*3
		return nil
	})
	if nearlyFull && err == nil {
		select {
		case d.topUp <- id:
		default: // the queue is full of others; the next allocation asks again
		}
	}
	return addr, err
}

// claimNext claims the next free block. The caller has the place to claim.
func (d *Driver) claimNext(ctx context.Context, id carrick.NetworkID) error {
	n, err := d.cfg.Cluster.Journal().Network(id)
	if err != nil {
		return err
	}
	pool := n.Conf.Pools[0]
	for {
		owned, err := d.cfg.Cluster.Blocks(ctx, id)
		if err != nil {
			return fmt.Errorf("network %s: this host's addresses are used up and no block can be claimed: %w", n.Conf.Label(), err)
		}
		// A block of ours that the journal does not have is one whose claim was never
		// answered: it is taken up first.
		b, ok := NextBlock(pool, func(b netip.Prefix) bool {
			owner, taken := owned[b]
			return taken && (owner != d.cfg.Cluster.Self() || slices.Contains(n.Blocks, b))
		})
		if !ok {
			return fmt.Errorf("network %s (%s): %w: all %d blocks have owners and this host's are used up: remove containers here, or make a network with a larger subnet",
				n.Conf.Label(), pool.AllocRange(), ErrFull, len(owned))
		}
		err = d.cfg.Cluster.ClaimBlock(ctx, id, b)
		if !errors.Is(err, cluster.ErrBlockTaken) {
			return err
		}
	}
}

// claimAhead claims the next block when three quarters of the addresses are out,
// so that a container's start does not have to wait for the store.
func (d *Driver) claimAhead(ctx context.Context, id carrick.NetworkID) error {
	leave, err := d.claiming(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	n, err := d.cfg.Cluster.Journal().Network(id)
	if err != nil {
		return err
	}
	leases := d.cfg.Cluster.Journal().Leases(id)
	total, taken := Free(n.Conf.Pools[0], n.Blocks, func(a netip.Addr) Use {
		l, ok := leases[a]
		return Use{Taken: ok && l.Released == 0}
	})
	if taken*4 < total*3 {
		return nil // another call did it, or addresses came back
	}
	return d.claimNext(ctx, id)
}

func (d *Driver) allocateExplicit(ctx context.Context, id carrick.NetworkID, want netip.Addr) error {
	n, err := d.cfg.Cluster.Journal().Network(id)
	if err != nil {
		return err
	}
	pool := n.Conf.Pools[0]
	if !pool.Prefix.Contains(want) {
		return fmt.Errorf("--ip %s: %w %s of network %s", want, ErrOutside, pool.Prefix, n.Conf.Label())
	}
	if why := pool.Reserved(want); why != "" {
		return fmt.Errorf("--ip %s: %w: it is the %s address of network %s", want, ErrReserved, why, n.Conf.Label())
	}
	block := BlockOf(pool, want)
	if !slices.Contains(n.Blocks, block) {
		if err := d.claimFor(ctx, n.Conf, block, want); err != nil {
			return err
		}
	}
	return d.cfg.Cluster.Journal().Update(func(tx *journal.Tx) error {
		if err := ctx.Err(); err != nil {
			return err // the engine was answered already
		}
		if n, ok := tx.Network(id); !ok || n.Leaving || !slices.Contains(n.Blocks, block) {
			return fmt.Errorf("network %s: %w", id, journal.ErrNotFound)
		}
		if l, ok := tx.Lease(id, want); ok && l.Released == 0 {
			holder := "an endpoint that is being created or removed"
			if l.Endpoint != "" {
				holder = "endpoint " + l.Endpoint.Short()
			}
			return fmt.Errorf("--ip %s: %w by %s on this host", want, ErrInUse, holder)
		}
		tx.PutLease(journal.Lease{Network: id, Addr: want, Gen: tx.Stamp()})
		return nil
	})
}

// claimFor claims the block of an explicit address.
func (d *Driver) claimFor(ctx context.Context, n carrick.Network, block netip.Prefix, want netip.Addr) error {
	err := d.cfg.Cluster.ClaimBlock(ctx, n.ID, block)
	if !errors.Is(err, cluster.ErrBlockTaken) {
		return err
	}
	owners, lerr := d.cfg.Cluster.Blocks(ctx, n.ID)
	if lerr != nil {
		return lerr
	}
	owner := d.cfg.Cluster.HostName(owners[block])
	if holder, ok := d.holder(n.ID, want); ok {
		return fmt.Errorf("--ip %s: %w by endpoint %s on host %s", want, ErrInUse, holder.Short(), owner)
	}
	return fmt.Errorf("--ip %s: its block %s belongs to host %s: %w: run the container there, or choose an address of a free block or of this host's (carrick network inspect %s)",
		want, block, owner, err, n.Label())
}

// holder looks for an address among the facts of other hosts.
func (d *Driver) holder(id carrick.NetworkID, a netip.Addr) (carrick.EndpointID, bool) {
	v, _, err := d.cfg.Cluster.View(id)
	if err != nil {
		return "", false
	}
	for _, eps := range v.Endpoints {
		for _, e := range eps {
			if slices.Contains(e.Addrs, a) {
				return e.ID, true
			}
		}
	}
	return "", false
}
