package history

import (
	"errors"
	"strings"
	"sync"

	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
)

// create is docker network create on one host: the network's first creation, or a
// join.
func (w *world) create(o op) {
	h := w.hostThat(o.a, (*sim.Host).On)
	p := w.plans[int(o.b)%len(w.plans)]
	if h == nil || h.Networks()[p.name] != nil {
		return
	}
	fine, runs := w.fine(h), h.Running() && !w.fused[h]
	_, err := h.NetworkCreate(p.name, p.create)
	w.say("%s: network create %s: %s", h.Name, p.name, outcome(nil, err))
	switch {
	case err == nil:
		w.count("network create", "ok")
	case !runs || errors.Is(err, sim.ErrNoAgent) || errors.Is(err, sim.ErrOff):
		w.count("network create", "no agent")
	case errors.Is(err, cluster.ErrAliased):
		w.count("network create", "the engine forgot one") // mirror looks into it
	case !fine || !w.fine(h):
		w.count("network create", "no store")
	case errors.Is(err, ipam.ErrNoReservation) || strings.Contains(err.Error(), "under way"):
		w.count("network create", "reserved")
	default:
		w.fail("network create %s on %s: %v", p.name, h.Name, err)
	}
}

// networkRm is docker network rm, in half of the cases after the containers in it
// were removed.
func (w *world) networkRm(o op) {
	h := w.hostThat(o.a, func(h *sim.Host) bool { return h.On() && len(h.Networks()) > 0 })
	if h == nil {
		return
	}
	n := w.network(h, o.b)
	for _, b := range append([]*box{}, w.boxes...) {
		if o.c%2 == 0 && b.host == h && b.In(n) {
			w.end1("remove", b, b.Remove)
			w.forget(b)
		}
	}
	for _, b := range w.boxes {
		if b.host == h && b.In(n) && !b.Up() {
			return // a stopped container would look for it in vain
		}
	}
	fine, runs := w.fine(h), h.Running() && !w.fused[h]
	err := h.NetworkRm(n.Name)
	w.say("%s: network rm %s: %s", h.Name, n.Name, outcome(nil, err))
	switch {
	case err == nil:
		w.count("network rm", "ok")
	case errors.Is(err, sim.ErrActive):
		w.count("network rm", "has containers")
	case !runs || errors.Is(err, sim.ErrNoAgent) || errors.Is(err, sim.ErrOff):
		w.count("network rm", "no agent")
	case !fine || !w.fine(h):
		w.count("network rm", "told later")
	default:
		w.fail("network rm %s on %s: %v", n.Name, h.Name, err)
	}
}

// killAgent is kill -9.
func (w *world) killAgent(o op) {
	if h := w.hostThat(o.a, (*sim.Host).Running); h != nil {
		w.say("%s: agent killed", h.Name)
		h.Kill()
	}
}

// crashAtWrite lets an agent die at one of its next writes.
func (w *world) crashAtWrite(o op) {
	if h := w.hostThat(o.a, (*sim.Host).Running); h != nil {
		w.say("%s: agent will die at write %d", h.Name, 1+o.b%12)
		h.KillAtWrite(int(1 + o.b%12))
		w.fused[h] = true
	}
}

func (w *world) stopAgent(o op) {
	if h := w.hostThat(o.a, (*sim.Host).Running); h != nil {
		w.say("%s: agent stopped", h.Name)
		h.Crash()
	}
}

func (w *world) startAgent(o op) {
	if h := w.hostThat(o.a, func(h *sim.Host) bool { return h.On() && !h.Running() }); h != nil {
		w.startOn(h)
	}
}

// startOn starts an agent, which may die at its first write.
func (w *world) startOn(h *sim.Host) {
	err := h.StartCut()
	w.say("%s: agent started: %s", h.Name, outcome(nil, err))
	if !h.Fused() {
		delete(w.fused, h)
	}
	if err != nil && !w.fused[h] && h.Fused() {
		w.fail("%s: agent not started: %v", h.Name, err)
	}
}

func (w *world) powerOff(o op) {
	if h := w.hostThat(o.a, (*sim.Host).On); h != nil {
		w.say("%s: power off", h.Name)
		h.PowerOff()
	}
}

// powerOn boots a host: its agent and its engine start at the same time.
func (w *world) powerOn(o op) {
	if h := w.hostThat(o.a, func(h *sim.Host) bool { return !h.On() }); h != nil {
		w.boot(h)
	}
}

func (w *world) boot(h *sim.Host) {
	w.say("%s: power on", h.Name)
	h.PowerOn()
	var wg sync.WaitGroup
	wg.Go(func() { w.startOn(h) })
	wg.Go(func() { w.say("%s: engine started: %s", h.Name, outcome(nil, h.EngineStart())) })
	wg.Wait()
}

// engineRestart is dockerd's kill -9 and its next start.
func (w *world) engineRestart(o op) {
	h := w.hostThat(o.a, (*sim.Host).On)
	if h == nil {
		return
	}
	h.EngineStop()
	w.say("%s: engine restarted: %s", h.Name, outcome(nil, h.EngineStart()))
}

// nodeRm is carrick node rm on one host, of another.
func (w *world) nodeRm(o op) {
	by := w.hostThat(o.a, (*sim.Host).Running)
	h := w.host(o.b)
	if by == nil || by == h {
		return
	}
	force := o.c%4 == 0
	fine := w.fine(by)
	w.gone[h], w.removed[h] = true, true // it may happen whatever the answer is
	ctx, cancel := w.ctx()
	defer cancel()
	_, err := by.Cluster.RemoveHost(ctx, h.Name, force)
	w.say("%s: node rm %s, force %t: %s", by.Name, h.Name, force, outcome(nil, err))
	switch {
	case err == nil:
		w.count("node rm", "ok")
	case errors.Is(err, cluster.ErrAlive) && !force:
		w.count("node rm", "alive")
		delete(w.gone, h)
	case errors.Is(err, cluster.ErrUnknownHost):
		w.count("node rm", "unknown")
	case !fine || !w.fine(by):
		w.count("node rm", "no store")
	default:
		w.fail("node rm %s on %s: %v", h.Name, by.Name, err)
	}
}

// look asks a host everything that can be asked.
func (w *world) look(o op) {
	if h := w.hostThat(o.a, (*sim.Host).Running); h != nil {
		_ = h.Cluster.Health()
		_ = h.Cluster.Conflicts()
		_, _ = h.Cluster.Hosts()
		_ = h.Sides()
	}
}
