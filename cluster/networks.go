package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// createTries bounds the races a create may lose against other hosts.
const createTries = 20

// CreateNetwork makes the network, or joins it if the tenant already has exactly
// this prefix, and gives this host an alias of it: one transaction in the store,
// then the journal. One that is on its way out is waited for until a second before
// ctx ends. Errors: [ErrOption], [ErrOverlap], [ErrVNITaken], [ErrMismatch], [ErrAliased],
// [ErrRemoving], [ErrUnknownNetwork] (Want.Network), or the store's.
func (c *Cluster) CreateNetwork(ctx context.Context, w Want) (n carrick.Network, joined bool, err error) {
	for attempt := 0; ; attempt++ {
		n, joined, err = c.createNetwork(ctx, w)
		end, limited := ctx.Deadline()
		if !errors.Is(err, ErrRemoving) || w.Network != "" || !limited || time.Until(end) < time.Second {
			return n, joined, err
		}
		if backoff(ctx, attempt, 200*time.Millisecond) != nil {
			return n, joined, err
		}
	}
}

func (c *Cluster) createNetwork(ctx context.Context, w Want) (n carrick.Network, joined bool, err error) {
	if err := c.creating.Acquire(ctx, 1); err != nil {
		return carrick.Network{}, false, fmt.Errorf("create network: wait for an earlier one to be cleared away: %w", err)
	}
	defer c.creating.Release(1)
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		var err error
		n, joined, err = c.buildCreate(ctx, t, w, num)
		return err
	})
	if errors.Is(err, ErrRecovering) {
		n = carrick.Network{} // nothing was written
	}
	if err == nil {
		// Nobody hears of a success after ctx: the engine gave the network up.
		err = ctx.Err()
	}
	if err != nil && (n.ID == "" || !IsUnavailable(err) && ctx.Err() == nil) {
		return carrick.Network{}, false, err
	}
	err = errors.Join(err, c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(n.ID)
		if ok && !rec.Leaving {
			return fmt.Errorf("network %s: %w", n.ID, ErrAliased)
		}
		if !ok {
			rec = journal.Network{Conf: n}
		}
		if err != nil {
			// Whether the store has it is not known. The engine will forget the
			// network, and so must the store, as soon as it can be asked.
			rec.Leaving = true
			rec.Left = append(rec.Left, w.Docker)
		} else {
			rec = journal.Network{Conf: n, Aliases: []journal.Alias{{Docker: w.Docker, Created: time.Now()}}}
		}
		tx.PutNetwork(rec)
		return nil
	}))
	if err != nil {
		return carrick.Network{}, false, err
	}
	return n, joined, nil
}

// buildCreate adds a new network, or the join of one, to a transaction.
func (c *Cluster) buildCreate(ctx context.Context, t *kvstore.Txn, w Want, num uint32) (carrick.Network, bool, error) {
	space, spaceVer, err := get[tenantRecord](ctx, c, keyTenant(w.Tenant))
	if err != nil {
		return carrick.Network{}, false, err
	}
	id, err := space.findAny(w.Tenant, w.Pools)
	if err != nil {
		return carrick.Network{}, false, err
	}
	switch {
	case id == "" && w.Network != "":
		return carrick.Network{}, false, fmt.Errorf("option carrick.network=%s: %w with subnet %s under tenant %s: give --ipam-opt carrick.network=%s as well, or the network's --subnet", w.Network, ErrUnknownNetwork, carrick.Subnets(w.Pools), w.Tenant, w.Network)
	case id != "" && w.Network != "" && id != w.Network:
		return carrick.Network{}, false, fmt.Errorf("option carrick.network=%s: subnet %s is network %s: %w", w.Network, carrick.Subnets(w.Pools), id, ErrMismatch)
	case id != "":
		n, err := c.buildJoin(ctx, t, id, w)
		return n, true, err
	}

	n, err := w.Configuration()
	if err != nil {
		return carrick.Network{}, false, err
	}
	if n.MTU == 0 && n.Mode.Bridged() {
		if n.MTU, err = c.fittingMTU(ctx, n.Pools); err != nil {
			return carrick.Network{}, false, err
		}
	}
	if n.VNI == 0 {
		if n.VNI, err = c.freeVNI(ctx); err != nil {
			return carrick.Network{}, false, err
		}
	} else if other, v, err := get[vniRecord](ctx, c, keyVNI(n.VNI)); err != nil {
		return carrick.Network{}, false, err
	} else if v != 0 {
		return carrick.Network{}, false, fmt.Errorf("option vni=%d: %w by %s: choose another, or leave it out", n.VNI, ErrVNITaken, c.describeNetwork(ctx, other.Network))
	}
	var encErr error
	space.V = schema
	for _, p := range w.Pools {
		space.Prefixes = append(space.Prefixes, tenantPrefix{p.Prefix, n.ID})
	}
	slices.SortFunc(space.Prefixes, func(a, b tenantPrefix) int { return a.Prefix.Compare(b.Prefix) })
	t.Version(keyTenant(w.Tenant), spaceVer).Absent(keyVNI(n.VNI)).Absent(keyConf(n.ID))
	put(t, &encErr, keyTenant(w.Tenant), &space)
	put(t, &encErr, keyVNI(n.VNI), &vniRecord{envelope{schema}, n.ID})
	put(t, &encErr, keyConf(n.ID), &confRecord{envelope{schema}, num, n})
	put(t, &encErr, keyMembers(n.ID), &membersRecord{envelope{schema}, 1})
	put(t, &encErr, keyHead(n.ID), &headRecord{envelope: envelope{schema}, Num: num})
	put(t, &encErr, keyAlias(n.ID, c.self), &aliasRecord{envelope{schema}, c.self, []dockerAlias{{Docker: w.Docker}}})
	return n, false, encErr
}

// buildJoin adds an alias of this host to an existing network.
func (c *Cluster) buildJoin(ctx context.Context, t *kvstore.Txn, id carrick.NetworkID, w Want) (carrick.Network, error) {
	conf, confVer, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return carrick.Network{}, err
	}
	members, membersVer, err := get[membersRecord](ctx, c, keyMembers(id))
	if err != nil {
		return carrick.Network{}, err
	}
	if confVer == 0 || membersVer == 0 {
		// Removed since the tenant's record was read.
		return carrick.Network{}, &kvstore.ConflictError{Keys: []string{keyConf(id)}}
	}
	if err := c.notRemoving(ctx, t, id); err != nil {
		return carrick.Network{}, err
	}
	if err := w.agrees(conf.Network); err != nil {
		return carrick.Network{}, err
	}
	aliases, aliasVer, err := get[aliasRecord](ctx, c, keyAlias(id, c.self))
	if err != nil {
		return carrick.Network{}, err
	}
	if err := c.refuseSecondAlias(id, w.Docker); err != nil {
		return carrick.Network{}, err
	}
	// Aliases of this host that its journal does not have are what a crash left
	// between the store and the journal: the engine never heard of success.
	var encErr error
	aliases = aliasRecord{envelope{schema}, c.self, []dockerAlias{{Docker: w.Docker}}}
	members.V = schema
	members.Change++
	t.Version(keyConf(id), confVer).Version(keyMembers(id), membersVer).Version(keyAlias(id, c.self), aliasVer)
	put(t, &encErr, keyMembers(id), &members)
	put(t, &encErr, keyAlias(id, c.self), &aliases)
	return conf.Network, encErr
}

// refuseSecondAlias refuses a second Docker network on this host for a network
// that already has one.
func (c *Cluster) refuseSecondAlias(id carrick.NetworkID, docker carrick.DockerNetworkID) error {
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	for _, a := range rec.Aliases {
		if a.Docker != docker {
			name := a.Name
			if name == "" {
				name = a.Docker.Short()
			}
			return fmt.Errorf("subnet %s: %w, as docker network %s: use that one, or another subnet or --ipam-opt tenant=NAME", rec.Conf.Subnets(), ErrAliased, name)
		}
	}
	return nil
}

// Refuse says, from this host's journal alone, whether a create for a prefix of
// a tenant would be a second one on this host ([ErrAliased]).
func (c *Cluster) Refuse(tenant string, prefix netip.Prefix) error {
	for _, n := range c.jr.Networks() {
		if n.Conf.Tenant == tenant && n.Conf.HasPrefix(prefix) {
			return c.refuseSecondAlias(n.Conf.ID, "")
		}
	}
	return nil
}

// Find looks a prefix up in a tenant's address space: the network that has
// exactly it, or nothing, or [ErrOverlap].
func (c *Cluster) Find(ctx context.Context, tenant string, prefix netip.Prefix) (carrick.Network, bool, error) {
	space, _, err := get[tenantRecord](ctx, c, keyTenant(tenant))
	if err != nil {
		return carrick.Network{}, false, err
	}
	id, err := space.find(tenant, prefix)
	if err != nil || id == "" {
		return carrick.Network{}, false, err
	}
	conf, v, err := get[confRecord](ctx, c, keyConf(id))
	return conf.Network, v != 0, err
}

// Prefixes returns the prefixes a tenant's networks have.
func (c *Cluster) Prefixes(ctx context.Context, tenant string) ([]netip.Prefix, error) {
	space, _, err := get[tenantRecord](ctx, c, keyTenant(tenant))
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, 0, len(space.Prefixes))
	for _, p := range space.Prefixes {
		out = append(out, p.Prefix)
	}
	return out, nil
}

// find returns the network of a prefix, "" if the prefix is free, or
// [ErrOverlap].
func (r *tenantRecord) find(tenant string, prefix netip.Prefix) (carrick.NetworkID, error) {
	for _, p := range r.Prefixes {
		if p.Prefix == prefix {
			return p.Network, nil
		}
	}
	for _, p := range r.Prefixes {
		if p.Prefix.Overlaps(prefix) {
			return "", fmt.Errorf("subnet %s: %w (%s, network %s, tenant %s): use exactly that subnet to join it, another subnet, or --ipam-opt tenant=NAME",
				prefix, ErrOverlap, p.Prefix, p.Network, tenant)
		}
	}
	return "", nil
}

// findAny returns the network that has any of the pools' prefixes, "" if all are
// free, or [ErrOverlap]. Whether it has them all is for Want.agrees to say.
func (r *tenantRecord) findAny(tenant string, pools []carrick.Pool) (carrick.NetworkID, error) {
	var found carrick.NetworkID
	for _, p := range pools {
		id, err := r.find(tenant, p.Prefix)
		if err != nil {
			return "", err
		}
		if found == "" {
			found = id
		}
	}
	return found, nil
}

// freeVNI picks a random VNI that nobody has. Random, so that two clusters on one
// underlay rarely meet; above 2^20, away from swarm's, which begin at 4096.
func (c *Cluster) freeVNI(ctx context.Context) (carrick.VNI, error) {
	const low = carrick.VNI(1 << 20)
	for range 16 {
		v := low + rand.N(carrick.ProbeVNI-low)
		_, ver, err := get[vniRecord](ctx, c, keyVNI(v))
		if err != nil {
			return 0, err
		}
		if ver == 0 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("choose a VNI: %w after 16 tries: give one with -o vni=N", ErrVNITaken)
}

func (c *Cluster) describeNetwork(ctx context.Context, id carrick.NetworkID) string {
	conf, v, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil || v == 0 {
		return "network " + string(id)
	}
	return "network " + conf.Label() + " (" + conf.Subnets() + ")"
}
