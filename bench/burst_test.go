package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/consultest"
)

// Hosts that start containers in one network at the same time all write its head.
// What must not happen is that they keep each other from it.
func BenchmarkTogether(b *testing.B) {
	head := []string{"hosts", "endpoints", "commits/s", "endpoints/commit", "conflicts/commit", "reads/commit", "p50 ms", "p99 ms", "all after ms"}
	paced := newTable("Hosts that start containers in one network: one every 100 ms on each host",
		"40 endpoints on each host. p50 and p99: from CreateEndpoint's return until the store has the endpoint. All after: from the last CreateEndpoint.", head...)
	burst := newTable("The same: 50 on each host, as fast as it can", "As above.", head...)
	for range b.N {
		c := consultest.StartCluster(b, servers, consultest.WithConns(10000))
		for _, hosts := range []int{1, 4, 16} {
			f := newFleet(b, c, fmt.Sprintf("together-%d", hosts), hosts)
			together(b, f, paced, "10.43.0.0/16", 40, 100*time.Millisecond)
			together(b, f, burst, "10.42.0.0/16", 50, 0)
			f.end()
		}
	}
	paced.print(b)
	burst.print(b)
}

// together makes one row of it.
func together(b *testing.B, f fleet, t *table, subnet string, each int, pause time.Duration) {
	b.Helper()
	nets := f.join(b, "app", subnet)
	f.settled(b)
	f.reset()
	var mu sync.Mutex
	var all []started
	f.onEach(b, func(i int, m *member) error {
		for range each {
			if err := rest(b.Context(), pause); err != nil {
				return err
			}
			s, err := m.start(b.Context(), nets[i])
			if err != nil {
				return err
			}
			mu.Lock()
			all = append(all, s)
			mu.Unlock()
		}
		return nil
	})
	f.settled(b)
	got, err := count(f.tallies()...)
	if err != nil {
		b.Fatal(err)
	}
	var late []time.Duration
	for _, s := range all {
		at, ok := got.published[s.id]
		if !ok {
			b.Fatalf("endpoint %s was not published", s.id.Short())
		}
		late = append(late, max(0, at.Sub(s.at)))
	}
	commits := got.commits[publication]
	last := slices.MaxFunc(all, func(a, b started) int { return a.at.Compare(b.at) }).at
	t.add(len(f), len(all), float64(commits)/got.last.Sub(got.first).Seconds(), per(len(all), commits), per(got.conflicts[publication], commits),
		per(got.reads, commits), ms(quantile(late, 0.5)), ms(quantile(late, 0.99)), ms(got.last.Sub(last)))
}

// rest waits for half to one and a half of a pause.
func rest(ctx context.Context, pause time.Duration) error {
	if pause == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(pause/2 + rand.N(pause))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
