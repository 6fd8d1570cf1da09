package underlay_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/datapath/underlay/undertest"
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
			w := undertest.New(t, undertest.Macvlan(mode), 2)
			a, b, far := w.Run(0, 2), w.Run(0, 3), w.Run(1, 4)
			w.Answers(a, b, far)
			w.Reaches(a, far)
			w.Reaches(far, a, b)
			if neighbours {
				w.Reaches(a, b)
				w.Reaches(b, a)
			} else { // the switch reflects nothing
				w.Misses(a, b)
				w.Misses(b, a)
			}
			if got := nstest.Run(t, a.NS, "ip link show eth0"); !strings.Contains(got, carrick.MACFor(7, undertest.Addr(2)).String()) {
				t.Errorf("the device is %s", got)
			}
		})
	}
	t.Run("passthru", func(t *testing.T) {
		t.Parallel()
		w := undertest.New(t, undertest.Macvlan("passthru"), 2)
		a, far := w.Run(0, 2), w.Run(1, 4)
		w.Answers(a, far)
		w.Reaches(a, far)
		w.Reaches(far, a)
		// One container has the device for itself.
		w.Add(0, 3)
		rep, err := w.Apply(0)
		if err != nil || !errors.Is(rep.Endpoints[undertest.Endpoint(3)], underlay.ErrParentBusy) {
			t.Errorf("a second container: %v, %v", rep.Endpoints[undertest.Endpoint(3)], err)
		}
		says(t, rep.Endpoints[undertest.Endpoint(3)], "passthru", "eth0")
		w.Reaches(far, a)
	})
}

// An agent that ends and starts anew finds its devices wherever they are, changes
// nothing, and takes away what is of endpoints that are no more.
func TestARestartAdopts(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 2)
	a, far := w.Run(0, 2), w.Run(1, 4)
	w.Answers(a, far)
	w.Add(0, 3) // its container is about to start
	w.MustApply(0)
	w.Add(0, 5) // and this one's start fails
	w.MustApply(0)
	w.Gone(0, 5)
	w.Restart(0)
	rep := w.MustApply(0)
	if rep.Changes != (datapath.Counts{Links: 1}) || rep.Drift.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("after a restart: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	if links := nstest.Links(t, w.Hosts[0].NS); links[undertest.Endpoint(5).OuterName()] || !links[undertest.Endpoint(3).OuterName()] {
		t.Errorf("the host has %v", links)
	}
	w.Reaches(far, a)
	b := w.Take(0, 3)
	w.View.Joined[undertest.Endpoint(3)] = true
	w.Answers(b)
	w.Reaches(far, b)
	if rep := w.Audit(0); rep.Changes.Total() != 0 {
		t.Errorf("an audit changed %v", rep.Changes)
	}
	// What a partial view does not know is left alone.
	w.Add(0, 6)
	w.MustApply(0)
	w.Gone(0, 6)
	w.View.Partial = true
	w.Audit(0)
	if !nstest.Links(t, w.Hosts[0].NS)[undertest.Endpoint(6).OuterName()] {
		t.Error("a device was removed because of a view that is not whole")
	}
	w.View.Partial = false
	w.Audit(0)
	if nstest.Links(t, w.Hosts[0].NS)[undertest.Endpoint(6).OuterName()] {
		t.Error("a device of no endpoint stays")
	}
}

// A crash between making a device and naming it ours: the next start takes it for what
// it is, by its name; one that no endpoint has is collected, and nobody else's is.
func TestHalfMadeDevices(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 1)
	ns := w.Hosts[0].NS
	for _, name := range []string{undertest.Endpoint(2).OuterName(), undertest.Endpoint(3).OuterName(), "theirs", "ckmine"} {
		nstest.Run(t, ns, "ip link add "+name+" link eth0 type macvlan mode private")
	}
	w.Add(0, 2)
	rep := w.MustApply(0)
	if rep.Changes.Links != 1 || rep.Drift.Total() != 0 {
		t.Errorf("changes %v, drift %v", rep.Changes, rep.Drift)
	}
	if out := nstest.Run(t, ns, "ip -d link show "+undertest.Endpoint(2).OuterName()); !strings.Contains(out, "mode bridge") || !strings.Contains(out, plan.ChildAlias(undertest.Network, undertest.Endpoint(2))) || !strings.Contains(out, carrick.MACFor(7, undertest.Addr(2)).String()) {
		t.Errorf("the device is %s", out)
	}
	if err := w.On[0].Collect(t.Context(), func() underlay.Wanted {
		return underlay.Wanted{Children: map[string]bool{undertest.Endpoint(2).OuterName(): true}}
	}); err != nil {
		t.Fatal(err)
	}
	links := nstest.Links(t, ns)
	for name, want := range map[string]bool{undertest.Endpoint(2).OuterName(): true, undertest.Endpoint(3).OuterName(): false, "theirs": true, "ckmine": true} {
		if links[name] != want {
			t.Errorf("link %s is there: %v, want %v", name, links[name], want)
		}
	}
}

// The last container ends: nothing of the network is left, and what is of another
// network stays.
func TestTheEndOfANetwork(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 1)
	before := nstest.Links(t, w.Hosts[0].NS)
	c := w.Run(0, 2)
	w.Hosts[0].TakeBack(c, undertest.Endpoint(2).OuterName())
	if held, err := w.On[0].Inspect(t.Context(), undertest.Network, w.View.Sandboxes); err != nil || !held[undertest.Endpoint(2)].Home {
		t.Errorf("held %+v, %v", held, err)
	}
	w.Gone(0, 2)
	if rep := w.MustApply(0); rep.Changes.Links != 1 {
		t.Errorf("changes %v", rep.Changes)
	}
	if after := nstest.Links(t, w.Hosts[0].NS); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the host has %v, had %v", after, before)
	}
	if ids, err := w.On[0].List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("listed %v, %v", ids, err)
	}
	if rep := w.MustApply(0); rep.Changes.Total() != 0 {
		t.Errorf("once more: %v", rep.Changes)
	}
}

// Somebody changes what is Carrick's. What forwards is put right by the next audit; what
// is Docker's is told, with the remedy.
func TestVandalism(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 2)
	a, b, far := w.Run(0, 2), w.Run(0, 3), w.Run(1, 4)
	w.Answers(a, b, far)
	w.Audit(0)

	nstest.Run(t, a.NS, "ip link set eth0 type macvlan mode private")
	w.Misses(a, b)
	rep := w.Audit(0)
	if rep.Drift != (datapath.Counts{Links: 1}) || len(rep.Found) != 1 || !strings.Contains(rep.Found[0].String(), "private") {
		t.Errorf("drift %v, found %v", rep.Drift, rep.Found)
	}
	w.Reaches(a, b)

	nstest.Run(t, a.NS, "ip link set eth0 mtu 1400")
	nstest.Run(t, b.NS, "ip link set eth0 address 02:00:00:00:00:99")
	rep = w.Audit(0)
	for _, want := range []string{"has MTU 1400, the network 1500", "has MAC 02:00:00:00:00:99"} {
		if !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, want) && strings.Contains(p, "docker restart") }) {
			t.Errorf("problems %q, want one with %q", rep.Problems, want)
		}
	}
	if rep := w.MustApply(0); len(rep.Problems) != 2 {
		t.Errorf("the next pass, which looked at nothing, forgot: %q", rep.Problems)
	}

	nstest.Run(t, a.NS, "ip link del eth0")
	w.On[0].Network(undertest.Network).QueueResync("audit")
	rep, err := w.Apply(0)
	if err != nil || !errors.Is(rep.Endpoints[undertest.Endpoint(2)], datapath.ErrPairMissing) || rep.Endpoints[undertest.Endpoint(3)] != nil {
		t.Errorf("a device deleted in its container: %v, %v, %v", rep.Endpoints[undertest.Endpoint(2)], rep.Endpoints[undertest.Endpoint(3)], err)
	}

	// One that is not yet Docker's is made again, and counts.
	w.Gone(0, 2)
	w.Add(0, 6)
	w.MustApply(0)
	nstest.Run(t, w.Hosts[0].NS, "ip link del "+undertest.Endpoint(6).OuterName())
	w.On[0].Network(undertest.Network).QueueResync("audit")
	rep, _ = w.Apply(0)
	if rep.Endpoints[undertest.Endpoint(6)] != nil || rep.Drift != (datapath.Counts{Links: 1}) {
		t.Errorf("made again: %v, drift %v", rep.Endpoints[undertest.Endpoint(6)], rep.Drift)
	}
	w.Reaches(far, b)
}

// An endpoint that must not be heard is cut off in its container, and comes back.
func TestAnEndpointIsCutOff(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 2)
	a, far := w.Run(0, 2), w.Run(1, 4)
	w.Answers(a, far)
	w.Reaches(far, a)
	w.View.Fenced[undertest.Endpoint(2)] = true
	w.MustApply(0)
	w.Misses(far, a)
	w.Restart(0)
	nstest.Run(t, a.NS, "ip link set eth0 up") // by whoever is in there
	w.MustApply(0)
	w.Misses(far, a)
	// Nor does one start that is cut off by now.
	w.View.Fenced[undertest.Endpoint(3)] = true
	w.Add(0, 3)
	if rep, err := w.Apply(0); err != nil || rep.Endpoints[undertest.Endpoint(3)] == nil || nstest.Links(t, w.Hosts[0].NS)[undertest.Endpoint(3).OuterName()] {
		t.Errorf("an endpoint that is cut off starts: %v, %v", rep.Endpoints, err)
	}
	w.Gone(0, 3)
	delete(w.View.Fenced, undertest.Endpoint(2))
	rep := w.MustApply(0)
	w.Reaches(far, a)
	if rep.Drift.Total() != 0 || !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "docker restart") }) {
		t.Errorf("drift %v, problems %q", rep.Drift, rep.Problems)
	}
}

// A parent that is not there, is down, is used otherwise, or a kernel that cannot: the
// reason is in the error, and nothing is left.
func TestParentsThatWillNotDo(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 1)
	ns := w.Hosts[0].NS
	nstest.Run(t, ns, "ip link add down0 type veth peer name down1")
	nstest.Run(t, ns, "ip link add br9 type bridge")
	nstest.Run(t, ns, "ip link add port0 master br9 type veth peer name port1")
	nstest.Run(t, ns, "ip link set port0 up")
	nstest.Run(t, ns, "ip link set port1 up")
	nstest.Run(t, ns, "ip link add link port1 name whole type macvlan mode passthru")
	nstest.Run(t, ns, "ip link set whole up")
	nstest.Run(t, ns, "ip link add port2 type veth peer name port3")
	nstest.Run(t, ns, "ip link set port2 up")
	nstest.Run(t, ns, "ip link add link port2 name several type macvlan mode bridge")
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
		{"taken by others", "port2", "passthru", 0, underlay.ErrParentBusy, []string{"port2", "passthru"}},
		{"no Ethernet device", "lo", "bridge", 0, underlay.ErrParentBusy, []string{"lo", "eth0"}},
		{"a child itself", "whole", "bridge", 0, underlay.ErrParentBusy, []string{"whole"}},
		{"too large", "eth0", "bridge", 9000, nil, []string{"-o mtu=9000", "eth0 carries 1500"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := undertest.Macvlan(c.mode)
			n.MTU = c.mtu
			p, err := carrick.ParseParent(c.parent)
			if err != nil {
				t.Fatal(err)
			}
			err = w.On[0].CheckParent(t.Context(), n, p)
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
	w := undertest.New(t, undertest.Macvlan("bridge"), 2)
	w.Run(0, 2)
	far := w.Run(1, 4)
	w.Answers(far)
	a := w.On[0].Network(undertest.Network)
	w.MustApply(0)
	drain(a.Changed())
	nstest.Run(t, w.Hosts[0].NS, "ip link set eth0 down")
	heard(t, a.Changed())
	if rep := w.MustApply(0); !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "ip link set eth0 up") }) {
		t.Errorf("problems %q", rep.Problems)
	}
	drain(a.Changed())
	nstest.Run(t, w.Hosts[0].NS, "ip link del eth0")
	heard(t, a.Changed())
	rep, err := w.Apply(0)
	if !errors.Is(err, underlay.ErrNoParent) || !errors.Is(rep.Endpoints[undertest.Endpoint(2)], underlay.ErrNoParent) || !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "docker restart") }) {
		t.Errorf("%v, %v, problems %q", err, rep.Endpoints[undertest.Endpoint(2)], rep.Problems)
	}
	w.Hosts[0].Attach()
	w.Add(0, 3)
	w.On[0].Network(undertest.Network).QueueResync("audit")
	if rep, _ := w.Apply(0); rep.Endpoints[undertest.Endpoint(3)] != nil || !errors.Is(rep.Endpoints[undertest.Endpoint(2)], datapath.ErrPairMissing) {
		t.Errorf("with the parent back: %v, %v", rep.Endpoints[undertest.Endpoint(3)], rep.Endpoints[undertest.Endpoint(2)])
	}
	c := w.Take(0, 3)
	w.Answers(c)
	w.Reaches(far, c)
}

// A plan that is not of this network, or not for a device, is refused.
func TestPlansThatCannotBeMeant(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 1)
	w.Add(0, 2)
	good := w.Plan(0)
	for name, change := range map[string]func(*plan.Network){
		"another network's": func(p *plan.Network) { p.ID = "00000000000000bb" },
		"of a bridge":       func(p *plan.Network) { p.Underlay = nil },
		"partial nothing":   func(p *plan.Network) { p.Present, p.Underlay, p.Partial = false, nil, true },
	} {
		bad := good
		change(&bad)
		if _, err := w.On[0].Network(undertest.Network).Apply(t.Context(), bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if len(nstest.Links(t, w.Hosts[0].NS)) != 2 {
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

// says fails the test unless an error has some words.
func says(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, want := range words {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// Routes to containers of other hosts, as modes have them in which nobody on the segment
// answers: they are of our protocol, nobody else's are touched, and what somebody changes
// is put right. A host that is on no segment is told of, and the rest is reached.
func TestRoutes(t *testing.T) {
	t.Parallel()
	// This machine's kernel may have no ipvlan: the devices are macvlan's, the routes are the
	// plan's.
	w := undertest.New(t, undertest.IPvlan("l3", "bridge"), 2)
	ns := w.Hosts[0].NS
	w.Add(0, 2)
	nstest.Run(t, ns, "ip route add 10.42.0.200/32 via 192.0.2.2")
	routes := func() string {
		return strings.Join(strings.Fields(nstest.Run(t, ns, "ip route show proto 67")), " ")
	}
	row := func(last int, via string) plan.RouteRow {
		return plan.RouteRow{Dst: netip.PrefixFrom(undertest.Addr(last), 32), Via: netip.MustParseAddr(via)}
	}
	apply := func(audit, partial bool, rows ...plan.RouteRow) datapath.Report {
		t.Helper()
		a := w.On[0].Network(undertest.Network)
		if audit {
			a.QueueResync("audit")
		}
		want := w.Plan(0)
		want.Underlay.Routes, want.Partial = rows, partial
		want.Underlay.Kind, want.Underlay.Submode = carrick.ModeMacvlan, "bridge"
		rep, err := a.Apply(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	apply(false, false, row(66, "192.0.2.2"), row(67, "192.0.2.2"))
	if got := routes(); got != "10.42.0.66 via 192.0.2.2 dev eth0 10.42.0.67 via 192.0.2.2 dev eth0" {
		t.Errorf("routes %s", got)
	}
	// A container moves, another ends.
	if rep := apply(false, false, row(66, "192.0.2.3")); rep.Drift.Total() != 0 || rep.Changes.Routes != 2 {
		t.Errorf("changes %v, drift %v", rep.Changes, rep.Drift)
	}
	if got := routes(); got != "10.42.0.66 via 192.0.2.3 dev eth0" {
		t.Errorf("routes %s", got)
	}
	// By hand: one goes, one comes.
	nstest.Run(t, ns, "ip route del 10.42.0.66/32")
	nstest.Run(t, ns, "ip route add 10.42.0.99/32 via 192.0.2.2 proto 67")
	nstest.Run(t, ns, "ip route add 10.99.0.99/32 via 192.0.2.2 proto 67") // another network's
	rep := apply(true, false, row(66, "192.0.2.3"))
	if rep.Drift != (datapath.Counts{Routes: 2}) || len(rep.Found) != 2 {
		t.Errorf("drift %v, found %v", rep.Drift, rep.Found)
	}
	if got := routes(); got != "10.42.0.66 via 192.0.2.3 dev eth0 10.99.0.99 via 192.0.2.2 dev eth0" {
		t.Errorf("routes %s", got)
	}
	if rep := apply(true, false, row(66, "192.0.2.3")); rep.Changes.Total() != 0 {
		t.Errorf("once more: %v", rep.Changes)
	}
	// What a view does not know that is not whole stays.
	apply(true, true, row(67, "192.0.2.2"))
	if got := routes(); !strings.Contains(got, "10.42.0.66") || !strings.Contains(got, "10.42.0.67") {
		t.Errorf("routes %s", got)
	}
	rep = apply(true, false, row(66, "192.0.2.3"), row(68, "198.51.100.7"))
	if !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, "198.51.100.7") && strings.Contains(p, "segment") }) {
		t.Errorf("problems %q", rep.Problems)
	}
	if got := routes(); !strings.Contains(got, "10.42.0.66") || strings.Contains(got, "10.42.0.68") {
		t.Errorf("routes %s", got)
	}
	w.Gone(0, 2)
	w.MustApply(0)
	if got := routes(); got != "10.99.0.99 via 192.0.2.2 dev eth0" {
		t.Errorf("routes after the end %s", got)
	}
	if err := w.On[0].Collect(t.Context(), func() underlay.Wanted { return underlay.Wanted{} }); err != nil {
		t.Fatal(err)
	}
	if got := routes(); got != "10.99.0.99 via 192.0.2.2 dev eth0" {
		t.Errorf("routes of a network that this agent does not remember: %s", got)
	}
	need := underlay.Wanted{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}}
	for _, want := range []string{"10.99.0.99 via 192.0.2.2 dev eth0", ""} {
		if err := w.On[0].Collect(t.Context(), func() underlay.Wanted { return need }); err != nil {
			t.Fatal(err)
		}
		if got := routes(); got != want {
			t.Errorf("collected, and there is %q, want %q", got, want)
		}
		need = underlay.Wanted{} // its last container has ended
	}
	if out := nstest.Run(t, ns, "ip route show 10.42.0.200"); out == "" {
		t.Error("somebody else's route is gone")
	}
}

// The end of a pair of a routed network has an alias of the same form, and is nobody's
// here.
func TestAPairOfARoutedNetworkIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 1)
	ns := w.Hosts[0].NS
	nstest.Run(t, ns, "ip link add cr1 type veth peer name ck1")
	nstest.Run(t, ns, "ip link set cr1 alias "+plan.ChildAlias(undertest.Network, undertest.Endpoint(9)))
	if list, err := w.On[0].List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("networks %v, %v", list, err)
	}
	if err := w.On[0].Collect(t.Context(), func() underlay.Wanted { return underlay.Wanted{} }); err != nil {
		t.Fatal(err)
	}
	if !nstest.Links(t, ns)["cr1"] {
		t.Error("it was collected")
	}
}
