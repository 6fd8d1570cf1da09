package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// settle brings the store in line with the journal after a start, and finishes
// removals that the store has not heard of, until ctx ends.
func (c *Cluster) settle(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := c.settleOnce(ctx, true)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if attempt == 0 {
			c.log.Warn("store and journal not compared yet", "err", err)
		}
		if backoff(ctx, attempt, 2*time.Second) != nil {
			return nil
		}
	}
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	idle := map[idleBlock]time.Time{}
	compared := time.Now()
	searched := compared
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.settleAgain:
			c.reloadAll(ctx)
			compared = time.Time{}
		}
		c.probe(ctx)
		if err := c.giveUpIdle(idle, time.Now()); err != nil {
			c.log.Error("unused blocks not given up", "err", err)
		}
		if !c.mayChange() {
			continue
		}
		for _, n := range c.jr.Networks() {
			if !n.Leaving {
				continue
			}
			if err := c.leave(ctx, n.Conf.ID); err != nil {
				c.log.Debug("network not left yet", "network", n.Conf.ID, "err", err)
			}
		}
		c.keepUsed(ctx)
		if err := c.freeAll(ctx); err != nil {
			c.log.Debug("blocks not freed yet", "err", err)
		}
		if time.Since(compared) >= settleEvery {
			whole := compared.IsZero() || time.Since(searched) >= strangersEvery
			if err := c.settleOnce(ctx, whole); err != nil {
				c.log.Debug("store and journal not compared yet", "err", err)
				continue
			}
			if compared = time.Now(); whole {
				searched = compared
			}
		}
	}
}

// settleEvery is how often store and journal are compared without a reason, and
// strangersEvery how often the whole store is searched for what this host's
// journal does not know: that costs a question per network of the cluster.
const (
	settleEvery    = time.Minute
	strangersEvery = 10 * time.Minute
)

// mayChange says whether structural changes have a chance now.
func (c *Cluster) mayChange() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastErr == nil && c.recovering.IsZero()
}

// probe asks the store something after a failure, so that its return is noticed
// on a host where nothing else asks: a watch may wait for minutes.
func (c *Cluster) probe(ctx context.Context) {
	c.mu.Lock()
	failed := c.lastErr != nil
	c.mu.Unlock()
	if !failed {
		return
	}
	if _, _, err := get[epochRecord](ctx, c, keyEpoch); err != nil {
		c.log.Debug("the store still does not answer", "err", err)
	}
}

// settleOnce compares store and journal; whole searches other networks as well.
func (c *Cluster) settleOnce(ctx context.Context, whole bool) error {
	var errs []error
	if c.jr.Meta().Fenced {
		return nil // regain does it
	}
	errs = append(errs, c.settleSelf(ctx), c.settleKey(ctx))
	for _, n := range c.jr.Networks() {
		if n.Leaving {
			errs = append(errs, c.leave(ctx, n.Conf.ID))
			continue
		}
		errs = append(errs, c.settleNetwork(ctx, n))
	}
	errs = append(errs, c.clearAsks(ctx), c.acceptRewound(ctx))
	if whole {
		errs = append(errs, c.dropStrangers(ctx))
	}
	return errors.Join(errs...)
}

// settleSelf registers this host again if its record is gone from a store whose
// epoch says nothing of a loss.
func (c *Cluster) settleSelf(ctx context.Context) error {
	if _, v, err := get[hostRecord](ctx, c, keyHost(c.self)); err != nil || v != 0 {
		return err
	}
	if _, _, err := c.readEpoch(ctx); err != nil {
		return err
	}
	c.log.Warn("this host is missing from the store and registers again")
	return c.register(ctx)
}

// settleKey gives the cluster's key back to a store that lost it.
func (c *Cluster) settleKey(ctx context.Context) error {
	if c.knownKey() == nil {
		return nil // nobody here needs one
	}
	_, err := c.tryKey(ctx)
	if errors.Is(err, kvstore.ErrConflict) {
		return nil // another host was faster
	}
	return err
}

// settleNetwork restores what a crash between store and journal, in either
// order, left different.
func (c *Cluster) settleNetwork(ctx context.Context, n journal.Network) error {
	id := n.Conf.ID
	err := c.confirm(ctx, id, c.normally, false)
	if errors.Is(err, errContested) {
		return nil // it is told
	}
	if err != nil {
		return err
	}
	if err := c.compareBlocks(ctx, id); err != nil {
		return err
	}
	if err := c.settleDisputes(ctx, id); err != nil {
		return err
	}
	if err := c.publishAliases(ctx, id); err != nil {
		return err
	}
	c.doubtPublished(id)
	c.PublishLater(id)
	return nil
}

// publishAliases makes the store hold what the journal says of this host's
// aliases of a network, and the network's name if it has none yet.
func (c *Cluster) publishAliases(ctx context.Context, id carrick.NetworkID) error {
	for attempt := 0; ; attempt++ {
		err := c.tryPublishAliases(ctx, id)
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= createTries {
			return err
		}
		if err := backoff(ctx, attempt, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

func (c *Cluster) tryPublishAliases(ctx context.Context, id carrick.NetworkID) error {
	if rec, err := c.jr.Network(id); err != nil || rec.Leaving {
		return nil
	}
	conf, confVer, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return err
	}
	members, membersVer, err := get[membersRecord](ctx, c, keyMembers(id))
	if err != nil {
		return err
	}
	stored, aliasVer, err := get[aliasRecord](ctx, c, keyAlias(id, c.self))
	if err != nil {
		return err
	}
	// After the store: if the journal has the alias still, this host has yet to leave,
	// which changes the members.
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	if confVer == 0 || membersVer == 0 {
		return fmt.Errorf("network %s: %w in the store", id, ErrUnknownNetwork)
	}
	next := aliasRecord{envelope: envelope{schema}, Host: c.self}
	name := conf.Name
	for _, a := range rec.Aliases {
		next.Aliases = append(next.Aliases, dockerAlias{a.Docker, a.Name})
		if name == "" {
			name = a.Name
		}
	}
	if slices.Equal(stored.Aliases, next.Aliases) && name == conf.Name {
		return nil
	}
	var encErr error
	members.V = schema
	members.Change++
	t := (&kvstore.Txn{}).Version(keyConf(id), confVer).Version(keyMembers(id), membersVer).Version(keyAlias(id, c.self), aliasVer)
	put(t, &encErr, keyMembers(id), &members)
	put(t, &encErr, keyAlias(id, c.self), &next)
	if name != conf.Name {
		conf.Name = name
		put(t, &encErr, keyConf(id), &conf)
	}
	if encErr != nil {
		return encErr
	}
	if _, err := c.commit(ctx, t); err != nil {
		return fmt.Errorf("publish the aliases of network %s: %w", id, err)
	}
	return c.jr.Update(func(tx *journal.Tx) error {
		if rec, ok := tx.Network(id); ok && rec.Conf.Name != name {
			rec.Conf.Name = name
			tx.PutNetwork(rec)
		}
		return nil
	})
}

// NameAlias records the name an engine has for one of its networks, and tells
// the store. An unknown alias is not an error.
func (c *Cluster) NameAlias(ctx context.Context, docker carrick.DockerNetworkID, name string) error {
	rec, err := c.jr.ByAlias(docker)
	if err != nil {
		return nil
	}
	id := rec.Conf.ID
	err = c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if !ok {
			return nil
		}
		for i, a := range rec.Aliases {
			if a.Docker == docker && a.Name != name {
				rec.Aliases[i].Name = name
				tx.PutNetwork(rec)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.publishAliases(ctx, id)
}

// dropStrangers removes aliases that the store has for this host and its journal
// does not: a create that crashed after its commit, which the engine never heard
// of, or one whose late commit nobody waited for.
func (c *Cluster) dropStrangers(ctx context.Context) error {
	confs, err := c.StoredNetworks(ctx)
	if err != nil {
		return err
	}
	for _, n := range confs {
		if err := c.dropStranger(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) dropStranger(ctx context.Context, n carrick.Network) error {
	if err := c.creating.Acquire(ctx, creators); err != nil {
		return err
	}
	defer c.creating.Release(creators)
	if _, err := c.jr.Network(n.ID); err == nil {
		return nil
	}
	a, v, err := get[aliasRecord](ctx, c, keyAlias(n.ID, c.self))
	if err != nil || v == 0 || len(a.Aliases) == 0 {
		return err
	}
	var all []carrick.DockerNetworkID
	for _, d := range a.Aliases {
		all = append(all, d.Docker)
	}
	c.log.Info("dropping an alias that no engine knows", "network", n.Label(), "docker", all[0].Short())
	return c.dropStored(ctx, n, all, carrick.MakeGen(0, c.jr.Meta().Clock))
}

// StoredNetworks returns the configuration of every network in the store, sorted
// by tenant and prefix.
func (c *Cluster) StoredNetworks(ctx context.Context) ([]carrick.Network, error) {
	v, err := c.store.List(ctx, kvstore.Under(keyTenant("")))
	c.heard(err)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var out []carrick.Network
	seen := map[carrick.NetworkID]bool{} // one with two prefixes is there twice
	for _, e := range v.Entries {
		r, err := decode[tenantRecord](e.Key, e.Value)
		if err != nil {
			return nil, err
		}
		for _, p := range r.Prefixes {
			if seen[p.Network] {
				continue
			}
			seen[p.Network] = true
			conf, v, err := get[confRecord](ctx, c, keyConf(p.Network))
			if err != nil {
				return nil, err
			}
			if v != 0 {
				out = append(out, conf.Network)
			}
		}
	}
	return out, nil
}

// Detail is everything the store says about a network.
type Detail struct {
	Network   carrick.Network
	Aliases   map[carrick.HostID][]journal.Alias
	Endpoints map[carrick.HostID][]carrick.Endpoint
	Blocks    map[string]carrick.HostID // by prefix
}

// Detail reads a network whole from the store. [ErrUnknownNetwork] if it is not
// there.
func (c *Cluster) Detail(ctx context.Context, id carrick.NetworkID) (Detail, error) {
	v, err := c.store.List(ctx, kvstore.Under(prefixNet(id)))
	c.heard(err)
	if err != nil {
		return Detail{}, fmt.Errorf("read network %s: %w", id, err)
	}
	d := Detail{
		Aliases:   map[carrick.HostID][]journal.Alias{},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Blocks:    map[string]carrick.HostID{},
	}
	found := false
	for _, e := range v.Entries {
		switch {
		case e.Key == keyConf(id):
			r, err := decode[confRecord](e.Key, e.Value)
			if err != nil {
				return Detail{}, err
			}
			d.Network, found = r.Network, true
		case strings.HasPrefix(e.Key, prefixAliases(id)):
			r, err := decode[aliasRecord](e.Key, e.Value)
			if err != nil {
				return Detail{}, err
			}
			for _, a := range r.Aliases {
				d.Aliases[r.Host] = append(d.Aliases[r.Host], journal.Alias{Docker: a.Docker, Name: a.Name})
			}
		case strings.HasPrefix(e.Key, prefixNetHosts(id)):
			r, err := decode[endpointsRecord](e.Key, e.Value)
			if err != nil {
				return Detail{}, err
			}
			d.Endpoints[carrick.HostID(strings.TrimPrefix(e.Key, prefixNetHosts(id)))] = r.Endpoints
		case strings.HasPrefix(e.Key, prefixBlocks(id)):
			r, err := decode[blockRecord](e.Key, e.Value)
			if err != nil {
				return Detail{}, err
			}
			if b, ok := blockOfKey(id, e.Key); ok && r.Host != "" {
				d.Blocks[b.String()] = r.Host
			}
		}
	}
	if !found {
		return Detail{}, fmt.Errorf("network %s: %w", id, ErrUnknownNetwork)
	}
	return d, nil
}
