package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/kvstore"
)

// each is how many addresses a host takes of one network, and peers' how many it
// takes by other designs, which are slow enough to be measured with fewer.
const each, peersEach = 250, 50

// Addresses of a /16, whose blocks have 64, given out by each host as fast as it
// can and not given back; next to two designs that ask the store for every one.
func BenchmarkAllocate(b *testing.B) {
	t := newTable("Addresses given out",
		fmt.Sprintf("%d of a /16 on each host (%d by the other designs), as fast as it can, none given back. Carrick: RequestAddress and CreateEndpoint, each synced to disk; the others: a write in the store and no more.", each, peersEach),
		"design", "hosts", "addresses/s", "p50 ms", "p99 ms", "writes/1000", "publications/1000", "conflicts/1000", "reads/1000", "refused")
	for range b.N {
		c := consultest.StartCluster(b, servers, consultest.WithConns(10000))
		for _, hosts := range []int{1, 4, 16} {
			f := newFleet(b, c, fmt.Sprintf("allocate-%d", hosts), hosts)
			ours(b, f, t)
			theirs(b, f, t, "one key for each address", perAddress{f[0].tally.Store})
			theirs(b, f, t, "one bitmap for the subnet", bitmap{f[0].tally.Store})
			f.end()
		}
	}
	t.print(b)
}

// ours gives out addresses as engines ask for them.
func ours(b *testing.B, f fleet, t *table) {
	b.Helper()
	nets := f.join(b, "app", "10.42.0.0/16")
	f.settled(b)
	f.reset()
	var refused atomic.Int64
	took, wall := times(b, f, each, func(ctx context.Context, i int, m *member) error {
		_, err := m.start(ctx, nets[i])
		for err != nil && ctx.Err() == nil { // the engine's user starts it again
			refused.Add(1)
			_, err = m.start(ctx, nets[i])
		}
		return err
	})
	f.settled(b)
	got, err := count(f.tallies()...)
	if err != nil {
		b.Fatal(err)
	}
	n := len(took)
	t.add("Carrick", len(f), float64(n)/wall.Seconds(), ms(quantile(took, 0.5)), ms(quantile(took, 0.99)),
		1000*per(got.commits[structural], n), 1000*per(got.commits[publication], n), 1000*per(got.conflicts[structural], n)+1000*per(got.conflicts[publication], n), 1000*per(got.reads, n), refused.Load())
}

// allocator is another design: it takes one address for a host, by writes in the
// store under a prefix of its own.
type allocator interface {
	take(ctx context.Context, s kvstore.Store) error
	init(ctx context.Context) error
}

func theirs(b *testing.B, f fleet, t *table, name string, a allocator) {
	b.Helper()
	if err := a.init(b.Context()); err != nil {
		b.Fatal(err)
	}
	f.reset()
	took, wall := times(b, f, peersEach, func(ctx context.Context, _ int, m *member) error { return a.take(ctx, m.tally) })
	got, err := count(f.tallies()...)
	if err != nil {
		b.Fatal(err)
	}
	n := len(took)
	t.add(name, len(f), float64(n)/wall.Seconds(), ms(quantile(took, 0.5)), ms(quantile(took, 0.99)),
		1000*per(got.commits[upkeep], n), "-", 1000*per(got.conflicts[upkeep], n), 1000*per(got.reads, n), "-")
}

// times does something on all hosts at once, for each address, and says how long
// each took and all together.
func times(b *testing.B, f fleet, n int, do func(context.Context, int, *member) error) ([]time.Duration, time.Duration) {
	b.Helper()
	took := make([][]time.Duration, len(f))
	began := time.Now()
	f.onEach(b, func(i int, m *member) error {
		for range n {
			from := time.Now()
			if err := do(b.Context(), i, m); err != nil {
				return err
			}
			took[i] = append(took[i], time.Since(from))
		}
		return nil
	})
	wall := time.Since(began)
	var all []time.Duration
	for _, d := range took {
		all = append(all, d...)
	}
	return all, wall
}

// perAddress takes an address by making its key, at random among all: the best of
// such designs, as long as the subnet is nearly empty.
type perAddress struct{ kvstore.Store }

func (p perAddress) init(context.Context) error { return nil }

func (p perAddress) take(ctx context.Context, s kvstore.Store) error {
	for {
		a := netip.AddrFrom4([4]byte{10, 42, byte(rand.N(256)), byte(rand.N(256))})
		key := "peer/address/" + a.String()
		_, err := s.Txn(ctx, (&kvstore.Txn{}).Absent(key).Put(key, []byte(`{"host":"0123456789abcdef"}`)))
		if !errors.Is(err, kvstore.ErrConflict) {
			return err
		}
	}
}

// bitmap takes an address by setting its bit in one record of 8 KiB under its
// version, as Docker's own allocator did with a store of its own.
type bitmap struct{ kvstore.Store }

const bitmapKey = "peer/bitmap"

func (p bitmap) init(ctx context.Context) error {
	_, err := p.Txn(ctx, (&kvstore.Txn{}).Put(bitmapKey, make([]byte, 1<<16/8)))
	return err
}

func (p bitmap) take(ctx context.Context, s kvstore.Store) error {
	for try := 0; ; try++ {
		e, err := s.Get(ctx, bitmapKey)
		if errors.Is(err, kvstore.ErrUnavailable) {
			continue
		}
		if err != nil {
			return err
		}
		for i, v := range e.Value {
			if v != 0xff {
				e.Value[i] |= (v + 1) &^ v
				break
			}
		}
		_, err = s.Txn(ctx, (&kvstore.Txn{}).Version(bitmapKey, e.Version).Put(bitmapKey, e.Value))
		if !errors.Is(err, kvstore.ErrConflict) && !errors.Is(err, kvstore.ErrUnavailable) {
			return err
		}
		if err := rest(ctx, time.Millisecond<<min(try, 5)); err != nil {
			return err
		}
	}
}
