package journal_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// counted is what the journal counts of a pool; recounted is the same, by looking
// at each lease.
type counted struct {
	taken   int
	known   map[netip.Prefix]int
	resting []netip.Addr
}

func recounted(tx *journal.Tx, id carrick.NetworkID, p carrick.Pool) counted {
	c := counted{known: map[netip.Prefix]int{}}
	var rest []journal.Lease
	for a, l := range tx.Leases(id) {
		if !p.Prefix.Contains(a) || !p.Allocatable(a) {
			continue
		}
		c.known[p.BlockOf(a)]++
		if l.Released == 0 {
			c.taken++
		} else {
			rest = append(rest, l)
		}
	}
	slices.SortFunc(rest, func(a, b journal.Lease) int { return int(a.Released) - int(b.Released) })
	for _, l := range rest {
		c.resting = append(c.resting, l.Addr)
	}
	return c
}

func checkCounts(t *testing.T, when string, tx *journal.Tx, id carrick.NetworkID, p carrick.Pool) {
	t.Helper()
	want := recounted(tx, id, p)
	if got := tx.Taken(id, p.Prefix); got != want.taken {
		t.Errorf("%s: %d of %s taken, the leases say %d", when, got, p.Prefix, want.taken)
	}
	if got := slices.Collect(tx.Resting(id, p.Prefix)); !slices.Equal(got, want.resting) {
		t.Errorf("%s: of %s rest %v, the leases say %v", when, p.Prefix, got, want.resting)
	}
	for i := range 4 {
		b := p.BlockOf(nth(p, i*4))
		if got := tx.Known(id, b); got != want.known[b] {
			t.Errorf("%s: %d of %s known, the leases say %d", when, got, b, want.known[b])
		}
	}
}

func nth(p carrick.Pool, i int) netip.Addr {
	b := p.Prefix.Addr().AsSlice()
	b[len(b)-1] += byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}

var errChanged = errors.New("changed my mind")

// Whatever happens to leases, within a transaction, over several and over a
// restart: the counts say what the leases say.
func TestCountsAreWhatLeasesSay(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	j := open(t, dir)
	four := carrick.Pool{
		Prefix: netip.MustParsePrefix("10.42.0.0/28"), Range: netip.MustParsePrefix("10.42.0.0/29"), Block: 30,
		Gateway: netip.MustParseAddr("10.42.0.1"), Aux: map[string]netip.Addr{"x": netip.MustParseAddr("10.42.0.5")},
	}
	six := carrick.Pool{Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: netip.MustParseAddr("fd00::1"), Block: 126}
	ids := []carrick.NetworkID{netID, "00000000000000bb"}
	put := func(tx *journal.Tx, id carrick.NetworkID) {
		tx.PutNetwork(journal.Network{Conf: carrick.Network{ID: id, Pools: []carrick.Pool{four, six}}})
	}
	check := func(when string, tx *journal.Tx) {
		t.Helper()
		for _, id := range ids {
			checkCounts(t, when, tx, id, four)
			checkCounts(t, when, tx, id, six)
		}
	}
	for range 300 {
		if r.IntN(40) == 0 { // a restart
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			j = open(t, dir)
		}
		err := j.Update(func(tx *journal.Tx) error {
			check("before", tx)
			for range 1 + r.IntN(4) {
				id := ids[r.IntN(2)]
				if _, ok := tx.Network(id); !ok {
					put(tx, id)
				}
				a := nth([]carrick.Pool{four, six}[r.IntN(2)], r.IntN(16))
				switch r.IntN(8) {
				case 0, 1, 2:
					tx.PutLease(journal.Lease{Network: id, Addr: a, Gen: tx.Stamp()})
				case 3, 4:
					tx.Release(id, a, time.Now())
				case 5:
					tx.DeleteLease(id, a)
				case 6: // a change that is neither
					if l, ok := tx.Lease(id, a); ok {
						l.Gen = tx.Stamp()
						tx.PutLease(l)
					}
				case 7:
					if r.IntN(5) == 0 {
						tx.DeleteNetwork(id)
					}
				}
			}
			check("within", tx)
			if r.IntN(6) == 0 {
				return errChanged
			}
			return nil
		})
		if err != nil && !errors.Is(err, errChanged) {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}

// Nobody pays for what happened long ago: the queue of resting addresses does not
// grow with the number of releases.
func TestRestingStaysShort(t *testing.T) {
	t.Parallel()
	j := open(t, t.TempDir())
	fill(t, j)
	pool := netip.MustParsePrefix("10.42.0.0/16")
	for i := range 200 {
		err := j.Update(func(tx *journal.Tx) error {
			for k := range 4 {
				a := nth(carrick.Pool{Prefix: pool}, 4+k)
				tx.PutLease(journal.Lease{Network: netID, Addr: a})
				tx.Release(netID, a, time.Now())
			}
			if n := len(slices.Collect(tx.Resting(netID, pool))); n != 4 {
				t.Errorf("round %d: %d addresses rest, want 4", i, n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := journal.QueueLen(j, netID, pool); n > 80 {
		t.Errorf("%d entries for 4 resting addresses", n)
	}
}
