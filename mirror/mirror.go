package mirror

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
)

// Facts is what a Mirror reads and writes of the cluster.
type Facts interface {
	Journal() *journal.Journal
	NameAlias(ctx context.Context, id carrick.DockerNetworkID, name string) error
	DropAlias(ctx context.Context, id carrick.DockerNetworkID) error
	RemoveEndpoint(id carrick.EndpointID) error
	ReleaseOrphan(id carrick.NetworkID, a netip.Addr, gen carrick.Gen) error
	SetNames(id carrick.EndpointID, names []string, unhealthy bool) error

	Specs() ([]cluster.Spec, bool)
	// Spec is one of them as the store has it now.
	Spec(ctx context.Context, id carrick.NetworkID) (cluster.Spec, error)
	Describe(ctx context.Context, id carrick.NetworkID, s cluster.Spec) error
	DescribeAnew(ctx context.Context, id carrick.NetworkID, s cluster.Spec) error
	KeepNetwork(ctx context.Context, id carrick.NetworkID, why string) error
	Self() carrick.HostID
	HostName(id carrick.HostID) string
	// Ended are networks of the engine that the cluster ended while this host was removed
	// from it; ForgetEnded tells that one is gone.
	Ended() []carrick.DockerNetworkID
	ForgetEnded(id carrick.DockerNetworkID) error
	// StoreAway says whether the store is known not to answer, or is being recovered.
	StoreAway() bool
}

// Docker is what a Mirror asks of an engine. [Engine] is the real one.
type Docker interface {
	// Networks returns every network of the engine by its id.
	Networks(ctx context.Context) (map[carrick.DockerNetworkID]Network, error)
	// Containers returns the containers that run, by their endpoints.
	Containers(ctx context.Context) (map[carrick.EndpointID]Container, error)
	// HasEndpoint says whether one of the engine's networks has an endpoint.
	HasEndpoint(ctx context.Context, id carrick.DockerNetworkID, ep carrick.EndpointID) (bool, error)
	// HasContainers says whether any container, also one that does not run, is to be in a
	// network.
	HasContainers(ctx context.Context, id carrick.DockerNetworkID, name string) (bool, error)
	// Events calls fn with what happens, until ctx ends or the engine does; the error
	// says why.
	Events(ctx context.Context, fn func(Event)) error
	// CreateNetwork makes a Docker network. Error: [ErrTaken].
	CreateNetwork(ctx context.Context, w NetworkWanted) (carrick.DockerNetworkID, error)
	// RemoveNetwork removes one; that it is gone is not an error. Error: [ErrInUse].
	RemoveNetwork(ctx context.Context, id carrick.DockerNetworkID) error
	// Attachments returns a running container's places in networks.
	Attachments(ctx context.Context, container string) ([]Attachment, error)
}

var _ Docker = (*Engine)(nil)

// Witness is what the kernel says of an endpoint: the second opinion before
// something is withdrawn that no word of the engine's speaks against.
type Witness interface {
	// InUse says whether a container may still have the endpoint's end of its pair.
	// It is asked now and then, never within a plugin call.
	InUse(ctx context.Context, network carrick.NetworkID, ep carrick.EndpointID) (bool, error)
}

// Config is what a Mirror needs.
type Config struct {
	Engine Docker
	Facts  Facts
	Log    *slog.Logger
	// Driver returns the name that the engine has for this agent, as a driver of
	// networks.
	Driver func(context.Context) (string, error)
	// Everywhere: a network of any host is made on this engine, and removed with it;
	// otherwise none is made or removed, but for an operator.
	Everywhere bool
	// Witness is asked about endpoints of a network that the engine does not know,
	// and about those whose container never came up. nil: they stay.
	Witness Witness
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
	// Objections is how long a host that does not use a network waits for others to
	// refuse its removal; 0 = 500 ms.
	Objections time.Duration
	// Yield is how long a user who removed a network here has to make another of its name,
	// before one that had to stay is made here again; 0 = 2 s.
	Yield time.Duration
	// Retry is how soon what the engine refused is tried again; 0 = 5 s.
	Retry time.Duration
}

// Mirror compares the engine with the journal.
type Mirror struct {
	cfg          Config
	kick         chan struct{}
	kickNetworks chan struct{}
	names        *names

	// Since when something is as it should not stay. Run's goroutine alone uses
	// them.
	aliases   absences[carrick.DockerNetworkID]
	unused    absences[carrick.DockerNetworkID] // whose endpoints the kernel says nobody uses
	endpoints absences[carrick.EndpointID]
	orphans   absences[orphan]
	// strangers are networks of the engine that had one of the cluster's names at the last
	// look. keepNetworks' goroutine alone uses them.
	strangers map[carrick.DockerNetworkID]bool
	// told has the aliases that a warning was logged about.
	told map[carrick.DockerNetworkID]bool

	mu         sync.Mutex
	err        error                            // of the last look; guarded by mu
	seen       time.Time                        // of the last good look; guarded by mu
	removing   map[carrick.DockerNetworkID]bool // by us; guarded by mu
	making     map[carrick.NetworkID]bool       // by us; guarded by mu
	problems   map[carrick.NetworkID]string     // guarded by mu
	reworded   map[carrick.NetworkID]string     // the words that a network was made anew for; guarded by mu
	driverName string                           // "": not asked yet; guarded by mu
}

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
	if cfg.Objections == 0 {
		cfg.Objections = objections
	}
	if cfg.Yield == 0 {
		cfg.Yield = yield
	}
	if cfg.Retry == 0 {
		cfg.Retry = retryEvery
	}
	m := &Mirror{
		cfg: cfg, kick: make(chan struct{}, 1), kickNetworks: make(chan struct{}, 1),
		told: map[carrick.DockerNetworkID]bool{}, removing: map[carrick.DockerNetworkID]bool{}, making: map[carrick.NetworkID]bool{},
		reworded: map[carrick.NetworkID]string{},
	}
	m.names = newNames(m)
	return m
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
// ends. An engine that is away is waited for; the store is not: what the engine
// forgot is in the journal.
func (m *Mirror) Run(ctx context.Context) error {
	var others, asking sync.WaitGroup
	defer asking.Wait()
	defer others.Wait()
	others.Go(func() { m.listen(ctx, &asking) })
	if m.cfg.Everywhere {
		others.Go(func() { m.keepNetworks(ctx) })
	}
	every := time.NewTicker(m.cfg.Every)
	defer every.Stop()
	for {
		var again <-chan time.Time
		if m.look(ctx, &asking) {
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
func (m *Mirror) listen(ctx context.Context, asking *sync.WaitGroup) {
	for ctx.Err() == nil {
		err := m.cfg.Engine.Events(ctx, func(e Event) {
			if e.Container != "" {
				m.names.happened(ctx, asking, e.Container)
				return
			}
			m.Look()
			m.networksSoon()
		})
		m.cfg.Log.Debug("engine's events interrupted", "err", err)
		t := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-t.C:
			m.Look()
			m.networksSoon()
		}
		t.Stop()
	}
}

// look compares once, and returns whether something is on its way out.
func (m *Mirror) look(ctx context.Context, asking *sync.WaitGroup) (again bool) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	networks, err := m.cfg.Engine.Networks(ctx)
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
	} else {
		m.names.compare(outer, asking, containers)
	}
	m.aliases.begin()
	m.unused.begin()
	m.endpoints.begin()
	m.orphans.begin()
	for _, n := range m.cfg.Facts.Journal().Networks() {
		for _, a := range n.Aliases {
			at, known := networks[a.Docker]
			if !known {
				m.absentAlias(ctx, n, a, containers)
				continue
			}
			delete(m.told, a.Docker)
			if at.Name != a.Name || n.Conf.Name == "" { // or the store has not heard it yet
				// It asks the store, and the rest of the look must not wait for that long.
				nctx, cancel := context.WithTimeout(ctx, 3*time.Second)
				if err := m.cfg.Facts.NameAlias(nctx, a.Docker, at.Name); err != nil {
					m.cfg.Log.Debug("name not recorded yet", "network", at.Name, "err", err)
				}
				cancel()
			}
			if containers != nil {
				m.lookAtEndpoints(ctx, n, a, containers)
			}
		}
		m.lookAtAddresses(n)
	}
	m.aliases.end()
	m.unused.end()
	m.endpoints.end()
	m.orphans.end()
	return len(m.aliases.since)+len(m.endpoints.since) > 0
}
