package mirror

import (
	"context"
	"log/slog"
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
}

// Config is what a Mirror needs.
type Config struct {
	Engine *Engine
	Facts  Facts
	Log    *slog.Logger
	// Every is how often the engine is looked at without an event; 0 = 30 s.
	Every time.Duration
	// Patience is how long an alias must have been unknown to the engine before it
	// is dropped; 0 = 10 s. An engine stores a network a moment after its driver
	// made it.
	Patience time.Duration
}

// Mirror compares the engine with the journal.
type Mirror struct {
	cfg  Config
	kick chan struct{}

	mu      sync.Mutex
	err     error                                 // of the last look; guarded by mu
	seen    time.Time                             // of the last good look; guarded by mu
	missing map[carrick.DockerNetworkID]time.Time // since when; guarded by mu
}

// New returns a Mirror that does nothing until Run.
func New(cfg Config) *Mirror {
	if cfg.Every == 0 {
		cfg.Every = 30 * time.Second
	}
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	return &Mirror{cfg: cfg, kick: make(chan struct{}, 1), missing: map[carrick.DockerNetworkID]time.Time{}}
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
	var again <-chan time.Time
	for {
		again = nil
		if m.look(ctx) {
			again = time.After(m.cfg.Patience + 100*time.Millisecond)
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

// look compares once, and returns whether an alias is on its way out.
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
	for _, n := range m.cfg.Facts.Journal().Networks() {
		for _, a := range n.Aliases {
			name, known := names[a.Docker]
			if !known {
				again = m.absent(ctx, n, a) || again
				continue
			}
			m.mu.Lock()
			delete(m.missing, a.Docker)
			m.mu.Unlock()
			if name != a.Name {
				if err := m.cfg.Facts.NameAlias(ctx, a.Docker, name); err != nil {
					m.cfg.Log.Debug("name not recorded yet", "network", name, "err", err)
				}
			}
		}
	}
	return again
}

// absent handles an alias that the engine does not list: dropped when that is so
// for the second time after a while, unless endpoints say that it is in use.
func (m *Mirror) absent(ctx context.Context, n journal.Network, a journal.Alias) (again bool) {
	m.mu.Lock()
	since, seen := m.missing[a.Docker]
	if !seen {
		m.missing[a.Docker] = time.Now()
	}
	m.mu.Unlock()
	if !seen || time.Since(since) < m.cfg.Patience || time.Since(a.Created) < m.cfg.Patience {
		return true
	}
	if len(m.cfg.Facts.Journal().Endpoints(n.Conf.ID)) > 0 {
		m.cfg.Log.Warn("the engine does not know a network that has endpoints here: is --docker the engine that uses this agent?", "network", n.Conf.Label(), "docker", a.Docker.Short())
		return false
	}
	m.cfg.Log.Info("dropping an alias that the engine does not know", "network", n.Conf.Label(), "docker", a.Docker.Short())
	if err := m.cfg.Facts.DropAlias(ctx, a.Docker); err != nil {
		m.cfg.Log.Warn("alias not dropped", "err", err)
	}
	m.mu.Lock()
	delete(m.missing, a.Docker)
	m.mu.Unlock()
	return false
}
