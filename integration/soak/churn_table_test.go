package soak

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// count is something that is counted.
type count string

const (
	made   count = "containers made"
	stops  count = "stops"
	moves  count = "moves of a container with its address"
	killed count = "agents killed"
	drift  count = "drift"
)

// tally counts what happened.
type tally struct {
	mu     sync.Mutex // guards what follows
	counts map[count]int
	failed map[string]int // starts, by excuse
}

func newTally() *tally { return &tally{counts: map[count]int{}, failed: map[string]int{}} }

func (y *tally) add(c count) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.counts[c]++
}

func (y *tally) get(c count) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.counts[c]
}

func (y *tally) fail(why string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.failed[why]++
}

func (y *tally) failures() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	n := 0
	for _, k := range y.failed {
		n += k
	}
	return n
}

// print prints the table of a whole run.
func (c *churn) print(t *testing.T, after map[*site]lab.Usage) {
	t.Helper()
	var b strings.Builder
	row := func(what string, format string, args ...any) {
		fmt.Fprintf(&b, "  %-46s %s\n", what, fmt.Sprintf(format, args...))
	}
	took := time.Since(c.began)
	row("seed", "%d", c.seed)
	row("time, with the pauses", "%s", took.Round(time.Second))
	row("starts", "%d (%.1f/s)", c.goalReached(), float64(c.goalReached())/took.Seconds())
	for _, k := range []count{stops, made, moves, killed} {
		row(string(k), "%d", c.tally.get(k))
	}
	row("addresses used again", "%d", c.ledger.again)
	row("addresses used again on another host", "%d", c.ledger.onward)
	row("blocks that another host had at a later pause", "%d of %d", c.handed, len(c.owners))
	row("failed starts", "%d", c.tally.failures())
	for _, why := range slices.Sorted(maps.Keys(c.tally.failed)) {
		row("  "+why, "%d", c.tally.failed[why])
	}
	row("pauses", "%d", c.pauses)
	row("pairs connected", "%d, the last of a pause after %s at most", c.pairs, c.slowest.Round(time.Millisecond))
	row("drift", "%d", c.tally.get(drift))
	row("most files open in an agent", "%d", c.files)
	for _, s := range c.sites {
		row(fmt.Sprintf("memory of %s's agent, last %d starts", s.Name(), c.goalReached()-c.goal), "%d KiB, then %d KiB", c.steady[s].Resident, after[s].Resident)
	}
	t.Logf("the churn:\n%s", b.String())
	if c.ledger.onward == 0 {
		t.Error("no address was used again on another host")
	}
	if c.tally.get(killed) == 0 {
		t.Error("no agent was killed")
	}
}
