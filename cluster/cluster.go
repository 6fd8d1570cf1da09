// Package cluster is what the hosts tell each other: typed facts on a
// [kvstore.Store]. It owns the key layout, the codec with its schema version,
// this host's registration, the transactions that create and remove networks
// and claim blocks, the publication of local endpoints, and the watches that
// turn the store's changes into whole snapshots.
//
// It knows neither Docker's protocol nor the kernel: it hands out
// [carrick.View] values and says when a newer one exists.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/cluster/snapshot"
	"github.com/carrick-net/carrick/kvstore"
)

// Sentinel errors of this package.
var (
	// ErrIdentity: another host holds this one's name, VTEP address or identity.
	// The agent must not go on.
	ErrIdentity = errors.New("host identity conflict")
	// ErrNotReady: the host is not registered with the store, usually because the
	// store cannot be reached.
	ErrNotReady = errors.New("not connected to the cluster")
	// ErrOverlap: a prefix overlaps another network of the tenant.
	ErrOverlap = errors.New("subnet overlaps another network")
	// ErrVNITaken: another network has the VNI.
	ErrVNITaken = errors.New("VNI taken")
	// ErrMismatch: a joining host wants something else than the network has.
	ErrMismatch = errors.New("differs from the existing network")
	// ErrAliased: the network already has a Docker network on this host.
	ErrAliased = errors.New("network is already on this host")
	// ErrUnknownNetwork: no such network.
	ErrUnknownNetwork = errors.New("no such network")
	// ErrBlockTaken: another host owns the block.
	ErrBlockTaken = errors.New("block owned by another host")
)

// Config is what a Cluster needs. All fields but LeaseTTL are required.
type Config struct {
	Store   kvstore.Store
	Journal *journal.Journal
	Name    string     // host name, unique in the cluster
	VTEP    netip.Addr // unique in the cluster
	MTU     int        // bytes, of the interface that holds VTEP
	Version string     // of the agent
	Probes  bool       // the agent answers probes
	Machine string     // machine-id
	Boot    string     // boot id: tells an agent's restart from another machine with a copied disk
	// LeaseTTL of the liveness key; default 15 s. A dead host is seen as lost
	// after one to two of these.
	LeaseTTL time.Duration
	// Grace, if not 0, makes this host give up everything that long after its lease
	// ended, and allows the others to take it then. It must be several LeaseTTL.
	Grace time.Duration
	// Uptime is the time since the boot that Boot names, which goes on while the
	// machine sleeps; nil: CLOCK_BOOTTIME.
	Uptime func() time.Duration
	// Rest is how long an address must have been free before another host may have
	// it; 0 = 5 minutes.
	Rest time.Duration
	Log  *slog.Logger
	// Cache is what this host heard of the others before; nil: nothing is remembered.
	// Run writes it, and closing it is the caller's.
	Cache *snapshot.Cache
	// Changed is called when a network's view may differ from the last one. It
	// must not block.
	Changed func(carrick.NetworkID)
	// SpecsChanged is called when Specs may differ from the last ones; nil: nobody
	// asks. It must not block.
	SpecsChanged func()
	// Apart: nobody takes networks away from this host's engine that were removed
	// elsewhere. Its containers have a say nonetheless.
	Apart bool
}

// Cluster is this host's link to the others. It is safe for concurrent use.
type Cluster struct {
	cfg   Config
	self  carrick.HostID
	store kvstore.Store
	jr    *journal.Journal
	log   *slog.Logger

	ready     chan struct{} // closed once registered
	refused   chan struct{} // closed once an attempt to register has failed
	hostsRead chan struct{} // closed once hostsOK

	// creating is held for reading from a create's commit in the store until it is
	// in the journal, and for writing by whoever removes aliases that the journal
	// does not have, who takes all of creators. It comes before mu. Whoever waits for
	// it can be told to stop, since it is held over I/O and its repetitions.
	creating *semaphore.Weighted

	// mu guards everything below. It is never held over I/O.
	mu      sync.Mutex
	mtu     int   // see SetMTU
	lastErr error // of the last call to the store, if it went unanswered
	regErr  error // why the registration has not succeeded yet
	run     *running
	nets    map[carrick.NetworkID]*netState
	hosts   map[carrick.HostID]carrick.Host // never shrinks: see watchHosts
	alive   map[carrick.HostID]bool
	present map[carrick.HostID]carrick.Host // the store's hosts, as last seen
	hostsOK bool                            // hosts was read at least once
	aliveOK bool
	absent  map[carrick.HostID]time.Time     // since when a host is not seen alive
	graces  map[carrick.HostID]time.Duration // of hosts that give up by themselves
	unheard time.Time                        // until when a host may have come and gone without this one hearing
	missed  int                              // calls that the store has not answered
	leased  bool                             // this host's lease is held
	ended   time.Duration                    // if not, since when, by Uptime
	contact time.Time                        // of the last successful answer of the store
	// epoch is the newest one seen of the incarnation this host takes part in, and
	// recovering since when that is being recovered.
	epoch      journal.Epoch
	recovering time.Time
	// incarnation ends when this host enters another incarnation of the store, or
	// when a recovery of it is over.
	incarnation    context.Context
	endIncarnation context.CancelFunc
	writeNum       uint32                           // incarnation that publications carry
	removing       map[carrick.HostID]removedRecord // every removed host, as last heard
	conflicts      map[carrick.NetworkID]string     // why a network cannot be published
	specs          map[carrick.NetworkID]Spec       // as last heard
	specsOK        bool
	reclaims       map[string]*reclaim // addresses that are asked back for a third host, by its question's ID
	asked          map[string]bool     // questions to other hosts that somebody here waits for

	// pending counts claims under way by block, from before the store is asked until
	// the journal has it; the zero block stands for loans. What is pending is not
	// mistaken for a leftover.
	pending map[idleBlock]int

	// suspicion has a token when something in the store is not as it was.
	suspicion chan struct{}
	// settleAgain has a token when a recovery has ended.
	settleAgain chan struct{}
	// announceAgain has a token when the liveness key may be gone though the lease
	// is not.
	announceAgain chan struct{}
	// mtuChanged has a token when mtu differs from what was registered.
	mtuChanged chan struct{}
	// answering is held while requests of other hosts are answered, and while this
	// host's own books about what it lent are compared with the store. It comes
	// before mu, and can be waited for like creating.
	answering *semaphore.Weighted
	askAgain  chan struct{} // holds one value when a question can be answered by now
	// membership is held by who takes over which hosts there are, or were removed:
	// from what it hears until the journal has it. It comes before mu.
	membership *semaphore.Weighted
}

// creators is more than there can ever be at once.
const creators = 1 << 30

// running is what background work needs while Run runs.
type running struct {
	ctx   context.Context
	group *errgroup.Group
}

// New returns a Cluster that does nothing until Run.
func New(cfg Config) *Cluster {
	if cfg.LeaseTTL == 0 {
		cfg.LeaseTTL = 15 * time.Second
	}
	if cfg.Rest == 0 {
		cfg.Rest = 5 * time.Minute
	}
	if cfg.Uptime == nil {
		cfg.Uptime = uptime
	}
	incarnation, end := context.WithCancel(context.Background())
	return &Cluster{
		incarnation: incarnation, endIncarnation: end,

		cfg:       cfg,
		self:      cfg.Journal.Identity().Host,
		store:     cfg.Store,
		jr:        cfg.Journal,
		log:       cfg.Log,
		ready:     make(chan struct{}),
		refused:   make(chan struct{}),
		hostsRead: make(chan struct{}),
		nets:      map[carrick.NetworkID]*netState{},
		hosts:     cfg.Journal.Hosts(),
		alive:     map[carrick.HostID]bool{},

		epoch:         cfg.Journal.Meta().Epoch,
		writeNum:      cfg.Journal.Meta().Epoch.Num,
		removing:      map[carrick.HostID]removedRecord{},
		absent:        map[carrick.HostID]time.Time{},
		graces:        map[carrick.HostID]time.Duration{},
		conflicts:     map[carrick.NetworkID]string{},
		asked:         map[string]bool{},
		reclaims:      map[string]*reclaim{},
		askAgain:      make(chan struct{}, 1),
		pending:       map[idleBlock]int{},
		creating:      semaphore.NewWeighted(creators),
		answering:     semaphore.NewWeighted(1),
		membership:    semaphore.NewWeighted(1),
		suspicion:     make(chan struct{}, 1),
		settleAgain:   make(chan struct{}, 1),
		announceAgain: make(chan struct{}, 1),
		mtuChanged:    make(chan struct{}, 1),
		mtu:           cfg.MTU,
	}
}

// number is the incarnation that what this host writes belongs to.
func (c *Cluster) number() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writeNum
}

// Self is this host's id.
func (c *Cluster) Self() carrick.HostID { return c.self }

// Ready is closed once this host is registered with the store.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

func (c *Cluster) String() string { return "cluster" }

// Run registers the host and keeps its facts and its knowledge up to date until
// ctx ends. The store being away is not an error, it is waited for, and calls on
// networks that the journal has are served meanwhile. The one error is
// [ErrIdentity].
func (c *Cluster) Run(ctx context.Context) error {
	c.forgetLeft()
	g, gctx := errgroup.WithContext(ctx)
	mine, before := c.jr.Networks(), c.jr.Meta()
	c.mu.Lock()
	c.run = &running{ctx: gctx, group: g}
	for id, n := range c.nets {
		c.startFollow(id, n)
	}
	for _, rec := range mine {
		if !rec.Leaving {
			// What the store has of it is not known until it was asked.
			c.state(rec.Conf.ID).pub.due()
		}
	}
	for id, n := range c.nets {
		c.startPublish(id, n)
	}
	c.mu.Unlock()
	// The last to end: nothing is added to a group that was waited for.
	g.Go(func() error {
		<-gctx.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.run = nil
		return nil
	})
	g.Go(func() error {
		if err := c.registerUntilDone(gctx); err != nil {
			if gctx.Err() != nil {
				return nil
			}
			return err
		}
		c.mu.Lock()
		c.regErr = nil
		c.mu.Unlock()
		close(c.ready)
		return c.keepAlive(gctx)
	})
	g.Go(func() error { return c.watchHosts(gctx) })
	g.Go(func() error { return c.watchNodes(gctx) })
	g.Go(c.onceReady(gctx, c.settle))
	g.Go(c.onceReady(gctx, c.watchEpoch))
	g.Go(c.onceReady(gctx, c.watchRemoved))
	g.Go(c.onceReady(gctx, c.watchAsks))
	g.Go(c.onceReady(gctx, c.watchSpecs))
	g.Go(c.onceReady(gctx, c.announceMTU))
	g.Go(func() error { return c.keepEpoch(gctx) })
	g.Go(func() error { return c.mindGrace(gctx, before) })
	g.Go(func() error { return c.cfg.Cache.Run(gctx) })
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// spawn adds a task to those that Run waits for. Only a task of Run may call it.
func (c *Cluster) spawn(task func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil { // nil: ending
		c.run.group.Go(task)
	}
}

// onceReady makes a task begin when the host is registered.
func (c *Cluster) onceReady(ctx context.Context, task func(context.Context) error) func() error {
	return func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-c.ready:
			return task(ctx)
		}
	}
}

// WaitReady waits for the registration; once that has failed, no longer than until
// it has been tried again. If ctx or that ends first the error is [ErrNotReady]
// with the reason.
func (c *Cluster) WaitReady(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
	case <-c.refused:
		again := time.NewTimer(registerEvery)
		defer again.Stop()
		select {
		case <-c.ready:
			return nil
		case <-ctx.Done():
		case <-again.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmp.Or(c.regErr, c.lastErr); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return fmt.Errorf("%w: store %s has not answered yet", ErrNotReady, c.store)
}

// heard records how a call to the store went. A failed condition is an answer.
func (c *Cluster) heard(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, kvstore.ErrUnavailable), errors.Is(err, kvstore.ErrDenied):
		c.lastErr = err
		c.missed++
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, kvstore.ErrClosed):
	default:
		c.lastErr = nil
		c.contact = time.Now()
		c.cfg.Cache.Heard(c.contact)
	}
}

func (c *Cluster) changed(id carrick.NetworkID) {
	if c.cfg.Changed != nil {
		c.cfg.Changed(id)
	}
}

// backoff waits for a growing, jittered time, or until ctx ends. The jitter
// keeps a thousand hosts from asking a store that just came back all at once.
func backoff(ctx context.Context, attempt int, most time.Duration) error {
	d := min(20*time.Millisecond<<min(attempt, 12), most)
	d = d/2 + rand.N(d/2+1)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// get reads and decodes one record; version 0 and no error if it is absent.
func get[T any, P interface {
	*T
	versioned
	validator
}](ctx context.Context, c *Cluster, key string) (T, kvstore.Revision, error) {
	var none T
	e, err := c.store.Get(ctx, key)
	c.heard(err)
	switch {
	case errors.Is(err, kvstore.ErrNotFound):
		return none, 0, nil
	case err != nil:
		return none, 0, fmt.Errorf("read %s: %w", key, err)
	}
	r, err := decode[T, P](key, e.Value)
	if err != nil {
		return none, 0, err
	}
	return r, e.Version, nil
}

// commit runs a transaction.
func (c *Cluster) commit(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	rev, err := c.store.Txn(ctx, t)
	c.heard(err)
	return rev, err
}

// put encodes a record into a transaction, with the first error kept for the end.
func put(t *kvstore.Txn, err *error, key string, r versioned) {
	raw, e := encode(r)
	if e != nil && *err == nil {
		*err = e
	}
	t.Put(key, raw)
}

// IsUnavailable says whether an error means that the store has not answered the
// question: it was away, refused to know us, or took too long. What was asked may
// have happened.
func IsUnavailable(err error) bool {
	return errors.Is(err, kvstore.ErrUnavailable) || errors.Is(err, kvstore.ErrDenied) || errors.Is(err, context.DeadlineExceeded)
}
