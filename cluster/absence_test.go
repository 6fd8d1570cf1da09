package cluster_test

import (
	"context"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// blindToEpoch is a store whose epoch cannot be read until the gate is open.
type blindToEpoch struct {
	kvstore.Store
	gate func() <-chan struct{}
}

func (s blindToEpoch) wait(ctx context.Context, key string) error {
	if !strings.HasSuffix(key, "v1/epoch") {
		return nil
	}
	select {
	case <-s.gate():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s blindToEpoch) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	if err := s.wait(ctx, key); err != nil {
		return kvstore.Entry{}, err
	}
	return s.Store.Get(ctx, key)
}

// The store is lost, and one host writes its part again before another has looked
// at the epoch: what a third host has not written yet is not gone because of that.
func TestAbsenceBeforeTheEpochIsSeen(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	open := make(chan struct{})
	close(open)
	gates := make(chan (<-chan struct{}), 1)
	gates <- open
	gate := func() <-chan struct{} { g := <-gates; gates <- g; return g }
	a, c := sim.NewHost(t, s, 1), sim.NewHost(t, s, 3)
	b := sim.NewHostWith(t, s, sim.Options{Number: 2, Wrap: func(m *memory.Client) kvstore.Store { return blindToEpoch{m, gate} }})
	var ns []*sim.Network
	for _, h := range []*sim.Host{a, b, c} {
		ns = append(ns, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}))
	}
	a.MustRun(ns[0], sim.Run{})
	b.MustRun(ns[1], sim.Run{})
	silent := c.MustRun(ns[2], sim.Run{})
	sim.Eventually(t, "h2 knows h3", knows(b, ns[1], c, silent))

	c.Crash()
	<-gates
	closed := make(chan struct{})
	gates <- closed
	s.Wipe()
	news := a.MustRun(ns[0], sim.Run{})
	sim.Eventually(t, "h2 hears of what h1 started since", func() bool {
		v, _ := b.View(ns[1])
		return strings.Contains(strings.Join(endpoints(v, a.Cluster.Self()), " "), news.Addr.Addr().String())
	})
	if v, _ := b.View(ns[1]); len(v.Endpoints[c.Cluster.Self()]) != 1 {
		t.Errorf("h2 has forgotten h3's container, which nobody has removed: %v", v.Endpoints)
	}
	close(closed)
	c.Start()
	normal(t, b)
	sim.Eventually(t, "h2 knows h3 afterwards", knows(b, ns[1], c, silent))
}
