package journal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// gate is a disk whose writes wait until they are let go.
type gate struct {
	arrived chan struct{} // receives when a write begins
	result  chan error    // what becomes of it
	open    atomic.Bool   // writes pass
	writes  atomic.Int32
}

func gated(t *testing.T, dir string) (*gate, *journal.Journal) {
	t.Helper()
	g := &gate{arrived: make(chan struct{}, 1), result: make(chan error)}
	g.open.Store(true)
	j, err := journal.OpenWith(dir, "machine-1", journal.Options{BeforeWrite: func() error {
		g.writes.Add(1)
		if g.open.Load() {
			return nil
		}
		g.arrived <- struct{}{}
		return <-g.result
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	fill(t, j)
	g.writes.Store(0)
	g.open.Store(false)
	return g, j
}

func lease(i int) journal.Lease {
	return journal.Lease{Network: netID, Addr: netip.AddrFrom4([4]byte{10, 42, 1, byte(i)})}
}

func putLease(j *journal.Journal, i int) error {
	return j.Update(func(tx *journal.Tx) error { tx.PutLease(lease(i)); return nil })
}

// behindAWrite starts one write, which waits, and n transactions that have all
// run when it returns, each in its own goroutine.
func behindAWrite(g *gate, j *journal.Journal, n int, fn func(i int, tx *journal.Tx) error) (first <-chan error, others []<-chan error) {
	one := make(chan error, 1)
	go func() { one <- putLease(j, 0) }()
	<-g.arrived
	var ran sync.WaitGroup
	for i := 1; i <= n; i++ {
		c := make(chan error, 1)
		others = append(others, c)
		ran.Add(1)
		go func() {
			c <- j.Update(func(tx *journal.Tx) error {
				defer ran.Done()
				return fn(i, tx)
			})
		}()
	}
	ran.Wait()
	return one, others
}

// All that come while the disk is busy share the next write. One that fails is
// the only one to fail.
func TestCallersShareAWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g, j := gated(t, dir)
	full := errors.New("none left")
	first, others := behindAWrite(g, j, 40, func(i int, tx *journal.Tx) error {
		if _, ok := tx.Lease(netID, lease(0).Addr); !ok {
			t.Error("a transaction does not see the one before it, which is being written")
		}
		tx.PutLease(lease(i))
		if i%4 == 0 {
			return full
		}
		return nil
	})
	if n := len(j.Leases(netID)); n != 1 {
		t.Errorf("%d leases are shown, want the one that is on disk", n)
	}
	g.result <- nil
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	<-g.arrived
	if _, ok := j.Leases(netID)[lease(0).Addr]; !ok || len(j.Leases(netID)) != 2 {
		t.Errorf("%d leases are shown, want two that are on disk", len(j.Leases(netID)))
	}
	g.result <- nil
	for k, c := range others {
		i := k + 1
		if err := <-c; errors.Is(err, full) != (i%4 == 0) || err != nil && i%4 != 0 {
			t.Errorf("caller %d: %v", i, err)
		}
	}
	if n := g.writes.Load(); n != 2 {
		t.Errorf("%d writes for 41 callers, want 2", n)
	}
	g.open.Store(true)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	for i := range 41 {
		if _, ok := j.Leases(netID)[lease(i).Addr]; ok != (i == 0 || i%4 != 0) {
			t.Errorf("after a restart address %d is there: %t", i, ok)
		}
	}
}

// If a write fails, so do all that built on it: those after it, those that
// changed nothing because of it, those that were refused because of it.
func TestAFailedWriteFailsWhatBuiltOnIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g, j := gated(t, dir)
	first, others := behindAWrite(g, j, 3, func(i int, tx *journal.Tx) error {
		switch i {
		case 1:
			tx.PutLease(lease(1))
		case 2: // all it wants is there
			if _, ok := tx.Lease(netID, lease(0).Addr); !ok {
				t.Error("the lease that is being written is not seen")
			}
		case 3:
			if _, ok := tx.Lease(netID, lease(0).Addr); ok {
				return errors.New("taken")
			}
		}
		return nil
	})
	g.result <- syscall.ENOSPC
	if err := <-first; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the write: %v", err)
	}
	for i, c := range others {
		if err := <-c; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("caller %d: %v, want the disk's error", i+1, err)
		}
	}
	g.open.Store(true)
	if len(j.Leases(netID)) != 1 {
		t.Errorf("shown: %v", j.Leases(netID))
	}
	// Nothing of it is left for those who come later.
	err := j.Update(func(tx *journal.Tx) error {
		if len(tx.Leases(netID)) != 1 {
			t.Errorf("seen: %v", tx.Leases(netID))
		}
		tx.PutLease(lease(9))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := journal.Drift(j); d != "" {
		t.Error(d)
	}
	want := journal.Dump(j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got := journal.Dump(open(t, dir)); got != want {
		t.Errorf("after a restart:\n%s\nwant\n%s", got, want)
	}
}

// A transaction that changes nothing, and sees nothing that is not on disk, costs
// no write and waits for nobody.
func TestLookingCostsNothing(t *testing.T) {
	t.Parallel()
	g, j := gated(t, t.TempDir())
	for range 3 {
		if err := j.Update(func(*journal.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	taken := errors.New("taken")
	if err := j.Update(func(tx *journal.Tx) error { tx.PutLease(lease(1)); return taken }); !errors.Is(err, taken) {
		t.Fatal(err)
	}
	if n := g.writes.Load(); n != 0 {
		t.Errorf("%d writes", n)
	}
}

// A transaction that panics is its caller's bug, and nobody else's trouble.
func TestPanicInATransaction(t *testing.T) {
	t.Parallel()
	j := open(t, t.TempDir())
	fill(t, j)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a panic was swallowed")
			}
		}()
		_ = j.Update(func(tx *journal.Tx) error { tx.PutLease(lease(1)); panic("bug") })
	}()
	if err := putLease(j, 2); err != nil {
		t.Fatal(err)
	}
	if l := j.Leases(netID); len(l) != 2 {
		t.Errorf("%v", l)
	}
}

// What no Open would take is not written: the mistake is told to who makes it, not
// to the next start.
func TestNonsenseIsNotWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	want := journal.Dump(j)
	for name, put := range map[string]func(*journal.Tx){
		"network without an id":  func(tx *journal.Tx) { tx.PutNetwork(journal.Network{}) },
		"network without a pool": func(tx *journal.Tx) { tx.PutNetwork(journal.Network{Conf: carrick.Network{ID: netID}}) },
		"block of no pool": func(tx *journal.Tx) {
			n, _ := tx.Network(netID)
			n.Blocks = append(n.Blocks, netip.MustParsePrefix("10.43.0.0/26"))
			tx.PutNetwork(n)
		},
		"block that is too large": func(tx *journal.Tx) {
			n, _ := tx.Network(netID)
			n.Blocks = append(n.Blocks, netip.MustParsePrefix("10.42.0.0/16"))
			tx.PutNetwork(n)
		},
		"freed block of no pool": func(tx *journal.Tx) {
			n, _ := tx.Network(netID)
			n.Freeing = append(n.Freeing, journal.Freed{})
			tx.PutNetwork(n)
		},
		"endpoint without address": func(tx *journal.Tx) {
			tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: epID}, Network: netID})
		},
		"endpoint of no network": func(tx *journal.Tx) {
			tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: epID, Addrs: []netip.Addr{addr1}}})
		},
		"endpoint with another's bytes": func(tx *journal.Tx) {
			tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: "\xff", Addrs: []netip.Addr{addr1}}, Network: netID})
		},
		"lease of no address": func(tx *journal.Tx) { tx.PutLease(journal.Lease{Network: netID}) },
		"lease of a zone": func(tx *journal.Tx) {
			tx.PutLease(journal.Lease{Network: netID, Addr: netip.MustParseAddr("fe80::1%eth0")})
		},
		"host without VTEP": func(tx *journal.Tx) { tx.PutHost(journal.Host{Host: carrick.Host{ID: "00000000000000b1"}}) },
	} {
		err := j.Update(func(tx *journal.Tx) error { put(tx); return nil })
		if !errors.Is(err, journal.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if journal.Dump(j) != want {
		t.Error("something was written")
	}
}

// Many callers at once on a disk that fails now and then: each knows what became
// of its own, memory is what the file is, and the file is what was reported.
func TestManyCallersOnABadDisk(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	const callers, each = 16, 40
	var mu sync.Mutex // guards r
	r := rand.New(rand.NewPCG(seed, 0))
	fail := func() error {
		mu.Lock()
		defer mu.Unlock()
		switch r.IntN(12) {
		case 0:
			return syscall.ENOSPC
		case 1:
			return syscall.EIO
		}
		return nil
	}
	on := atomic.Bool{}
	hook := func() error {
		if on.Load() {
			return fail()
		}
		return nil
	}
	j, err := journal.OpenWith(dir, "machine-1", journal.Options{BeforeWrite: hook, AfterWrite: hook})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	fill(t, j)
	on.Store(true)
	// Each caller owns some addresses and keeps book of them.
	books := make([]map[netip.Addr]journal.Lease, callers)
	failed := atomic.Int32{}
	var wg sync.WaitGroup
	for c := range callers {
		book := map[netip.Addr]journal.Lease{}
		books[c] = book
		rng := rand.New(rand.NewPCG(seed, uint64(c+1)))
		wg.Go(func() {
			for range each {
				a := netip.AddrFrom4([4]byte{10, 42, byte(c + 2), byte(rng.IntN(8))})
				ep := carrick.EndpointID(fmt.Sprintf("%064x", a.As4()))
				next, rest := book[a], rng.IntN(3)
				err := j.Update(func(tx *journal.Tx) error {
					switch rest {
					case 0:
						tx.Release(netID, a, time.Unix(int64(rng.IntN(1000)), 0))
						tx.DeleteEndpoint(ep)
					case 1:
						tx.DeleteLease(netID, a)
						tx.DeleteEndpoint(ep)
					default:
						tx.PutLease(journal.Lease{Network: netID, Addr: a, Endpoint: ep, Gen: tx.Stamp()})
						tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: ep, Addrs: []netip.Addr{a}}, Network: netID, Docker: docker})
					}
					next, _ = tx.Lease(netID, a)
					return nil
				})
				if err != nil {
					failed.Add(1)
					if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
						t.Errorf("caller %d: %v", c, err)
					}
					continue
				}
				book[a] = next
				if got := j.Leases(netID)[a]; got != next {
					t.Errorf("caller %d: wrote %+v, shown %+v", c, next, got)
				}
			}
		})
	}
	wg.Wait()
	on.Store(false)
	if err := putLease(j, 1); err != nil { // a write that succeeds mends what failed ones left
		t.Fatal(err)
	}
	if n := failed.Load(); n == 0 || n == callers*each {
		t.Errorf("%d of %d failed", n, callers*each)
	}
	if d := journal.Drift(j); d != "" {
		t.Error(d)
	}
	want := journal.Dump(j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	if got := journal.Dump(j); got != want {
		t.Errorf("after a restart:\n%s\nwant\n%s", got, want)
	}
	leases := j.Leases(netID)
	for c, book := range books {
		for a, l := range book {
			if got := leases[a]; !got.At.Equal(l.At) || got.Endpoint != l.Endpoint || got.Released != l.Released || got.Gen != l.Gen {
				t.Errorf("caller %d was told %+v, the disk has %+v", c, l, got)
			}
		}
	}
}
