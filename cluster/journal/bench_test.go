package journal_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// BenchmarkAllocate is addresses given out by so many plugin calls at once, each
// of which waits for the disk. "alone" is with one write for each, which is what
// it was before they shared them; "x" is the ratio. The two take turns, since a disk
// has its moods.
func BenchmarkAllocate(b *testing.B) {
	const turns = 8
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			var one sync.Mutex
			shared, single := allocator(b), allocator(b)
			var together, alone time.Duration
			n := max(1, b.N/turns)
			for range turns {
				together += shared(n, callers, func(update func()) { update() })
				alone += single(n, callers, func(update func()) {
					one.Lock()
					defer one.Unlock()
					update()
				})
			}
			b.ReportMetric(float64(n*turns)/together.Seconds(), "alloc/s")
			b.ReportMetric(float64(n*turns)/alone.Seconds(), "alone/s")
			b.ReportMetric(float64(alone)/float64(together), "x")
		})
	}
}

// allocator gives out addresses of a journal of its own, and says how long n of
// them took.
func allocator(b *testing.B) func(n, callers int, with func(func())) time.Duration {
	j, err := journal.Open(b.TempDir(), "machine-1")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = j.Close() })
	if err := j.Update(fillTx); err != nil {
		b.Fatal(err)
	}
	var next atomic.Uint32
	return func(n, callers int, with func(func())) time.Duration {
		end := next.Load() + uint32(n)
		var wg sync.WaitGroup
		began := time.Now()
		for range callers {
			wg.Go(func() {
				for i := next.Add(1); i <= end; i = next.Add(1) {
					a := nth16(i)
					with(func() {
						if err := j.Update(func(tx *journal.Tx) error {
							tx.PutLease(journal.Lease{Network: netID, Addr: a, Gen: tx.Stamp()})
							return nil
						}); err != nil {
							b.Error(err)
						}
					})
				}
			})
		}
		wg.Wait()
		took := time.Since(began)
		next.Store(end)
		return took
	}
}

// nth16 is an address of 10.42.0.0/16.
func nth16(i uint32) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)}) }

// BenchmarkOpen is a start with 10,000 addresses: all of it, and the walk of the
// file alone.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	j, err := journal.Open(dir, "machine-1")
	if err != nil {
		b.Fatal(err)
	}
	for part := range uint32(100) { // as a file grows, not in one write
		err := j.Update(func(tx *journal.Tx) error {
			if part == 0 {
				if err := fillTx(tx); err != nil {
					return err
				}
			}
			for i := range uint32(100) {
				ep := carrick.EndpointID(fmt.Sprintf("%064x", part*100+i))
				a := nth16(part*100 + i)
				tx.PutLease(journal.Lease{Network: netID, Addr: a, Endpoint: ep, Gen: tx.Stamp()})
				tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: ep, Addrs: []netip.Addr{a}, MAC: carrick.MACFor(1, a)}, Network: netID, Docker: docker})
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			j, err := journal.Open(dir, "machine-1")
			if err != nil {
				b.Fatal(err)
			}
			if err := j.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	raw, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("walk", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			if err := journal.CheckPages(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOneNetwork is what a plugin call reads of its network, beside so many
// others of the same size.
func BenchmarkOneNetwork(b *testing.B) {
	for _, networks := range []int{1, 100} {
		b.Run(fmt.Sprint("networks=", networks), func(b *testing.B) {
			j, err := journal.Open(b.TempDir(), "machine-1")
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			if err := j.Update(func(tx *journal.Tx) error {
				if err := fillTx(tx); err != nil {
					return err
				}
				n, _ := tx.Network(netID)
				for i := range networks {
					if i > 0 {
						n.Conf.ID, n.Aliases = carrick.NetworkID(fmt.Sprintf("%016x", i)), nil
						tx.PutNetwork(n)
					}
					for k := range uint32(50) {
						ep := carrick.EndpointID(fmt.Sprintf("%032x%032x", i, k))
						tx.PutLease(journal.Lease{Network: n.Conf.ID, Addr: nth16(k + 2), Endpoint: ep})
						tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: ep, Addrs: []netip.Addr{nth16(k + 2)}}, Network: n.Conf.ID})
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				n, err := j.ByAlias(docker)
				if err != nil || len(j.Endpoints(n.Conf.ID)) < 50 || len(j.Leases(n.Conf.ID)) < 50 {
					b.Fatal(n, err)
				}
			}
		})
	}
}
