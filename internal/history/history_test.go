package history_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/history"
)

// What the environment may say. Every failure prints the first two.
//
//	CARRICK_SEED=N      this history only
//	CARRICK_OPS=N       of so many operations, in all
//	CARRICK_SOAK=30m    new histories for so long
//	CARRICK_TALE=FILE   everything that happens, the hosts' debug messages included
//	CARRICK_MINIMISE=1  leave operations out of a failing history as long as it fails
const (
	envSeed, envOps, envSoak, envTale, envMinimise = "CARRICK_SEED", "CARRICK_OPS", "CARRICK_SOAK", "CARRICK_TALE", "CARRICK_MINIMISE"
	// each is how long a history is if nothing is said. Eight of them are 100,000
	// operations.
	each = 12_500
)

// TestHistories plays seven known histories and one that nobody has seen.
func TestHistories(t *testing.T) {
	// Most of what hosts allocate is garbage at once, and the collector's share of
	// the time is not small.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, uint64(time.Now().UnixNano())}
	ops := int(number(t, envOps, uint64(each*len(seeds)))) / len(seeds)
	if seed := number(t, envSeed, 0); seed != 0 {
		seeds, ops = []uint64{seed}, int(number(t, envOps, each))
	}
	var total sums
	defer total.print(t)
	deadline := time.Now().Add(soak(t))
	for first := true; first || time.Now().Before(deadline); first = false {
		if !first {
			for i := range seeds {
				seeds[i] = uint64(time.Now().UnixNano()) + uint64(i)
			}
		}
		t.Run("", func(t *testing.T) {
			for _, seed := range seeds {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					t.Parallel()
					total.add(play(t, seed, ops))
				})
			}
		})
		if t.Failed() {
			return
		}
	}
}

func play(t *testing.T, seed uint64, ops int) history.Result {
	t.Helper()
	t.Logf("%s=%d %s=%d", envSeed, seed, envOps, ops)
	cfg := history.Config{Seed: seed, Ops: ops, Dir: memory(t)}
	if name := os.Getenv(envTale); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		cfg.Out = f
	}
	r := history.Run(t, cfg)
	if r.Failure == nil {
		return r
	}
	t.Error(r.Failure)
	if os.Getenv(envMinimise) != "" {
		less, f := history.Minimise(t, cfg, r.Failure)
		t.Logf("what is left of it:\n%s", less)
		if f != nil {
			t.Log(f)
		}
	}
	return r
}

// memory is a directory that is in memory if there is such a thing.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "carrick-history-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func soak(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv(envSoak), "0"))
	if err != nil {
		t.Fatalf("%s: %v", envSoak, err)
	}
	return d
}

// sums adds up what happened in all histories.
type sums struct {
	mu          sync.Mutex
	done, quiet int
	counts      map[string]int
}

func (s *sums) add(r history.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = map[string]int{}
	}
	s.done += r.Done
	s.quiet += r.Quiet
	for k, n := range r.Counts {
		s.counts[k] += n
	}
}

func (s *sums) print(t *testing.T) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(s.counts)) {
		t.Logf("%7d %s", s.counts[k], k)
	}
	t.Logf("%d operations, %d quiet moments", s.done, s.quiet)
}
