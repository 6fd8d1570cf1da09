package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// Stories of single steps that come at the worst moment.

// fenced says whether a host has cut a container off.
func fenced(t *testing.T, h *sim.Host, c *sim.Container) bool {
	t.Helper()
	e, err := h.Cluster.Journal().Endpoint(c.Endpoint)
	if err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
	return e.Fenced
}

// A grace counts from the first life of an agent on.
func TestGraceOfAHostThatNeverRestarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		var hs []*sim.Host
		var ns []*sim.Network
		for i := range 2 {
			h := sim.NewHostWith(t, s, sim.Options{Number: i + 1, Grace: 10 * time.Minute})
			hs, ns = append(hs, h), append(ns, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}))
		}
		c := hs[1].MustRun(ns[1], sim.Run{})
		pass(time.Minute)
		if hs[1].Cluster.Journal().Meta().Fenced || fenced(t, hs[1], c) {
			t.Fatal("a host that holds its lease is fenced")
		}
		hs[1].CutStore()
		pass(20 * time.Minute)
		if !strings.Contains(s.Dump(), "v1/removed/") {
			t.Fatal("the other host has not removed it, so this shows nothing")
		}
		if !fenced(t, hs[1], c) {
			t.Error("the host's addresses are free for others, and its container is not cut off")
		}
		hs[1].HealStore()
		pass(time.Minute)
		if fenced(t, hs[1], c) || hs[1].Cluster.Journal().Meta().Fenced {
			t.Error("nobody took its address, and it has not regained it")
		}
	})
}

// A host that is new to the cluster while others write the store again is there
// when they have.
func TestRegisteredDuringARecovery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
		a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		pass(5 * time.Second)
		b.Crash()
		s.Wipe()
		pass(10 * time.Second)
		c := sim.NewHost(t, s, 3)
		pass(time.Second)
		b.BlindStore() // it has not heard of the new one
		b.Start()
		pass(10 * time.Second)
		if _, err := a.NetworkCreate("other", sim.Create{Subnet: "10.43.0.0/24"}); err != nil {
			t.Fatalf("the recovery is not over, so this shows nothing: %v", err)
		}
		b.HealStore()
		pass(10 * time.Second)
		for _, key := range []string{"v1/host/" + string(c.Cluster.Self()), "v1/name/h3", "v1/vtep/192.0.2.3"} {
			if _, ok := s.Peek(key); !ok {
				t.Errorf("%s is gone", key)
			}
		}
	})
}

// losesGrant loses the reply to a grant, once, and then hears nothing of changes.
type losesGrant struct {
	*memory.Client
	lost *atomic.Bool
}

func (s losesGrant) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	rev, err := s.Client.Txn(ctx, t)
	for _, op := range t.Ops {
		if err == nil && strings.HasPrefix(op.Key, "v1/ask/") && strings.Contains(string(op.Value), `"granted"`) && s.lost.CompareAndSwap(false, true) {
			s.BlockWatches()
			return 0, fmt.Errorf("reply lost: %w", kvstore.ErrUnavailable)
		}
	}
	return rev, err
}

// A question whose answer was written, without the owner hearing so, is answered
// once: what was lent stays lent.
func TestGrantWhoseReplyIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		var lost atomic.Bool
		a := sim.NewHostWith(t, s, sim.Options{Number: 1, Wrap: func(m *memory.Client) kvstore.Store { return losesGrant{m, &lost} }})
		b := sim.NewHost(t, s, 2)
		na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		x := a.MustRun(na, sim.Run{}).Addr.Addr().Next().String()
		pass(5 * time.Second)
		b.MustRun(nb, sim.Run{IP: x})
		if !lost.Load() {
			t.Fatal("nothing was lost, so this shows nothing")
		}
		for range 5 {
			pass(time.Second)
			if _, err := a.Run(na, sim.Run{IP: x}); err == nil {
				t.Fatalf("%s is on two hosts", x)
			}
		}
		a.HealStore()
		pass(2 * time.Minute)
		if _, err := a.Run(na, sim.Run{IP: x}); err == nil {
			t.Fatalf("%s is on two hosts, later", x)
		}
	})
}

// A block that comes back to a removed host has addresses that were lent
// meanwhile, by an owner that is gone by then: they are not the block's owner's.
func TestRegainedBlockWithLoansOfAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		c := hs[0].MustRun(ns[0], sim.Run{})
		had := c.Addr.Addr()
		free := had.Next()
		pass(5 * time.Second)
		hs[0].Crash()
		pass(time.Minute)
		if _, err := hs[2].Cluster.RemoveHost(t.Context(), "h1", false); err != nil {
			t.Fatal(err)
		}
		mine := hs[2].MustRun(ns[2], sim.Run{IP: free.Next().String()}) // claims the block
		hs[1].MustRun(ns[1], sim.Run{IP: had.String()})
		hs[1].MustRun(ns[1], sim.Run{IP: free.String()})
		hs[2].Stop(mine)
		if err := hs[2].NetworkRm("app"); err != nil {
			t.Fatal(err)
		}
		hs[0].Start()
		pass(3 * time.Second)
		if hs[0].Cluster.Journal().Meta().Fenced {
			t.Fatal("h1 has regained nothing, so this shows nothing")
		}
		if _, err := hs[0].Run(ns[0], sim.Run{IP: free.String()}); err == nil {
			t.Errorf("%s is on two hosts", free)
		}
		if !fenced(t, hs[0], c) {
			t.Errorf("%s is on two hosts: the container of the removed one is not cut off", had)
		}
		pass(5 * time.Minute)
		if !fenced(t, hs[0], c) {
			t.Errorf("%s is on two hosts, later", had)
		}
		if got := strings.Join(hs[0].Cluster.Conflicts(), "\n"); !strings.Contains(got, had.String()) {
			t.Errorf("h1 does not tell of it: %q", got)
		}
	})
}

// A network that was made after the backup takes the place of one that was removed
// since: nobody has that any more.
func TestRestoredNetworkThatWasReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		for i, h := range hs {
			h.Stop(h.MustRun(ns[i], sim.Run{}))
		}
		pass(5 * time.Second)
		backup := s.Snapshot()
		for _, h := range hs {
			if err := h.NetworkRm("app"); err != nil {
				t.Fatal(err)
			}
		}
		pass(10 * time.Second)
		var cs []*sim.Container
		for i, h := range hs {
			ns[i] = h.MustCreate("new", sim.Create{Subnet: "10.42.0.0/24"})
			for range 7 {
				cs = append(cs, h.MustRun(ns[i], sim.Run{}))
			}
		}
		pass(10 * time.Second)
		s.Restore(backup)
		seen := map[netip.Addr]bool{}
		for _, c := range cs {
			seen[c.Addr.Addr()] = true
		}
		for i := range 45 { // as long as a comparison takes to come, later on the others
			switch i {
			case 25:
				hs[1].CutStore()
				hs[2].CutStore()
			case 43:
				hs[1].HealStore()
				hs[2].HealStore()
			}
			pass(2 * time.Second)
			c, err := hs[0].Run(ns[0], sim.Run{})
			if err != nil {
				t.Logf("after %d s: %v", 2*i+2, err)
				continue
			}
			if seen[c.Addr.Addr()] {
				t.Fatalf("%s is on two hosts", c.Addr.Addr())
			}
			seen[c.Addr.Addr()] = true
		}
		for _, h := range hs {
			if got := h.Cluster.Conflicts(); len(got) > 0 {
				t.Errorf("%s: %v", h.Name, got)
			}
		}
	})
}

// A machine that took a dead one's name and address after the backup is not turned
// away by what the backup says.
func TestRestoredNameOfAReplacedHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, _ := trio(t, s, "10.42.0.0/24")
		pass(5 * time.Second)
		backup := s.Snapshot()
		old := hs[2].Cluster.Self()
		hs[2].Crash()
		pass(time.Minute)
		if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", false); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		again := sim.NewHost(t, s, 3)
		pass(5 * time.Second)
		s.Restore(backup)
		pass(10 * time.Second)
		if v, _ := s.Peek("v1/name/h3"); !strings.Contains(string(v), string(again.Cluster.Self())) {
			t.Errorf("the name is held by %s", v)
		}
		if _, err := hs[0].Cluster.RemoveHost(t.Context(), string(old), true); err != nil {
			t.Error(err)
		}
		pass(10 * time.Second)
		if _, err := again.NetworkCreate("other", sim.Create{Subnet: "10.43.0.0/24"}); err != nil {
			t.Errorf("the recovery is not over: %v", err)
		}
	})
}

// Who was named as gone is not waited for because of a host that had not heard so.
func TestGoneForGoodStaysGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, _ := trio(t, s, "10.42.0.0/24")
		pass(5 * time.Second)
		hs[1].Crash()
		hs[2].Crash()
		s.Wipe()
		pass(10 * time.Second)
		if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		hs[1].Start()
		pass(10 * time.Second)
		if _, err := hs[0].NetworkCreate("other", sim.Create{Subnet: "10.43.0.0/24"}); err != nil {
			t.Errorf("the recovery is not over: %v", err)
		}
	})
}

// beforeRemoval lets something happen when a host is about to be removed.
type beforeRemoval struct {
	*memory.Client
	happens func()
}

func (s beforeRemoval) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	for _, op := range t.Ops {
		if op.Kind == kvstore.OpPut && strings.HasPrefix(op.Key, "v1/removed/") {
			s.happens()
		}
	}
	return s.Client.Txn(ctx, t)
}

// A host that comes back while it is removed as lost stays.
func TestAliveAtTheLastMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		b := sim.NewHost(t, s, 2)
		once := sync.OnceFunc(func() {
			b.HealStore()
			pass(5 * time.Second)
		})
		a := sim.NewHostWith(t, s, sim.Options{Number: 1, Wrap: func(m *memory.Client) kvstore.Store { return beforeRemoval{m, once} }})
		pass(5 * time.Second)
		b.CutStore()
		pass(time.Minute)
		if _, err := a.Cluster.RemoveHost(t.Context(), "h2", false); !errors.Is(err, cluster.ErrAlive) {
			t.Errorf("node rm of a host that has just come back: %v", err)
		}
	})
}

// A grace is not counted from a loss before which a host was lost already, came
// back, and was lost again, unseen: it counts from the latter itself.
func TestGraceAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a := sim.NewHostWith(t, s, sim.Options{Number: 1, Grace: 10 * time.Minute})
		b := sim.NewHostWith(t, s, sim.Options{Number: 2, Grace: 10 * time.Minute})
		a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		c := b.MustRun(b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), sim.Run{})
		pass(time.Minute)
		b.CutStore()
		pass(4 * time.Minute)
		a.CutStore()
		b.HealStore()
		pass(10 * time.Minute)
		b.CutStore()
		pass(time.Minute)
		a.HealStore()
		for range 20 {
			pass(time.Minute)
			if strings.Contains(s.Dump(), "v1/removed/") {
				if !fenced(t, b, c) {
					t.Fatal("the host's addresses are free for others, and its container is not cut off")
				}
				return
			}
		}
		t.Error("the host was never removed")
	})
}

// What a host has is in the store again when the network that had taken its
// place is gone.
func TestPublishedAfterAContest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
		c := b.MustRun(b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), sim.Run{})
		pass(5 * time.Second)
		b.CutStore()
		if _, err := a.Cluster.RemoveHost(t.Context(), "h2", true); err != nil {
			t.Fatal(err)
		}
		a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		b.HealStore()
		pass(time.Minute)
		if !fenced(t, b, c) {
			t.Fatal("nothing is contested, so this shows nothing")
		}
		if err := a.NetworkRm("app"); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Minute)
		if fenced(t, b, c) {
			t.Error("the container is still cut off")
		}
		if !strings.Contains(s.Dump(), string(c.Endpoint)) {
			t.Errorf("the container is not in the store:\n%s", s.Dump())
		}
	})
}

// An address is not lent to a host that asked for it before it was removed.
func TestQuestionOfARemovedHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		x := hs[0].MustRun(ns[0], sim.Run{}).Addr.Addr().Next().String()
		pass(5 * time.Second)
		hs[0].BlindStore() // it hears of no question
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			_, _ = hs[1].Run(ns[1], sim.Run{IP: x})
		}()
		pass(time.Second)
		hs[1].CutStore() // and it is never withdrawn
		<-asked
		hs[1].Kill()
		pass(time.Minute)
		if _, err := hs[2].Cluster.RemoveHost(t.Context(), "h2", false); err != nil {
			t.Fatal(err)
		}
		hs[0].HealStore()
		pass(2 * time.Minute)
		if d := s.Dump(); strings.Contains(d, "ipam/"+x+"-32") || strings.Contains(d, `"asks"`) {
			t.Errorf("%s is lent to nobody, for ever:\n%s", x, d)
		}
	})
}

// A block is given back when its addresses have rested, not when nobody happened to
// see one in use.
func TestBlockRestsFromItsLastUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a := sim.NewHost(t, s, 1)
		n := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		a.Stop(a.MustRun(n, sim.Run{}))
		pass(4*time.Minute + 59*time.Second)
		a.Stop(a.MustRun(n, sim.Run{}))
		owned := func() bool {
			return strings.Contains(s.Dump(), `-29 "{\"v\":1,\"host\":\"`+string(a.Cluster.Self()))
		}
		pass(4 * time.Minute)
		if !owned() {
			t.Error("the block is free for others, and its address has not rested")
		}
		pass(2 * time.Minute)
		if owned() {
			t.Error("a block that nobody needs is not given back")
		}
	})
}

// lateNews tells of the first claim of a block only when a good while has passed.
type lateNews struct {
	*memory.Client
	block   string
	happens func()
}

func (s lateNews) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	rev, err := s.Client.Txn(ctx, t)
	for _, op := range t.Ops {
		if err == nil && op.Kind == kvstore.OpPut && strings.HasSuffix(op.Key, "ipam/"+s.block) {
			s.happens()
		}
	}
	return rev, err
}

// A claim that was made before the store was lost, and of which its host hears when
// everybody has written his part again, is nobody's.
func TestClaimOfAnotherIncarnation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		once := sync.OnceFunc(func() {
			s.Wipe()
			late := time.NewTimer(20 * time.Second)
			<-late.C
		})
		a := sim.NewHostWith(t, s, sim.Options{Number: 1, Wrap: func(m *memory.Client) kvstore.Store { return lateNews{m, "10.42.0.16-29", once} }})
		b := sim.NewHost(t, s, 2)
		na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		seen := map[netip.Addr]string{}
		note := func(h *sim.Host, n *sim.Network) {
			c := h.MustRun(n, sim.Run{})
			if by := seen[c.Addr.Addr()]; by != "" {
				t.Fatalf("%s has %s, and %s got it", by, c.Addr.Addr(), h.Name)
			}
			seen[c.Addr.Addr()] = h.Name
		}
		note(a, na)
		note(b, nb)
		for range 4 {
			note(a, na) // the last one wants another block
		}
		pass(15 * time.Second)
		for range 13 {
			note(b, nb)
		}
		if v, _ := s.Peek("v1/net/" + strings.SplitN(s.Dump()[strings.Index(s.Dump(), "v1/net/"):], "/", 4)[2] + "/ipam/10.42.0.16-29"); !strings.Contains(string(v), string(b.Cluster.Self())) {
			t.Fatalf("the block is %s, so this shows nothing", v)
		}
		pass(6 * time.Second)
		for range 13 {
			note(a, na)
		}
	})
}

// Who was removed, and comes back when nobody remembers that, is cut off from what
// others have by now all the same.
func TestRemovalThatTheStoreForgot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		lost := hs[2].MustRun(ns[2], sim.Run{})
		kept := hs[2].MustRun(ns[2], sim.Run{})
		pass(5 * time.Second)
		hs[2].CutStore()
		if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
			t.Fatal(err)
		}
		hs[1].MustRun(ns[1], sim.Run{IP: lost.Addr.Addr().String()})
		pass(5 * time.Second)
		s.Wipe()
		pass(10 * time.Second)
		if _, err := hs[0].NetworkCreate("other", sim.Create{Subnet: "10.43.0.0/24"}); err != nil {
			t.Fatalf("the recovery is not over, so this shows nothing: %v", err)
		}
		hs[2].HealStore()
		pass(10 * time.Second)
		if !fenced(t, hs[2], lost) {
			t.Errorf("%s is on two hosts", lost.Addr.Addr())
		}
		if fenced(t, hs[2], kept) {
			t.Errorf("%s is nobody else's, and its container is cut off", kept.Addr.Addr())
		}
	})
}

// A removed host whose name another one has by now may not go on; before its agent
// ends there is time to cut its containers off.
func TestRemovedAndReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		c := hs[2].MustRun(ns[2], sim.Run{})
		pass(5 * time.Second)
		hs[2].Kill()
		pass(time.Minute)
		if _, err := hs[0].Cluster.RemoveHost(t.Context(), "h3", false); err != nil {
			t.Fatal(err)
		}
		sim.NewHost(t, s, 3)
		began := time.Now()
		err := hs[2].TryStart(hs[2].Name, hs[2].VTEP)
		if !errors.Is(err, cluster.ErrIdentity) {
			t.Fatalf("start: %v, want a refusal", err)
		}
		if !fenced(t, hs[2], c) {
			t.Error("the container is not to be cut off")
		}
		if time.Since(began) < time.Second {
			t.Error("the agent ended at once")
		}
	})
}
