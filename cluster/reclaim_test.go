package cluster_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// A container with an address of its own is moved from host to host, and back to the
// one whose block the address is in, as fast as it stops.
func TestAddressMovesFromHostToHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		hs[0].MustRun(ns[0], sim.Run{})
		const ip = "10.42.0.4" // of h1's block
		for n, at := range []int{0, 1, 0, 1, 2, 1, 2, 0, 2, 0} {
			c, err := hs[at].Run(ns[at], sim.Run{IP: ip})
			if err != nil {
				t.Fatalf("move %d, to %s: %v", n, hs[at].Name, err)
			}
			// Whoever has it keeps it, and says so.
			for i, h := range hs {
				if i == at {
					continue
				}
				_, err := h.Run(ns[i], sim.Run{IP: ip})
				if !errors.Is(err, ipam.ErrInUse) && !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "in use") {
					t.Fatalf("move %d: %s is at %s, and %s was told: %v", n, ip, hs[at].Name, h.Name, err)
				}
			}
			hs[at].Stop(c)
		}
		pass(10 * time.Minute)
		for i, h := range hs {
			rec, err := h.Cluster.Journal().ByAlias(ns[i].ID)
			if err != nil {
				t.Fatal(err)
			}
			for a, l := range h.Cluster.Journal().Leases(rec.Conf.ID) {
				if a.String() == ip && (l.Released == 0 || i != 0) {
					t.Errorf("%s still has %s: %+v", h.Name, a, l)
				}
			}
		}
		normal(t, hs[0])
	})
}

// What came of asking for an address once says nothing about the next time: it goes
// between two borrowers at once, again and again, and nobody asks in between.
func TestAddressMovesBetweenBorrowers(t *testing.T) {
	t.Parallel()
	for _, between := range []time.Duration{0, 30 * time.Millisecond, 150 * time.Millisecond, time.Second} {
		t.Run(between.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := memory.NewServer()
				hs, ns := trio(t, s, "10.42.0.0/24")
				hs[0].MustRun(ns[0], sim.Run{})
				const ip = "10.42.0.4" // of h1's block
				for move := range 12 {
					at := 1 + move%2
					c, err := hs[at].Run(ns[at], sim.Run{IP: ip})
					if err != nil {
						t.Fatalf("move %d, to %s: %v", move, hs[at].Name, err)
					}
					pass(between)
					hs[at].Stop(c)
				}
				normal(t, hs[0])
			})
		})
	}
}

// The borrower does not answer: the address is refused in time, and moves when the
// borrower is there again.
func TestAddressIsNotTakenFromASilentBorrower(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		hs[0].MustRun(ns[0], sim.Run{})
		const ip = "10.42.0.4"
		hs[1].Stop(hs[1].MustRun(ns[1], sim.Run{IP: ip}))
		hs[1].CutStore()
		for _, i := range []int{0, 2, 2, 2, 0} {
			began := time.Now()
			// Who it was that did not answer is said to whoever asks, each time.
			if _, err := hs[i].Run(ns[i], sim.Run{IP: ip}); err == nil || !strings.Contains(err.Error(), "h2 did not answer") || time.Since(began) > 10*time.Second {
				t.Errorf("%s, after %s: %v", hs[i].Name, time.Since(began), err)
			}
		}
		c := hs[1].MustRun(ns[1], sim.Run{IP: ip}) // it is still h2's
		hs[1].HealStore()
		pass(time.Minute)
		if _, err := hs[2].Run(ns[2], sim.Run{IP: ip}); err == nil {
			t.Error("h3 was given an address that is in use on h2")
		}
		hs[1].Stop(c)
		hs[2].MustRun(ns[2], sim.Run{IP: ip})
	})
}
