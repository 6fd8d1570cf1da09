package underlay_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/datapath/underlay/undertest"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/vmtest"
)

// What Carrick makes of networks that stand on devices of the hosts, where the kernel has
// ipvlan and 802.1q: on machines without, Debian's in the virtual machine.
func TestApplier(t *testing.T) {
	vmtest.Run(t, vmtest.Needs{Features: []vmtest.Feature{vmtest.IPVLAN, vmtest.MACVLAN, vmtest.VLAN}}, func(t *testing.T) {
		for _, flag := range carrick.IPvlanFlags() {
			for _, mode := range carrick.IPvlanModes() {
				t.Run("ipvlan "+mode+" "+flag, func(t *testing.T) { t.Parallel(); ipvlan(t, mode, flag) })
			}
		}
		t.Run("restart", func(t *testing.T) { t.Parallel(); ipvlanRestart(t) })
		t.Run("vandalism", func(t *testing.T) { t.Parallel(); ipvlanVandalism(t) })
		t.Run("VLAN", func(t *testing.T) { t.Parallel(); vlan(t) })
		t.Run("parents", func(t *testing.T) { t.Parallel(); parents(t) })
	})
}

// ipvlan is two hosts on one segment. In the modes l3 and l3s nobody there answers for
// containers, and the hosts' routes lead to them.
func ipvlan(t *testing.T, mode, flag string) {
	w := undertest.New(t, undertest.IPvlan(mode, flag), 2)
	a, b, far := w.Run(0, 2), w.Run(0, 3), w.Run(1, 4)
	w.MustApply(0) // it has heard of the other host's
	w.Answers(a, b, far)
	w.Reaches(a, far)
	w.Reaches(far, a, b)
	if flag == "bridge" {
		w.Reaches(a, b)
	} else {
		w.Misses(a, b)
	}
	routes := strings.TrimSpace(nstest.Run(t, w.Hosts[0].NS, "ip route show proto 67"))
	if want := map[bool]string{true: "", false: "10.42.0.4 via 192.0.2.2 dev eth0"}[mode == "l2"]; strings.Join(strings.Fields(routes), " ") != want {
		t.Errorf("routes %q, want %q", routes, want)
	}
	if rep := w.Audit(0); rep.Changes.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("an audit changed %v, problems %q", rep.Changes, rep.Problems)
	}
	w.Gone(0, 2)
	w.Gone(0, 3)
	w.Hosts[0].TakeBack(a, undertest.Endpoint(2).OuterName())
	w.Hosts[0].TakeBack(b, undertest.Endpoint(3).OuterName())
	w.MustApply(0)
	if routes := nstest.Run(t, w.Hosts[0].NS, "ip route show proto 67"); routes != "" {
		t.Errorf("routes of a network that is not here: %s", routes)
	}
	if links := nstest.Links(t, w.Hosts[0].NS); len(links) != 2 {
		t.Errorf("the host has %v", links)
	}
}

// ipvlanRestart is an agent that starts anew under running containers, and one whose
// parent another network has in another mode by mistake.
func ipvlanRestart(t *testing.T) {
	w := undertest.New(t, undertest.IPvlan("l3", "bridge"), 2)
	a, far := w.Run(0, 2), w.Run(1, 4)
	w.MustApply(0)
	w.Answers(a, far)
	w.Add(0, 3)
	w.MustApply(0)
	w.Restart(0)
	if rep := w.MustApply(0); rep.Changes.Total() != 0 || rep.Drift.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("after a restart: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	w.Reaches(a, far)
	w.Reaches(far, a)
}

// ipvlanVandalism is what somebody does to devices and routes by hand.
func ipvlanVandalism(t *testing.T) {
	w := undertest.New(t, undertest.IPvlan("l3", "bridge"), 2)
	a, b, far := w.Run(0, 2), w.Run(0, 3), w.Run(1, 4)
	w.MustApply(0)
	w.Answers(a, b, far)
	w.Audit(0)
	// On one of them, and so on all.
	nstest.Run(t, a.NS, "ip link set eth0 type ipvlan mode l2 private")
	w.Misses(a, far)
	rep := w.Audit(0)
	if rep.Drift.Links == 0 || rep.Drift.Routes != 0 || !strings.Contains(fmt.Sprint(rep.Found), "l2 private") {
		t.Errorf("drift %v, found %v", rep.Drift, rep.Found)
	}
	w.Reaches(a, b, far)
	nstest.Run(t, w.Hosts[0].NS, "ip route del 10.42.0.4/32")
	w.Misses(a, far)
	if rep := w.Audit(0); rep.Drift != (datapath.Counts{Routes: 1}) {
		t.Errorf("drift %v", rep.Drift)
	}
	w.Reaches(a, far)
	nstest.Run(t, a.NS, "ip link del eth0")
	w.On[0].Network(undertest.Network).QueueResync("audit")
	if rep, err := w.Apply(0); err != nil || !errors.Is(rep.Endpoints[undertest.Endpoint(2)], datapath.ErrPairMissing) || rep.Endpoints[undertest.Endpoint(3)] != nil {
		t.Errorf("a device deleted in its container: %v, %v", rep.Endpoints, err)
	}
}

// vlan is two networks on one 802.1q sub-interface that nobody has made: both have it,
// and with the last it goes.
func vlan(t *testing.T) {
	conf := undertest.Macvlan("bridge")
	conf.Parent = "eth0.50"
	w := undertest.New(t, conf, 2)
	ns := w.Hosts[0].NS
	a, far := w.Run(0, 2), w.Run(1, 4)
	w.Answers(a, far)
	w.Reaches(a, far)
	if out := nstest.Run(t, ns, "ip -d link show eth0.50"); !strings.Contains(out, "vlan protocol 802.1Q id 50") || !strings.Contains(out, "state UP") {
		t.Errorf("the sub-interface is %s", out)
	}
	// An agent that starts anew takes it for its own.
	w.Restart(0)
	if rep := w.Audit(0); rep.Changes.Total() != 0 {
		t.Errorf("after a restart: %v", rep.Changes)
	}
	collect := func(parents ...string) {
		t.Helper()
		need := underlay.Wanted{Parents: map[string]bool{}, Children: map[string]bool{}}
		for _, p := range parents {
			need.Parents[p] = true
		}
		if err := w.On[0].Collect(t.Context(), func() underlay.Wanted { return need }); err != nil {
			t.Fatal(err)
		}
	}
	nstest.Run(t, ns, "ip link add link eth0 name eth0.60 type vlan id 60") // an operator's
	collect("eth0.50")
	w.Reaches(far, a)
	w.Gone(0, 2)
	w.Hosts[0].TakeBack(a, undertest.Endpoint(2).OuterName())
	w.MustApply(0)
	collect()
	if links := nstest.Links(t, ns); links["eth0.50"] || !links["eth0.60"] {
		t.Errorf("the host has %v", links)
	}
}

// parents are devices that will not do, in ways that a kernel without ipvlan and 802.1q
// does not know.
func parents(t *testing.T) {
	w := undertest.New(t, undertest.IPvlan("l2", "bridge"), 1)
	ns := w.Hosts[0].NS
	for _, line := range []string{
		"ip link add link eth0 name lan type vlan id 70", "ip link set lan up",
		"ip link add link eth0 name eth0.80 type vlan id 81", "ip link set eth0.80 up",
		"ip link add link lan name other type macvlan mode bridge",
		"ip link add down0 type veth peer name down1",
	} {
		nstest.Run(t, ns, line)
	}
	before := nstest.Links(t, ns)
	for _, c := range []struct {
		name, parent string
		mtu          int
		want         error
		words        []string
	}{
		{"the other kind's", "lan", 0, underlay.ErrParentBusy, []string{"lan", "it carries other (macvlan)", "lan.N"}},
		{"another VLAN's name", "eth0.80", 0, underlay.ErrParentBusy, []string{"eth0.80", "VLAN 81"}},
		{"too large", "eth0", 9000, nil, []string{"-o mtu=9000", "eth0 carries 1500"}},
		{"on a base that is down", "down0.9", 0, underlay.ErrParentDown, []string{"ip link set down0 up"}},
	} {
		n := undertest.IPvlan("l2", "bridge")
		n.MTU = c.mtu
		p, err := carrick.ParseParent(c.parent)
		if err != nil {
			t.Fatal(err)
		}
		err = w.On[0].CheckParent(t.Context(), n, p)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || slices.ContainsFunc(c.words, func(x string) bool { return !strings.Contains(err.Error(), x) }) {
			t.Errorf("%s: %v, want %v with %q", c.name, err, c.want, c.words)
		}
	}
	if after := nstest.Links(t, ns); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the host has %v, had %v", after, before)
	}
}
