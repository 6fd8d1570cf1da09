package soak

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// What goes wrong: agents, engines, cables, the store, and hands in the kernel.

func (w *world) killAgent(t *testing.T) {
	h := w.host()
	if !h.AgentRunning() {
		return
	}
	w.say(t, "kill -9 the agent of %s", h.Name())
	if err := h.KillAgent(t.Context()); err != nil {
		t.Error(err)
	}
	w.needAgent(t, h)
}

func (w *world) stopAgent(t *testing.T) {
	h := w.host()
	if !h.AgentRunning() {
		return
	}
	w.say(t, "stop the agent of %s and leave it", h.Name())
	w.disturbed = true // it answers nobody who wants an address of its blocks
	if err := h.StopAgent(t.Context()); err != nil {
		t.Error(err)
	}
}

// restartEngine stops and starts an engine, or kills and starts it: what is to
// come back does, even if it was stopped.
func (w *world) restartEngine(t *testing.T) {
	h := w.host()
	w.needAgent(t, h)
	end, how := h.StopEngine, "stop"
	if w.rand.IntN(2) == 0 {
		end, how = h.KillEngine, "kill -9"
	}
	w.say(t, "%s and start the engine of %s", how, h.Name())
	if err := errors.Join(end(t.Context()), h.StartEngine(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(w.boxes)) {
		b := w.boxes[name]
		if b.host != h {
			continue
		}
		if !b.returns {
			if b.runs {
				b.runs, b.since = false, time.Now()
			}
			continue
		}
		must := w.mustStart(h, b.nets, b.guest)
		b.runs, b.since = true, time.Now()
		lab.Eventually(t, calm, name+" to be back on "+h.Name(), func() error {
			out, err := h.Docker(t.Context(), "inspect", "-f", "{{.State.Status}} {{.State.Error}}", name)
			switch {
			case err != nil || out == "running ":
				return err
			case !must && strings.HasPrefix(out, "exited ") && out != "exited ":
				b.runs = false
				return nil
			}
			return errors.New(out)
		})
		if !b.runs {
			t.Logf("%s did not come back", name)
			h.MustDocker(t, "rm", "-f", name)
			delete(w.boxes, name)
		}
	}
}

// damage does to a network's namespace what people do.
func (w *world) damage(t *testing.T) {
	h := w.host()
	names, err := h.Namespaces(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		return !strings.HasPrefix(n, "carrick-") || strings.HasPrefix(n, "carrick-probe-")
	})
	if len(names) == 0 {
		return
	}
	ns := names[w.rand.IntN(len(names))]
	harm := [][]string{
		{"ip", "-n", ns, "link", "set", "vxlan0", "down"},
		{"ip", "-n", ns, "link", "set", "br0", "down"},
		{"ip", "-n", ns, "link", "del", "vxlan0"},
		{"ip", "-n", ns, "link", "set", "vxlan0", "nomaster"},
		{"ip", "-n", ns, "neigh", "flush", "dev", "vxlan0", "nud", "permanent"},
		{"ip", "-n", ns, "link", "set", "vxlan0", "mtu", "1280"},
		{"bridge", "-n", ns, "fdb", "add", "02:00:00:00:00:99", "dev", "vxlan0", "dst", "172.31.0.99", "self", "permanent"},
		{"ip", "-n", ns, "neigh", "replace", "10.60.0.99", "lladdr", "02:00:00:00:00:99", "dev", "vxlan0", "nud", "permanent"},
		{"bridge", "-n", ns, "link", "set", "dev", "vxlan0", "learning", "on"},
	}[w.rand.IntN(9)]
	w.say(t, "on %s: %s", h.Name(), strings.Join(harm, " "))
	if _, err := h.Exec(t.Context(), harm...); err != nil {
		t.Logf("which failed: %v", err) // another hand was there first
	}
}

func (w *world) split(t *testing.T) {
	hosts := w.Hosts()
	i := w.rand.IntN(len(hosts))
	a, b := hosts[i], hosts[(i+1)%len(hosts)]
	w.say(t, "cut %s from %s", a.Name(), b.Name())
	w.disturbed = true
	if err := w.Split(t.Context(), a, b); err != nil {
		t.Error(err)
	}
}

// isolate separates a host from the store, from the other hosts, or from both.
func (w *world) isolate(t *testing.T) {
	h := w.host()
	what := []from{{store: true}, {hosts: true}, {true, true}}[w.rand.IntN(3)]
	what.store = what.store && !w.cut[h].store
	what.hosts = what.hosts && !w.cut[h].hosts
	if what == (from{}) {
		return
	}
	w.say(t, "cut %s from %s", h.Name(), map[from]string{{store: true}: "the store", {hosts: true}: "the hosts", {true, true}: "everybody"}[what])
	w.disturbed = true
	var err error
	if what.store {
		err = w.CutFromConsul(t.Context(), h)
	}
	if what.hosts {
		err = errors.Join(err, w.CutFromHosts(t.Context(), h))
	}
	if err != nil {
		t.Error(err)
	}
	w.cut[h] = from{w.cut[h].store || what.store, w.cut[h].hosts || what.hosts}
}

// heal plugs all cables in again.
func (w *world) heal(t *testing.T) {
	if len(w.cut) == 0 {
		return
	}
	w.say(t, "plug all cables in again")
	if err := w.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	clear(w.cut)
}

// toggleStore stops the store, or starts it.
func (w *world) toggleStore(t *testing.T) {
	w.disturbed = true
	do := w.Consul(1).Start
	if !w.storeOff {
		do = w.Consul(1).Kill
	}
	w.storeOff = !w.storeOff
	w.say(t, "%s the store", map[bool]string{true: "kill -9", false: "start"}[w.storeOff])
	if err := do(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// loseStore makes the store forget everything.
func (w *world) loseStore(t *testing.T) {
	if w.storeOff {
		return
	}
	w.say(t, "wipe the store")
	w.disturbed = true
	if err := w.Consul(1).Wipe(t.Context()); err != nil {
		t.Fatal(fmt.Errorf("wipe the store: %w", err))
	}
}

// restoreStore puts back the backup of the last quiet moment. Every host is there
// to object: what one that is silent has claimed since cannot be known.
func (w *world) restoreStore(t *testing.T) {
	if w.storeOff || len(w.cut) > 0 || w.backup == nil {
		return
	}
	for _, h := range w.Hosts() {
		w.needAgent(t, h)
	}
	w.say(t, "restore the store from the backup of the last quiet moment")
	w.disturbed = true
	if err := w.StoreRestore(t.Context(), w.backup); err != nil {
		t.Fatal(err)
	}
}
