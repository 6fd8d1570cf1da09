package cluster_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// All hosts have one key, whoever made it; it outlives the store's past, and is there
// while the store is not.
func TestTheClustersKey(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hosts := []*sim.Host{sim.NewHost(t, s, 1), sim.NewHost(t, s, 2), sim.NewHost(t, s, 3)}
	key := func(h *sim.Host) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), sim.Patience)
		defer cancel()
		k, err := h.Cluster.Key(ctx)
		if err != nil || len(k) != 32 {
			t.Fatalf("%s: %x, %v", h.Name, k, err)
		}
		return k
	}
	found := make(chan []byte, 2)
	for _, h := range hosts[:2] {
		go func() { found <- key(h) }()
	}
	one := <-found
	if two := <-found; !bytes.Equal(one, two) {
		t.Fatalf("two keys, %x and %x", one, two)
	}
	s.Restore(memory.NewServer().Snapshot())
	sim.Eventually(t, "the store has a key again, without anybody asking for it", func() bool {
		_, err := hosts[0].Store.Get(t.Context(), "v1/key")
		return err == nil
	})
	if again := key(hosts[1]); !bytes.Equal(again, one) {
		t.Error("a store that lost its past has another key")
	}
	if late := key(hosts[2]); !bytes.Equal(late, one) {
		t.Error("a host that comes later has another key")
	}
	hosts[0].CutStore()
	if cut := key(hosts[0]); !bytes.Equal(cut, one) {
		t.Error("a host without the store has another key")
	}
}

// A host is lost when its lease is seen to end, and not because nobody has said yet
// who is alive; one that was removed is lost as well. This host never is.
func TestWhoIsLost(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	id := b.Cluster.Self()
	sim.Eventually(t, "they know each other", func() bool { return len(a.Cluster.Peers()) == 1 && len(b.Cluster.Peers()) == 1 })
	if lost := a.Cluster.Lost(); len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
	b.Crash()
	sim.Eventually(t, "b is lost to a", func() bool { return a.Cluster.Lost()[id] })
	b.Start()
	sim.Eventually(t, "b is back", func() bool { return !a.Cluster.Lost()[id] })
	b.Crash()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := a.Cluster.RemoveHost(ctx, "h2", true); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "b is lost and no peer", func() bool { _, peer := a.Cluster.Peers()[id]; return a.Cluster.Lost()[id] && !peer })
	// a starts again while the store is away: nobody can say who is alive.
	a.Crash()
	c := sim.NewHost(t, s, 3)
	sim.Eventually(t, "c knows a", func() bool { _, ok := c.Cluster.Peers()[a.Cluster.Self()]; return ok })
	c.Crash()
	if err := c.StartCut(); err != nil {
		t.Fatal(err)
	}
	if lost := c.Cluster.Lost(); lost[a.Cluster.Self()] || lost[c.Cluster.Self()] {
		t.Errorf("without the store %v are lost", lost)
	}
}
