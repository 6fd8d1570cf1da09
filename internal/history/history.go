// Package history drives simulated hosts through random histories: containers
// that come and go with and without addresses of their own, networks made and
// removed, agents that die at any write, power cuts, partitions, a store that
// loses replies, loses its past or is restored from a backup, hosts removed and
// returning. After every operation no address may be held by two live containers;
// at quiet moments, when all faults are over, package check must find nothing.
//
// A history is a list of operations drawn from a seed before the first of them
// happens, so a seed gives the same operations with the same parameters each time.
// What they meet is not the same each time: hosts work concurrently, and what an
// operation picks (the third container of those there are) depends on what came
// before. A failing seed therefore fails again often, not always.
//
// Time is that of a testing/synctest bubble, where hours take no time.
package history

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Config is a history.
type Config struct {
	Seed uint64
	// Ops is how many operations there are: docker commands, faults, waits.
	Ops int
	// Keep, if not nil, says which of them happen, by their place in the list.
	Keep func(i int) bool
	// Dir is where hosts have their state directories, best in memory.
	Dir string
	// Out, if not nil, is told everything that happens, the hosts' debug messages
	// included.
	Out io.Writer
}

// Result is what became of a history.
type Result struct {
	Done    int            // operations that happened
	Quiet   int            // quiet moments passed
	Counts  map[string]int // operations by kind and outcome
	Failure *Failure       // nil: all was well
}

// Failure is the end of a history that broke a promise.
type Failure struct {
	Seed uint64
	At   int    // place of the operation in the list
	Done int    // operations until then
	Op   string // what it was
	What string // what was found
	Tale string // the last operations and messages of the hosts
}

func (f *Failure) Error() string {
	return fmt.Sprintf("seed %d, operation %d of the list, after %d, %s:\n%s\n%s\nrepeat with CARRICK_SEED=%d CARRICK_OPS=%d",
		f.Seed, f.At, f.Done, f.Op, f.What, f.Tale, f.Seed, f.Done+quietEvery)
}

// Run plays a history in a bubble of its own. t fails only if the bubble does.
func Run(t *testing.T, cfg Config) (r Result) {
	t.Helper()
	ops := draw(cfg.Seed, cfg.Ops)
	dog := newDog()
	defer dog.end()
	synctest.Test(t, func(t *testing.T) { r = play(t, cfg, ops, dog) })
	return r
}

// dog watches a history from outside of its bubble: one whose goroutines wait for
// each other in a way that is not durable, or never wait, stands still for ever.
type dog struct {
	moved atomic.Int64
	tale  atomic.Pointer[tale]
	stop  chan struct{}
	done  sync.WaitGroup
}

// stuck is how long, by the real clock, a history may stand still.
const stuck = 10 * time.Second

func newDog() *dog {
	d := &dog{stop: make(chan struct{})}
	d.done.Go(func() {
		for last := int64(-1); ; {
			t := time.NewTimer(stuck)
			select {
			case <-d.stop:
				t.Stop()
				return
			case <-t.C:
			}
			now := d.moved.Load()
			if now == last {
				buf := make([]byte, 1<<20)
				buf = buf[:runtime.Stack(buf, true)]
				panic(fmt.Sprintf("the history stands still since operation %d\n%s\n%s", now, d.tale.Load(), buf))
			}
			last = now
		}
	})
	return d
}

func (d *dog) end() {
	close(d.stop)
	d.done.Wait()
}

// trial is a testing.TB for hosts whose failures are the history's.
type trial struct {
	testing.TB
	w *world
}

func (t trial) Helper()                   {}
func (t trial) Cleanup(func())            {} // the world ends its hosts itself
func (t trial) Logf(string, ...any)       {}
func (t trial) Errorf(f string, a ...any) { t.w.fail("simulation: "+f, a...) }
func (t trial) Fatalf(f string, a ...any) { panic(stop(fmt.Sprintf("simulation: "+f, a...))) }

// stop ends a history, by a panic in the goroutine that plays it.
type stop string

func play(t *testing.T, cfg Config, ops []op, dog *dog) (r Result) {
	w := newWorld(t, cfg)
	dog.tale.Store(&w.tale)
	at, name := -1, "setup"
	defer func() {
		switch p := recover().(type) {
		case nil:
		case stop:
			w.fail("%s", string(p))
		default:
			w.fail("panic: %v\n%s", p, debug.Stack())
		}
		w.end()
		r.Quiet, r.Counts = w.quiets, w.counts
		if what := w.failure(); what != "" {
			r.Failure = &Failure{Seed: cfg.Seed, At: at, Done: r.Done, Op: name, What: what, Tale: w.tale.String()}
		}
	}()
	w.setup()
	for i, o := range ops {
		if cfg.Keep != nil && !cfg.Keep(i) {
			continue
		}
		at, name = i, o.String()
		w.do(o)
		r.Done += o.many()
		dog.moved.Store(int64(r.Done))
		if w.failure() == "" {
			w.holdersAreAlone()
		}
		if w.failure() != "" {
			return r
		}
	}
	at, name = len(ops), "the last quiet moment"
	w.beQuiet()
	return r
}

// op is an operation with the numbers its choices are made of.
type op struct {
	kind       kind
	a, b, c, d uint32
	pause      uint32
}

func (o op) String() string { return kinds()[o.kind].name }

// many is how many operations it counts for.
func (o op) many() int {
	if kinds()[o.kind].name == "together" {
		return together(o)
	}
	return 1
}

// quietEvery is how many operations there are between two quiet moments.
const quietEvery = 200

// draw makes the list of operations of a seed.
func draw(seed uint64, n int) []op {
	r := rand.New(rand.NewPCG(seed, 0))
	all := kinds()
	total, calm := 0, kind(0)
	for i, k := range all {
		total += k.weight
		if k.name == "quiet" {
			calm = kind(i)
		}
	}
	var out []op
	for left, since := n, 0; left > 0; {
		if since >= quietEvery {
			out, since = append(out, op{kind: calm}), 0
			continue
		}
		o := op{a: r.Uint32(), b: r.Uint32(), c: r.Uint32(), d: r.Uint32(), pause: r.Uint32()}
		at := r.IntN(total)
		for i, k := range all {
			if at -= k.weight; at < 0 {
				o.kind = kind(i)
				break
			}
		}
		out = append(out, o)
		left -= o.many()
		since += o.many()
	}
	return out
}
