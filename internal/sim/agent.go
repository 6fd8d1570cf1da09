package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/cluster/snapshot"
	"github.com/carrick-net/carrick/driver"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/mirror"
)

// agent is one life of a host's agent: what ends with its process.
type agent struct {
	jr      *journal.Journal
	cache   *snapshot.Cache
	store   *memory.Client
	cluster *cluster.Cluster
	ipam    *ipam.Driver
	driver  *driver.Driver

	ctx    context.Context
	cancel context.CancelFunc
	ended  chan error // what it ended with; buffered
	killed sync.Once
	dead   chan struct{} // closed when it is killed
}

// die ends the agent as SIGKILL does: from now on it neither writes nor hears of
// anything.
func (a *agent) die() {
	a.killed.Do(func() {
		close(a.dead)
		_ = a.store.Close() // never fails
		a.cancel()
	})
}

func (a *agent) isDead() bool {
	select {
	case <-a.dead:
		return true
	default:
		return false
	}
}

// Start starts the agent's facts side on the host's state directory and waits
// until it is registered.
func (h *Host) Start() {
	h.t.Helper()
	if err := h.TryStart(h.Name, h.VTEP); err != nil {
		h.t.Fatalf("start %s: %v", h.Name, err)
	}
}

// TryStart is Start under a name and an address, with an error instead of a
// failure.
func (h *Host) TryStart(name string, vtep netip.Addr) error {
	a, err := h.launch(name, vtep)
	if err != nil {
		return err
	}
	select {
	case <-a.cluster.Ready():
		return nil
	case err := <-a.ended:
		a.ended <- nil
		h.Crash()
		return err
	case <-time.After(Patience):
		h.Crash()
		return fmt.Errorf("%s was not registered in time", name)
	}
}

// StartCut starts the agent's facts side, while its store is away maybe, and waits
// for nothing.
func (h *Host) StartCut() error {
	_, err := h.launch(h.Name, h.VTEP)
	return err
}

// HostPrefixes are routes that every simulated host has: one in the first subnet
// of the IPv4 default pool, one to half of the IPv6 one.
func HostPrefixes() []netip.Prefix {
	return []netip.Prefix{prefix("192.0.2.0/24"), prefix("10.128.0.0/24"), prefix("fd88:93b9:19b6::/49")}
}

func (h *Host) launch(name string, vtep netip.Addr) (*agent, error) {
	h.Reap()
	a := &agent{ended: make(chan error, 1), dead: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	h.mu.Lock()
	a.store = h.Store
	boot, booted := fmt.Sprintf("boot-%d", h.boot), h.booted
	h.mu.Unlock()
	hook := func() error {
		if h.burn() {
			a.die()
			return journal.ErrDead
		}
		return nil
	}
	var err error
	if a.jr, err = journal.OpenWith(h.Dir, "machine-"+h.Name, journal.Options{BeforeWrite: hook, AfterWrite: hook}); err != nil {
		if a.isDead() {
			h.reconnect()
		}
		return nil, err
	}
	store := kvstore.Store(a.store)
	if h.opts.Wrap != nil {
		store = h.opts.Wrap(a.store)
	}
	log := h.opts.Log
	if log == nil {
		log = slog.New(slog.NewTextHandler(testWriter{h.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	log = log.With("host", name)
	a.cache = snapshot.Open(h.Dir, log)
	var m *mirror.Mirror
	a.cluster = cluster.New(cluster.Config{
		Store: store, Journal: a.jr, Cache: a.cache, Name: name, VTEP: vtep, MTU: h.opts.MTU, Version: "sim", Machine: "machine-" + h.Name, Boot: boot,
		Rest: h.opts.Rest, Grace: h.opts.Grace, Uptime: func() time.Duration { return time.Since(booted) },
		Log: log, Changed: h.noteChange, SpecsChanged: h.lookAtEngine, Apart: !h.opts.Everywhere,
	})
	if h.opts.Whole {
		cfg := mirror.Config{Engine: eye{h}, Facts: a.cluster, Log: log, Witness: eye{h}}
		if h.opts.Everywhere {
			cfg.Everywhere = true
			cfg.Driver = func(context.Context) (string, error) { return "carrick", nil }
			cfg.Patience, cfg.Every, cfg.Retry, cfg.Objections = time.Second, 200*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
			cfg.Yield = 200 * time.Millisecond
		}
		m = mirror.New(cfg)
		h.mu.Lock()
		h.mirror = m
		h.mu.Unlock()
	}
	a.ipam = ipam.New(ipam.Config{
		Cluster: a.cluster, Defaults: []ipam.DefaultPool{{Base: prefix("10.128.0.0/9"), Size: 16}, {Base: prefix("fd88:93b9:19b6::/48"), Size: 64}},
		HostPrefixes: func(context.Context) ([]netip.Prefix, error) { return HostPrefixes(), nil }, Log: log, Segment: h.opts.Segment,
	})
	dcfg := driver.Config{Cluster: a.cluster, Pools: a.ipam, Realizer: h, Log: log}
	if h.opts.Everywhere {
		dcfg.Own = m.Removing
	}
	dcfg.Devices, dcfg.Routing = h.opts.Devices, h.opts.Routing
	a.driver = driver.New(dcfg)
	h.mu.Lock()
	h.agent, h.Cluster, h.IPAM, h.Driver = a, a.cluster, a.ipam, a.driver
	h.mu.Unlock()
	tasks := []func(context.Context) error{a.ipam.Run}
	if m != nil {
		tasks = append(tasks, m.Run, a.followUsed)
	}
	go func() {
		var beside sync.WaitGroup
		for _, task := range tasks {
			beside.Go(func() { _ = task(a.ctx) })
		}
		err := a.cluster.Run(a.ctx)
		a.cancel()
		beside.Wait()
		a.ended <- err
	}()
	return a, nil
}

// burn shortens the fuse and says whether it has burnt down.
func (h *Host) burn() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fuse == 0 {
		return false
	}
	h.fuse--
	return h.fuse == 0
}

// reconnect replaces the store's client of a killed agent by that of the next.
func (h *Host) reconnect() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Store = h.server.Client(h.Name)
	if h.cut {
		h.Store.Cut()
	}
	if h.blind {
		h.Store.BlockWatches()
	}
}

// Crash ends the agent; its state directory stays, its lease ends at once.
func (h *Host) Crash() {
	h.mu.Lock()
	a := h.agent
	h.agent = nil
	h.mu.Unlock()
	if a == nil {
		return
	}
	a.cancel()
	if err := <-a.ended; err != nil {
		h.t.Errorf("%s: %v", h.Name, err)
	}
	_ = errors.Join(a.cache.Close(), a.jr.Close())
	if a.isDead() {
		h.reconnect()
	}
}

// Kill ends the agent as SIGKILL does: its lease runs out by itself.
func (h *Host) Kill() {
	h.mu.Lock()
	a := h.agent
	h.mu.Unlock()
	if a != nil {
		a.die()
		h.Crash()
	}
}

// KillAtWrite lets the agent die at a write of its journal: the first from now on
// for n of 1 or 2, before it and after it, the second for 3 or 4. 0: never.
func (h *Host) KillAtWrite(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fuse = n
}

// Fused says whether KillAtWrite has still to happen.
func (h *Host) Fused() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fuse > 0
}

// Running says whether there is an agent that could answer.
func (h *Host) Running() bool { return h.running() != nil }

func (h *Host) running() *agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil || h.agent.isDead() {
		return nil
	}
	return h.agent
}

// Reap clears away an agent that died at a write.
func (h *Host) Reap() {
	h.mu.Lock()
	a := h.agent
	h.mu.Unlock()
	if a != nil && a.isDead() {
		h.Crash()
	}
}

// CutStore keeps the host from the store, also over restarts of its agent, until
// HealStore.
func (h *Host) CutStore() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut = true
	h.Store.Cut()
}

// BlindStore keeps watches from returning, also over restarts of the agent, until
// HealStore.
func (h *Host) BlindStore() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blind = true
	h.Store.BlockWatches()
}

// HealStore ends CutStore and BlindStore.
func (h *Host) HealStore() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut, h.blind = false, false
	h.Store.Heal()
	h.Store.UnblockWatches()
}

// followUsed follows the networks that have endpoints here, and no longer than a
// minute those that have none, as the real agent's workers do.
func (a *agent) followUsed(ctx context.Context) error {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	idle := map[carrick.NetworkID]int{}
	for {
		for _, n := range a.jr.Networks() {
			id := n.Conf.ID
			switch {
			case len(a.jr.Endpoints(id)) > 0:
				a.cluster.Follow(id)
				delete(idle, id)
			case idle[id] < 2:
				idle[id]++
			default:
				a.cluster.Unfollow(id)
				delete(idle, id)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
