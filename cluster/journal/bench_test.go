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
// it was before they shared them; "x" is the ratio.
func BenchmarkAllocate(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			var one sync.Mutex
			together := allocate(b, callers, func(update func()) { update() })
			alone := allocate(b, callers, func(update func()) {
				one.Lock()
				defer one.Unlock()
				update()
			})
			b.ReportMetric(float64(b.N)/together.Seconds(), "alloc/s")
			b.ReportMetric(float64(b.N)/alone.Seconds(), "alone/s")
			b.ReportMetric(float64(alone)/float64(together), "x")
		})
	}
}

func allocate(b *testing.B, callers int, with func(func())) time.Duration {
	j, err := journal.Open(b.TempDir(), "machine-1")
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	if err := j.Update(fillTx); err != nil {
		b.Fatal(err)
	}
	var next atomic.Uint32
	var wg sync.WaitGroup
	began := time.Now()
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= uint32(b.N); i = next.Add(1) {
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
	return time.Since(began)
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
