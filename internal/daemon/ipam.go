package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/mirror"
	"github.com/carrick-net/carrick/status"
)

// IPAM implements [status.Source].
func (s *source) IPAM(ctx context.Context, ref string) ([]status.IPAM, error) {
	nets, err := s.choose(ctx, ref)
	if err != nil {
		return nil, err
	}
	store, err := s.cluster.Inspect(ctx)
	if err != nil && !cluster.IsUnavailable(err) {
		return nil, err
	}
	own := s.cluster.InspectJournal()
	out := make([]status.IPAM, 0, len(nets))
	for _, n := range nets {
		out = append(out, s.use(n, own.Networks[n.ID], store))
	}
	return out, nil
}

// choose is the network that ref names, or all for "".
func (s *source) choose(ctx context.Context, ref string) ([]status.Network, error) {
	if ref == "" {
		return s.Networks(ctx)
	}
	n, err := s.find(ctx, ref)
	return []status.Network{n}, err
}

// use is the utilisation of one network; store is nil if it could not be read.
func (s *source) use(n status.Network, own check.JournalNetwork, store *check.Store) status.IPAM {
	u := usage{of: n.Pools, self: s.cluster.Self(), names: s.cluster.HostName}
	if !own.Leaving {
		u.own = own
	}
	out := status.IPAM{Network: n.ID, Name: n.Name, Tenant: n.Tenant, Whole: store != nil}
	if store != nil {
		u.blocks, u.endpoints = store.Networks[n.ID].Blocks, store.Networks[n.ID].Endpoints
	} else {
		out.AsOf = s.cluster.Health().Contact
		if v, _, err := s.cluster.View(n.ID); err == nil {
			u.endpoints = v.Endpoints
		}
	}
	out.Pools = u.pools()
	out.Warnings = warnings(out.Pools)
	return out
}

// ratios is how full the pools are whose endpoints this host follows.
func (s *source) ratios() []status.PoolRatio {
	var out []status.PoolRatio
	for id, own := range s.cluster.InspectJournal().Networks {
		v, complete, err := s.cluster.View(id)
		if err != nil || !complete || own.Leaving {
			continue
		}
		u := usage{of: own.Conf.Pools, self: s.cluster.Self(), names: s.cluster.HostName, own: own, endpoints: v.Endpoints}
		for _, p := range u.pools() {
			out = append(out, status.PoolRatio{Network: string(id), Name: own.Conf.Label(), Pool: p.Prefix.String(), Ratio: p.Percent / 100})
		}
	}
	return out
}

// Release implements [status.Source].
func (s *source) Release(ctx context.Context, ref string, a netip.Addr, force bool) (status.Released, error) {
	n, err := s.find(ctx, ref)
	if err != nil {
		return status.Released{}, err
	}
	out := status.Released{Network: n.ID, Name: n.Name, Addr: a}
	pool, ok := poolOf(n.Pools, a)
	if !ok {
		return out, fmt.Errorf("%s: %w: it is not an address of network %s (%s)", a, status.ErrRefused, n.Name, carrick.Subnets(n.Pools))
	}
	if why := pool.Reserved(a); why != "" {
		return out, fmt.Errorf("%s: %w: it is the %s address of network %s, which nobody was given", a, status.ErrRefused, why, n.Name)
	}
	lease, given := s.cluster.Journal().Leases(n.ID)[a]
	switch {
	case lease.Lent != "":
		return out, s.elsewhere(a, n, lease.Lent, "it is lent to that host")
	case !given:
		return s.notGiven(ctx, out, n, pool)
	case lease.Released != 0:
		out.What = "it rests already, since " + lease.At.Format(time.DateTime)
		return out, nil
	}
	out.Endpoint = lease.Endpoint
	out.Container, err = s.holder(ctx, n, lease)
	if err != nil && !force {
		return out, fmt.Errorf("%s of network %s: %w: %w; --force releases it all the same", a, n.Name, status.ErrRefused, err)
	}
	if err := s.cluster.ReleaseAddress(n.ID, a); err != nil {
		return out, err
	}
	out.Done = true
	out.What = "it rests, and is given out again after the addresses that were released before it"
	if rec, err := s.cluster.Journal().Network(n.ID); err == nil && slices.ContainsFunc(rec.Blocks, func(b netip.Prefix) bool { return b.IsSingleIP() && b.Addr() == a && pool.Block < b.Bits() }) {
		out.What = "it was borrowed, and goes back to the owner of its block"
	}
	return out, nil
}

// elsewhere says on which host an address can be released.
func (s *source) elsewhere(a netip.Addr, n status.Network, host carrick.HostID, why string) error {
	name := s.cluster.HostName(host)
	return fmt.Errorf("%s of network %s is host %s's: %w here: %s: run carrick ipam release %s %s on %s",
		a, n.Name, name, status.ErrRefused, why, n.Name, a, name)
}

// notGiven answers for an address that this host did not give out: it is another
// host's, or nobody's.
func (s *source) notGiven(ctx context.Context, out status.Released, n status.Network, pool carrick.Pool) (status.Released, error) {
	own := netip.PrefixFrom(out.Addr, out.Addr.BitLen())
	if rec, err := s.cluster.Journal().Network(n.ID); err == nil && (slices.Contains(rec.Blocks, pool.BlockOf(out.Addr)) || slices.Contains(rec.Blocks, own)) {
		out.What = "it is free already: this host never gave it out"
		return out, nil
	}
	blocks, err := s.cluster.Blocks(ctx, n.ID)
	if err != nil {
		return out, fmt.Errorf("whose address %s is cannot be seen: %w", out.Addr, err)
	}
	for _, b := range []netip.Prefix{own, pool.BlockOf(out.Addr)} {
		if owner, ok := blocks[b]; ok && owner != "" {
			what := "block " + b.String() + " is that host's"
			if b == own {
				what = "it is lent to that host"
			}
			return out, s.elsewhere(out.Addr, n, owner, what)
		}
	}
	out.What = "it is free already: its block is nobody's"
	return out, nil
}

// errUnsure: whether somebody uses an address cannot be said.
var errUnsure = errors.New("whether a container has it cannot be seen")

// holder looks for a user of an address: a container of the engine's, or a pair
// in the kernel that is in some container. The error says why it must not be
// released.
func (s *source) holder(ctx context.Context, n status.Network, l journal.Lease) (container string, err error) {
	if s.engine == nil {
		err = fmt.Errorf("%w: this agent does not use the engine (--docker)", errUnsure)
	} else {
		var all map[carrick.EndpointID]mirror.Container
		if all, err = s.engine.Containers(ctx); err != nil {
			err = fmt.Errorf("%w: %w", errUnsure, err)
		}
		for ep, c := range all {
			if ep == l.Endpoint || s.onNetwork(n.ID, c.Network) && slices.Contains(c.Addrs, l.Addr) {
				return c.Name, fmt.Errorf("container %s has it: docker rm -f %s, or docker network disconnect %s %s", c.Name, c.Name, n.Name, c.Name)
			}
		}
	}
	if err != nil || l.Endpoint == "" {
		return "", err
	}
	used, err := s.witness.InUse(ctx, n.ID, l.Endpoint)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", errUnsure, err)
	case used:
		return "", fmt.Errorf("the kernel has the pair of its endpoint %s in a container that the engine does not know", l.Endpoint.Short())
	}
	return "", nil
}

// onNetwork says whether an engine's network stands for a cluster network here.
func (s *source) onNetwork(id carrick.NetworkID, docker carrick.DockerNetworkID) bool {
	rec, err := s.cluster.Journal().ByAlias(docker)
	return err == nil && rec.Conf.ID == id
}

func poolOf(pools []carrick.Pool, a netip.Addr) (carrick.Pool, bool) {
	for _, p := range pools {
		if p.Prefix.Contains(a) {
			return p, true
		}
	}
	return carrick.Pool{}, false
}
