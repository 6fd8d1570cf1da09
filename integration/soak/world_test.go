package soak

import (
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
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// calm bounds every wait for the hosts to converge. It is generous: the hosts
// share the machine's processors.
const calm = 2 * time.Minute

// Enough to meet each other, few enough to check all pairs.
const (
	maxNets  = 3
	maxBoxes = 12
)

// world is the lab and what should be in it.
type world struct {
	*lab.Lab
	rand  *rand.Rand
	nets  map[string]*network // by name
	boxes map[string]*box     // by name
	count int                 // of names given, so that none is given twice
	last  string              // what the last step did

	// cut says what a host was separated from since the last repair, and storeOff
	// that the store was stopped. disturbed is set by every fault, until a repair.
	cut       map[*lab.Host]from
	storeOff  bool
	disturbed bool
	backup    []byte // of the store, at the last quiet moment
}

// from is what a host is separated from.
type from struct{ store, hosts bool }

// network is a network of the cluster and the hosts that have it.
type network struct {
	name, subnet string
	// tiny networks have less addresses than everybody would like, so that hosts
	// borrow, and containers may find none.
	tiny bool
	on   map[*lab.Host]bool
}

// box is a container.
type box struct {
	name    string
	host    *lab.Host
	nets    []string // the first is the one it was made in
	fixed   string   // --ip, in the first
	guest   bool     // its --ip may lie in another host's block
	returns bool     // --restart always, so that it runs whenever its engine has started
	runs    bool
	since   time.Time         // of the last change of runs
	addrs   map[string]string // by network, while it runs; filled by check
}

// newWorld starts a lab. Its choices follow from the seed, which is printed.
func newWorld(t *testing.T) *world {
	t.Helper()
	seed := newSeed(t)
	w := &world{
		// People here make and remove networks on each host by themselves.
		Lab: lab.New(t, lab.Options{Agents: true, AgentFlags: []string{"--mirror=false"}}), rand: rand.New(rand.NewPCG(seed, seed)),
		nets: map[string]*network{}, boxes: map[string]*box{}, cut: map[*lab.Host]from{},
	}
	warmUp(t, w.Lab)
	return w
}

// newSeed is CARRICK_SEED, or a seed of the moment, and is printed.
func newSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CARRICK_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CARRICK_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("CARRICK_SEED=%d", seed)
	return seed
}

// action is a kind of step and how often it comes, relative to the others.
type action struct {
	weight int
	do     func(*testing.T)
}

// live takes random steps, and has everything repaired and checked between every
// checkEvery of them: steps of them, or for as long as CARRICK_SOAK says. What the
// faults of the moment make fail is no failure of the test.
func (w *world) live(t *testing.T, actions []action, steps, checkEvery int) {
	t.Helper()
	var limit time.Duration
	if s := os.Getenv("CARRICK_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("CARRICK_SOAK: %v", err)
		}
		limit = d
	}
	before := w.MustInventory(t)
	w.addNetwork(t)
	for range 4 {
		w.run(t)
	}
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	began := time.Now()
	for step := 1; ; step++ {
		n := w.rand.IntN(total)
		for _, a := range actions {
			if n -= a.weight; n < 0 {
				a.do(t)
				break
			}
		}
		// An agent that cannot ask the store takes seconds to give up.
		if step%4 == 0 || !slices.ContainsFunc(w.Hosts(), func(h *lab.Host) bool { return w.cut[h].store }) {
			w.neverTwice(t)
		}
		if t.Failed() {
			t.Fatalf("at step %d, %s", step, w.last)
		}
		if step%checkEvery == 0 {
			w.repair(t)
			w.check(t)
			if t.Failed() {
				t.Fatalf("after step %d", step)
			}
			t.Logf("%s: %d steps, %d networks and %d containers are fine", time.Since(began).Round(time.Second), step, len(w.nets), len(w.boxes))
			if limit == 0 && step >= steps || limit > 0 && time.Since(began) > limit {
				break
			}
		}
	}
	w.clear(t)
	lab.Eventually(t, calm, "the hosts and the store to be as they were in the beginning", func() error {
		after, err := w.Inventory(t.Context())
		if err != nil {
			return err
		}
		if diff := before.Diff(after); diff != "" {
			return fmt.Errorf("difference:\n%s", diff)
		}
		return nil
	})
	w.Check(t)
}

func (w *world) say(t *testing.T, format string, args ...any) {
	t.Helper()
	w.last = fmt.Sprintf(format, args...)
	t.Log(w.last)
}

// pick returns a random element of a map, by sorted key, of those for which want
// is true; ok is false if there is none.
func pick[V any](r *rand.Rand, m map[string]V, want func(V) bool) (v V, ok bool) {
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if want == nil || want(m[k]) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return v, false
	}
	return m[keys[r.IntN(len(keys))]], true
}

func (w *world) host() *lab.Host { return w.Hosts()[w.rand.IntN(len(w.Hosts()))] }

// needAgent starts a host's agent. Without one an engine tries each call for 15 s,
// which the scenarios look at; here it would only use up the time.
func (w *world) needAgent(t *testing.T, h *lab.Host) {
	t.Helper()
	if h.AgentRunning() {
		return
	}
	if err := h.RestartAgent(t.Context()); err != nil {
		t.Fatalf("start the agent of %s: %v", h.Name(), err)
	}
}

// repair ends all faults of the lab. What was done to the kernel it leaves to the
// agents.
func (w *world) repair(t *testing.T) {
	t.Helper()
	if err := w.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.storeOff {
		if err := w.Consul(1).Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	clear(w.cut)
	w.storeOff = false
	for _, h := range w.Hosts() {
		w.needAgent(t, h)
	}
}

// check waits until every promise holds at once.
func (w *world) check(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for _, h := range w.Hosts() {
		lab.Eventually(t, calm, h.Name()+" to say that nothing needs attention", func() error {
			_, err := h.Carrick(ctx, "status")
			return err
		})
	}
	w.Check(t)
	for _, name := range slices.Sorted(maps.Keys(w.boxes)) {
		b := w.boxes[name]
		if err := w.look(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	errs := make(chan error, len(w.boxes))
	for _, b := range w.boxes {
		if b.runs {
			all.Go(func() { errs <- w.reachesAll(ctx, b) })
		}
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	w.disturbed = false
	var err error
	if w.backup, err = w.StoreSave(ctx); err != nil {
		t.Error(err)
	}
}

// neverTwice fails the test if an address is held twice, which may not be at any
// moment.
func (w *world) neverTwice(t *testing.T) {
	t.Helper()
	twice, err := w.HeldTwice(t.Context())
	if err != nil || len(twice) > 0 {
		t.Errorf("held twice: %s (%v)", strings.Join(twice, "\n"), err)
	}
}

// look asks the engine whether a box runs, as it should or should not, and where.
func (w *world) look(ctx context.Context, b *box) error {
	out, err := b.host.Docker(ctx, "inspect", "--format", "{{.State.Running}}{{range $n, $e := .NetworkSettings.Networks}} {{$n}}={{$e.IPAddress}}{{end}}", b.name)
	if err != nil {
		return err
	}
	words := strings.Fields(out)
	if words[0] != strconv.FormatBool(b.runs) {
		return fmt.Errorf("%s on %s runs: %s, should be %v", b.name, b.host.Name(), words[0], b.runs)
	}
	b.addrs = map[string]string{}
	for _, word := range words[1:] {
		net, addr, _ := strings.Cut(word, "=")
		b.addrs[net] = addr
	}
	for _, n := range b.nets {
		if b.runs && b.addrs[n] == "" {
			return fmt.Errorf("%s on %s has no address in %s: %s", b.name, b.host.Name(), n, out)
		}
	}
	if b.runs && b.fixed != "" && b.addrs[b.nets[0]] != b.fixed {
		return fmt.Errorf("%s on %s has --ip %s, and %s", b.name, b.host.Name(), b.fixed, b.addrs[b.nets[0]])
	}
	return nil
}

// reachesAll waits until a box gets every other one of its networks to tell it its
// name: the right container at the right address.
func (w *world) reachesAll(ctx context.Context, b *box) error {
	var ask strings.Builder
	for _, o := range w.boxes {
		for _, n := range b.nets {
			if o != b && o.runs && slices.Contains(o.nets, n) {
				fmt.Fprintf(&ask, "[ \"$(timeout 3 wget -qO- http://%s/name)\" = %s ] || echo %s of %s at %s;", o.addrs[n], o.name, o.name, o.host.Name(), o.addrs[n])
			}
		}
	}
	if ask.Len() == 0 {
		return nil
	}
	return lab.Wait(ctx, calm, b.name+" on "+b.host.Name()+" to reach all of "+strings.Join(b.nets, " and "), func() error {
		missed, err := b.host.InContainer(ctx, b.name, "sh", "-c", ask.String())
		if err == nil && missed != "" {
			err = errors.New("it misses " + strings.TrimSpace(missed))
		}
		return err
	})
}

// warmUp lets what stays for good come into being: docker_gwbridge.
func warmUp(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := lab.CreateNetwork(t.Context(), l.Hosts(), "warmup", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", "10.254.0.0/16"); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		h.MustDocker(t, "run", "--rm", "--network", "warmup", "-p", "18080:80", lab.Image, "true")
	}
	for _, h := range l.Hosts() {
		lab.Eventually(t, calm, h.Name()+" to remove the network", func() error {
			out, err := h.Docker(t.Context(), "network", "ls", "-q", "--filter", "name=^warmup$")
			if err == nil && out != "" {
				_, err = h.Docker(t.Context(), "network", "rm", "warmup")
			}
			return err
		})
	}
}

// clear removes everything that the run made.
func (w *world) clear(t *testing.T) {
	t.Helper()
	w.repair(t)
	for _, name := range slices.Sorted(maps.Keys(w.boxes)) {
		b := w.boxes[name]
		b.host.MustDocker(t, "rm", "-f", name)
		delete(w.boxes, name)
	}
	for _, name := range slices.Sorted(maps.Keys(w.nets)) {
		w.drop(t, w.nets[name])
	}
}
