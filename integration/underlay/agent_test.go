package underlay_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// anyDevice lets a network stand on whatever it names.
type anyDevice struct{}

func (anyDevice) CheckParent(context.Context, carrick.Network, carrick.Parent) error { return nil }

// Somebody asks for a look at a network before this host has joined it, as when it left
// with the store away and comes back: nobody knows of what mode it is. Its containers start
// all the same, also when it is left and joined again, and nothing stays.
func TestANetworkIsJoinedAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	kernel := nstest.NewLab(t).Host(1, 1500)
	s := memory.NewServer()
	h, other := sim.NewHostWith(t, s, sim.Options{Number: 1, Devices: anyDevice{}}), sim.NewHostWith(t, s, sim.Options{Number: 2, Devices: anyDevice{}})
	overlay, err := datapath.Open(ctx, datapath.Config{Kernel: nl.Linux{}, Namespaces: kernel.Namespaces})
	if err != nil {
		t.Fatal(err)
	}
	devices, err := underlay.Open(ctx, underlay.Config{Kernel: nl.Linux{}, Namespaces: kernel.Namespaces})
	if err != nil {
		t.Fatal(err)
	}
	rec := agent.New(agent.Config{Facts: h.Cluster, Overlay: overlay, Underlay: devices, Name: h.Name, Log: slog.New(slog.DiscardHandler), Audit: time.Hour, Linger: time.Hour})
	h.Attach(rec)
	runs, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- rec.Run(runs) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = overlay.Close()
		_ = devices.Close()
	})

	create := sim.Create{Subnet: "10.42.0.0/16", Opts: map[string]string{"mode": "macvlan", "parent": "eth0"}}
	id := func() carrick.NetworkID { return other.Cluster.Journal().Networks()[0].Conf.ID }
	other.MustCreate("lan", create)
	rec.Changed(id()) // the worker of a network that the journal does not have
	for range 2 {
		n := h.MustCreate("lan", create)
		c := h.MustRun(n, sim.Run{})
		if links := nstest.Links(t, kernel.NS); !links[c.Endpoint.OuterName()] {
			t.Errorf("the host has %v", links)
		}
		h.Stop(c)
		if err := h.NetworkRm("lan"); err != nil {
			t.Fatal(err)
		}
		rec.Changed(id())
		sim.Eventually(t, "its device is gone", func() bool { return !nstest.Links(t, kernel.NS)[c.Endpoint.OuterName()] })
	}
}
