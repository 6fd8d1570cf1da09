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

// Allocate gives out an address of a network's pool: want, or one of this host's
// blocks. When they are full it claims the next block, and when there is none it
// borrows an address. The address is on disk when Allocate returns, and not given
// out if ctx has ended. Errors: [ErrOutside], [ErrReserved], [ErrInUse],
// [ErrFull], or the store's when a block is needed.
func (d *Driver) Allocate(ctx context.Context, id carrick.NetworkID, pool netip.Prefix, want netip.Addr) (netip.Addr, error) {
	at := poolOf{id, pool}
	if want.IsValid() {
		return want, d.allocateExplicit(ctx, at, want)
	}
	addr, err := d.allocateAny(ctx, at)
	if !errors.Is(err, ErrFull) {
		return addr, err
	}
	leave, err := d.claiming(ctx, at)
	if err != nil {
		return netip.Addr{}, err
	}
	defer leave()
	for {
		// Whoever was here before may have claimed enough for all.
		addr, err := d.allocateAny(ctx, at)
		if !errors.Is(err, ErrFull) {
			return addr, err
		}
		if err := d.claimOrBorrow(ctx, at); err != nil {
			return netip.Addr{}, err
		}
	}
}

// record returns a network's record and one of its pools. [journal.ErrNotFound].
func (at poolOf) record(n journal.Network, known bool) (journal.Network, carrick.Pool, error) {
	pool, ok := poolWith(n.Conf, at.prefix)
	if !known || n.Leaving || !ok {
		return journal.Network{}, carrick.Pool{}, fmt.Errorf("network %s with pool %s: %w", at.network, at.prefix, journal.ErrNotFound)
	}
	return n, pool, nil
}

func (at poolOf) within(tx *journal.Tx) (journal.Network, carrick.Pool, error) {
	if tx.Meta().Fenced {
		return journal.Network{}, carrick.Pool{}, cluster.ErrFenced
	}
	n, ok := tx.Network(at.network)
	return at.record(n, ok)
}

func (at poolOf) in(j *journal.Journal) (journal.Network, carrick.Pool, error) {
	n, err := j.Network(at.network)
	return at.record(n, err == nil)
}

// allocateAny gives out an address of this host's blocks, or [ErrFull].
func (d *Driver) allocateAny(ctx context.Context, at poolOf) (addr netip.Addr, err error) {
	nearlyFull := false
	err = d.cfg.Cluster.Journal().Update(func(tx *journal.Tx) error {
		if err := ctx.Err(); err != nil {
			return err // the engine was answered already
		}
		n, pool, err := at.within(tx)
		if err != nil {
			return err
		}
		blocks := BlocksOf(pool, n.Blocks)
		var ok bool
		if addr, ok = Pick(pool, blocks, memory{tx, at, pool}); !ok {
			return ErrFull
		}
		tx.PutLease(journal.Lease{Network: at.network, Addr: addr, Gen: tx.Stamp()})
		nearlyFull = crowded(tx.Taken(at.network, at.prefix), Size(pool, blocks))
		return nil
	})
	if nearlyFull && err == nil {
		select {
		case d.topUp <- at:
		default: // the queue is full of others; the next allocation asks again
		}
	}
	return addr, err
}

// crowded says whether it is time for another block: three quarters are out.
func crowded(taken, size int) bool { return taken*4 >= size*3 }

// claiming takes the one place to claim blocks of a pool, and returns how to
// leave it.
func (d *Driver) claiming(ctx context.Context, at poolOf) (func(), error) {
	d.mu.Lock()
	place := d.claims[at]
	if place == nil {
		place = make(chan struct{}, 1)
		d.claims[at] = place
	}
	d.mu.Unlock()
	select {
	case place <- struct{}{}:
		return func() { <-place }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("network %s: waiting for a block of addresses: %w", at.network, ctx.Err())
	}
}

// claimOrBorrow claims the next free block, or borrows an address if there is
// none. The caller has the place to claim.
func (d *Driver) claimOrBorrow(ctx context.Context, at poolOf) error {
	full := d.claimNext(ctx, at)
	var f noBlockError
	if !errors.As(full, &f) {
		return full
	}
	if _, err := d.cfg.Cluster.Borrow(ctx, at.network, at.prefix, netip.Addr{}); err != nil {
		return fmt.Errorf("%w, and no other host lends one: %w: remove containers here, or make a network with a larger subnet", full, err)
	}
	return nil
}

// noBlockError: every block of a pool has an owner. It is an [ErrFull].
type noBlockError struct {
	network string
	prefix  netip.Prefix // addresses are chosen of
	blocks  int
}

func (e noBlockError) Error() string {
	return fmt.Sprintf("network %s (%s): %v: all %d blocks have owners and this host's are used up", e.network, e.prefix, ErrFull, e.blocks)
}

func (e noBlockError) Unwrap() error { return ErrFull }

// claimNext claims the next free block. The caller has the place to claim.
func (d *Driver) claimNext(ctx context.Context, at poolOf) error {
	n, pool, err := at.in(d.cfg.Cluster.Journal())
	if err != nil {
		return err
	}
	err = d.cfg.Cluster.ClaimOne(ctx, at.network, func(owned map[netip.Prefix]carrick.HostID) (netip.Prefix, error) {
		// A block of ours that the journal does not have is one whose claim was never
		// answered: it is taken up first. Single addresses that were lent are not
		// blocks, and do not make anybody the owner of theirs.
		count := 0
		b, ok := NextBlock(pool, func(b netip.Prefix) bool {
			owner, taken := owned[b]
			taken = taken && (owner != d.cfg.Cluster.Self() || slices.Contains(n.Blocks, b))
			if taken {
				count++
			}
			return taken
		})
		if !ok {
			return b, noBlockError{n.Conf.Label(), pool.AllocRange(), count}
		}
		return b, nil
	})
	var none noBlockError
	switch {
	case errors.As(err, &none):
		return none
	case err != nil:
		return fmt.Errorf("network %s: this host's addresses are used up and no block can be claimed: %w", n.Conf.Label(), err)
	}
	return nil
}

// claimAhead claims the next block when three quarters of the addresses are out,
// so that a container's start does not have to wait for the store.
func (d *Driver) claimAhead(ctx context.Context, at poolOf) error {
	leave, err := d.claiming(ctx, at)
	if err != nil {
		return err
	}
	defer leave()
	n, pool, err := at.in(d.cfg.Cluster.Journal())
	if err != nil {
		return err
	}
	if !crowded(d.cfg.Cluster.Journal().Taken(at.network, at.prefix), Size(pool, BlocksOf(pool, n.Blocks))) {
		return nil // another call did it, or addresses came back
	}
	return d.claimNext(ctx, at)
}

// explicitTries bounds how often a block is claimed for an explicit address: one
// that stays empty may be given back before the address is taken.
const explicitTries = 3

func (d *Driver) allocateExplicit(ctx context.Context, at poolOf, want netip.Addr) error {
	n, pool, err := at.in(d.cfg.Cluster.Journal())
	if err != nil {
		return err
	}
	if !pool.Prefix.Contains(want) {
		return fmt.Errorf("%s %s: %w %s of network %s", flagOf(want), want, ErrOutside, pool.Prefix, n.Conf.Label())
	}
	if why := pool.Reserved(want); why != "" {
		return fmt.Errorf("%s %s: %w: it is the %s address of network %s", flagOf(want), want, ErrReserved, why, n.Conf.Label())
	}
	for try := 1; ; try++ {
		err := d.takeExplicit(ctx, at, want)
		if errors.Is(err, errLent) && try <= explicitTries {
			// Its container may have stopped there, and moves here.
			if kept := d.cfg.Cluster.Reclaim(ctx, at.network, at.prefix, want); kept != nil {
				return fmt.Errorf("%w: %w", err, kept)
			}
			continue
		}
		if !errors.Is(err, errNotOwned) || try > explicitTries {
			return err
		}
		if err := d.claimFor(ctx, n.Conf, pool, want); err != nil {
			return err
		}
	}
}

// flagOf is what a user asks for an address with.
func flagOf(a netip.Addr) string {
	if a.Is6() {
		return "--ip6"
	}
	return "--ip"
}

var (
	// errNotOwned: an address is in none of this host's blocks.
	errNotOwned = errors.New("its block is not this host's")
	// errLent: another host has borrowed it.
	errLent = errors.New("it is lent")
)

func (d *Driver) takeExplicit(ctx context.Context, at poolOf, want netip.Addr) error {
	return d.cfg.Cluster.Journal().Update(func(tx *journal.Tx) error {
		if err := ctx.Err(); err != nil {
			return err // the engine was answered already
		}
		n, _, err := at.within(tx)
		if err != nil {
			return err
		}
		if !Owned(n.Blocks, want) {
			return fmt.Errorf("%s %s: %w", flagOf(want), want, errNotOwned)
		}
		if l, ok := tx.Lease(at.network, want); ok && l.Released == 0 && l.Lent != "" {
			return fmt.Errorf("%s %s: %w: %w to host %s", flagOf(want), want, ErrInUse, errLent, d.cfg.Cluster.HostName(l.Lent))
		} else if ok && l.Released == 0 {
			return fmt.Errorf("%s %s: %w by %s", flagOf(want), want, ErrInUse, d.describe(l))
		}
		tx.PutLease(journal.Lease{Network: at.network, Addr: want, Gen: tx.Stamp()})
		return nil
	})
}

// describe names the holder of an address of this host's blocks.
func (d *Driver) describe(l journal.Lease) string {
	switch {
	case l.Endpoint != "":
		return "endpoint " + l.Endpoint.Short() + " on this host"
	}
	return "an endpoint that is being created or removed on this host"
}

// claimFor claims the block of an explicit address, or borrows the address of the
// block's owner.
func (d *Driver) claimFor(ctx context.Context, n carrick.Network, pool carrick.Pool, want netip.Addr) error {
	block := pool.BlockOf(want)
	err := d.cfg.Cluster.ClaimBlock(ctx, n.ID, block)
	if !errors.Is(err, cluster.ErrBlockTaken) {
		return err
	}
	_, refused := d.cfg.Cluster.Borrow(ctx, n.ID, pool.Prefix, want)
	if refused == nil {
		return nil
	}
	owners, lerr := d.cfg.Cluster.Blocks(ctx, n.ID)
	if lerr != nil {
		return errors.Join(refused, lerr)
	}
	owner := d.cfg.Cluster.HostName(owners[block])
	if holder, host, ok := d.holder(n.ID, want); ok {
		return fmt.Errorf("%s %s: %w by endpoint %s on host %s: %w", flagOf(want), want, ErrInUse, holder.Short(), host, refused)
	}
	return fmt.Errorf("%s %s: its block %s belongs to host %s: %w: %w: run the container there, or choose an address of a free block or of this host's (carrick network inspect %s)",
		flagOf(want), want, block, owner, err, refused, n.Label())
}

// holder looks for an address among the facts of other hosts.
func (d *Driver) holder(id carrick.NetworkID, a netip.Addr) (carrick.EndpointID, string, bool) {
	e, host, ok := d.cfg.Cluster.FindEndpoint(id, func(e carrick.Endpoint) bool { return slices.Contains(e.Addrs, a) })
	return e.ID, d.cfg.Cluster.HostName(host), ok
}
