package history

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/internal/sim"
)

// back says whether a removed host takes part in the cluster again.
func (w *world) back(h *sim.Host) bool {
	if !h.Running() {
		return false
	}
	if _, removed := w.server.Peek("v1/removed/" + string(h.Cluster.Self())); removed {
		return false
	}
	_, there := w.server.Peek("v1/host/" + string(h.Cluster.Self()))
	j := h.Cluster.InspectJournal()
	return there && !j.Behind && !j.Fenced && j.Epoch.Inc == w.epoch().Inc
}

// beQuiet ends all faults, waits until nothing is under way any more, and then
// wants nothing to be wrong.
func (w *world) beQuiet() {
	w.say("--- quiet")
	w.storeBack(op{})
	w.calm(op{})
	w.server.Deliver()
	for _, h := range w.hosts {
		w.healHost(h)
		h.KillAtWrite(0)
		delete(w.fused, h)
		if !h.On() {
			w.boot(h)
		} else if !h.Running() {
			w.startOn(h)
		}
	}
	var found []check.Finding
	began := time.Now()
	for _, d := range []time.Duration{0, 5, 15, 60, 60, 60, 120, 300, 600, 1200} {
		w.sleep(d * time.Second)
		var err error
		found, err = w.findings()
		if err != nil {
			w.fail("look at everything: %v", err)
			return
		}
		if len(found) == 0 {
			w.quiets++
			w.losses = 0
			clear(w.removed)
			clear(w.revived)
			w.say("--- all is well after %s", time.Since(began))
			return
		}
		if w.mend(found) {
			w.sleep(time.Second)
		}
		w.holdersAreAlone()
		if w.failure() != "" {
			return
		}
	}
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	w.fail("after %s without a fault:\n%s%s", time.Since(began), &b, w.server.Dump())
}

func (w *world) findings() ([]check.Finding, error) {
	ctx, cancel := w.ctx()
	defer cancel()
	f, err := sim.Look(ctx, w.server, w.hosts, nil)
	if err != nil {
		return nil, err
	}
	return check.Only(check.Run(f), check.Wrong, check.Transient), nil
}

// mend does what findings ask an operator for: a container whose address is
// another host's by now is restarted, a network whose place another one took while
// this host was away is removed here. It says whether it did anything.
func (w *world) mend(found []check.Finding) (did bool) {
	for _, f := range found {
		h := w.hostThat(0, func(h *sim.Host) bool { return h.Cluster.Self() == f.Host })
		switch {
		case h == nil || f.Severity != check.Wrong:
		case f.Rule == check.FencedRule:
			did = w.restartWith(h, func(c *sim.Container) bool { return c.Endpoint.Short() == f.Object }) || did
		case f.Rule == check.Unowned:
			did = w.restartWith(h, func(c *sim.Container) bool { return c.Addr.Addr().String() == f.Object }) || did
		case f.Rule == check.NetworkRule && superseded(h):
			did = w.removeNetwork(h, f.Network) || did
		}
	}
	return did
}

func (w *world) restartWith(h *sim.Host, has func(*sim.Container) bool) (did bool) {
	for _, b := range w.boxes {
		if b.host == h && slices.ContainsFunc(b.Parts(), has) {
			w.say("%s: %s is restarted, as a finding says", h.Name, b.Name)
			w.count("mend", "restart")
			_ = b.Stop()
			_ = b.Start()
			did = true
		}
	}
	return did
}

func (w *world) removeNetwork(h *sim.Host, id carrick.NetworkID) bool {
	for name, n := range h.Networks() {
		if rec, err := h.Cluster.Journal().ByAlias(n.ID); err != nil || rec.Conf.ID != id {
			continue
		}
		for _, b := range slices.Clone(w.boxes) {
			if b.host == h && b.In(n) {
				_ = b.Remove()
				w.forget(b)
			}
		}
		err := h.NetworkRm(name)
		w.say("%s: network %s is removed, as a finding says: %s", h.Name, name, outcome(nil, err))
		w.count("mend", "network rm")
		return true
	}
	return false
}
