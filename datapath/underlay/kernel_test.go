package underlay_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// Containers of two hosts on one segment: who reaches whom follows from the mode, as
// the kernel's documentation says, and the hosts have nothing to do with it.
func TestMacvlanModes(t *testing.T) {
	t.Parallel()
	for mode, neighbours := range map[string]bool{"bridge": true, "private": false, "vepa": false} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, macvlan(mode), 2)
			a, b, far := w.run(0, 2), w.run(0, 3), w.run(1, 4)
			w.answers(a, b, far)
			w.reaches(a, far)
			w.reaches(far, a, b)
			if neighbours {
				w.reaches(a, b)
				w.reaches(b, a)
			} else { // the switch reflects nothing
				w.misses(a, b)
				w.misses(b, a)
			}
			if got := nstest.Run(t, a.NS, "ip link show eth0"); !strings.Contains(got, carrick.MACFor(7, addr(2)).String()) {
				t.Errorf("the device is %s", got)
			}
		})
	}
	t.Run("passthru", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, macvlan("passthru"), 2)
		a, far := w.run(0, 2), w.run(1, 4)
		w.answers(a, far)
		w.reaches(a, far)
		w.reaches(far, a)
		// One container has the device for itself.
		w.add(0, 3)
		rep, err := w.apply(0)
		if err != nil || !errors.Is(rep.Endpoints[endpoint(3)], underlay.ErrParentBusy) {
			t.Errorf("a second container: %v, %v", rep.Endpoints[endpoint(3)], err)
		}
		says(t, rep.Endpoints[endpoint(3)], "passthru", "eth0")
		w.reaches(far, a)
	})
}

// An agent that ends and starts anew finds its devices wherever they are, changes
// nothing, and takes away what is of endpoints that are no more.
func TestARestartAdopts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 2)
	a, far := w.run(0, 2), w.run(1, 4)
	w.answers(a, far)
	w.add(0, 3) // its container is about to start
	w.mustApply(0)
	w.add(0, 5) // and this one's start fails
	w.mustApply(0)
	w.gone(0, 5)
	w.restart(0)
	rep := w.mustApply(0)
	if rep.Changes != (datapath.Counts{Links: 1}) || rep.Drift.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("after a restart: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	if links := nstest.Links(t, w.hosts[0].NS); links[endpoint(5).OuterName()] || !links[endpoint(3).OuterName()] {
		t.Errorf("the host has %v", links)
	}
	w.reaches(far, a)
	b := w.take(0, 3)
	w.view.Joined[endpoint(3)] = true
	w.answers(b)
	w.reaches(far, b)
	if rep := w.audit(0); rep.Changes.Total() != 0 {
		t.Errorf("an audit changed %v", rep.Changes)
	}
	// What a partial view does not know is left alone.
	w.add(0, 6)
	w.mustApply(0)
	w.gone(0, 6)
	w.view.Partial = true
	w.audit(0)
	if !nstest.Links(t, w.hosts[0].NS)[endpoint(6).OuterName()] {
		t.Error("a device was removed because of a view that is not whole")
	}
	w.view.Partial = false
	w.audit(0)
	if nstest.Links(t, w.hosts[0].NS)[endpoint(6).OuterName()] {
		t.Error("a device of no endpoint stays")
	}
}

// A crash between making a device and naming it ours: the next start takes it for what
// it is, by its name; one that no endpoint has is collected, and nobody else's is.
func TestHalfMadeDevices(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 1)
	ns := w.hosts[0].NS
	for _, name := range []string{endpoint(2).OuterName(), endpoint(3).OuterName(), "theirs", "ckmine"} {
		nstest.Run(t, ns, "ip link add "+name+" link eth0 type macvlan mode private")
	}
	w.add(0, 2)
	rep := w.mustApply(0)
	if rep.Changes.Links != 1 || rep.Drift.Total() != 0 {
		t.Errorf("changes %v, drift %v", rep.Changes, rep.Drift)
	}
	if out := nstest.Run(t, ns, "ip -d link show "+endpoint(2).OuterName()); !strings.Contains(out, "mode bridge") || !strings.Contains(out, plan.ChildAlias(network, endpoint(2))) || !strings.Contains(out, carrick.MACFor(7, addr(2)).String()) {
		t.Errorf("the device is %s", out)
	}
	if err := w.on[0].Collect(t.Context(), underlay.Wanted{Children: map[string]bool{endpoint(2).OuterName(): true}}); err != nil {
		t.Fatal(err)
	}
	links := nstest.Links(t, ns)
	for name, want := range map[string]bool{endpoint(2).OuterName(): true, endpoint(3).OuterName(): false, "theirs": true, "ckmine": true} {
		if links[name] != want {
			t.Errorf("link %s is there: %v, want %v", name, links[name], want)
		}
	}
}

// The last container ends: nothing of the network is left, and what is of another
// network stays.
func TestTheEndOfANetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 1)
	before := nstest.Links(t, w.hosts[0].NS)
	c := w.run(0, 2)
	w.hosts[0].TakeBack(c, endpoint(2).OuterName())
	if held, err := w.on[0].Inspect(t.Context(), network, w.view.Sandboxes); err != nil || !held[endpoint(2)].Home {
		t.Errorf("held %+v, %v", held, err)
	}
	w.gone(0, 2)
	if rep := w.mustApply(0); rep.Changes.Links != 1 {
		t.Errorf("changes %v", rep.Changes)
	}
	if after := nstest.Links(t, w.hosts[0].NS); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the host has %v, had %v", after, before)
	}
	if ids, err := w.on[0].List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("listed %v, %v", ids, err)
	}
	if rep := w.mustApply(0); rep.Changes.Total() != 0 {
		t.Errorf("once more: %v", rep.Changes)
	}
}

// Somebody changes what is Carrick's. What forwards is put right by the next audit; what
// is Docker's is told, with the remedy.
func TestVandalism(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 2)
	a, b, far := w.run(0, 2), w.run(0, 3), w.run(1, 4)
	w.answers(a, b, far)
	w.audit(0)

	nstest.Run(t, a.NS, "ip link set eth0 type macvlan mode private")
	w.misses(a, b)
	rep := w.audit(0)
	if rep.Drift != (datapath.Counts{Links: 1}) || len(rep.Found) != 1 || !strings.Contains(rep.Found[0].String(), "private") {
		t.Errorf("drift %v, found %v", rep.Drift, rep.Found)
	}
	w.reaches(a, b)

	nstest.Run(t, a.NS, "ip link set eth0 mtu 1400")
	nstest.Run(t, b.NS, "ip link set eth0 address 02:00:00:00:00:99")
	rep = w.audit(0)
	for _, want := range []string{"has MTU 1400, the network 1500", "has MAC 02:00:00:00:00:99"} {
		if !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, want) && strings.Contains(p, "docker restart") }) {
			t.Errorf("problems %q, want one with %q", rep.Problems, want)
		}
	}
	if rep := w.mustApply(0); len(rep.Problems) != 2 {
		t.Errorf("the next pass, which looked at nothing, forgot: %q", rep.Problems)
	}

	nstest.Run(t, a.NS, "ip link del eth0")
	w.on[0].Network(network).QueueResync("audit")
	rep, err := w.apply(0)
	if err != nil || !errors.Is(rep.Endpoints[endpoint(2)], datapath.ErrPairMissing) || rep.Endpoints[endpoint(3)] != nil {
		t.Errorf("a device deleted in its container: %v, %v, %v", rep.Endpoints[endpoint(2)], rep.Endpoints[endpoint(3)], err)
	}

	// One that is not yet Docker's is made again, and counts.
	w.gone(0, 2)
	w.add(0, 6)
	w.mustApply(0)
	nstest.Run(t, w.hosts[0].NS, "ip link del "+endpoint(6).OuterName())
	w.on[0].Network(network).QueueResync("audit")
	rep, _ = w.apply(0)
	if rep.Endpoints[endpoint(6)] != nil || rep.Drift != (datapath.Counts{Links: 1}) {
		t.Errorf("made again: %v, drift %v", rep.Endpoints[endpoint(6)], rep.Drift)
	}
	w.reaches(far, b)
}

// An endpoint that must not be heard is cut off in its container, and comes back.
func TestAnEndpointIsCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 2)
	a, far := w.run(0, 2), w.run(1, 4)
	w.answers(a, far)
	w.reaches(far, a)
	w.view.Fenced[endpoint(2)] = true
	w.mustApply(0)
	w.misses(far, a)
	w.restart(0)
	w.mustApply(0)
	w.misses(far, a)
	delete(w.view.Fenced, endpoint(2))
	rep := w.mustApply(0)
	w.reaches(far, a)
	if rep.Drift.Total() != 0 || !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "docker restart") }) {
		t.Errorf("drift %v, problems %q", rep.Drift, rep.Problems)
	}
}

// A parent that is not there, is down, is used otherwise, or a kernel that cannot: the
// reason is in the error, and nothing is left.
func TestParentsThatWillNotDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 1)
	ns := w.hosts[0].NS
	nstest.Run(t, ns, "ip link add down0 type veth peer name down1")
	nstest.Run(t, ns, "ip link add br9 type bridge")
	nstest.Run(t, ns, "ip link add port0 master br9 type veth peer name port1")
	nstest.Run(t, ns, "ip link set port0 up")
	nstest.Run(t, ns, "ip link set port1 up")
	nstest.Run(t, ns, "ip link add link port1 name whole type macvlan mode passthru")
	before := nstest.Links(t, ns)
	for _, c := range []struct {
		name, parent, mode string
		mtu                int
		want               error
		words              []string
	}{
		{"missing", "eth7", "bridge", 0, underlay.ErrNoParent, []string{"eth7", "it has", "eth0"}},
		{"no base", "eth7.50", "bridge", 0, underlay.ErrNoParent, []string{"eth7.50", "no eth7 to make it on", "eth0"}},
		{"down", "down0", "bridge", 0, underlay.ErrParentDown, []string{"ip link set down0 up"}},
		{"a bridge's port", "port0", "bridge", 0, underlay.ErrParentBusy, []string{"port0", "a port of br9"}},
		{"taken by one container", "port1", "bridge", 0, underlay.ErrParentBusy, []string{"port1", "passthru"}},
		{"taken by several", "eth0", "passthru", 0, nil, nil},
		{"too large", "eth0", "bridge", 9000, nil, []string{"-o mtu=9000", "eth0 carries 1500"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := macvlan(c.mode)
			n.MTU = c.mtu
			p, err := carrick.ParseParent(c.parent)
			if err != nil {
				t.Fatal(err)
			}
			err = w.on[0].CheckParent(t.Context(), n, p)
			if c.want == nil && c.words == nil {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			says(t, err, c.words...)
		})
	}
	if after := nstest.Links(t, ns); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the host has %v, had %v", after, before)
	}
}

// The parent goes under running containers: the applier hears of it, says what to do,
// and other networks are none of its business. When it is back new containers start.
func TestTheParentGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 2)
	w.run(0, 2)
	far := w.run(1, 4)
	w.answers(far)
	a := w.on[0].Network(network)
	w.mustApply(0)
	drain(a.Changed())
	nstest.Run(t, w.hosts[0].NS, "ip link set eth0 down")
	heard(t, a.Changed())
	if rep := w.mustApply(0); !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "ip link set eth0 up") }) {
		t.Errorf("problems %q", rep.Problems)
	}
	drain(a.Changed())
	nstest.Run(t, w.hosts[0].NS, "ip link del eth0")
	heard(t, a.Changed())
	rep, err := w.apply(0)
	if !errors.Is(err, underlay.ErrNoParent) || !errors.Is(rep.Endpoints[endpoint(2)], underlay.ErrNoParent) || !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "docker restart") }) {
		t.Errorf("%v, %v, problems %q", err, rep.Endpoints[endpoint(2)], rep.Problems)
	}
	w.hosts[0].Attach()
	w.add(0, 3)
	w.on[0].Network(network).QueueResync("audit")
	if rep, _ := w.apply(0); rep.Endpoints[endpoint(3)] != nil || !errors.Is(rep.Endpoints[endpoint(2)], datapath.ErrPairMissing) {
		t.Errorf("with the parent back: %v, %v", rep.Endpoints[endpoint(3)], rep.Endpoints[endpoint(2)])
	}
	c := w.take(0, 3)
	w.answers(c)
	w.reaches(far, c)
}

// A plan that is not of this network, or not for a device, is refused.
func TestPlansThatCannotBeMeant(t *testing.T) {
	t.Parallel()
	w := newWorld(t, macvlan("bridge"), 1)
	w.add(0, 2)
	good := w.plan(0)
	for name, change := range map[string]func(*plan.Network){
		"another network's": func(p *plan.Network) { p.ID = "00000000000000bb" },
		"of a bridge":       func(p *plan.Network) { p.Underlay = nil },
		"partial nothing":   func(p *plan.Network) { p.Present, p.Underlay, p.Partial = false, nil, true },
	} {
		bad := good
		change(&bad)
		if _, err := w.on[0].Network(network).Apply(t.Context(), bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if len(nstest.Links(t, w.hosts[0].NS)) != 2 {
		t.Error("something was made")
	}
}

func drain(ch <-chan struct{}) {
	select {
	case <-ch:
	default:
	}
}

func heard(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody said that a link has changed")
	}
}

