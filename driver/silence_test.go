package driver_test

import (
	"context"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// silent is a store that stops answering when it is told to. It counts what the
// engine's calls ask of it themselves meanwhile; what goes on in the background may
// ask, and waits.
type silent struct {
	kvstore.Store
	mu    sync.Mutex    // guards the rest
	until chan struct{} // closed when it answers again; nil: it does
	calls []string      // stacks
	// structural counts the writes that change who owns what.
	structural int
}

func (s *silent) hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = make(chan struct{})
}

func (s *silent) speak() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.until)
	s.until = nil
}

func (s *silent) enter(ctx context.Context) {
	s.mu.Lock()
	until := s.until
	if stack := string(debug.Stack()); until != nil && (strings.Contains(stack, "driver.(*Driver)") || strings.Contains(stack, "ipam.(*Driver).Re")) {
		s.calls = append(s.calls, stack)
		until = nil // answered, so that the test ends
	}
	s.mu.Unlock()
	if until == nil {
		return
	}
	select {
	case <-until:
	case <-ctx.Done():
	}
}

func (s *silent) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	s.enter(ctx)
	return s.Store.Get(ctx, key)
}

func (s *silent) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	s.enter(ctx)
	return s.Store.List(ctx, sel)
}

func (s *silent) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	s.enter(ctx)
	return s.Store.Watch(ctx, sel, since)
}

func (s *silent) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	s.enter(ctx)
	rev, err := s.Store.Txn(ctx, t)
	for _, op := range t.Ops {
		if op.Key == "v1/epoch" && err == nil {
			s.mu.Lock()
			s.structural++
			s.mu.Unlock()
		}
	}
	return rev, err
}

func (s *silent) Lease(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	s.enter(ctx)
	return s.Store.Lease(ctx, ttl)
}

// Containers start and stop on a network that the host follows without the engine's
// calls asking the store anything or waiting for anybody who does: it says nothing,
// and no time passes.
func TestNoStoreInAnEnginesCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &silent{}
		h := sim.NewHostWith(t, memory.NewServer(), sim.Options{Number: 1, Wrap: func(c *memory.Client) kvstore.Store {
			store.Store = c
			return store
		}})
		n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
		h.MustRun(n, sim.Run{})
		sim.Eventually(t, "the network is followed", func() bool {
			_, complete := h.View(n)
			return complete && h.Cluster.Health().Pending == 0
		})
		store.hush()
		began := time.Now()
		var running []*sim.Container
		for range 30 {
			running = append(running, h.MustRun(n, sim.Run{}))
		}
		for _, c := range running[:20] {
			h.Stop(c)
		}
		for range 10 {
			h.MustRun(n, sim.Run{})
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the calls waited for %s", waited)
		}
		store.mu.Lock()
		calls := store.calls
		store.mu.Unlock()
		if len(calls) > 0 {
			t.Errorf("the calls asked the store %d times, first\n%s", len(calls), calls[0])
		}
		if h.Cluster.Health().Pending == 0 {
			t.Error("all is published in a store that says nothing, so this shows nothing")
		}
		store.speak()
		sim.Eventually(t, "all is published", func() bool { return h.Cluster.Health().Pending == 0 })
	})
}

// Addresses come from blocks: they cost the store no write but that of a block in
// 64 addresses.
func TestWritesForAddresses(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	const hosts, each = 3, 200
	var all sync.WaitGroup
	for i := range hosts {
		store := &silent{}
		h := sim.NewHostWith(t, s, sim.Options{Number: i + 1, Wrap: func(c *memory.Client) kvstore.Store {
			store.Store = c
			return store
		}})
		n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
		store.mu.Lock()
		store.structural = 0
		store.mu.Unlock()
		all.Go(func() {
			for range each {
				if _, err := h.Run(n, sim.Run{}); err != nil {
					t.Errorf("%s: %v", h.Name, err)
				}
			}
			store.mu.Lock()
			defer store.mu.Unlock()
			if store.structural == 0 || store.structural > each/20 {
				t.Errorf("%s: %d writes for %d addresses", h.Name, store.structural, each)
			}
		})
	}
	all.Wait()
}
