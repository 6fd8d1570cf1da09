package soak

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// What people do: networks and containers.

// blockKept is less than how long a host keeps a block that it does not use.
const blockKept = 4 * time.Minute

// mustStart says whether a container has no excuse for not starting on a host: the
// store is there, or the host certainly has a block of the network and does not
// need it.
func (w *world) mustStart(h *lab.Host, nets []string, guest bool) bool {
	for _, name := range nets {
		if n := w.nets[name]; n.tiny {
			return false // they may all be given out, or rest
		}
		if w.disturbed && (guest || !w.hasBlock(h, name)) {
			return false
		}
	}
	return true
}

// hasBlock says whether a host has certainly a block of a network: it gave an
// address out of it a moment ago.
func (w *world) hasBlock(h *lab.Host, net string) bool {
	for _, b := range w.boxes {
		if b.host == h && !b.guest && slices.Contains(b.nets, net) && (b.runs || !b.since.IsZero() && time.Since(b.since) < blockKept) {
			return true
		}
	}
	return false
}

// newBox chooses a host and a network of it for a new box.
func (w *world) newBox() (*box, bool) {
	h := w.host()
	n, ok := pick(w.rand, w.nets, func(n *network) bool { return n.on[h] })
	if !ok || len(w.boxes) >= maxBoxes {
		return nil, false
	}
	w.count++
	return &box{name: fmt.Sprintf("box%d", w.count), host: h, nets: []string{n.name}, returns: w.rand.IntN(2) == 0}, true
}

func (b *box) runArgs() []string {
	args := []string{"run", "-d", "--name", b.name, "--hostname", b.name, "--network", b.nets[0]}
	if b.returns {
		args = append(args, "--restart", "always")
	}
	if b.fixed != "" {
		args = append(args, "--ip", b.fixed)
	}
	return append(args, lab.Image)
}

// run starts a container.
func (w *world) run(t *testing.T) {
	b, ok := w.newBox()
	if !ok {
		return
	}
	w.say(t, "run %s on %s in %s", b.name, b.host.Name(), b.nets[0])
	w.needAgent(t, b.host)
	_, err := b.host.Docker(t.Context(), b.runArgs()...)
	w.started(t, b, err)
}

// runFixed starts a container with an address that nobody has: of a block of its
// host, or any.
func (w *world) runFixed(t *testing.T) {
	b, ok := w.newBox()
	if !ok {
		return
	}
	subnet := netip.MustParsePrefix(w.nets[b.nets[0]].subnet)
	within, own := subnet, w.rand.IntN(2) == 0
	if own {
		// Blocks of a /16 have 64 addresses.
		other, ok := pick(w.rand, w.boxes, func(o *box) bool {
			return o.host == b.host && o.runs && !o.guest && o.nets[0] == b.nets[0] && !w.nets[o.nets[0]].tiny
		})
		if !ok {
			return
		}
		if err := w.look(t.Context(), other); err != nil {
			t.Error(err)
			return
		}
		within = netip.PrefixFrom(netip.MustParseAddr(other.addrs[b.nets[0]]), 26).Masked()
	}
	a := within.Addr().As4()
	n := 2 + w.rand.IntN(1<<(32-within.Bits())-3) // not the network's, the gateway's, the broadcast address
	a[2] += byte(n >> 8)
	a[3] += byte(n)
	b.fixed, b.guest = netip.AddrFrom4(a).String(), !own
	for _, o := range w.boxes {
		if o.fixed == b.fixed || slices.Contains(slices.Collect(maps.Values(o.addrs)), b.fixed) {
			return // somebody may have it
		}
	}
	w.say(t, "run %s on %s in %s with --ip %s", b.name, b.host.Name(), b.nets[0], b.fixed)
	w.needAgent(t, b.host)
	_, err := b.host.Docker(t.Context(), b.runArgs()...)
	if err != nil && strings.Contains(err.Error(), "in use") {
		t.Logf("which somebody has: %v", err) // an address given out since the last check
		b.host.MustDocker(t, "rm", "-f", b.name)
		return
	}
	w.started(t, b, err)
}

// started notes how the start of a box went.
func (w *world) started(t *testing.T, b *box, err error) {
	t.Helper()
	if err == nil {
		b.runs, b.since = true, time.Now()
		w.boxes[b.name] = b
		return
	}
	if w.mustStart(b.host, b.nets, b.guest) {
		t.Error(err)
	}
	t.Logf("which failed: %v", err)
	// What has failed to start is of no use to the checks.
	b.host.MustDocker(t, "rm", "-f", b.name)
	delete(w.boxes, b.name)
}

// crowd starts several containers at once, on all hosts.
func (w *world) crowd(t *testing.T) {
	var all []*box
	for range 4 {
		if b, ok := w.newBox(); ok && len(w.boxes)+len(all) < maxBoxes {
			all = append(all, b)
			w.needAgent(t, b.host)
		}
	}
	if len(all) < 2 {
		return
	}
	var names []string
	for _, b := range all {
		names = append(names, b.name+" on "+b.host.Name()+" in "+b.nets[0])
	}
	w.say(t, "run at once %s", strings.Join(names, ", "))
	errs := make([]error, len(all))
	var running sync.WaitGroup
	for i, b := range all {
		running.Go(func() { _, errs[i] = b.host.Docker(t.Context(), b.runArgs()...) })
	}
	running.Wait()
	for i, b := range all {
		w.started(t, b, errs[i])
	}
}

func (w *world) remove(t *testing.T) {
	b, ok := pick(w.rand, w.boxes, nil)
	if !ok {
		return
	}
	w.say(t, "remove %s from %s", b.name, b.host.Name())
	w.needAgent(t, b.host)
	b.host.MustDocker(t, "rm", "-f", b.name)
	delete(w.boxes, b.name)
}

func (w *world) restart(t *testing.T) {
	b, ok := pick(w.rand, w.boxes, nil)
	if !ok {
		return
	}
	w.say(t, "restart %s on %s", b.name, b.host.Name())
	w.needAgent(t, b.host)
	_, err := b.host.Docker(t.Context(), "restart", "-t", "1", b.name)
	w.started(t, b, err)
}

func (w *world) stop(t *testing.T) {
	b, ok := pick(w.rand, w.boxes, func(b *box) bool { return b.runs })
	if !ok {
		return
	}
	w.say(t, "stop %s on %s", b.name, b.host.Name())
	w.needAgent(t, b.host)
	b.host.MustDocker(t, "stop", "-t", "1", b.name)
	b.runs, b.since = false, time.Now()
}

func (w *world) start(t *testing.T) {
	b, ok := pick(w.rand, w.boxes, func(b *box) bool { return !b.runs })
	if !ok {
		return
	}
	w.say(t, "start %s on %s", b.name, b.host.Name())
	w.needAgent(t, b.host)
	_, err := b.host.Docker(t.Context(), "start", b.name)
	w.started(t, b, err)
}

// connect attaches a box to another network of its host, or detaches it.
func (w *world) connect(t *testing.T) {
	b, ok := pick(w.rand, w.boxes, func(b *box) bool { return b.runs })
	if !ok {
		return
	}
	w.needAgent(t, b.host)
	if len(b.nets) > 1 {
		w.say(t, "disconnect %s on %s from %s", b.name, b.host.Name(), b.nets[1])
		b.host.MustDocker(t, "network", "disconnect", b.nets[1], b.name)
		b.nets = b.nets[:1]
		return
	}
	n, ok := pick(w.rand, w.nets, func(n *network) bool { return n.on[b.host] && n.name != b.nets[0] })
	if !ok {
		return
	}
	w.say(t, "connect %s on %s to %s", b.name, b.host.Name(), n.name)
	if _, err := b.host.Docker(t.Context(), "network", "connect", n.name, b.name); err != nil {
		t.Logf("which failed: %v", err)
		if w.mustStart(b.host, []string{n.name}, false) {
			t.Error(err)
		}
		return
	}
	b.nets = append(b.nets, n.name)
}

// addNetwork makes a network on all hosts, or as many as can.
func (w *world) addNetwork(t *testing.T) {
	if len(w.nets) >= maxNets {
		return
	}
	w.count++
	n := &network{name: fmt.Sprintf("net%d", w.count), subnet: fmt.Sprintf("10.%d.0.0/16", 60+w.count%128), on: map[*lab.Host]bool{}}
	if len(w.nets) > 0 && w.rand.IntN(3) == 0 {
		n.subnet, n.tiny = fmt.Sprintf("10.%d.0.0/28", 60+w.count%128), true
	}
	w.say(t, "make network %s of %s", n.name, n.subnet)
	for _, h := range w.Hosts() {
		w.join(t, h, n)
	}
	if len(n.on) > 0 {
		w.nets[n.name] = n
	}
}

// join makes a network on one host.
func (w *world) join(t *testing.T, h *lab.Host, n *network) {
	t.Helper()
	w.needAgent(t, h)
	_, err := h.Docker(t.Context(), "network", "create", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", n.subnet, n.name)
	if err == nil {
		n.on[h] = true
		return
	}
	t.Logf("which failed on %s: %v", h.Name(), err)
	if !w.disturbed {
		t.Error(err)
	}
}

// joinLate makes a network on a host that does not have it.
func (w *world) joinLate(t *testing.T) {
	h := w.host()
	n, ok := pick(w.rand, w.nets, func(n *network) bool { return !n.on[h] })
	if !ok {
		return
	}
	w.say(t, "make network %s on %s as well", n.name, h.Name())
	w.join(t, h, n)
}

// leave removes a network that has no container on a host, from that host.
func (w *world) leave(t *testing.T) {
	h := w.host()
	n, ok := pick(w.rand, w.nets, func(n *network) bool { return n.on[h] && len(n.on) > 1 && !w.uses(h, n.name) })
	if !ok {
		return
	}
	w.say(t, "remove network %s from %s", n.name, h.Name())
	w.needAgent(t, h)
	w.forget(t, h, n)
}

// uses says whether a host has containers in a network, running or not.
func (w *world) uses(h *lab.Host, net string) bool {
	for _, b := range w.boxes {
		if b.host == h && slices.Contains(b.nets, net) {
			return true
		}
	}
	return false
}

func (w *world) removeNetwork(t *testing.T) {
	n, ok := pick(w.rand, w.nets, nil)
	if !ok || len(w.nets) < 2 {
		return
	}
	w.say(t, "remove network %s with all that is in it", n.name)
	w.drop(t, n)
}

// drop removes a network and its containers everywhere.
func (w *world) drop(t *testing.T, n *network) {
	t.Helper()
	for _, h := range w.Hosts() {
		w.needAgent(t, h)
	}
	for _, name := range slices.Sorted(maps.Keys(w.boxes)) {
		if b := w.boxes[name]; slices.Contains(b.nets, n.name) {
			b.host.MustDocker(t, "rm", "-f", name)
			delete(w.boxes, name)
		}
	}
	for _, h := range w.Hosts() {
		if n.on[h] {
			w.forget(t, h, n)
		}
	}
	delete(w.nets, n.name)
}

// forget removes a network that nobody uses from a host. An engine may count an
// endpoint for a moment after it said that the container is gone.
func (w *world) forget(t *testing.T, h *lab.Host, n *network) {
	t.Helper()
	lab.Eventually(t, calm, h.Name()+" to remove "+n.name, func() error {
		_, err := h.Docker(t.Context(), "network", "rm", n.name)
		return err
	})
	delete(n.on, h)
}
