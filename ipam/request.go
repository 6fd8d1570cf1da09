package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/dockerapi"
)

// Lengths of the prefixes a network may have. The longest leave an address or two
// beside the gateway. A /48 is what a whole site gets (RFC 6177): somebody who
// asks for more meant something else, and routes of other sites would vanish
// behind it.
const (
	minBits4, maxBits4 = 8, 30
	minBits6, maxBits6 = 48, 126
)

// RequestPool reserves a prefix for the CreateNetwork that follows.
func (d *Driver) RequestPool(ctx context.Context, r dockerapi.RequestPoolRequest) (dockerapi.RequestPoolResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	prefix, tenant, err := d.requestPool(ctx, r)
	if errors.Is(err, cluster.ErrAliased) && d.cfg.StaleAlias != nil {
		d.cfg.StaleAlias()
	}
	if err != nil {
		return dockerapi.RequestPoolResponse{}, err
	}
	return dockerapi.RequestPoolResponse{PoolID: poolID(tenant, prefix), Pool: prefix}, nil
}

func (d *Driver) requestPool(ctx context.Context, r dockerapi.RequestPoolRequest) (prefix netip.Prefix, tenant string, err error) {
	fail := func(err error) (netip.Prefix, string, error) { return netip.Prefix{}, "", err }
	tenant, join, err := poolOptions(r.Options)
	if err != nil {
		return fail(err)
	}
	prefix = r.Pool.Masked()
	if prefix.IsValid() {
		// Without the store, if possible.
		if err := d.cfg.Cluster.Refuse(tenant, prefix); err != nil {
			return fail(err)
		}
		if err := checkSubnet(prefix, r.SubPool.Masked()); err != nil {
			return fail(err)
		}
	}
	if err := d.cfg.Cluster.WaitReady(ctx); err != nil {
		return fail(createNeedsStore(err))
	}
	if !prefix.IsValid() {
		if r.SubPool.IsValid() {
			return fail(fmt.Errorf("--ip-range %s needs a --subnet", r.SubPool))
		}
		if prefix, tenant, err = d.inherit(ctx, r.V6, tenant, join); err != nil {
			return fail(err)
		}
	}
	if !prefix.IsValid() {
		if prefix, err = d.choosePool(ctx, tenant, family(r.V6)); err != nil {
			return fail(err)
		}
		return prefix, tenant, nil
	}
	return prefix, tenant, d.reserve(ctx, Reservation{Tenant: tenant, Prefix: prefix, Range: r.SubPool.Masked(), Network: join})
}

func family(six bool) carrick.Family {
	if six {
		return carrick.IPv6
	}
	return carrick.IPv4
}

// checkSubnet refuses a prefix that no network can have, and a range that is not
// in it.
func checkSubnet(prefix, sub netip.Prefix) error {
	least, most, try := minBits4, maxBits4, "one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
	if prefix.Addr().Is6() {
		least, most, try = minBits6, maxBits6, "a /64 of your own, or of a unique local prefix, as fd00:42::/64 is"
	}
	switch {
	case prefix.Bits() < least || prefix.Bits() > most:
		return fmt.Errorf("--subnet %s: carrick takes %s prefixes from /%d to /%d", prefix, carrick.FamilyOf(prefix.Addr()), least, most)
	case unusable(prefix):
		return fmt.Errorf("--subnet %s: not a unicast range that containers could use, try %s", prefix, try)
	case sub.IsValid() && (sub.Bits() < prefix.Bits() || !prefix.Contains(sub.Addr())):
		return fmt.Errorf("--ip-range %s is not inside --subnet %s", sub, prefix)
	}
	return nil
}

// unusable says whether a prefix holds addresses that no container can have. Of
// IPv6 only global unicast and unique local addresses are any good.
func unusable(p netip.Prefix) bool {
	if p.Addr().Is6() {
		return !slices.ContainsFunc([]string{"2000::/3", "fc00::/7"}, func(s string) bool {
			good := netip.MustParsePrefix(s)
			return p.Bits() >= good.Bits() && good.Contains(p.Addr())
		})
	}
	return slices.ContainsFunc([]string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"}, func(s string) bool {
		return p.Overlaps(netip.MustParsePrefix(s))
	})
}

// inherit finds the prefix of the network that is being joined, for a create that
// says --ipv6 or nothing at all instead of a subnet: of the network asked for by
// option, or of the one whose IPv4 prefix the same create asked for just before.
// The zero prefix: none is being joined.
func (d *Driver) inherit(ctx context.Context, six bool, tenant string, join carrick.NetworkID) (netip.Prefix, string, error) {
	if join == "" {
		if !six {
			return netip.Prefix{}, tenant, nil
		}
		p, ok := d.res.peer(tenant)
		if !ok {
			return netip.Prefix{}, tenant, nil
		}
		return p, tenant, d.cfg.Cluster.Refuse(tenant, p)
	}
	n, err := d.cfg.Cluster.Network(ctx, join)
	if err != nil {
		return netip.Prefix{}, "", fmt.Errorf("--ipam-opt carrick.network=%s: %w", join, createNeedsStore(err))
	}
	p, ok := n.Pool(family(six))
	switch {
	case !ok && six:
		return netip.Prefix{}, "", fmt.Errorf("--ipam-opt carrick.network=%s: network %s has no IPv6 subnet, only %s: leave out --ipv6", join, n.Label(), n.Subnets())
	case !ok:
		return netip.Prefix{}, "", fmt.Errorf("--ipam-opt carrick.network=%s: network %s has no IPv4 subnet, only %s: give --ipv4=false (engines before 28 cannot join it)", join, n.Label(), n.Subnets())
	}
	return p.Prefix, n.Tenant, d.cfg.Cluster.Refuse(n.Tenant, p.Prefix)
}

// reserve reserves a prefix that was asked for: a free one, or a network's.
func (d *Driver) reserve(ctx context.Context, v Reservation) error {
	n, found, err := d.cfg.Cluster.Find(ctx, v.Tenant, v.Prefix)
	if err != nil {
		return createNeedsStore(err)
	}
	switch {
	case v.Network != "" && !found:
		return fmt.Errorf("--ipam-opt carrick.network=%s: %w with subnet %s under tenant %s", v.Network, cluster.ErrUnknownNetwork, v.Prefix, v.Tenant)
	case v.Network != "" && n.ID != v.Network:
		return fmt.Errorf("--ipam-opt carrick.network=%s: subnet %s is network %s: %w", v.Network, v.Prefix, n.ID, cluster.ErrMismatch)
	case !found:
		return d.res.add(v)
	}
	pool, _ := poolWith(n, v.Prefix)
	if v.Range.IsValid() && v.Range != pool.Range {
		have := "none"
		if pool.Range.IsValid() {
			have = pool.Range.String()
		}
		return fmt.Errorf("--ip-range %s: network %s (%s) has %s: %w: leave it out to inherit", v.Range, n.Label(), v.Prefix, have, cluster.ErrMismatch)
	}
	if six, ok := n.Pool(carrick.IPv6); ok && v.Prefix.Addr().Is4() {
		v.Peer = six.Prefix
	}
	return d.res.add(v)
}

// choosePool reserves a free prefix from the default pools.
func (d *Driver) choosePool(ctx context.Context, tenant string, f carrick.Family) (netip.Prefix, error) {
	busy, err := d.cfg.Cluster.Prefixes(ctx, tenant)
	if err != nil {
		return netip.Prefix{}, createNeedsStore(err)
	}
	host, err := d.cfg.HostPrefixes(ctx)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("choose a subnet: read this host's routes: %w", err)
	}
	p, ok := d.res.choose(d.cfg.Defaults, f, append(busy, host...), tenant)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("choose a subnet: every %s prefix of the default pools %v overlaps a network of tenant %s or a route of this host: give one with --subnet, or more pools with --default-pool", f, d.cfg.Defaults, tenant)
	}
	return p, nil
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

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
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
