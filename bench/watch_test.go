package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/internal/sim"
	"golang.org/x/sync/errgroup"
)

// changes is how many endpoints come, one after the other, for each row.
const changes = 50

// How long it takes until a change is in every host's view, and what it costs the
// servers.
func BenchmarkWatchers(b *testing.B) {
	t := newTable("From publication to the others' views",
		fmt.Sprintf("%d endpoints come one after the other on one host, 50 ms apart, and each watcher is a host's own following of the network. Times: from the sending of the commit; last: the last watcher to know, median over the changes. CPU: of all %d servers, without what they use when nothing happens.", changes, servers),
		"watchers", "p50 ms", "p99 ms", "last ms", "the commit p50 ms", "p99 ms", "CPU ms/change", "CPU ms/change and watcher", "idle CPU ms/s", "reads/change and watcher")
	for range b.N {
		c := consultest.StartCluster(b, servers, consultest.WithConns(10000))
		f := newFleet(b, c, "watch", 1)
		nets := f.join(b, "app", "10.42.0.0/16")
		rec, err := f[0].Cluster.Journal().ByAlias(nets[0].ID)
		if err != nil {
			b.Fatal(err)
		}
		var a await
		var all []*watcher
		alone := 0.0
		for _, n := range []int{0, 10, 100, 1000} {
			all = gatherWatchers(b, c, rec.Conf, all, n, &a)
			alone = watched(b, c, t, f[0], nets[0], all, &a, alone)
		}
		f.end()
	}
	t.print(b)
}

// gatherWatchers starts watchers until there are n.
func gatherWatchers(b *testing.B, c *consultest.Cluster, n carrick.Network, have []*watcher, want int, a *await) []*watcher {
	b.Helper()
	out := make([]*watcher, want)
	copy(out, have)
	var g errgroup.Group
	g.SetLimit(16)
	for i := len(have); i < want; i++ {
		s := open(b, c.Addrs(i), "watch")
		g.Go(func() (err error) {
			out[i], err = watch(b, i, n, s, a)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return out
}

// watched makes one row: changes on m, known by all watchers. It returns what a
// change costs the servers, which with no watchers is the price of the commit.
func watched(b *testing.B, c *consultest.Cluster, t *table, m *member, n *sim.Network, all []*watcher, a *await, alone float64) float64 {
	b.Helper()
	idle := usage(b, c, func() { pass(b.Context(), 3*time.Second) })
	reads := func() (n int64) {
		for _, w := range all {
			n += w.store.reads.Load()
		}
		return n
	}
	before := reads()
	var late, last, commits []time.Duration
	busy := usage(b, c, func() {
		for range changes {
			pass(b.Context(), 50*time.Millisecond)
			id := endpointID()
			a.expect(id)
			m.tally.reset()
			if err := m.startAs(b.Context(), n, id); err != nil {
				b.Fatal(err)
			}
			m.settle(b)
			sent, took := m.tally.sent()
			commits = append(commits, took)
			var at []time.Time
			sim.Eventually(b, "all watchers know it", func() (ok bool) { at, ok = a.by(len(all)); return ok })
			worst := time.Duration(0)
			for _, w := range at {
				late = append(late, w.Sub(sent))
				worst = max(worst, w.Sub(sent))
			}
			last = append(last, worst)
		}
	})
	cost := (ms(busy.cpu) - ms(idle.cpu)*busy.wall.Seconds()/idle.wall.Seconds()) / changes
	watchers := float64(len(all))
	each, asked := "-", "-"
	if watchers > 0 {
		each, asked = cell((cost-alone)/watchers), cell(float64(reads()-before)/changes/watchers)
	}
	t.add(len(all), ms(quantile(late, 0.5)), ms(quantile(late, 0.99)), ms(quantile(last, 0.5)), ms(quantile(commits, 0.5)), ms(quantile(commits, 0.99)), cost, each, ms(idle.cpu)/idle.wall.Seconds(), asked)
	if watchers == 0 {
		return cost
	}
	return alone
}

// used is what servers used in a time.
type used struct{ cpu, wall time.Duration }

func usage(b *testing.B, c *consultest.Cluster, do func()) used {
	b.Helper()
	cpu, err := c.CPU()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	do()
	u := used{wall: time.Since(began)}
	after, err := c.CPU()
	if err != nil {
		b.Fatal(err)
	}
	u.cpu = after - cpu
	return u
}

// pass lets time go by.
func pass(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
