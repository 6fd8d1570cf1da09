package sriov_test

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/datapath/underlay/undertest"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/vmtest"
	"github.com/carrick-net/carrick/plan"
)

// Containers on real virtual functions, two of one card. The parts build on each other:
// there is one card, and what each leaves is what the next finds.
func TestApplier(t *testing.T) {
	vmtest.Run(t, vmtest.Needs{Cards: 2}, func(t *testing.T) {
		w := newWorld(t)
		part := func(name string, fn func()) {
			t.Helper()
			began := time.Now()
			fn()
			t.Logf("%s: %s", name, time.Since(began).Round(time.Millisecond))
		}
		part("without functions", w.withoutFunctions)
		w.functions(2)
		before := w.state()
		var a, b *nstest.Container
		part("two containers", func() { a, b = w.twoContainers() })
		part("a third", w.aThird)
		part("restart", func() { w.adopts(a, b) })
		part("vandalism", func() { w.vandalism(a, b) })
		part("fencing", func() { w.fencing(a) })
		part("stop", func() { w.stops(a, b) })
		part("death", w.dies)
		part("death unseen", w.diesUnseen)
		w.asBefore(before)
	})
}

// asBefore fails the test unless the host has what it had: but for the name and MAC of the
// function whose alias somebody took off, since nobody knows what it was.
func (w *world) asBefore(before string) {
	w.t.Helper()
	w.collect()
	w.run("ip link set pf0v0 name eth0")
	mac := regexp.MustCompile(`(?m)^(eth0: .*link/ether) \S+`)
	if after := mac.ReplaceAllString(w.state(), "$1"); after != mac.ReplaceAllString(before, "$1") {
		w.t.Errorf("the host has\n%s\nhad\n%s", after, before)
	}
}

// withoutFunctions is a card that has made none.
func (w *world) withoutFunctions() {
	w.t.Helper()
	err := w.on.CheckParent(w.t.Context(), w.view.Network, carrick.Parent{Name: "pf0"})
	w.says(err, underlay.ErrNoFunctions, "host h1", "parent pf0", "it can have 7", "echo 7 >/sys/class/net/pf0/device/sriov_numvfs")
	w.run("ip link add plain0 type dummy")
	w.run("ip link set plain0 up")
	err = w.on.CheckParent(w.t.Context(), w.view.Network, carrick.Parent{Name: "plain0"})
	w.says(err, underlay.ErrNoFunctions, "parent plain0", "no PCI device", "are pf0")
	w.run("ip link del plain0")
}

func (w *world) says(err, kind error, words ...string) {
	w.t.Helper()
	if !errors.Is(err, kind) || slices.ContainsFunc(words, func(x string) bool { return !strings.Contains(err.Error(), x) }) {
		w.t.Errorf("%v, want %v with %q", err, kind, words)
	}
}

// twoContainers reach each other, within the card, and a machine on the segment.
func (w *world) twoContainers() (a, b *nstest.Container) {
	w.t.Helper()
	if err := w.on.CheckParent(w.t.Context(), w.view.Network, carrick.Parent{Name: "pf0"}); err != nil {
		w.t.Error(err)
	}
	a, b = w.start(2), w.start(3)
	w.answers(a, b, w.far)
	w.reaches(a, b, w.far)
	w.reaches(b, a, w.far)
	w.reaches(w.far, a, b)
	if rep := w.audit(); rep.Changes.Total() != 0 || len(rep.Problems) != 0 {
		w.t.Errorf("an audit changed %v, problems %q", rep.Changes, rep.Problems)
	}
	// The card connects the host as well, unlike a device that has others standing on it.
	w.run("ip addr add 10.42.0.250/16 dev pf0")
	if err := nstest.TryExchange(w.host, netip.AddrPortFrom(a.Addrs[0], 7), 100, slow); err != nil {
		w.t.Errorf("the host does not reach its container: %v", err)
	}
	w.run("ip addr del 10.42.0.250/16 dev pf0")
	// So it hears its own containers when it asks who has an address.
	for addr, want := range map[netip.Addr]string{a.Addrs[0]: "", undertest.Addr(99): "", w.far.Addrs[0]: vmtest.CardMAC(1).String() + " on the segment of pf0"} {
		if who, err := w.on.Foreign(w.t.Context(), carrick.Parent{Name: "pf0"}, addr); err != nil || who != want {
			w.t.Errorf("%s is held by %q, %v, not by %q", addr, who, err, want)
		}
	}
	// The card does not let a container send under another MAC, nor its driver take one.
	if out, err := nstest.Try(a.NS, "ip link set eth0 address 02:00:00:00:00:99"); err == nil {
		w.t.Errorf("a container took another MAC: %s", out)
	}
	return a, b
}

// aThird is refused while both functions are taken, and who has them is in the error.
func (w *world) aThird() {
	w.t.Helper()
	w.add(4)
	rep, err := w.apply()
	if err != nil || rep.Endpoints[undertest.Endpoint(2)] != nil {
		w.t.Errorf("%v, %v", err, rep.Endpoints)
	}
	w.says(rep.Endpoints[undertest.Endpoint(4)], underlay.ErrFunctionsTaken, "host h1", "parent pf0", "it has 2",
		"virtfn0: endpoint "+undertest.Endpoint(2).Short(), "virtfn1: endpoint "+undertest.Endpoint(3).Short())
	w.gone(4)
	w.mustApply()
}

// adopts is an agent that starts anew under running containers.
func (w *world) adopts(a, b *nstest.Container) {
	w.t.Helper()
	w.restart()
	w.collect()
	rep := w.mustApply()
	if rep.Changes.Total() != 0 || rep.Drift.Total() != 0 || len(rep.Problems) != 0 {
		w.t.Errorf("after a restart: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	w.reaches(w.far, a, b)
	// It can name who has a function that is out of its sight.
	w.aThird()
}

// vandalism is what somebody does by hand, on the host and in a container.
func (w *world) vandalism(a, b *nstest.Container) {
	w.t.Helper()
	w.audit()
	for _, line := range []string{"ip link set pf0 vf 0 mac 02:09:09:09:09:09", "ip link set pf0 vf 0 mac 02:09:09:09:09:0a"} {
		w.run(line)
		rep := w.audit()
		if rep.Drift != (datapath.Counts{Links: 1}) || len(rep.Found) != 1 || !strings.Contains(rep.Found[0].String(), "02:09:09:09:09:") {
			w.t.Errorf("%s: drift %v, found %v", line, rep.Drift, rep.Found)
		}
		w.reaches(a, b, w.far)
	}
	nstest.Run(w.t, a.NS, "ip link set eth0 alias theirs")
	if rep := w.audit(); rep.Drift != (datapath.Counts{Links: 1}) {
		w.t.Errorf("another alias: drift %v, found %v, problems %q", rep.Drift, rep.Found, rep.Problems)
	}
	if out := nstest.Run(w.t, a.NS, "ip link show eth0"); !strings.Contains(out, plan.ChildAlias(undertest.Network, undertest.Endpoint(2))+"/vf/pf0v0/") {
		w.t.Errorf("the device is %s", out)
	}
	// A function that is trusted may choose: that is Docker's to put right.
	w.run("ip link set pf0 vf 0 trust on")
	nstest.Run(w.t, a.NS, "ip link set eth0 address 02:00:00:00:00:99")
	rep := w.audit()
	if !slices.ContainsFunc(rep.Problems, func(p string) bool {
		return strings.Contains(p, "02:00:00:00:00:99") && strings.Contains(p, "docker restart")
	}) {
		w.t.Errorf("another MAC in a container: problems %q", rep.Problems)
	}
	nstest.Run(w.t, a.NS, fmt.Sprintf("ip link set eth0 address %s", mac(2)))
	w.run("ip link set pf0 vf 0 trust off")
	if rep := w.audit(); len(rep.Problems) != 0 {
		w.t.Errorf("problems %q", rep.Problems)
	}
	w.reaches(w.far, a, b)
}

// fencing cuts a container off, and lets it come back.
func (w *world) fencing(a *nstest.Container) {
	w.t.Helper()
	ep := undertest.Endpoint(2)
	w.view.Fenced[ep] = true
	w.mustApply()
	w.misses(w.far, a)
	w.restart()
	nstest.Run(w.t, a.NS, "ip link set eth0 up") // by whoever is in there
	w.mustApply()
	w.misses(w.far, a)
	delete(w.view.Fenced, ep)
	w.mustApply()
	w.reaches(w.far, a)
}

// stops is a container that Docker stops: its function is free, and the next one's.
func (w *world) stops(a, b *nstest.Container) {
	w.t.Helper()
	w.stop(a, 2)
	if out := w.state(); strings.Contains(out, "carrick/") || strings.Contains(out, mac(2).String()) {
		w.t.Errorf("a stopped container's function: %s", out)
	}
	c := w.start(5)
	w.reaches(c, b, w.far)
	w.stop(c, 5)
	w.stop(b, 3)
}

// dies is a container whose namespace ends before anybody has taken its device out.
func (w *world) dies() {
	w.t.Helper()
	c := w.start(6)
	w.reaches(c, w.far)
	a := w.on.Network(undertest.Network)
	select {
	case <-a.Changed():
		w.mustApply()
	default:
	}
	w.die(c, 6)
	w.eventually("its function comes back", func() bool { return w.home(6) })
	select {
	case <-a.Changed():
	case <-time.After(slow):
		w.t.Error("nobody said that a function came back")
	}
	if rep := w.mustApply(); rep.Drift.Total() != 0 || !strings.Contains(w.run("ip link show"), undertest.Endpoint(6).OuterName()) {
		w.t.Errorf("a function came back: drift %v\n%s", rep.Drift, w.run("ip link show"))
	}
	w.gone(6)
	w.mustApply()
	c = w.start(8)
	w.reaches(c, w.far)
	w.stop(c, 8)
}

// diesUnseen is a container that ends while no agent is there, whose endpoint no journal
// has when one starts: its function is swept, and so is one that is only half taken.
func (w *world) diesUnseen() {
	w.t.Helper()
	c := w.start(7)
	w.gone(7)
	w.die(c, 7)
	w.eventually("its function comes back", func() bool { return w.home(7) })
	w.restart()
	w.collect()
	if w.home(7) {
		w.t.Errorf("left over: %s", w.run("ip link show"))
	}
}
