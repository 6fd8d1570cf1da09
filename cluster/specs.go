package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// ErrRemoving: the network is on its way out, and a host has yet to take its Docker
// network away.
var ErrRemoving = errors.New("network is being removed")

// Spec is what the engines of all hosts are told of a network, so that it is the
// same on each. It is known once the engine of its first host has told its name.
type Spec struct {
	Network carrick.Network // as in its configuration
	// Name is Docker's; "" if the network was removed before an engine told it.
	Name       string
	Labels     map[string]string
	Options    map[string]string // -o, without carrick.network
	IPAM       map[string]string // --ipam-opt, without carrick.network
	Attachable bool

	// Num and Seq order specs by when they became known: of two networks with one
	// name the earlier has it.
	Num uint32
	Seq uint64
	// Removal is who wants the network gone; nil: nobody.
	Removal *Removal
	// Refusal is why the last removal came to nothing; nil: there was none.
	Refusal *Refusal
}

// Removal is a docker network rm that has not yet happened everywhere.
type Removal struct {
	Host carrick.HostID `json:"host"`
	At   time.Time      `json:"at"`
}

// Refusal is a host's engine that did not let a network go.
type Refusal struct {
	Host carrick.HostID `json:"host"`
	At   time.Time      `json:"at"`
	Why  string         `json:"why"`
	By   carrick.HostID `json:"by"` // whose removal it was
}

// Before orders specs by when they became known.
func (s Spec) Before(o Spec) bool {
	switch {
	case s.Num != o.Num:
		return s.Num < o.Num
	case s.Seq != o.Seq:
		return s.Seq < o.Seq
	}
	return s.Network.ID < o.Network.ID
}

// specRecord is a Spec in the store. It is not written again in a recovery by whoever
// has it in a journal, for no journal has it: every engine that has the network can
// tell it anew, and that one is missing removes nothing. A removal does not outlive
// the store's past: see sweepStale.
type specRecord struct {
	envelope
	Num        uint32            `json:"num"`
	Seq        uint64            `json:"seq"`
	Network    carrick.Network   `json:"net"`
	Name       string            `json:"name,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Options    map[string]string `json:"opts,omitempty"`
	IPAM       map[string]string `json:"ipam,omitempty"`
	Attachable bool              `json:"attachable,omitempty"`
	Removal    *Removal          `json:"removal,omitempty"`
	Refusal    *Refusal          `json:"refusal,omitempty"`
}

func (r *specRecord) validate() error {
	if !carrick.ValidID(string(r.Network.ID)) || r.Network.Tenant == "" {
		return fmt.Errorf("network %q of tenant %q", r.Network.ID, r.Network.Tenant)
	}
	if r.Removal != nil && !carrick.ValidID(string(r.Removal.Host)) {
		return fmt.Errorf("removed by host %q", r.Removal.Host)
	}
	return carrick.ValidatePools(r.Network.Pools)
}

func (r *specRecord) spec() Spec {
	return Spec{
		Network: r.Network, Name: r.Name, Labels: r.Labels, Options: r.Options, IPAM: r.IPAM, Attachable: r.Attachable,
		Num: r.Num, Seq: r.Seq, Removal: r.Removal, Refusal: r.Refusal,
	}
}

func (s Spec) record() specRecord {
	return specRecord{
		envelope: envelope{schema}, Num: s.Num, Seq: s.Seq, Network: s.Network, Name: s.Name, Labels: s.Labels,
		Options: s.Options, IPAM: s.IPAM, Attachable: s.Attachable, Removal: s.Removal, Refusal: s.Refusal,
	}
}

// watchSpecs keeps the list of what the engines should have. Every host hears of
// every change of any of them, and gets them all: they change when people create
// and remove networks.
func (c *Cluster) watchSpecs(ctx context.Context) error {
	return c.watchUnder(ctx, prefixSpecs, func(v kvstore.View) error {
		specs := make(map[carrick.NetworkID]Spec, len(v.Entries))
		for _, e := range v.Entries {
			r, err := decode[specRecord](e.Key, e.Value)
			if err == nil && keySpec(r.Network.ID) != e.Key {
				err = misplaced(e.Key)
			}
			if err != nil {
				c.log.Warn("what engines should know of a network cannot be read", "err", err)
				continue
			}
			specs[r.Network.ID] = r.spec()
		}
		c.mu.Lock()
		c.specs, c.specsOK = specs, true
		c.mu.Unlock()
		c.specsChanged()
		return nil
	})
}

// specsChanged has whoever keeps the engine's networks compare them.
func (c *Cluster) specsChanged() {
	if c.cfg.SpecsChanged != nil {
		c.cfg.SpecsChanged()
	}
}

// Specs returns what the engines of all hosts should have, as last heard, in the
// order in which it became known; ok is false until it was heard once.
func (c *Cluster) Specs() (specs []Spec, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	specs = slices.SortedFunc(maps.Values(c.specs), func(a, b Spec) int {
		if a.Before(b) {
			return -1
		}
		return 1
	})
	return specs, c.specsOK
}

// Spec returns what the engines of all hosts should have of a network now. Whoever is
// about to remove something because of what it heard asks first: the store may have
// been restored from a backup since, and want what nobody wants any more. Errors:
// [ErrUnknownNetwork], [ErrRecovering], or the store's.
func (c *Cluster) Spec(ctx context.Context, id carrick.NetworkID) (Spec, error) {
	if _, _, err := c.readEpoch(ctx); err != nil {
		return Spec{}, err
	}
	r, v, err := get[specRecord](ctx, c, keySpec(id))
	if err == nil && v == 0 {
		err = fmt.Errorf("network %s: %w", id, ErrUnknownNetwork)
	}
	return r.spec(), err
}

// Describe makes a network of this host known to the engines of all hosts, unless it
// is already. s.Network, Num and Seq are filled in from the store. Errors:
// [ErrUnknownNetwork], or the store's.
func (c *Cluster) Describe(ctx context.Context, id carrick.NetworkID, s Spec) error {
	_, err := c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		old, v, err := get[specRecord](ctx, c, keySpec(id))
		if err != nil || v != 0 && (old.Name != "" || old.Removal != nil) {
			return err
		}
		return c.buildSpec(ctx, t, id, s, num, v)
	})
	if err != nil {
		return fmt.Errorf("make network %s known: %w", id, err)
	}
	return nil
}

// DescribeAnew is Describe for a network that this host's user removed, which was
// refused because it is in use elsewhere, and made again in other words: those count
// from now on, and that it had to stay is of no interest any more. Name, Network, Num
// and Seq stay. Nothing happens if that is not how it is by now. Errors: the store's.
func (c *Cluster) DescribeAnew(ctx context.Context, id carrick.NetworkID, s Spec) error {
	_, err := c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, _ uint32) error {
		old, v, err := get[specRecord](ctx, c, keySpec(id))
		if err != nil || old.Removal != nil || old.Refusal == nil || old.Refusal.By != c.self || old.Name != s.Name {
			return err
		}
		old.V, old.Refusal = schema, nil
		old.Labels, old.Options, old.IPAM, old.Attachable = s.Labels, s.Options, s.IPAM, s.Attachable
		var encErr error
		t.Version(keySpec(id), v)
		put(t, &encErr, keySpec(id), &old)
		return encErr
	})
	if err != nil {
		return fmt.Errorf("make known what network %s is now: %w", id, err)
	}
	return nil
}

// buildSpec adds a new spec to a structural change.
func (c *Cluster) buildSpec(ctx context.Context, t *kvstore.Txn, id carrick.NetworkID, s Spec, num uint32, version kvstore.Revision) error {
	conf, confVer, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return err
	}
	if confVer == 0 {
		return fmt.Errorf("network %s: %w in the store", id, ErrUnknownNetwork)
	}
	epoch, _, err := get[epochRecord](ctx, c, keyEpoch) // which the change has a condition on
	if err != nil {
		return err
	}
	s.Network, s.Num, s.Seq = conf.Network, num, epoch.Seq+1
	s.Network.Name = s.Name
	rec := s.record()
	var encErr error
	t.Version(keyConf(id), confVer).Version(keySpec(id), version)
	put(t, &encErr, keySpec(id), &rec)
	return encErr
}

// RemoveNetwork is a docker network rm on this host: the network is marked, so that
// every host takes its Docker network away, and this host's alias goes. With the
// last alias the network ends; until then its prefix and VNI stay taken, and nobody
// joins. If the store does not answer only the alias goes, and the network comes
// back to this host.
func (c *Cluster) RemoveNetwork(ctx context.Context, docker carrick.DockerNetworkID) error {
	rec, err := c.jr.ByAlias(docker)
	if errors.Is(err, journal.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.mark(ctx, rec.Conf.ID); err != nil {
		c.log.Warn("network is removed on this host only, and will be back: the others could not be told", "network", rec.Conf.Label(), "err", err)
	}
	return c.DropAlias(ctx, docker)
}

// mark notes that this host wants a network gone.
func (c *Cluster) mark(ctx context.Context, id carrick.NetworkID) error {
	_, err := c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		old, v, err := get[specRecord](ctx, c, keySpec(id))
		if err != nil || old.Removal != nil {
			return err
		}
		s := old.spec()
		s.Removal, s.Refusal = &Removal{c.self, time.Now().UTC()}, nil
		if v == 0 {
			err := c.buildSpec(ctx, t, id, s, num, v)
			if errors.Is(err, ErrUnknownNetwork) {
				return nil // gone already
			}
			return err
		}
		rec := s.record()
		var encErr error
		t.Version(keySpec(id), v)
		put(t, &encErr, keySpec(id), &rec)
		return encErr
	})
	return err
}

// KeepNetwork takes the mark of a removal back, because this host's engine did not
// let the network go: it stays, and comes back where it was removed. It is not an
// error that nobody wants it gone any more.
func (c *Cluster) KeepNetwork(ctx context.Context, id carrick.NetworkID, why string) error {
	for attempt := 0; ; attempt++ {
		err := c.tryKeep(ctx, id, why)
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= createTries {
			return err
		}
		if err := backoff(ctx, attempt, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

// keepUsed keeps networks that are to go and that containers of this host are in, if
// no engine is asked here.
func (c *Cluster) keepUsed(ctx context.Context) {
	if !c.cfg.Apart {
		return
	}
	specs, _ := c.Specs()
	for _, s := range specs {
		rec, err := c.jr.Network(s.Network.ID)
		if s.Removal == nil || err != nil || rec.Leaving {
			continue
		}
		eps := len(c.jr.Endpoints(s.Network.ID))
		if eps == 0 {
			continue
		}
		c.log.Warn("network was removed on host "+c.HostName(s.Removal.Host)+" and stays: it is in use here", "name", s.Name, "network", s.Network.ID, "endpoints", eps)
		why := fmt.Sprintf("%d endpoints of containers are in it, and its agent takes no network away from the engine (--mirror, --docker): stop them, and run docker network rm there first", eps)
		if err := c.KeepNetwork(ctx, s.Network.ID, why); err != nil {
			c.log.Debug("the others do not know yet that a network stays", "network", s.Name, "err", err)
		}
	}
}

func (c *Cluster) tryKeep(ctx context.Context, id carrick.NetworkID, why string) error {
	old, v, err := get[specRecord](ctx, c, keySpec(id))
	if err != nil || old.Removal == nil {
		return err
	}
	var encErr error
	t := &kvstore.Txn{}
	old.keep(t, &encErr, v, c.self, why)
	if encErr != nil {
		return encErr
	}
	if _, err := c.commit(ctx, t); err != nil {
		return fmt.Errorf("keep network %s: %w", id, err)
	}
	return nil
}

// keep adds to a transaction that a removal has come to nothing.
func (r *specRecord) keep(t *kvstore.Txn, encErr *error, v kvstore.Revision, by carrick.HostID, why string) {
	key := keySpec(r.Network.ID)
	t.Version(key, v)
	if r.Name == "" { // nobody can make it anywhere else
		t.Delete(key)
		return
	}
	next := *r
	next.Refusal = &Refusal{Host: by, At: time.Now().UTC(), Why: why, By: r.Removal.Host}
	next.Removal = nil
	put(t, encErr, key, &next)
}

// notRemoving adds to a join that nobody wants the network gone, or says who does
// and whom it waits for ([ErrRemoving]).
func (c *Cluster) notRemoving(ctx context.Context, t *kvstore.Txn, id carrick.NetworkID) error {
	s, v, err := get[specRecord](ctx, c, keySpec(id))
	if err != nil {
		return err
	}
	if s.Removal == nil {
		t.Version(keySpec(id), v)
		return nil
	}
	waits, err := c.WaitsFor(ctx, id)
	if err != nil {
		return err
	}
	return fmt.Errorf("subnet %s: %w since %s (docker network rm on %s), and waits for %s: start what is off there, run docker network rm there if its agent does not (--mirror=false), or name a host that is gone for good with carrick node rm",
		s.Network.Subnets(), ErrRemoving, s.Removal.At.Format(time.DateTime), c.HostName(s.Removal.Host), strings.Join(waits, ", "))
}

// WaitsFor names the hosts that have an alias of a network.
func (c *Cluster) WaitsFor(ctx context.Context, id carrick.NetworkID) ([]string, error) {
	v, err := c.store.List(ctx, kvstore.Under(prefixAliases(id)))
	c.heard(err)
	if err != nil {
		return nil, fmt.Errorf("list the hosts of network %s: %w", id, err)
	}
	var out []string
	for _, e := range v.Entries {
		out = append(out, c.HostName(carrick.HostID(strings.TrimPrefix(e.Key, prefixAliases(id)))))
	}
	slices.Sort(out)
	return out, nil
}
