package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/mirror"
	"github.com/carrick-net/carrick/status"
)

// host is a simulated host with a fake kernel that a real reconciler keeps, and
// what its agent would answer to an operator.
type host struct {
	*sim.Host
	t      *testing.T
	kernel *nltest.Kernel
	engine *fakeEngine
	src    *source
	stop   func()
}

func newHost(t *testing.T, s *memory.Server, o sim.Options) *host {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	h := &host{Host: sim.NewHostWith(t, s, o), t: t, kernel: nltest.New()}
	h.engine = &fakeEngine{h: h.Host}
	h.begin()
	t.Cleanup(func() { h.stop() })
	return h
}

// begin gives the agent that runs now its other half.
func (h *host) begin() {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	overlay, err := datapath.Open(h.t.Context(), datapath.Config{Kernel: h.kernel, Filter: h.kernel.Filter(), Namespaces: h.kernel.Namespaces(), Log: log})
	if err != nil {
		h.t.Fatal(err)
	}
	rec := agent.New(agent.Config{Facts: h.Cluster, Overlay: overlay, Log: log, Audit: time.Hour, Linger: time.Millisecond})
	h.Attach(rec)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rec.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("reconciler: %v", err)
		}
		_ = overlay.Close()
		h.stop = func() {}
	}
	h.src = &source{
		cfg:   Config{Node: h.Name, Version: "test"},
		under: still{Addr: h.VTEP, Interface: "eth0", MTU: 1500}, cluster: h.Cluster, rec: rec, overlay: overlay,
		witness: witness{overlay: overlay}, engine: h.engine, started: time.Now(),
		wait: func(context.Context, time.Duration) error { return nil },
	}
}

// create makes a network that has the engine's name at once, which a mirror would
// bring a moment later.
func (h *host) create(name, subnet string) *sim.Network {
	h.t.Helper()
	n := h.MustCreate(name, sim.Create{Subnet: subnet})
	if err := h.Cluster.NameAlias(h.t.Context(), n.ID, name); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// moveIn does what Docker does with a container's end of its pair.
func (h *host) moveIn(c *sim.Container) {
	h.t.Helper()
	ns, err := h.kernel.Namespaces().Create(h.t.Context(), "c"+c.Endpoint.Short())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = ns.Close() })
	h.kernel.Move("", c.Endpoint.OuterName(), ns.Name(), "eth0")
}

// run runs a container, its pair in a namespace of its own.
func (h *host) run(n *sim.Network, r sim.Run) *sim.Container {
	h.t.Helper()
	c := h.MustRun(n, r)
	h.moveIn(c)
	return c
}

// fakeEngine is the simulated engine as an agent asks it.
type fakeEngine struct {
	h      *sim.Host
	err    error
	forgot map[carrick.EndpointID]bool // containers that it does not list
}

func (e *fakeEngine) String() string { return "unix:///fake.sock" }

func (e *fakeEngine) Networks(context.Context) (map[carrick.DockerNetworkID]mirror.Network, error) {
	out := map[carrick.DockerNetworkID]mirror.Network{"bridge": {Name: "bridge", Driver: "bridge"}}
	for id, name := range e.h.Sides().Engine.Networks {
		out[id] = mirror.Network{Name: name, Driver: "carrick"}
	}
	return out, e.err
}

func (e *fakeEngine) Containers(context.Context) (map[carrick.EndpointID]mirror.Container, error) {
	out := map[carrick.EndpointID]mirror.Container{"other": {Name: "other", Network: "bridge"}}
	for _, c := range e.h.Sides().Engine.Containers {
		if !e.forgot[c.Endpoint] {
			out[c.Endpoint] = mirror.Container{Name: "box-" + c.Endpoint.Short(), Network: c.Network, Addrs: c.Addrs, MAC: c.MAC}
		}
	}
	return out, e.err
}

// show is ipam show of one network.
func (h *host) show(ref string) status.IPAM {
	h.t.Helper()
	all, err := h.src.IPAM(h.t.Context(), ref)
	if err != nil || len(all) != 1 {
		h.t.Fatalf("%s: ipam show %s: %+v, %v", h.Name, ref, all, err)
	}
	return all[0]
}

func (h *host) status() status.Status {
	h.t.Helper()
	s, err := h.src.Status(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// node is what a host's node ls says of another.
func (h *host) node(name string) status.Node {
	h.t.Helper()
	all, err := h.src.Nodes(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, n := range all {
		if n.Name == name {
			return n
		}
	}
	return status.Node{}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// still is an underlay that never changes.
type still datapath.Underlay

func (u still) Underlay() datapath.Underlay { return datapath.Underlay(u) }
func (u still) Problem() string             { return "" }
