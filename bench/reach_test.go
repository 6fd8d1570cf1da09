package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
	"github.com/carrick-net/carrick/internal/sim"
)

// How long it takes from a container's start on one host until the others' kernels
// know it: three hosts with real agents and real kernels.
func BenchmarkReach(b *testing.B) {
	t := newTable("From a container's start to its rows in the other hosts' kernels",
		"Three hosts of the lab with real agents and three Consul servers, the engines' calls made on the plugin sockets. Until the last of the three rows (bridge, tunnel, neighbour) of each other host. Negative: it was there before.",
		"how", "containers", "since CreateEndpoint's return p50 ms", "p99 ms", "since Join's return p50 ms", "p99 ms")
	for range b.N {
		l := lab.New(quiet{b}, lab.Options{Consuls: 3, NoEngines: true})
		es, rs := reachable(b, l)
		var mu sync.Mutex
		var created, joined []time.Duration
		one := func(i int) error {
			c, tc, tj, err := started3(b.Context(), es[i])
			if err != nil {
				return err
			}
			for j, r := range rs {
				if j == i {
					continue
				}
				var last time.Time
				sim.Eventually(b, "the rows on "+es[j].host.Name(), func() (ok bool) { last, ok = r.complete(c); return ok })
				mu.Lock()
				created, joined = append(created, last.Sub(tc)), append(joined, last.Sub(tj))
				mu.Unlock()
			}
			return nil
		}
		row := func(how string, n int) {
			t.add(how, n, ms(quantile(created, 0.5)), ms(quantile(created, 0.99)), ms(quantile(joined, 0.5)), ms(quantile(joined, 0.99)))
			created, joined = nil, nil
		}
		const alone, together = 120, 40
		for i := range alone {
			if err := one(i % len(es)); err != nil {
				b.Fatal(err)
			}
			pass(b.Context(), 20*time.Millisecond)
		}
		row("one after the other", alone)
		errs := make([]error, len(es))
		var all sync.WaitGroup
		for i := range es {
			all.Go(func() {
				for range together {
					pass(b.Context(), 100*time.Millisecond)
					if errs[i] = one(i); errs[i] != nil {
						return
					}
				}
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			b.Fatal(err)
		}
		row("all hosts, one in 100 ms", together*len(es))
	}
	t.print(b)
}

// reachable makes a network on all hosts, with a container each, and listens to
// their kernels.
func reachable(b *testing.B, l *lab.Lab) ([]*engine, []*rows) {
	b.Helper()
	ctx := b.Context()
	var es []*engine
	var rs []*rows
	for _, h := range l.Hosts() {
		if err := h.StartAgent(ctx, "--docker", ""); err != nil {
			b.Fatal(err)
		}
		e, err := newEngine(h)
		if err == nil {
			err = e.create(ctx, "10.42.0.0/16")
		}
		if err != nil {
			b.Fatal(err)
		}
		if _, _, _, err := started3(ctx, e); err != nil {
			b.Fatal(err)
		}
		es = append(es, e)
	}
	for _, h := range l.Hosts() {
		dir, err := h.Path("/run/netns")
		if err != nil {
			b.Fatal(err)
		}
		names, err := h.Namespaces(ctx)
		if err != nil || len(names) != 1 || !strings.HasPrefix(names[0], "carrick-") {
			b.Fatalf("%s has namespaces %v: %v", h.Name(), names, err)
		}
		r, err := listen(ctx, dir, names[0])
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(r.close)
		rs = append(rs, r)
	}
	return es, rs
}

// started3 starts a container and says when it was created and when joined.
func started3(ctx context.Context, e *engine) (c container, created, joined time.Time, err error) {
	if c, err = e.prepare(ctx); err != nil {
		return c, created, joined, err
	}
	created = time.Now()
	if err = e.join(ctx, c); err != nil {
		return c, created, joined, fmt.Errorf("join: %w", err)
	}
	return c, created, time.Now(), nil
}
