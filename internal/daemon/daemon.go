package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/cluster/snapshot"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/announce"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/dns"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/driver"
	"github.com/carrick-net/carrick/gossip"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/mirror"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/probe"
	"github.com/carrick-net/carrick/status"
)

// Run runs the agent until ctx ends, and returns nil then. Every error says what
// to do about it. The kernel keeps what it holds either way.
func Run(ctx context.Context, cfg Config, log *slog.Logger) (err error) {
	closeWith := func(end func() error) { err = errors.Join(err, end()) }
	pools, err := cfg.check()
	if err != nil {
		return err
	}
	// The journal's lock is what makes two agents on one host impossible, so it
	// comes before anything that touches the host.
	jr, err := journal.Open(cfg.StateDir, readID("/etc/machine-id"))
	if err != nil {
		return err
	}
	defer closeWith(jr.Close)
	cache := snapshot.Open(cfg.StateDir, log.With("part", "cache"))
	defer closeWith(cache.Close)
	overlay, err := datapath.Open(ctx, datapath.Config{
		Kernel: nl.Linux{}, Filter: nft.Linux{}, Namespaces: netns.NewDir(netns.Config{Dir: cfg.NetnsDir}), Log: log.With("part", "datapath"), Announcer: announce.Linux{},
		// Where Docker's own overlay, of a swarm, has its devices: for messages only.
		Elsewhere: []netns.Store{netns.NewDir(netns.Config{Dir: "/var/run/docker/netns"})},
	})
	if err != nil {
		return err
	}
	defer closeWith(overlay.Close)
	under, err := overlay.Underlay(ctx, cfg.Advertise)
	if err != nil {
		return fmt.Errorf("--advertise %q: %w", cfg.Advertise, err)
	}
	devices, err := underlay.Open(ctx, underlay.Config{
		Kernel: nl.Linux{}, Namespaces: netns.NewDir(netns.Config{Dir: cfg.NetnsDir}), Root: sandboxPath(cfg.NetnsDir), Local: under.Addr,
		Joined: func(ep carrick.EndpointID) bool { e, err := jr.Endpoint(ep); return err != nil || e.Joined }, Name: cfg.Node, Log: log.With("part", "datapath"),
	})
	if err != nil {
		return err
	}
	defer closeWith(devices.Close)
	routes, err := routed.Open(ctx, routed.Config{
		Kernel: nl.Linux{}, Namespaces: netns.NewDir(netns.Config{Dir: cfg.NetnsDir}), Accepts: nft.User{}, Sources: nft.Sources{},
		Joined: func(ep carrick.EndpointID) bool { e, err := jr.Endpoint(ep); return err != nil || e.Joined }, Log: log.With("part", "datapath"),
	})
	if err != nil {
		return err
	}
	defer closeWith(routes.Close)
	store, err := openStore(cfg, log.With("part", "store"))
	if err != nil {
		return err
	}
	defer closeWith(store.Close)
	listener, err := dockerapi.ListenOrInherit(cfg.PluginSocket)
	if err != nil {
		return err
	}

	// The reconciler needs the cluster's facts and the cluster tells the
	// reconciler of changes; nothing is told before both are there.
	var rec atomic.Pointer[agent.Reconciler]
	var mir atomic.Pointer[mirror.Mirror]
	var names atomic.Pointer[agent.Names]
	var engine *mirror.Engine
	if cfg.Docker != "" {
		if engine, err = mirror.Connect(cfg.Docker); err != nil {
			return errors.Join(fmt.Errorf("--docker: %w", err), listener.Close())
		}
		defer closeWith(engine.Close)
	}
	facts := cluster.Config{
		Store: store, Journal: jr, Cache: cache, Name: cfg.Node, VTEP: under.Addr, MTU: under.MTU, Version: cfg.Version, Probes: true,
		Machine: readID("/etc/machine-id"), Boot: readID("/proc/sys/kernel/random/boot_id"),
		LeaseTTL: leaseTTL, Grace: cfg.HostGrace, Log: log.With("part", "cluster"), Apart: engine == nil || !cfg.Mirror,
		Changed: func(id carrick.NetworkID) {
			if r := rec.Load(); r != nil {
				r.Changed(id)
			}
			if n := names.Load(); n != nil {
				n.Changed(id)
			}
		},
		SpecsChanged: func() {
			if m := mir.Load(); m != nil {
				m.SpecsChanged()
			}
		},
	}
	if err := rebuild(ctx, facts, engine, log.With("part", "cluster")); err != nil {
		return errors.Join(err, listener.Close())
	}
	cl := cluster.New(facts)
	ways := overlay.Ways(under, cfg.Advertise, 0)
	ways.OnChange(func() {
		cl.SetMTU(ways.Underlay().MTU)
		if r := rec.Load(); r != nil {
			r.ChangedAll()
		}
	})
	src := &source{cfg: cfg, under: ways, cluster: cl, overlay: overlay, devices: devices, routed: routes, witness: witness{overlay, devices, routes, jr}, started: time.Now(), wait: wait}
	metrics := status.NewMetrics(cfg.Version, src.gauges())
	src.rec = agent.New(agent.Config{
		Facts: cl, Overlay: overlay, Underlay: devices, Name: cfg.Node, Routed: routes, Ways: ways, Log: log.With("part", "agent"), Audit: cfg.Audit,
		Observe: func(a agent.Audit) {
			metrics.Pass(kinds(a.Changes), kinds(a.Drift), a.Err)
			if a.Resync != "" {
				metrics.Audited(a.Took, a.Drift.Total() > 0, a.Err)
			}
		},
	})
	rec.Store(src.rec)

	src.prober = probe.New(probe.Config{
		Kernel: nl.Linux{}, Namespaces: netns.NewDir(netns.Config{Dir: cfg.NetnsDir}), Log: log.With("part", "probe"),
		Wanted: src.ports, Carries: ways.Measured,
	})

	tasks := []agent.Task{cl, src.rec, ways, src.prober}
	src.answers = dns.New(dns.Config{Host: cl.Self(), Root: sandboxPath(cfg.NetnsDir), Log: log.With("part", "dns")})
	answering := agent.NamesConfig{Facts: cl, Answerer: src.answers, Log: log.With("part", "names")}
	if cfg.GossipPort != 0 && strings.HasPrefix(cfg.Store, "consul://") { // a file is one host's
		src.detector = &detector{cluster: cl, log: log, cfg: gossip.Config{
			Self: cl.Self(), Addr: under.Addr, Port: cfg.GossipPort, Log: log.With("part", "gossip"),
			Changed: func() {
				if n := names.Load(); n != nil {
					n.Look()
				}
			},
		}}
		answering.Detector = peersAndDown{src.detector}
		tasks = append(tasks, src.detector)
	}
	names.Store(agent.NewNames(answering))
	tasks = append(tasks, names.Load())
	var stale func()
	var own func(carrick.DockerNetworkID) bool
	if engine != nil {
		src.engine = engine
		src.mirror = mirror.New(mirror.Config{
			Engine: engine, Facts: cl, Witness: src.witness, Log: log.With("part", "mirror"), Driver: driverName(cfg, engine), Everywhere: cfg.Mirror,
		})
		mir.Store(src.mirror)
		stale = src.mirror.Look
		if cfg.Mirror {
			own = src.mirror.Removing
		}
		tasks = append(tasks, src.mirror)
	}
	addresses := ipam.New(ipam.Config{
		Cluster: cl, Defaults: pools, HostPrefixes: overlay.HostPrefixes, Log: log.With("part", "ipam"), StaleAlias: stale,
		Segment: segment{devices, cfg.Node},
	})
	networks := driver.New(driver.Config{
		Cluster: cl, Pools: addresses, Realizer: src.rec, Log: log.With("part", "driver"), Own: own, Names: names.Load(), Devices: devices, Routing: routes,
	})
	server, err := dockerapi.NewServer(dockerapi.Config{
		Network: networks, IPAM: addresses, Log: log.With("part", "dockerapi"), Observe: metrics.Call,
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	tasks = append(tasks, addresses,
		agent.Func("plugin socket", func(ctx context.Context) error { return server.Serve(ctx, listener) }),
		agent.Func("admin socket", func(ctx context.Context) error {
			return status.Serve(ctx, cfg.APISocket, status.Handler(src, log), log)
		}))
	if cfg.HTTP != "" {
		tasks = append(tasks, agent.Func("http", func(ctx context.Context) error {
			return status.ServeTCP(ctx, cfg.HTTP, status.Web(src, metrics.Registry), log)
		}))
	}
	log.Info("carrick agent started", "version", cfg.Version, "node", cfg.Node, "host", cl.Self(), "vtep", under.Addr,
		"device", under.Interface, "mtu", under.MTU, "store", store, "socket", addrOf(listener))
	err = agent.Run(ctx, tasks...)
	log.Info("carrick agent stopped; the datapath goes on")
	return err
}

func addrOf(l net.Listener) string { return l.Addr().String() }

// kinds names the counts of a report for the metrics.
func kinds(c datapath.Counts) map[string]int {
	out := map[string]int{}
	for _, k := range datapath.Kinds() {
		out[string(k)] = c.Of(k)
	}
	return out
}
