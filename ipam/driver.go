// Package ipam is Docker's IPAM driver: pools that are cluster-wide and
// addresses that come from this host's own blocks.
//
// The set arithmetic (Pick, NextBlock, ChoosePool) is pure. The verbs translate
// Docker's calls into facts of package cluster. Nothing here knows the kernel;
// the host's routes come in as a function.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/dockerapi"
)

// Sentinel errors.
var (
	// ErrInUse: an explicit address that somebody has.
	ErrInUse = errors.New("address in use")
	// ErrFull: no address left that this host could give.
	ErrFull = errors.New("no free address")
	// ErrReserved: a gateway, auxiliary, network or broadcast address.
	ErrReserved = errors.New("address is reserved")
	// ErrOutside: an address that is not in the pool.
	ErrOutside = errors.New("address is not in the pool")
	// ErrNoReservation: a pool that was never requested, or too long ago.
	ErrNoReservation = errors.New("pool is not reserved")
)

// Config is what a Driver needs.
type Config struct {
	Cluster *cluster.Cluster
	// Defaults are where networks without --subnet get their prefix.
	Defaults []DefaultPool
	// HostPrefixes lists prefixes of this host's routes and bridges, which a
	// chosen pool must not overlap.
	HostPrefixes func(context.Context) ([]netip.Prefix, error)
	Log          *slog.Logger
	Now          func() time.Time // nil: time.Now
	// StaleAlias, if set, is told that a create was refused because this host has
	// an alias already: maybe the engine lost it, and somebody should look.
	StaleAlias func()
	// Segment is asked before an address is given out that lives on a segment with others;
	// nil: nobody is.
	Segment Segment
}

// Segment knows who has an address on the segment that a network stands on.
type Segment interface {
	// Foreign says, in words for people, who has an address that is none of Carrick's
	// containers; "" if nobody is heard of.
	Foreign(ctx context.Context, n carrick.Network, a netip.Addr) (string, error)
}

// storeLimit bounds a call that asks the store: an engine serialises its callers.
const storeLimit = 8 * time.Second

// Driver implements [dockerapi.IPAMDriver].
type Driver struct {
	cfg Config
	res *reservations
	// topUp holds pools of networks, of which this host's blocks are getting full.
	topUp chan poolOf

	mu sync.Mutex
	// claims has one place per pool, held while a block is claimed of it, so that
	// many containers starting at once claim one block. Guarded by mu.
	claims map[poolOf]chan struct{}
	// halves has the IPv4 addresses last given out in networks with IPv6, until the
	// next request. Guarded by mu.
	halves map[carrick.NetworkID]netip.Addr
}

// poolOf names a pool of a network.
type poolOf struct {
	network carrick.NetworkID
	prefix  netip.Prefix
}

var _ dockerapi.IPAMDriver = (*Driver)(nil)

// New returns a driver. Run serves its background work.
func New(cfg Config) *Driver {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Driver{
		cfg:    cfg,
		res:    newReservations(cfg.Now),
		topUp:  make(chan poolOf, 64),
		claims: map[poolOf]chan struct{}{},
		halves: map[carrick.NetworkID]netip.Addr{},
	}
}

func (d *Driver) String() string { return "ipam" }

// Run claims blocks ahead of need until ctx ends.
func (d *Driver) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case at := <-d.topUp:
			cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := d.claimAhead(cctx, at); err != nil {
				d.cfg.Log.Debug("no block claimed ahead of need", "network", at.network, "pool", at.prefix, "err", err)
			}
			cancel()
		}
	}
}

// RequestAddress reserves a gateway or auxiliary address of a pool that is being
// created, or allocates an endpoint's address from a network's pool.
func (d *Driver) RequestAddress(ctx context.Context, r dockerapi.RequestAddressRequest) (dockerapi.RequestAddressResponse, error) {
	tenant, prefix, err := parsePoolID(r.PoolID)
	if err != nil {
		return dockerapi.RequestAddressResponse{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	var addr netip.Addr
	if n, pool, ok := d.bound(tenant, prefix); !ok {
		addr, err = d.reserveAddress(ctx, tenant, prefix, r)
	} else if r.Kind == dockerapi.AddressGateway {
		addr = pool.Gateway
	} else {
		d.cfg.Cluster.Follow(n.ID) // its facts will be needed in a moment
		addr, err = d.allocateUnclaimed(ctx, n, prefix, r.Addr)
		d.noteHalf(n, prefix, addr, err)
	}
	if err != nil {
		return dockerapi.RequestAddressResponse{}, err
	}
	return dockerapi.RequestAddressResponse{Addr: netip.PrefixFrom(addr, prefix.Bits())}, nil
}

// noteHalf remembers an endpoint's IPv4 address until its IPv6 address is given
// out, too, and releases it if that fails: no engine does. An engine makes a
// network's endpoints one after the other, so both requests are of one endpoint.
// If the agent restarts between the two, the address is found to be an orphan
// later.
func (d *Driver) noteHalf(n carrick.Network, prefix netip.Prefix, addr netip.Addr, err error) {
	if len(n.Pools) < 2 {
		return
	}
	d.mu.Lock()
	half, ok := d.halves[n.ID]
	delete(d.halves, n.ID)
	if prefix.Addr().Is4() && err == nil {
		d.halves[n.ID] = addr
	}
	d.mu.Unlock()
	if !ok || prefix.Addr().Is4() || err == nil {
		return
	}
	if rerr := d.cfg.Cluster.ReleaseUnbound(n.ID, half); rerr != nil {
		d.cfg.Log.Warn("address of an endpoint that was not made is not released yet", "network", n.Label(), "addr", half, "err", rerr)
	}
}

// bound returns the network that this host has for a pool.
func (d *Driver) bound(tenant string, prefix netip.Prefix) (carrick.Network, carrick.Pool, bool) {
	for _, n := range d.cfg.Cluster.Journal().Networks() {
		if n.Leaving || len(n.Aliases) == 0 || n.Conf.Tenant != tenant {
			continue
		}
		if p, ok := poolWith(n.Conf, prefix); ok {
			return n.Conf, p, true
		}
	}
	return carrick.Network{}, carrick.Pool{}, false
}

// poolWith returns a network's pool of a prefix.
func poolWith(n carrick.Network, prefix netip.Prefix) (carrick.Pool, bool) {
	p, ok := n.Pool(carrick.FamilyOf(prefix.Addr()))
	return p, ok && p.Prefix == prefix
}

// reserveAddress answers for a gateway or an auxiliary address between
// RequestPool and CreateNetwork. Nothing is stored: CreateNetwork brings both
// again.
func (d *Driver) reserveAddress(ctx context.Context, tenant string, prefix netip.Prefix, r dockerapi.RequestAddressRequest) (netip.Addr, error) {
	res, ok := d.res.get(prefix)
	if !ok || res.Tenant != tenant {
		return netip.Addr{}, fmt.Errorf("subnet %s: %w: create the network first", prefix, ErrNoReservation)
	}
	what := "--aux-address"
	if r.Kind == dockerapi.AddressGateway {
		what = "--gateway"
	}
	if r.Addr.IsValid() {
		if !prefix.Contains(r.Addr) {
			return netip.Addr{}, fmt.Errorf("%s %s: %w %s", what, r.Addr, ErrOutside, prefix)
		}
		if why := (carrick.Pool{Prefix: prefix}).Reserved(r.Addr); why != "" {
			return netip.Addr{}, fmt.Errorf("%s %s: %w: it is the %s address of %s", what, r.Addr, ErrReserved, why, prefix)
		}
		return r.Addr, nil
	}
	if r.Kind != dockerapi.AddressGateway {
		return netip.Addr{}, fmt.Errorf("subnet %s: an endpoint's address was asked for before the network was created", prefix)
	}
	// A joining host gets the network's own gateway.
	n, found, err := d.cfg.Cluster.Find(ctx, tenant, prefix)
	if err != nil {
		return netip.Addr{}, createNeedsStore(err)
	}
	if found {
		p, _ := poolWith(n, prefix)
		return p.Gateway, nil
	}
	return prefix.Addr().Next(), nil
}

// ReleaseAddress gives an endpoint's address back. A gateway's or auxiliary
// address changes nothing: other hosts have it too.
func (d *Driver) ReleaseAddress(_ context.Context, id string, addr netip.Addr) error {
	tenant, prefix, err := parsePoolID(id)
	if err != nil {
		return err
	}
	n, _, ok := d.bound(tenant, prefix)
	if !ok {
		return nil
	}
	return d.cfg.Cluster.ReleaseAddress(n.ID, addr)
}
