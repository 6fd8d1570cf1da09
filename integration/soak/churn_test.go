package soak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-net/carrick/integration/lab"
	"github.com/carrick-net/carrick/internal/vmtest"
)

// TestChurn is a busy day: on three hosts containers start and stop as fast as the
// engines do it, in networks that have few addresses, so that one host's address is
// another's soon; some keep their address and move. 2 % of the packets to and from
// the store are lost, and every 20 s an agent is killed. Again and again people
// pause: then every container reaches every other of its network, all sides agree,
// and no agent has ever found anything in the kernel that it had not left there.
// At the end nothing is left over.
//
// CARRICK_CHURN=N says how many starts there are. A run of make soak has 20,000;
// without it the day is short, and agents die more often. CARRICK_CHURN_MODE=routed,
// macvlan or ipvlan is the mode of the networks, vxlan without it.
func TestChurn(t *testing.T) {
	if os.Getenv("CARRICK_CHURN_MODE") == "ipvlan" {
		lab.OnKernelWith(t, vmtest.IPVLAN, busyDay)
		return
	}
	t.Parallel()
	busyDay(t)
}

func busyDay(t *testing.T) {
	c := newChurn(t)
	before := c.baseline(t)
	c.makeNetworks(t)
	for c.goalReached() < c.goal {
		c.work(t, min(c.goal, c.goalReached()+c.pauseEvery), true)
		c.pause(t)
	}
	// An agent that is killed every minute hides what it gathers.
	c.steady = c.usage(t)
	c.work(t, c.goal+c.goal/10, false)
	c.pause(t)
	after := c.usage(t)
	c.clearAll(t)
	c.asBefore(t, before)
	c.print(t, after)
}

// The networks. Blocks of the first have 8 addresses, those of the second 2, so
// that hosts claim and give up blocks all the time.
const (
	roomy = "roomy"
	tight = "tight"
)

var subnets = map[string][]string{
	// The upper half is for those who ask for an address.
	roomy: {"--subnet", "10.60.0.0/24", "--ip-range", "10.60.0.0/25"},
	tight: {"--subnet", "10.61.0.0/27"},
}

// modes are the options of networks of each mode.
var modes = map[string][]string{
	"vxlan":   nil,
	"routed":  {"-o", "mode=routed"},
	"macvlan": {"-o", "mode=macvlan", "-o", "parent=eth0"},
	"ipvlan":  {"-o", "mode=ipvlan", "-o", "ipvlan_mode=l3", "-o", "parent=eth0"},
}

const (
	workersPerHost = 3
	slotsPerWorker = 4 // every second in the tight network
	movers         = 6 // containers with an address of their own, in the roomy network
	tides          = 8 // in a run, each with another host out of the tight network
	loss           = 2 // per cent, between hosts and the store
)

// churn is the lab and what is done in it.
type churn struct {
	*lab.Lab
	seed       uint64
	options    []string // of the networks, for their mode
	goal       int      // starts, with agents being killed
	pauseEvery int      // starts
	killEvery  time.Duration
	nextKill   time.Time
	victim     int // of the next kill
	rand       *rand.Rand

	sites   []*site
	workers []*worker
	moving  *removals
	ledger  *ledger
	tally   *tally
	starts  atomic.Int64
	began   time.Time

	owners        map[string]string // of blocks, at the last pause
	handed        int               // blocks that had another owner at the next pause
	pauses, pairs int
	slowest       time.Duration       // until all pairs connected
	files         int                 // most that an agent had open
	steady        map[*site]lab.Usage // when the kills ended
}

// site is a host, and when its agent was not there.
type site struct {
	*lab.Host
	api     *lab.EngineAPI
	logRead int64 // of the agent's log

	mu     sync.Mutex // guards what follows
	deaths []death
}

// death is from before an agent is killed until its successor answers; the second
// is zero before that.
type death struct{ from, to time.Time }

// died says whether a site had no agent for a part of the time since from.
func (s *site) died(from time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deaths {
		if d.to.IsZero() || d.to.After(from) {
			return true
		}
	}
	return false
}

func newChurn(t *testing.T) *churn {
	t.Helper()
	c := &churn{goal: 300, pauseEvery: 100, killEvery: 6 * time.Second, ledger: newLedger(), tally: newTally()}
	if s := os.Getenv("CARRICK_CHURN"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("CARRICK_CHURN=%q: want how many starts", s)
		}
		c.goal, c.pauseEvery, c.killEvery = n, max(100, n/20), 20*time.Second
	}
	var known bool
	if c.options, known = modes[cmp.Or(os.Getenv("CARRICK_CHURN_MODE"), "vxlan")]; !known {
		t.Fatalf("CARRICK_CHURN_MODE=%q: want one of %v", os.Getenv("CARRICK_CHURN_MODE"), slices.Sorted(maps.Keys(modes)))
	}
	c.seed = newSeed(t)
	c.rand = rand.New(rand.NewPCG(c.seed, 0))
	// Often enough for the agents to compare what they remember with the kernel in
	// the middle of everything.
	c.Lab = lab.New(t, lab.Options{Agents: true, AgentEnv: []string{"CARRICK_AUDIT_INTERVAL=5s"}})
	for i, h := range c.Hosts() {
		s := &site{Host: h, api: h.EngineAPI()}
		t.Cleanup(s.api.Close)
		c.sites = append(c.sites, s)
		for n := range workersPerHost {
			c.workers = append(c.workers, newWorker(c, s, i*workersPerHost+n+1))
		}
		if err := c.LossToConsul(t.Context(), h, loss); err != nil {
			t.Fatal(err)
		}
	}
	c.moving = newRemovals(c)
	return c
}

func (c *churn) makeNetworks(t *testing.T) {
	t.Helper()
	for name, subnet := range subnets {
		// An internal network has no second interface, whose rules cost the engine more
		// than all the rest.
		if err := lab.CreateNetwork(t.Context(), c.Hosts(), name, slices.Concat([]string{"-d", "carrick", "--ipam-driver", "carrick", "--internal"}, subnet, c.options)...); err != nil {
			t.Fatal(err)
		}
	}
	c.began = time.Now()
	c.nextKill = c.began.Add(c.killEvery)
}

func (c *churn) goalReached() int { return int(c.starts.Load()) }

// ebbs says whether a host is out of the tight network at present: its containers
// leave it, and after a while its blocks are somebody else's.
func (c *churn) ebbs(s *site) bool {
	tide := c.goalReached() * tides / max(1, c.goal)
	return c.sites[tide%len(c.sites)] == s
}

// work lets everybody work until there were so many starts.
func (c *churn) work(t *testing.T, until int, kills bool) {
	t.Helper()
	from, began := c.goalReached(), time.Now()
	done := make(chan struct{})
	g, ctx := errgroup.WithContext(t.Context())
	var working sync.WaitGroup
	for _, w := range c.workers {
		working.Add(1)
		g.Go(func() error {
			defer working.Done()
			return w.work(ctx, until)
		})
	}
	working.Add(1)
	g.Go(func() error {
		defer working.Done()
		return c.moving.work(ctx, until)
	})
	if kills {
		g.Go(func() error { return c.kill(ctx, done) })
	}
	working.Wait()
	close(done)
	if err := g.Wait(); err != nil {
		t.Fatalf("after %d starts: %v", c.goalReached(), err)
	}
	took := time.Since(began)
	t.Logf("%s: %d starts, %.1f starts/s; %d stops, %d agents killed, %d failed starts",
		time.Since(c.began).Round(time.Second), c.goalReached(), float64(c.goalReached()-from)/took.Seconds(), c.tally.get(stops), c.tally.get(killed), c.tally.failures())
}

// kill kills an agent in turn, and starts it as a supervisor does, until the others
// are done.
func (c *churn) kill(ctx context.Context, done <-chan struct{}) error {
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(c.nextKill)):
		}
		c.nextKill = time.Now().Add(c.killEvery)
		s := c.sites[c.victim%len(c.sites)]
		c.victim++
		s.mu.Lock()
		s.deaths = append(s.deaths, death{from: time.Now()})
		s.mu.Unlock()
		// Whatever happens to the others, the host is not left without its agent.
		ctx := context.WithoutCancel(ctx)
		if err := errors.Join(s.KillAgent(ctx), s.RestartAgent(ctx)); err != nil {
			return err
		}
		s.mu.Lock()
		s.deaths[len(s.deaths)-1].to = time.Now()
		s.mu.Unlock()
		c.tally.add(killed)
	}
}

// settling is how long an agent that was killed may take until it has compared its
// books with its engine and with the store: what it was asked to release when it died
// is looked for twice, a minute apart.
const settling = 4 * time.Minute

// excuse says why a call of an engine that began at a time may have failed, "" if
// it may not.
func (c *churn) excuse(sl *slot, from time.Time, err error) string {
	var refused *lab.APIError
	if !errors.As(err, &refused) {
		return ""
	}
	says := func(texts ...string) bool {
		for _, x := range texts {
			if strings.Contains(refused.Message, x) {
				return true
			}
		}
		return false
	}
	switch {
	case sl.at.died(from) && says("the request is empty"):
		return "the engine repeated a call to a killed agent without its contents"
	case sl.at.died(from) && says("EOF", "connection refused", "connection reset", "no such file"):
		return "the agent was killed during a call"
	}
	for _, o := range c.sites {
		switch {
		case o == sl.at:
		case o.died(from) && says("host "+o.Name()+" did not answer"):
			return "the agent was killed that was asked for an address"
		case sl.mover != nil && o.died(from.Add(-settling)) && says("address not given back", "is in use by a container that is starting or stopping"):
			return "the agent was killed that has the address, or lent it"
		}
	}
	return ""
}

// fmtFailure is what an inexcusable failure says.
func fmtFailure(sl *slot, what string, from time.Time, err error) error {
	return fmt.Errorf("%s %s on %s in %s (--ip %q), asked at %s: %w", what, sl.name, sl.at.Name(), sl.net, sl.fixed, from.Format(time.RFC3339Nano), err)
}
