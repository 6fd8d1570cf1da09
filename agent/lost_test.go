package agent_test

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// rules are none, and count who asks.
type rules struct{ asked atomic.Int32 }

func (*rules) Set(context.Context, netns.Namespace, string, []netip.Prefix) (int, bool, error) {
	return 0, true, nil
}

func (r *rules) Names(context.Context, netns.Namespace) ([]string, error) {
	r.asked.Add(1)
	return nil, nil
}

// tables are of nobody.
type tables struct{}

func (tables) Set(context.Context, netns.Namespace, string, []string) (bool, error) {
	return false, nil
}
func (tables) Names(context.Context, netns.Namespace) ([]string, error) { return nil, nil }

// The state directory was lost while containers of a routed network run, and the store
// does not answer: their pairs, of which nobody knows any more whose they are, stay, also
// once it does.
func TestPairsOfALostStateDirectory(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kernel := nltest.New()
	ns, err := kernel.Namespaces().Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h, err := kernel.Open(ctx, ns)
	if err != nil {
		t.Fatal(err)
	}
	ep := carrick.EndpointID(strings.Repeat("a1", 32))
	if errs := h.Send(ctx, nl.AddVeth{Name: ep.HostName(), Outer: ep.OuterName(), OuterMAC: carrick.MAC{2, 0, 0, 0, 0, 1}, MTU: 1500}); errs != nil {
		t.Fatal(errs)
	}
	l, err := h.Link(ctx, nl.Ref{Name: ep.HostName()})
	if err != nil {
		t.Fatal(err)
	}
	if errs := h.Send(ctx, nl.SetLink{Link: l.Ref, Alias: plan.ChildAlias("00000000000000aa", ep), Up: nl.On}); errs != nil {
		t.Fatal(errs)
	}

	log := slog.New(slog.DiscardHandler)
	overlay, err := datapath.Open(ctx, datapath.Config{Kernel: kernel, Filter: kernel.Filter(), Namespaces: kernel.Namespaces(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	asked := &rules{}
	routes, err := routed.Open(ctx, routed.Config{Kernel: kernel, Namespaces: kernel.Namespaces(), Accepts: asked, Sources: tables{}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	store := memory.NewServer()
	empty := store.Snapshot()
	host := sim.NewHost(t, store, 1)
	host.Crash()
	store.Restore(empty)
	host.Dir = t.TempDir()
	host.CutStore()
	if err := host.StartCut(); err != nil {
		t.Fatal(err)
	}
	rec := agent.New(agent.Config{Facts: host.Cluster, Overlay: overlay, Routed: routes, Log: log, Audit: time.Millisecond})
	rctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rec.Run(rctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("reconciler: %v", err)
		}
		_ = routes.Close()
		_ = overlay.Close()
	})
	host.HealStore()
	sim.Eventually(t, "it is said that a network is left alone", func() bool {
		return strings.Contains(strings.Join(rec.Problems(), ""), "older than the state directory")
	})
	before := asked.asked.Load()
	sim.Eventually(t, "things are collected", func() bool { return asked.asked.Load() > before+3 })
	if dump := kernel.Dump(); !strings.Contains(dump, ep.HostName()) {
		t.Errorf("the pair is gone:\n%s", dump)
	}
}
