// Package journal is a host's own memory: who it is, which networks it has
// aliases of, which addresses it gave out and which endpoints run here, in one
// file that is synced to disk before a plugin call is answered.
//
// It is the truth about this host; the shared store holds a copy for the
// others. It knows the vocabulary and the disk, neither the store nor Docker
// nor the kernel.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/carrick-net/carrick"
)

// Sentinel errors.
var (
	// ErrLocked: another process has the state directory open.
	ErrLocked = errors.New("state directory in use by another agent")
	// ErrForeign: the state directory was made on another machine.
	ErrForeign = errors.New("state directory belongs to another machine")
	// ErrNotFound: no such record.
	ErrNotFound = errors.New("not in the journal")
	// ErrCorrupt: the file is there and cannot be understood.
	ErrCorrupt = errors.New("journal is damaged")
	// ErrDead: a hook of [Options] said that the process has died.
	ErrDead = errors.New("journal is dead")
)

// schema is the version of the file's layout. A newer one than ours is refused:
// an old agent must not reinterpret what a new one wrote.
const schema = 1

// lockWait bounds how long Open waits for the file lock. The holder is another
// agent, which will not go away by itself.
const lockWait = time.Second

// Identity is who this host is.
type Identity struct {
	Schema  int            `json:"schema"`
	Host    carrick.HostID `json:"host"`
	Machine string         `json:"machine"` // machine-id the directory is bound to; "" where there is none
}

// Alias is one engine network that stands for a cluster network.
type Alias struct {
	Docker  carrick.DockerNetworkID `json:"docker"`
	Name    string                  `json:"name,omitempty"` // as the engine told; "" until it did
	Created time.Time               `json:"created"`
}

// Network is a cluster network that this host has, or is about to leave.
type Network struct {
	Conf    carrick.Network `json:"conf"`
	Aliases []Alias         `json:"aliases"`
	// Blocks of this host, in the order of their claims. One of a single address, in
	// a pool whose blocks are larger, is borrowed from the owner of its block.
	Blocks []netip.Prefix `json:"blocks,omitempty"`
	// Freeing are blocks given up that the store may still have in this host's name.
	Freeing []Freed `json:"freeing,omitempty"`
	// Leaving: the engine has removed its last alias; what remains is to tell the
	// store. Nothing new starts on it.
	Leaving bool `json:"leaving,omitempty"`
	// Left are the aliases that the store may still have of this host.
	Left []carrick.DockerNetworkID `json:"left,omitempty"`
}

// Freed is a block given up.
type Freed struct {
	Block netip.Prefix `json:"block"`
	// Gen is the highest stamp of any use of its addresses here.
	Gen carrick.Gen `json:"gen,omitempty"`
}

// Endpoint is an endpoint that runs on this host.
type Endpoint struct {
	carrick.Endpoint
	Network carrick.NetworkID       `json:"network"`
	Docker  carrick.DockerNetworkID `json:"docker"`
	// Joined: Join has returned once, the container's end is Docker's.
	Joined bool `json:"joined,omitempty"`
	// Fenced: its addresses may be another host's by now, and its port is down.
	Fenced bool `json:"fenced,omitempty"`
}

// Lease is one address of a block of this host: given out, lent or resting.
type Lease struct {
	Network carrick.NetworkID `json:"network"`
	Addr    netip.Addr        `json:"addr"`
	// Endpoint that holds it; "" between RequestAddress and CreateEndpoint, after
	// DeleteEndpoint, and while resting.
	Endpoint carrick.EndpointID `json:"endpoint,omitempty"`
	// Released is the order of release: 0 while the address is given out or lent.
	Released uint64 `json:"released,omitempty"`
	// At is when it was released, by this host's wall clock.
	At time.Time `json:"at,omitzero"`
	// Gen stamps the latest use of the address.
	Gen carrick.Gen `json:"gen,omitempty"`
	// Lent to this host; it has no Endpoint here then.
	Lent carrick.HostID `json:"lent,omitempty"`
}

// Epoch is the store's epoch as this host last saw it. The zero value is "none
// seen yet".
type Epoch struct {
	Inc   string `json:"inc"`
	Num   uint32 `json:"num"`
	Seq   uint64 `json:"seq"`
	Nonce string `json:"nonce"`
}

type leaseKey struct {
	net  carrick.NetworkID
	addr netip.Addr
}

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	db    *bbolt.DB
	opts  Options
	id    Identity
	fresh bool

	// registered is guarded by mu below; see Registered.
	registered bool
	// strangers is guarded by mu below.
	strangers []carrick.NetworkID

	// mu guards everything below, and orders updates: what is in memory is what is
	// on disk.
	mu        sync.RWMutex
	networks  map[carrick.NetworkID]Network
	endpoints map[carrick.EndpointID]Endpoint
	leases    map[leaseKey]Lease
	usages    map[usageKey]*usage // what leases say, counted
	hosts     map[carrick.HostID]carrick.Host
	releases  uint64 // highest Released so far
	meta      Meta
	dead      bool // a hook said so
}

// Options are the places where a test can make the disk fail or the process die.
//
// A hook that returns [ErrDead] ends the journal as a crash at that moment would
// end the process: the call fails with ErrDead, as does every later one that
// writes, and the file is not touched any more. What a new [Open] finds is
// what the crash left. Any other error fails that one write.
//
// Both are called by one goroutine at a time, and by Open if it makes the file.
type Options struct {
	// BeforeWrite is called before each write, of which nothing happens if it
	// returns an error.
	BeforeWrite func() error
	// AfterWrite is called when a write is on disk, which its caller does not hear
	// of if it returns an error.
	AfterWrite func() error
}

// Meta is what a journal remembers besides networks.
type Meta struct {
	Epoch Epoch `json:"epoch"`
	// Clock is the Lamport clock of the stamps.
	Clock uint64 `json:"clock,omitempty"`
	// Fenced: this host was removed from the cluster and has not regained all of
	// its addresses.
	Fenced bool `json:"fenced,omitempty"`
	// Boot and Leased are when this host last knew its liveness lease to be held:
	// the boot, and the time since it began (CLOCK_BOOTTIME). Kept with a grace only.
	Boot   string        `json:"boot,omitempty"`
	Leased time.Duration `json:"leased,omitempty"`
	// Registered: the cluster has known this host.
	Registered bool `json:"registered,omitempty"`
}

var (
	bucketMeta      = []byte("meta")
	bucketNetworks  = []byte("networks")
	bucketEndpoints = []byte("endpoints")
	bucketLeases    = []byte("leases")
	bucketHosts     = []byte("hosts")
	keyMeta         = []byte("meta")
	keyIdentity     = []byte("identity")
	keyStrangers    = []byte("strangers")
)

// Open opens or makes the journal in dir and binds it to the machine. The
// directory is made with mode 0700 if missing. Errors: [ErrLocked], [ErrForeign],
// [ErrCorrupt], or the disk's own.
func Open(dir, machine string) (*Journal, error) { return OpenWith(dir, machine, Options{}) }

// OpenWith is [Open] with hooks.
func OpenWith(dir, machine string, o Options) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	path := filepath.Join(dir, "state.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open journal %s: %w: stop it, or give this one a --state-dir and --plugin-socket of its own", path, ErrLocked)
	case err != nil:
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	j := &Journal{
		db:        db,
		opts:      o,
		networks:  map[carrick.NetworkID]Network{},
		endpoints: map[carrick.EndpointID]Endpoint{},
		leases:    map[leaseKey]Lease{},
		usages:    map[usageKey]*usage{},
		hosts:     map[carrick.HostID]carrick.Host{},
	}
	if err := j.load(machine); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	return j, nil
}

// Close releases the file.
func (j *Journal) Close() error { return j.db.Close() }

// Fresh says whether Open made the journal: this host remembers nothing, which
// is either its first start or the loss of its state directory.
func (j *Journal) Fresh() bool { return j.fresh }

// Strangers are networks that were in the kernel when the journal was made, so
// that it cannot say whether anything of theirs still runs.
func (j *Journal) Strangers() []carrick.NetworkID {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return slices.Clone(j.strangers)
}

// SetStrangers replaces the list, durably.
func (j *Journal) SetStrangers(ids []carrick.NetworkID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	raw, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	if err := j.write(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyStrangers, raw) }); err != nil {
		return err
	}
	j.strangers = slices.Clone(ids)
	return nil
}

// write makes fn's changes durable. The caller holds mu.
func (j *Journal) write(fn func(*bbolt.Tx) error) error {
	if err := j.hook(j.opts.BeforeWrite); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := j.db.Update(fn); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := j.hook(j.opts.AfterWrite); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func (j *Journal) hook(h func() error) error {
	if j.dead {
		return ErrDead
	}
	if h == nil {
		return nil
	}
	err := h()
	j.dead = errors.Is(err, ErrDead)
	return err
}

// Identity returns who this host is.
func (j *Journal) Identity() Identity { return j.id }

func (j *Journal) load(machine string) error {
	return j.write(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		if err := j.identify(meta, machine); err != nil {
			return err
		}
		if raw := meta.Get(keyStrangers); raw != nil {
			if err := json.Unmarshal(raw, &j.strangers); err != nil {
				return fmt.Errorf("strangers: %w: %w", ErrCorrupt, err)
			}
		}
		if raw := meta.Get(keyMeta); raw != nil {
			if err := json.Unmarshal(raw, &j.meta); err != nil {
				return fmt.Errorf("meta: %w: %w", ErrCorrupt, err)
			}
		}
		j.registered = j.meta.Registered
		if err := loadBucket(tx, bucketHosts, func(key string, h carrick.Host) error {
			if key != string(h.ID) || !carrick.ValidID(key) || !h.VTEP.IsValid() {
				return fmt.Errorf("host %q with VTEP %v", h.ID, h.VTEP)
			}
			j.hosts[h.ID] = h
			return nil
		}); err != nil {
			return err
		}
		if err := loadBucket(tx, bucketNetworks, func(key string, n Network) error {
			if key != string(n.Conf.ID) || !carrick.ValidID(key) || len(n.Conf.Pools) == 0 {
				return fmt.Errorf("network %q with %d pools", n.Conf.ID, len(n.Conf.Pools))
			}
			j.networks[n.Conf.ID] = n
			return carrick.ValidatePools(n.Conf.Pools)
		}); err != nil {
			return err
		}
		if err := loadBucket(tx, bucketEndpoints, func(key string, e Endpoint) error {
			if key != string(e.ID) || len(e.Addrs) == 0 {
				return fmt.Errorf("endpoint %q with addresses %v", e.ID, e.Addrs)
			}
			j.endpoints[e.ID] = e
			return nil
		}); err != nil {
			return err
		}
		leases := map[leaseKey]*Lease{}
		err = loadBucket(tx, bucketLeases, func(_ string, l Lease) error {
			if !l.Addr.IsValid() {
				return fmt.Errorf("address %v", l.Addr)
			}
			leases[leaseKey{l.Network, l.Addr}] = &l
			j.releases = max(j.releases, l.Released)
			j.meta.Clock = max(j.meta.Clock, l.Gen.Clock())
			return nil
		})
		j.mergeLeases(leases)
		return err
	})
}

func (j *Journal) identify(meta *bbolt.Bucket, machine string) error {
	raw := meta.Get(keyIdentity)
	if raw == nil {
		j.fresh = true
		j.id = Identity{Schema: schema, Host: carrick.NewHostID(), Machine: machine}
		b, err := json.Marshal(j.id)
		if err != nil {
			return err
		}
		return meta.Put(keyIdentity, b)
	}
	if err := json.Unmarshal(raw, &j.id); err != nil {
		return fmt.Errorf("identity: %w: %w", ErrCorrupt, err)
	}
	if !carrick.ValidID(string(j.id.Host)) {
		return fmt.Errorf("identity: %w: host id %q", ErrCorrupt, j.id.Host)
	}
	if j.id.Schema > schema {
		return fmt.Errorf("written by a newer agent (schema %d, this one knows %d): upgrade the agent", j.id.Schema, schema)
	}
	if j.id.Machine != machine {
		return fmt.Errorf("%w: host %s was made on machine-id %s, this is %s: on a cloned machine remove the directory, so that it becomes a host of its own",
			ErrForeign, j.id.Host, j.id.Machine, machine)
	}
	return nil
}

// loadBucket decodes every record of a bucket, making it if missing.
func loadBucket[T any](tx *bbolt.Tx, name []byte, add func(key string, v T) error) error {
	b, err := tx.CreateBucketIfNotExists(name)
	if err != nil {
		return err
	}
	return b.ForEach(func(k, raw []byte) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("%s %q: %w: %w", name, k, ErrCorrupt, err)
		}
		if err := add(string(k), v); err != nil {
			return fmt.Errorf("%s %q: %w: %w", name, k, ErrCorrupt, err)
		}
		return nil
	})
}

// Network returns a network's record, or [ErrNotFound].
func (j *Journal) Network(id carrick.NetworkID) (Network, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	n, ok := j.networks[id]
	if !ok {
		return Network{}, fmt.Errorf("network %s: %w", id, ErrNotFound)
	}
	return n.clone(), nil
}

// ByAlias returns the network an engine's id stands for, or [ErrNotFound].
func (j *Journal) ByAlias(id carrick.DockerNetworkID) (Network, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	for _, n := range j.networks {
		for _, a := range n.Aliases {
			if a.Docker == id {
				return n.clone(), nil
			}
		}
	}
	return Network{}, fmt.Errorf("docker network %s: %w", id.Short(), ErrNotFound)
}

// Networks returns every network's record, sorted by id.
func (j *Journal) Networks() []Network {
	j.mu.RLock()
	defer j.mu.RUnlock()
	out := make([]Network, 0, len(j.networks))
	for _, id := range slices.Sorted(maps.Keys(j.networks)) {
		out = append(out, j.networks[id].clone())
	}
	return out
}

// Endpoint returns an endpoint's record, or [ErrNotFound].
func (j *Journal) Endpoint(id carrick.EndpointID) (Endpoint, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	e, ok := j.endpoints[id]
	if !ok {
		return Endpoint{}, fmt.Errorf("endpoint %s: %w", id.Short(), ErrNotFound)
	}
	return e, nil
}

// Endpoints returns a network's local endpoints, sorted by id.
func (j *Journal) Endpoints(id carrick.NetworkID) []Endpoint {
	j.mu.RLock()
	defer j.mu.RUnlock()
	var out []Endpoint
	for _, e := range j.endpoints {
		if e.Network == id {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Endpoint) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// Leases returns every address of a network this host remembers.
func (j *Journal) Leases(id carrick.NetworkID) map[netip.Addr]Lease {
	j.mu.RLock()
	defer j.mu.RUnlock()
	out := map[netip.Addr]Lease{}
	for k, l := range j.leases {
		if k.net == id {
			out[k.addr] = l
		}
	}
	return out
}

// Meta returns what the journal remembers besides networks.
func (j *Journal) Meta() Meta {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.meta
}

// Hosts returns every host this one has heard of and that was not removed.
func (j *Journal) Hosts() map[carrick.HostID]carrick.Host {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return maps.Clone(j.hosts)
}

func (n Network) clone() Network {
	n.Aliases = slices.Clone(n.Aliases)
	n.Blocks = slices.Clone(n.Blocks)
	n.Left = slices.Clone(n.Left)
	n.Freeing = slices.Clone(n.Freeing)
	return n
}
