// Package dns answers what containers ask for by name: in the container's own network
// namespace, at the address of Docker's resolver, in front of it and backed by it.
//
// In each namespace there are a UDP and a TCP socket of this process on ports of
// 127.0.0.11, and one nftables table that leads questions there, but only while it is
// refreshed every second: three seconds after this process died, hung or was stopped,
// Docker's resolver is asked as if there had never been anything else. What is not a
// name of one of the container's own Carrick networks is asked of Docker's resolver
// anyhow, from within the same namespace, so that links, aliases, --dns, search
// domains and the host's resolvers keep their meaning. See docs/adr/0009-names.md.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dns/zone"
)

// Mark is the mark (SO_MARK) of our questions to Docker's resolver, unless
// [Config.Mark] says otherwise.
const Mark = 0x4361726b

var (
	// ErrNoNamespace says that a sandbox has no namespace yet. It is attached as soon as
	// there is one.
	ErrNoNamespace = errors.New("its network namespace is not there yet")
	// ErrUnknownSandbox says that nobody named a sandbox.
	ErrUnknownSandbox = errors.New("no such sandbox")
	// ErrStopped says that the service, or its work for a sandbox, has ended.
	ErrStopped = errors.New("names are not answered there any more")
)

// ensured is how long a sandbox that Ensure named is kept though Apply does not list
// it: what Apply lists may have been collected before.
const ensured = 10 * time.Second

// Config is what a [Service] is made of.
type Config struct {
	// Host is this host. Its own endpoints are believed rather than others'.
	Host carrick.HostID
	// Root makes a sandbox's key a path as this process sees it; nil: it is the path.
	Root func(key string) string
	// Mark is put on our questions to Docker's resolver; 0: [Mark].
	Mark uint32
	// Shuffle puts answers into a random order; nil: [rand.Shuffle].
	Shuffle zone.Shuffle
	// Log is told what becomes of sandboxes; nil: nobody is.
	Log *slog.Logger
}

// Sandbox is a container's network namespace. Several endpoints, and several
// containers, may share one.
type Sandbox struct {
	// Key is the path of the namespace's file as Docker tells it, such as
	// /var/run/docker/netns/ab12.
	Key string
	// Networks are those whose names are answered there: all that it is in.
	Networks []carrick.NetworkID
}

// State is how far a sandbox is.
type State int

const (
	// Waiting is for its namespace, which is made a moment before the container starts.
	Waiting State = iota
	// Attached is where questions are answered by us.
	Attached
	// Failed is where they are answered by Docker's resolver, and it is tried again.
	Failed
)

// String is for people.
func (s State) String() string {
	switch s {
	case Waiting:
		return "waiting"
	case Attached:
		return "attached"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Health is how a sandbox is.
type Health struct {
	Key      string
	Networks []carrick.NetworkID
	State    State
	Since    time.Time // of the state
	// Refreshed is when the switch was last refreshed. If that is longer ago than
	// [nft.NamesAlive], Docker's resolver is asked.
	Refreshed time.Time
	Err       error // why it failed, or why it was not refreshed
	// Questions so far: answered by us, forwarded to Docker's resolver, and of these
	// those that it did not answer.
	Answered, Forwarded, Failed uint64
}

// Service answers in all sandboxes of a host. Safe for concurrent use.
type Service struct {
	cfg  Config
	log  *slog.Logger
	lost atomic.Pointer[map[carrick.HostID]bool]
	kick chan struct{} // of capacity 1: somebody waits for a namespace

	mu        sync.Mutex // guards what follows
	zones     map[carrick.NetworkID]*zone.Zone
	sandboxes map[string]*sandbox
	leaving   map[string]*sandbox // that are being detached
	stopped   bool
}

// New returns a service that answers nowhere yet.
func New(cfg Config) *Service {
	if cfg.Mark == 0 {
		cfg.Mark = Mark
	}
	if cfg.Shuffle == nil {
		cfg.Shuffle = rand.Shuffle
	}
	if cfg.Root == nil {
		cfg.Root = func(key string) string { return key }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{cfg: cfg, log: cfg.Log, kick: make(chan struct{}, 1), zones: map[carrick.NetworkID]*zone.Zone{},
		sandboxes: map[string]*sandbox{}, leaving: map[string]*sandbox{}}
}

// SetView tells what a network is. Nothing in the view may be modified afterwards.
func (s *Service) SetView(v carrick.View) {
	s.mu.Lock()
	z := s.zone(v.Network.ID)
	s.mu.Unlock()
	z.Update(v, s.isLost)
}

// Forget forgets a network's names. Whoever is in it asks Docker's resolver for them.
func (s *Service) Forget(network carrick.NetworkID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.zones, network)
	for _, b := range s.sandboxes {
		if slices.Contains(b.networks, network) {
			s.see(b)
		}
	}
}

// SetLost tells which hosts' liveness leases have ended: their containers' names give
// no address.
func (s *Service) SetLost(lost map[carrick.HostID]bool) {
	lost = maps.Clone(lost)
	s.lost.Store(&lost)
	s.mu.Lock()
	zones := slices.Collect(maps.Values(s.zones))
	s.mu.Unlock()
	for _, z := range zones {
		z.SetLost(s.isLost)
	}
}

func (s *Service) isLost(h carrick.HostID) bool {
	lost := s.lost.Load()
	return lost != nil && (*lost)[h]
}

// zone returns a network's zone. Called with mu held.
func (s *Service) zone(network carrick.NetworkID) *zone.Zone {
	z := s.zones[network]
	if z == nil {
		z = zone.New(s.cfg.Host)
		s.zones[network] = z
	}
	return z
}

// see makes a sandbox see its networks. Called with mu held.
func (s *Service) see(b *sandbox) {
	zones := make([]*zone.Zone, 0, len(b.networks))
	for _, n := range b.networks {
		zones = append(zones, s.zone(n))
	}
	b.respond.zones.Store(zone.NewSet(zones...))
}

// put enters a sandbox, or what has changed of it. Called with mu held.
func (s *Service) put(x Sandbox) *sandbox {
	b := s.sandboxes[x.Key]
	if b == nil {
		b = newSandbox(x.Key, s.cfg, s.log)
		b.after = s.leaving[x.Key]
		s.sandboxes[x.Key] = b
	} else if slices.Equal(b.networks, x.Networks) {
		return b
	}
	b.networks = slices.Clone(x.Networks)
	s.see(b)
	return b
}

// Apply makes these the sandboxes in which we answer, and leaves nothing in any other.
// A sandbox whose namespace is not there yet is attached as soon as it is. What
// cannot be attached is in the error, and is tried again; the others are.
func (s *Service) Apply(ctx context.Context, list []Sandbox) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return fmt.Errorf("answer in %d sandboxes: %w", len(list), ErrStopped)
	}
	listed := make(map[string]bool, len(list))
	var there, gone []*sandbox
	for _, x := range list {
		b := s.put(x)
		b.listed = true
		listed[x.Key] = true
		there = append(there, b)
	}
	now := time.Now()
	for key, b := range s.sandboxes {
		if !listed[key] && (b.listed || now.After(b.keep)) {
			delete(s.sandboxes, key)
			s.leaving[key] = b
			gone = append(gone, b)
		}
	}
	s.mu.Unlock()
	_ = each(gone, func(b *sandbox) error {
		b.detach(context.WithoutCancel(ctx))
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.leaving[b.key] == b {
			delete(s.leaving, b.key)
		}
		return nil
	})
	err := each(there, func(b *sandbox) error {
		if err := b.attach(ctx); !errors.Is(err, ErrNoNamespace) && !errors.Is(err, ErrStopped) {
			return err
		}
		return nil
	})
	s.wake()
	return err
}

// Ensure is Apply for one sandbox, which is added or changed. When it returns nil,
// questions are answered there. ErrNoNamespace: it has no namespace yet, as when
// engines before 28 call Join; they will be from when it has one on.
func (s *Service) Ensure(ctx context.Context, x Sandbox) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return fmt.Errorf("answer in sandbox %s: %w", x.Key, ErrStopped)
	}
	b := s.put(x)
	b.listed = false
	b.keep = time.Now().Add(ensured)
	s.mu.Unlock()
	err := b.attach(ctx)
	if err != nil {
		s.wake()
	}
	return err
}

// wake makes the watcher look for namespaces.
func (s *Service) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Health says how all sandboxes are, sorted by key.
func (s *Service) Health() []Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Health, 0, len(s.sandboxes))
	for _, b := range s.sandboxes {
		list = append(list, b.health())
	}
	slices.SortFunc(list, func(a, b Health) int { return cmp.Compare(a.Key, b.Key) })
	return list
}

// parallel bounds how many sandboxes are worked on at a time.
const parallel = 8

// each calls fn for all of a list, some at a time, and returns all errors.
func each(list []*sandbox, fn func(*sandbox) error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i, b := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = fn(b)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
