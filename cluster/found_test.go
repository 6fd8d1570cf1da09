package cluster_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// Stories that random histories (internal/history) told first. Minutes pass in
// them, in no time.

// pass lets time go by in a bubble.
func pass(d time.Duration) {
	t := time.NewTimer(d)
	<-t.C
	synctest.Wait()
}

// A question whose write was late, so that whoever asked has given up, is answered
// for nobody; it does not stay in the store.
func TestQuestionThatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		c := hs[0].MustRun(ns[0], sim.Run{})
		pass(time.Second)
		hs[1].Store.DelayTxns(2) // the claim of the block, which is another's, asks nothing
		if _, err := hs[1].Run(ns[1], sim.Run{IP: c.Addr.Addr().String()}); err == nil {
			t.Fatal("an address in use was given out")
		}
		hs[1].Store.DelayTxns(0)
		if s.Deliver() == 0 {
			t.Fatal("nothing was late, so this shows nothing")
		}
		pass(5 * time.Second)
		if !strings.Contains(s.Dump(), "asks") {
			t.Fatal("the question did not reach the store")
		}
		pass(2 * time.Minute)
		if strings.Contains(s.Dump(), "asks") {
			t.Errorf("it is still there:\n%s", s.Dump())
		}
	})
}

// A network whose place in the address space another one took, while its only
// host was removed, is nowhere in the store: neither when the host comes back nor
// when the store is written again.
func TestContestedNetworkLeavesNothingInTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
		old := b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		c := b.MustRun(old, sim.Run{})
		pass(5 * time.Second)
		b.CutStore()
		if _, err := a.Cluster.RemoveHost(t.Context(), "h2", true); err != nil {
			t.Fatal(err)
		}
		a.MustRun(a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), sim.Run{})
		b.HealStore()
		networks := func() int {
			ids := map[string]bool{}
			for line := range strings.Lines(s.Dump()) {
				if rest, ok := strings.CutPrefix(line, "v1/net/"); ok {
					ids[rest[:16]] = true
				}
			}
			return len(ids)
		}
		for _, what := range []string{"its return", "a loss of the store"} {
			if what == "a loss of the store" {
				s.Wipe()
			}
			pass(5 * time.Minute)
			if n := networks(); n != 1 {
				t.Errorf("after %s there is something of %d networks in the store:\n%s", what, n, s.Dump())
			}
			if e, err := b.Cluster.Journal().Endpoint(c.Endpoint); what == "its return" && (err != nil || !e.Fenced) {
				t.Errorf("the container of the removed host is not cut off: %+v %v", e, err)
			}
			if got := len(a.Cluster.Conflicts()) + len(b.Cluster.Conflicts()); got == 0 {
				t.Errorf("after %s nobody tells of the conflict", what)
			}
		}
	})
}

// A host that comes when the others have recovered without it forgets what is no
// longer there, also if it heard of the network before it heard of the recovery.
func TestWhoComesLateForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		c := hs[1].MustRun(ns[1], sim.Run{})
		hs[2].MustRun(ns[2], sim.Run{})
		sim.Eventually(t, "h3 knows it", knows(hs[2], ns[2], hs[1], c))
		hs[2].CutStore()
		hs[1].Stop(c)
		if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		s.Wipe()
		pass(10 * time.Second)
		for range 10 {
			hs[2].Store.FailNext(memory.Get, kvstore.ErrUnavailable) // the epoch is read so, networks are not
		}
		hs[2].HealStore()
		pass(time.Minute)
		if !knows(hs[2], ns[2], hs[1])() {
			v, ok := hs[2].View(ns[2])
			t.Errorf("h3 still has %v of h2, whole %t", endpoints(v, hs[1].Cluster.Self()), ok)
		}
	})
}

// A publication that was late, and comes when there is nothing to publish any
// more, does not stay.
func TestLatePublication(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		hs[1].MustRun(ns[1], sim.Run{})
		hs[0].Stop(hs[0].MustRun(ns[0], sim.Run{})) // so that it has a block
		pass(time.Second)
		hs[0].Store.DelayTxns(1)
		c := hs[0].MustRun(ns[0], sim.Run{})
		synctest.Wait()
		hs[0].Store.DelayTxns(0)
		hs[0].Stop(c)
		pass(5 * time.Second)
		if s.Deliver() != 1 {
			t.Fatal("nothing was late, so this shows nothing")
		}
		sim.Eventually(t, "the late publication is in the store", knows(hs[1], ns[1], hs[0], c))
		pass(3 * time.Minute)
		if !knows(hs[1], ns[1], hs[0])() {
			v, _ := hs[1].View(ns[1])
			t.Errorf("h2 still has %v of h1", endpoints(v, hs[0].Cluster.Self()))
		}
	})
}

// A backup as new as every structural change cannot be told from the store by the
// epoch. What hosts have published since is written again, and what they publish
// from then on is believed, though its numbers were used before.
func TestRestoredBackupOfTheSameEpoch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		var first []*sim.Container
		for i, h := range hs {
			first = append(first, h.MustRun(ns[i], sim.Run{}))
		}
		pass(time.Second)
		backup := s.Snapshot()
		hs[0].Stop(first[0])
		for range 10 {
			c := hs[1].MustRun(ns[1], sim.Run{})
			pass(time.Second)
			hs[1].Stop(c)
			pass(time.Second)
		}
		s.Restore(backup)
		pass(10 * time.Second)
		hs[2].Stop(first[2])
		last := hs[2].MustRun(ns[2], sim.Run{})
		pass(10 * time.Minute)
		for i, h := range hs {
			for j, want := range [][]*sim.Container{nil, {first[1]}, {last}} {
				if !knows(h, ns[i], hs[j], want...)() {
					v, ok := h.View(ns[i])
					t.Errorf("%s has %v of %s, whole %t", h.Name, endpoints(v, hs[j].Cluster.Self()), hs[j].Name, ok)
				}
			}
		}
	})
}

// A host that was away meanwhile meets a head whose numbers have gone past those it
// knows, with other changes under them. Whatever is not in the store goes as well,
// but not before whoever has it could write it again.
func TestForkedHeadOfTheSameEpoch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		for i, h := range hs {
			h.Stop(h.MustRun(ns[i], sim.Run{})) // everybody has a block
		}
		pass(time.Second)
		backup := s.Snapshot()
		stays := hs[2].MustRun(ns[2], sim.Run{})
		goes := hs[2].MustRun(ns[2], sim.Run{})
		pass(time.Second)
		if !knows(hs[0], ns[0], hs[2], stays, goes)() {
			t.Fatal("h1 has not heard of h3's containers")
		}
		hs[0].CutStore()
		hs[2].CutStore()
		s.Restore(backup)
		hs[2].Stop(goes)
		for range 4 {
			hs[1].Stop(hs[1].MustRun(ns[1], sim.Run{}))
			pass(time.Second)
		}
		last := hs[1].MustRun(ns[1], sim.Run{})
		hs[0].HealStore()
		for range 8 { // h3 is lost meanwhile, and its container runs
			pass(time.Minute)
			v, _ := hs[0].View(ns[0])
			if !slices.ContainsFunc(v.Endpoints[hs[2].Cluster.Self()], func(e carrick.Endpoint) bool { return e.ID == stays.Endpoint }) {
				t.Fatalf("h1 has dropped %s of h3, which lives", stays.Addr)
			}
			if !knows(hs[0], ns[0], hs[1], last)() {
				t.Fatalf("h1 has %v of h2 and not what h2 said since", endpoints(v, hs[1].Cluster.Self()))
			}
		}
		hs[2].HealStore()
		pass(5 * time.Minute)
		for i, h := range hs {
			for j, want := range [][]*sim.Container{nil, {last}, {stays}} {
				if !knows(h, ns[i], hs[j], want...)() {
					v, ok := h.View(ns[i])
					t.Errorf("%s has %v of %s, whole %t", h.Name, endpoints(v, hs[j].Cluster.Self()), hs[j].Name, ok)
				}
			}
		}
	})
}

// A host that is removed and back at once is known to all again: the next recovery
// waits for it.
func TestRemovedAndBackAtOnceIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, _ := trio(t, s, "10.42.0.0/24")
		pass(time.Second)
		for n := range 25 {
			if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
			for _, h := range hs[:2] {
				if _, known := h.Cluster.Journal().Hosts()[hs[2].Cluster.Self()]; !known {
					t.Fatalf("after %d removals %s does not remember h3, which is back", n+1, h.Name)
				}
			}
		}
	})
}

// A backup from just before a host registered is as new as every structural
// change. The host registers again.
func TestBackupWithoutAHostOfTheSameEpoch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a := sim.NewHost(t, s, 1)
		pass(time.Second)
		backup := s.Snapshot()
		b := sim.NewHost(t, s, 2)
		pass(time.Second)
		s.Restore(backup)
		pass(3 * time.Minute)
		hosts, _ := a.Cluster.Hosts()
		if len(hosts) != 2 || !hosts[0].Alive || !hosts[1].Alive || !strings.Contains(s.Dump(), "v1/host/"+string(b.Cluster.Self())) {
			t.Errorf("h1 knows %+v, the store has\n%s", hosts, s.Dump())
		}
	})
}

// A removed host is cut off when it comes back, also if the store has lost its past
// meanwhile and does not know of the removal any more.
func TestRemovalOutlivesALossOfTheStore(t *testing.T) {
	t.Parallel()
	for _, during := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := memory.NewServer()
			hs, ns := trio(t, s, "10.42.0.0/24")
			c := hs[2].MustRun(ns[2], sim.Run{})
			hs[1].MustRun(ns[1], sim.Run{})
			pass(time.Minute)
			hs[2].CutStore()
			if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
				t.Fatal(err)
			}
			pass(10 * time.Minute)
			hs[1].MustRun(ns[1], sim.Run{IP: c.Addr.Addr().String()})
			pass(time.Minute)
			if during {
				hs[1].CutStore() // the recovery waits for it
			}
			s.Wipe()
			pass(10 * time.Second)
			hs[2].HealStore()
			pass(10 * time.Second)
			hs[1].HealStore()
			pass(5 * time.Minute)
			e, err := hs[2].Cluster.Journal().Endpoint(c.Endpoint)
			if err != nil || !e.Fenced {
				t.Errorf("back during the recovery: %t: %+v, %v: not cut off, and another host has its address", during, e, err)
			}
			if v, _ := hs[0].View(ns[0]); len(v.Endpoints[hs[2].Cluster.Self()]) != 0 {
				t.Errorf("back during the recovery: %t: h1 has %v of h3", during, endpoints(v, hs[2].Cluster.Self()))
			}
			normal(t, hs[0])
		})
	}
}

// A backup that tells of a removal does not keep a recovery from waiting for the
// host, which has come back since. Whether the others hear of the removal or of the
// loss first is chance, so it is tried again and again.
func TestBackupOfBeforeAReturn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		self := hs[2].Cluster.Self()
		for n := range 15 {
			hs[2].CutStore()
			if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
				t.Fatal(err)
			}
			pass(10 * time.Second)
			backup := s.Snapshot()
			hs[2].HealStore()
			pass(time.Minute)
			c := hs[2].MustRun(ns[2], sim.Run{})
			pass(time.Minute)
			hs[2].CutStore()
			s.Restore(backup)
			pass(time.Minute)
			for _, h := range hs[:2] {
				if _, known := h.Cluster.Journal().Hosts()[self]; !known {
					t.Errorf("round %d: %s takes h3 for removed", n, h.Name)
				}
			}
			if d, err := hs[0].Run(ns[0], sim.Run{}); err == nil {
				t.Fatalf("round %d: a block was claimed for %s while the recovery should wait for h3", n, d.Addr)
			}
			hs[2].HealStore()
			pass(3 * time.Minute)
			d := hs[0].MustRun(ns[0], sim.Run{})
			if d.Addr == c.Addr {
				t.Fatalf("round %d: %s is held by two", n, c.Addr)
			}
			if e, err := hs[2].Cluster.Journal().Endpoint(c.Endpoint); err != nil || e.Fenced {
				t.Fatalf("round %d: h3's container is cut off for a removal it came back from: %+v, %v", n, e, err)
			}
			hs[0].Stop(d)
			hs[2].Stop(c)
			pass(10 * time.Minute) // blocks are given up
		}
	})
}
