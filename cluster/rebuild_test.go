package cluster_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// anyDevice is a host on whose devices every network can stand.
type anyDevice struct{}

func (anyDevice) CheckParent(context.Context, carrick.Network, carrick.Parent) error { return nil }

// A host whose state directory was lost is the same host again, remembers what it
// gave out, and gives none of it to anybody else.
func TestStateDirectoryLost(t *testing.T) {
	t.Parallel()
	for mode, opts := range map[string]map[string]string{
		"vxlan":  nil,
		"ipvlan": {"mode": "ipvlan", "parent": "eth1"}, // where no container has a MAC of its own
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			stateDirectoryLost(t, opts)
		})
	}
}

func stateDirectoryLost(t *testing.T, opts map[string]string) {
	s := memory.NewServer()
	var hs []*sim.Host
	var ns []*sim.Network
	for i := range 2 {
		h := sim.NewHostWith(t, s, sim.Options{Number: i + 1, Devices: anyDevice{}})
		hs, ns = append(hs, h), append(ns, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24", Opts: opts}))
	}
	var before []*sim.Container
	for range 3 {
		before = append(before, hs[0].MustRun(ns[0], sim.Run{}))
	}
	hs[1].MustRun(ns[1], sim.Run{})
	lent, err := hs[1].Run(ns[1], sim.Run{IP: before[2].Addr.Addr().Next().String()})
	if err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "h2 sees h1's containers", knows(hs[1], ns[1], hs[0], before...))
	self := hs[0].Cluster.Self()
	hs[0].Store.Cut()
	unpublished := hs[0].MustRun(ns[0], sim.Run{})
	hs[0].Store.Heal()
	hs[0].Crash()
	if err := os.RemoveAll(hs[0].Dir); err != nil {
		t.Fatal(err)
	}
	jr, err := journal.Open(hs[0].Dir, "machine-h1")
	if err != nil {
		t.Fatal(err)
	}
	cfg := cluster.Config{Store: hs[0].Store, Journal: jr, Name: "h1", VTEP: hs[0].VTEP, MTU: 1500, Machine: "machine-h1", Boot: "boot", Log: slog.New(slog.DiscardHandler)}
	if got, err := cluster.Rebuild(t.Context(), cluster.Config{Store: hs[0].Store, Journal: jr, Name: "h1", Machine: "another", Log: cfg.Log}, nil); got != nil || err != nil {
		t.Fatalf("another machine of that name was taken for the host: %+v, %v", got, err)
	}
	var rebuilt *cluster.Rebuilt
	sim.Eventually(t, "the lease of the lost agent is over", func() bool {
		rebuilt, err = cluster.Rebuild(t.Context(), cfg, func(context.Context) ([]check.Container, error) {
			return []check.Container{{Endpoint: unpublished.Endpoint, Network: ns[0].ID, Name: "new", Addrs: []netip.Addr{unpublished.Addr.Addr()}}}, nil
		})
		return err == nil
	})
	if rebuilt == nil || rebuilt.Host != self || rebuilt.Endpoints < 3 {
		t.Fatalf("rebuilt %+v, want host %s with its endpoints", rebuilt, self)
	}
	if got, err := cluster.Rebuild(t.Context(), cfg, nil); got != nil || err != nil {
		t.Errorf("a second rebuild: %+v, %v", got, err)
	}
	if err := jr.Close(); err != nil {
		t.Fatal(err)
	}
	hs[0].Start()
	if hs[0].Cluster.Self() != self {
		t.Fatalf("the host is %s now, was %s", hs[0].Cluster.Self(), self)
	}
	taken := []netip.Addr{lent.Addr.Addr(), unpublished.Addr.Addr()}
	for _, c := range before {
		taken = append(taken, c.Addr.Addr())
	}
	for range 12 {
		c := hs[0].MustRun(ns[0], sim.Run{})
		if slices.Contains(taken, c.Addr.Addr()) {
			t.Fatalf("%s was given out again", c.Addr)
		}
		taken = append(taken, c.Addr.Addr())
	}
	v, _ := hs[0].View(ns[0])
	if i := slices.IndexFunc(v.Endpoints[self], func(e carrick.Endpoint) bool { return e.ID == unpublished.Endpoint }); i < 0 {
		t.Error("the container that was never published is not known")
	} else if mac := v.Endpoints[self][i].MAC; mac != unpublished.MAC {
		t.Errorf("the container that was never published has MAC %s, had %s", mac, unpublished.MAC)
	}
}
