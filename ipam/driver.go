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
	"slices"
	"strings"
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
}

// storeLimit bounds a call that asks the store: an engine serialises its callers.
const storeLimit = 8 * time.Second

// Driver implements [dockerapi.IPAMDriver].
type Driver struct {
	cfg Config
	res *reservations
	// topUp holds networks whose blocks are getting full.
	topUp chan carrick.NetworkID

	mu sync.Mutex
	// claims has one place per network, held while a block is claimed for it, so
	// that many containers starting at once claim one block. Guarded by mu.
	claims map[carrick.NetworkID]chan struct{}
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
		topUp:  make(chan carrick.NetworkID, 64),
		claims: map[carrick.NetworkID]chan struct{}{},
	}
}

func (d *Driver) String() string { return "ipam" }

// Run claims blocks ahead of need until ctx ends.
func (d *Driver) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case id := <-d.topUp:
			cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := d.claimAhead(cctx, id); err != nil {
				d.cfg.Log.Debug("no block claimed ahead of need", "network", id, "err", err)
			}
			cancel()
		}
	}
}

// RequestPool reserves a prefix for the CreateNetwork that follows.
func (d *Driver) RequestPool(ctx context.Context, r dockerapi.RequestPoolRequest) (dockerapi.RequestPoolResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	resp, err := d.requestPool(ctx, r)
	if errors.Is(err, cluster.ErrAliased) && d.cfg.StaleAlias != nil {
		d.cfg.StaleAlias()
	}
	return resp, err
}

func (d *Driver) requestPool(ctx context.Context, r dockerapi.RequestPoolRequest) (dockerapi.RequestPoolResponse, error) {
	fail := func(err error) (dockerapi.RequestPoolResponse, error) {
		return dockerapi.RequestPoolResponse{}, err
	}
	tenant, join, err := poolOptions(r.Options)
	if err != nil {
		return fail(err)
	}
	if r.V6 || r.Pool.Addr().Is6() {
		return fail(errors.New("IPv6 subnets are not supported by this version of carrick: leave out --ipv6 and the IPv6 --subnet"))
	}
	prefix := r.Pool.Masked()
	if prefix.IsValid() {
		if err := d.cfg.Cluster.Refuse(tenant, prefix); err != nil {
			return fail(err)
		}
	}
	if err := d.cfg.Cluster.WaitReady(ctx); err != nil {
		return fail(createNeedsStore(err))
	}
	if !prefix.IsValid() && join != "" {
		n, err := d.cfg.Cluster.Network(ctx, join)
		if err != nil {
			return fail(fmt.Errorf("--ipam-opt carrick.network=%s: %w", join, createNeedsStore(err)))
		}
		prefix, tenant = n.Pools[0].Prefix, n.Tenant
		if err := d.cfg.Cluster.Refuse(tenant, prefix); err != nil {
			return fail(err)
		}
	}
	if !prefix.IsValid() {
		if r.SubPool.IsValid() {
			return fail(fmt.Errorf("--ip-range %s needs a --subnet", r.SubPool))
		}
		return d.choosePool(ctx, tenant)
	}
	if prefix.Bits() < 8 || prefix.Bits() > 30 {
		return fail(fmt.Errorf("--subnet %s: carrick takes prefixes from /8 to /30", prefix))
	}
	if badRange(prefix) {
		return fail(fmt.Errorf("--subnet %s: not a unicast range that containers could use, try one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16", prefix))
	}
	sub := r.SubPool.Masked()
	if sub.IsValid() && (sub.Bits() < prefix.Bits() || !prefix.Contains(sub.Addr())) {
		return fail(fmt.Errorf("--ip-range %s is not inside --subnet %s", sub, prefix))
	}
	n, found, err := d.cfg.Cluster.Find(ctx, tenant, prefix)
	if err != nil {
		return fail(createNeedsStore(err))
	}
	switch {
	case join != "" && !found:
		return fail(fmt.Errorf("--ipam-opt carrick.network=%s: %w with subnet %s under tenant %s", join, cluster.ErrUnknownNetwork, prefix, tenant))
	case join != "" && n.ID != join:
		return fail(fmt.Errorf("--ipam-opt carrick.network=%s: subnet %s is network %s: %w", join, prefix, n.ID, cluster.ErrMismatch))
	case found && sub.IsValid() && sub != n.Pools[0].Range:
		have := "none"
		if n.Pools[0].Range.IsValid() {
			have = n.Pools[0].Range.String()
		}
		return fail(fmt.Errorf("--ip-range %s: network %s (%s) has %s: %w: leave it out to inherit", sub, n.Label(), prefix, have, cluster.ErrMismatch))
	}
	if err := d.res.add(Reservation{Tenant: tenant, Prefix: prefix, Range: sub, Network: join}); err != nil {
		return fail(err)
	}
	return dockerapi.RequestPoolResponse{PoolID: poolID(tenant, prefix), Pool: prefix}, nil
}

// choosePool reserves a free prefix from the default pools.
func (d *Driver) choosePool(ctx context.Context, tenant string) (dockerapi.RequestPoolResponse, error) {
	busy, err := d.cfg.Cluster.Prefixes(ctx, tenant)
	if err != nil {
		return dockerapi.RequestPoolResponse{}, createNeedsStore(err)
	}
	host, err := d.cfg.HostPrefixes(ctx)
	if err != nil {
		return dockerapi.RequestPoolResponse{}, fmt.Errorf("choose a subnet: read this host's routes: %w", err)
	}
	p, ok := d.res.choose(d.cfg.Defaults, append(busy, host...), tenant)
	if !ok {
		return dockerapi.RequestPoolResponse{}, fmt.Errorf("choose a subnet: every prefix of the default pools %v overlaps a network of tenant %s or a route of this host: give one with --subnet, or more pools with --default-pool", d.cfg.Defaults, tenant)
	}
	return dockerapi.RequestPoolResponse{PoolID: poolID(tenant, p), Pool: p}, nil
}

// createNeedsStore adds to an error of the store what the user can do.
func createNeedsStore(err error) error {
	if errors.Is(err, cluster.ErrNotReady) || cluster.IsUnavailable(err) {
		return fmt.Errorf("a network cannot be created without the store: %w: check that it runs and --store is right (carrick status)", err)
	}
	return err
}

// poolOptions decodes --ipam-opt strictly.
func poolOptions(opts map[string]string) (tenant string, join carrick.NetworkID, err error) {
	tenant = carrick.DefaultTenant
	for _, k := range sortedKeys(opts) {
		v := opts[k]
		switch k {
		case "tenant":
			if !validTenant(v) {
				return "", "", fmt.Errorf("--ipam-opt tenant=%q: want up to 63 letters, digits, dots, dashes or underscores", v)
			}
			tenant = v
		case "carrick.network":
			if !carrick.ValidID(v) {
				return "", "", fmt.Errorf("--ipam-opt carrick.network=%q: want a network id of 16 hex digits, as carrick network ls shows", v)
			}
			join = carrick.NetworkID(v)
		default:
			return "", "", fmt.Errorf("--ipam-opt %s=%s: unknown option: carrick knows tenant and carrick.network", k, v)
		}
	}
	return tenant, join, nil
}

// ReleasePool cancels a reservation that was never bound. A bound pool ends with
// DeleteNetwork, which Docker sends after this.
func (d *Driver) ReleasePool(_ context.Context, id string) error {
	tenant, prefix, err := parsePoolID(id)
	if err != nil {
		return err
	}
	d.res.drop(tenant, prefix)
	return nil
}

// Reserved returns the reservation of a prefix of which a network is being made.
// It stays until Done, so that no second create slips in between.
func (d *Driver) Reserved(prefix netip.Prefix) (Reservation, error) {
	r, ok := d.res.get(prefix)
	if !ok {
		return Reservation{}, fmt.Errorf("subnet %s: %w: the create took longer than %s or the agent restarted meanwhile: try again", prefix, ErrNoReservation, reservationLife)
	}
	return r, nil
}

// Done ends a reservation: its network has been made, or not.
func (d *Driver) Done(r Reservation) { d.res.drop(r.Tenant, r.Prefix) }

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
	if n, ok := d.bound(tenant, prefix); !ok {
		addr, err = d.reserveAddress(ctx, tenant, prefix, r)
	} else if r.Kind == dockerapi.AddressGateway {
		addr = n.Pools[0].Gateway
	} else {
		d.cfg.Cluster.Follow(n.ID) // its facts will be needed in a moment
		addr, err = d.Allocate(ctx, n.ID, r.Addr)
	}
	if err != nil {
		return dockerapi.RequestAddressResponse{}, err
	}
	return dockerapi.RequestAddressResponse{Addr: netip.PrefixFrom(addr, prefix.Bits())}, nil
}

// bound returns the network that this host has for a pool.
func (d *Driver) bound(tenant string, prefix netip.Prefix) (carrick.Network, bool) {
	for _, n := range d.cfg.Cluster.Journal().Networks() {
		if !n.Leaving && len(n.Aliases) > 0 && n.Conf.Tenant == tenant && n.Conf.Pools[0].Prefix == prefix {
			return n.Conf, true
		}
	}
	return carrick.Network{}, false
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
		return n.Pools[0].Gateway, nil
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
	n, ok := d.bound(tenant, prefix)
	if !ok {
		return nil
	}
	return d.cfg.Cluster.ReleaseAddress(n.ID, addr)
}

// badRange says whether a prefix holds addresses that no container can have.
func badRange(p netip.Prefix) bool {
	for _, s := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"} {
		if p.Overlaps(netip.MustParsePrefix(s)) {
			return true
		}
	}
	return false
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
