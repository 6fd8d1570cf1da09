package mirror

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// Facts is what a Mirror reads and writes of the cluster.
type Facts interface {
	Ready() <-chan struct{}
	Journal() *journal.Journal
	NameAlias(ctx context.Context, id carrick.DockerNetworkID, name string) error
	DropAlias(ctx context.Context, id carrick.DockerNetworkID) error
	RemoveEndpoint(id carrick.EndpointID) error
	ReleaseUnbound(id carrick.NetworkID, a netip.Addr) error
}

// Config is what a Mirror needs.
type Config struct {
	Engine *Engine
	Facts  Facts
	Log    *slog.Logger
	// Every is how often the engine is looked at without an event; 0 = 30 s.
	Every time.Duration
	// Patience is how long an alias or endpoint must have been unknown to the engine
	// before it is dropped; 0 = 10 s. An engine stores a network a moment after its
	// driver made it.
	Patience time.Duration
	// Orphaned is how long an address may be given out without an endpoint; 0 = 2
	// minutes. It must be longer than an engine goes on repeating a call (15 s for
	// each of Leave, DeleteEndpoint and ReleaseAddress): a late ReleaseAddress must
	// not meet the address's next holder.
	Orphaned time.Duration
}

// Mirror compares the engine with the journal.
type Mirror struct {
	cfg  Config
	kick chan struct{}

	// Since when something is as it should not stay. Run's goroutine alone uses
	// them.
	aliases   absences[carrick.DockerNetworkID]
	endpoints absences[carrick.EndpointID]
	orphans   absences[orphan]
	// told has the aliases that a warning was logged about.
	told map[carrick.DockerNetworkID]bool

	mu   sync.Mutex
	err  error     // of the last look; guarded by mu
	seen time.Time // of the last good look; guarded by mu
}

type orphan struct {
	network carrick.NetworkID
	addr    netip.Addr
}

// absences remembers since when each of its keys has been seen missing in every
// look.
type absences[K comparable] struct{ since, now map[K]time.Time }

// begin starts a look: what is not seen missing in it is forgotten by end.
func (a *absences[K]) begin() { a.now = map[K]time.Time{} }

// missing notes a key and returns whether it has been missing for d, and seen so
// at least twice.
func (a *absences[K]) missing(k K, d time.Duration) bool {
	t, before := a.since[k]
	if !before {
		t = time.Now()
	}
	a.now[k] = t
	return before && time.Since(t) >= d
}

func (a *absences[K]) end() { a.since = a.now }

// New returns a Mirror that does nothing until Run.
func New(cfg Config) *Mirror {
	if cfg.Every == 0 {
		cfg.Every = 30 * time.Second
	}
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.Orphaned == 0 {
		cfg.Orphaned = 2 * time.Minute
	}
	return &Mirror{cfg: cfg, kick: make(chan struct{}, 1), told: map[carrick.DockerNetworkID]bool{}}
}

func (m *Mirror) String() string { return "mirror" }

// Look asks for a look at the engine soon. It never blocks.
func (m *Mirror) Look() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Health returns when the engine last answered, and the error of the last look.
func (m *Mirror) Health() (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen, m.err
}

// Run looks at the engine after its events and every now and then, until ctx
// ends. An engine that is away is waited for.
func (m *Mirror) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.cfg.Facts.Ready():
	}
	var listening sync.WaitGroup
	listening.Go(func() { m.listen(ctx) })
	defer listening.Wait()
	every := time.NewTicker(m.cfg.Every)
	defer every.Stop()
	for {
		var again <-chan time.Time
		if m.look(ctx) {
			again = time.After(m.cfg.Patience + m.cfg.Patience/10)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.kick:
		case <-every.C:
		case <-again:
		}
	}
}

// listen turns the engine's events into looks. The stream breaks whenever the
// engine restarts.
func (m *Mirror) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := m.cfg.Engine.events(ctx, m.Look)
		m.cfg.Log.Debug("engine's events interrupted", "err", err)
		t := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-t.C:
			m.Look()
		}
		t.Stop()
	}
}

// look compares once, and returns whether something is on its way out.
func (m *Mirror) look(ctx context.Context) (again bool) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	names, err := m.cfg.Engine.Networks(ctx)
	m.mu.Lock()
	if err != nil && m.err == nil {
		m.cfg.Log.Warn("cannot look at the engine", "err", err)
	}
	m.err = err
	if err == nil {
		m.seen = time.Now()
	}
	m.mu.Unlock()
	if err != nil {
		return false
	}
	containers, err := m.cfg.Engine.Containers(ctx)
	if err != nil {
		m.cfg.Log.Debug("endpoints not compared", "err", err)
	}
	m.aliases.begin()
	m.endpoints.begin()
	m.orphans.begin()
	for _, n := range m.cfg.Facts.Journal().Networks() {
		for _, a := range n.Aliases {
			name, known := names[a.Docker]
			if !known {
				m.absentAlias(ctx, n, a)
				continue
			}
			if name != a.Name || n.Conf.Name == "" { // or the store has not heard it yet
				if err := m.cfg.Facts.NameAlias(ctx, a.Docker, name); err != nil {
					m.cfg.Log.Debug("name not recorded yet", "network", name, "err", err)
				}
			}
			if containers != nil {
				m.lookAtEndpoints(ctx, n, a, containers)
			}
		}
		m.lookAtAddresses(n)
	}
	m.aliases.end()
	m.endpoints.end()
	m.orphans.end()
	return len(m.aliases.since)+len(m.endpoints.since) > 0
}

// absentAlias handles an alias that the engine does not list: dropped when that
// has been so for a while, unless endpoints say that it is in use.
func (m *Mirror) absentAlias(ctx context.Context, n journal.Network, a journal.Alias) {
	if !m.aliases.missing(a.Docker, m.cfg.Patience) || time.Since(a.Created) < m.cfg.Patience {
		return
	}
	if len(m.cfg.Facts.Journal().Endpoints(n.Conf.ID)) > 0 {
		if m.told[a.Docker] {
			return
		}
		m.told[a.Docker] = true
		m.cfg.Log.Warn("the engine does not know a network that has endpoints here: is --docker the engine that uses this agent?", "network", n.Conf.Label(), "docker", a.Docker.Short())
		return
	}
	m.cfg.Log.Info("dropping an alias that the engine does not know", "network", n.Conf.Label(), "docker", a.Docker.Short())
	if err := m.cfg.Facts.DropAlias(ctx, a.Docker); err != nil {
		m.cfg.Log.Warn("alias not dropped", "err", err)
	}
}

// lookAtEndpoints withdraws endpoints that the engine no longer has: it gave up
// telling an agent that was away. Only those whose Join has returned count; the
// engine has stored them since before their CreateEndpoint.
func (m *Mirror) lookAtEndpoints(ctx context.Context, n journal.Network, a journal.Alias, containers map[carrick.EndpointID]Container) {
	for _, e := range m.cfg.Facts.Journal().Endpoints(n.Conf.ID) {
		if _, ok := containers[e.ID]; ok || e.Docker != a.Docker || !e.Joined || !m.endpoints.missing(e.ID, m.cfg.Patience) {
			continue
		}
		// Missing for long, or a container that takes long to start.
		if has, err := m.cfg.Engine.HasEndpoint(ctx, a.Docker, e.ID); has || err != nil {
			m.cfg.Log.Debug("endpoint left alone", "endpoint", e.ID.Short(), "err", err)
			continue
		}
		m.cfg.Log.Info("withdrawing an endpoint that the engine does not have", "network", n.Conf.Label(), "endpoint", e.ID.Short(), "addrs", e.Addrs)
		if err := m.cfg.Facts.RemoveEndpoint(e.ID); err != nil {
			m.cfg.Log.Warn("endpoint not withdrawn", "err", err)
		}
	}
}

// lookAtAddresses releases addresses that have had no endpoint for long: the
// engine gave up releasing them, or never came to make the endpoint.
func (m *Mirror) lookAtAddresses(n journal.Network) {
	for addr, l := range m.cfg.Facts.Journal().Leases(n.Conf.ID) {
		if l.Endpoint != "" || l.Released != 0 || !m.orphans.missing(orphan{n.Conf.ID, addr}, m.cfg.Orphaned) {
			continue
		}
		m.cfg.Log.Info("releasing an address without an endpoint", "network", n.Conf.Label(), "addr", addr)
		if err := m.cfg.Facts.ReleaseUnbound(n.Conf.ID, addr); err != nil {
			m.cfg.Log.Warn("address not released", "err", err)
		}
	}
}
