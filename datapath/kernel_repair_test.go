package datapath_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

func TestARealAgentsRestartSendsNothing(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	echo(t, c)
	n.reach(t, c)
	n.joined = true
	h := n.hosts[0]
	if err := h.o.Close(); err != nil {
		t.Fatal(err)
	}
	n.reach(t, c) // the agent is dead, and nobody notices

	h.k.reset()
	h.start()
	rep := h.apply(n.plan(0))
	if sent := h.k.reset(); len(sent) != 0 || rep.Changes.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("adopting sent %q, %+v", sent, rep)
	}
	rep = h.apply(n.plan(0))
	if sent := h.k.reset(); len(sent) != 0 || rep.Resync != "" {
		t.Errorf("an equal plan sent %q, %+v", sent, rep)
	}
	n.reach(t, c)
}

func TestVandalsAreCleanedUpAfter(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	n.joined = true
	echo(t, c)
	h := n.hosts[0]
	port := endpoint(0).PortName()
	for _, line := range []string{
		"ip link set vxlan0 down",
		"ip link set br0 down",
		"ip link set " + port + " down",
		"ip link set vxlan0 nomaster",
		"ip link set " + port + " nomaster",
		"ip link set vxlan0 mtu 1000", // less than IPv6 can do with
		"ip link set vxlan0 mtu 1400",
		"ip link set br0 mtu 1000",
		"ip link set " + port + " mtu 1000",
		"ip link set " + port + " alias mine",
		"ip link set " + port + " down ; ip link set " + port + " name mine",
		"ip link set vxlan0 down ; ip link set vxlan0 name mine",
		"ip link del vxlan0",
		"ip link del br0",
		"ip link set br0 type bridge vlan_filtering 1",
		"ip link set br0 type bridge mcast_snooping 1",
		"ip link set br0 type bridge stp_state 1",
		"ip link set vxlan0 type vxlan learning",
		"bridge link set dev " + port + " learning on",
		"bridge link set dev " + port + " flood on",
		"bridge link set dev " + port + " mcast_flood off",
		"bridge link set dev " + port + " isolated on",
		"bridge link set dev vxlan0 isolated on",
		"bridge link set dev vxlan0 neigh_suppress on",
		"bridge fdb del " + n.mac(1).String() + " dev vxlan0 self",
		"bridge fdb replace " + n.mac(1).String() + " dev vxlan0 dst 192.0.2.66 self",
		"bridge fdb replace " + n.mac(1).String() + " dev vxlan0 dst 192.0.2.2 vni 66 self",
		"bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.66 self",
		"bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.2 port 66 self",
		"bridge fdb del 00:00:00:00:00:00 dev vxlan0 self",
		"bridge fdb replace " + n.mac(1).String() + " dev " + port + " master static",
		"bridge fdb replace " + n.mac(0).String() + " dev vxlan0 master static",
		"bridge fdb replace " + n.mac(0).String() + " dev " + port + " master static sticky",
		"bridge vlan add dev " + port + " vid 5 ; bridge fdb del " + n.mac(0).String() + " dev " + port + " master",
		"bridge fdb del " + n.mac(0).String() + " dev " + port + " master",
		"ip neigh del " + n.addr4(1).String() + " dev vxlan0",
		"ip neigh replace " + n.addr4(1).String() + " lladdr 02:66:00:00:00:00 dev vxlan0",
		"ip neigh replace 10.0.0.66 lladdr 02:66:00:00:00:00 dev vxlan0",
		"ip neigh replace 10.0.0.66 lladdr 02:66:00:00:00:00 dev vxlan0 nud noarp",
		"ip neigh flush dev vxlan0 nud permanent",
		"ip link add stranger type bridge",
		"ip link add stranger type veth peer name strange2",
		"ip link add stranger type vxlan id 66 dstport 4789",
	} {
		if out, err := h.try(line); err != nil {
			// What a kernel without VLAN filtering cannot do, nobody can undo.
			if !strings.Contains(line, "vlan") {
				t.Errorf("%s: %v: %s", line, err, out)
			}
			t.Logf("%s: this kernel cannot: %s", line, out)
			continue
		}
		h.k.reset()
		rep, err := h.a.Audit(t.Context())
		if err != nil || rep.Failed() != nil || len(rep.Problems) != 0 {
			t.Errorf("%s: %v, %v, %q", line, err, rep.Failed(), rep.Problems)
		}
		if rep.Drift.Total() == 0 && rep.Changes.Total() == 0 {
			t.Errorf("%s: nothing was found", line)
		}
		rep, err = h.a.Audit(t.Context())
		if err != nil || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
			t.Errorf("%s: not healed at once: %+v, %v; sent %q", line, rep, err, h.k.reset())
		}
		n.reach(t, c)
	}
}

func TestALinkEventBringsTheRepair(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	n.joined = true
	echo(t, c)
	h := n.hosts[0]
	for line, want := range map[string]string{
		"ip link set vxlan0 mtu 1000":                                    "link vxlan0 was changed",
		"ip link del vxlan0":                                             "link vxlan0 was changed", // it goes down first
		"ip link add stranger type bridge":                               "link stranger appeared",
		"bridge link set dev " + endpoint(0).PortName() + " learning on": "bridge flags of " + endpoint(0).PortName() + " were changed",
	} {
		h.run(line)
		<-h.a.Changed()
		rep := h.apply(n.plan(0))
		// Had our own changes been taken for somebody else's, the first reason to
		// queue a resync would have been another.
		if rep.Resync != want || rep.Drift.Links != 1 {
			t.Errorf("%s: %+v, want %q", line, rep, want)
		}
		n.reach(t, c)
	}
}

func TestOwnChangesQueueNoResyncOnTheRealKernel(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	all := plans()
	delete(all, "absent")
	h.apply(all["alone"])
	for range 3 {
		for name, p := range all { // in any order
			if rep := h.apply(p); rep.Resync != "" {
				t.Errorf("before %q: resync because of %q", name, rep.Resync)
			}
		}
	}
	// Had the last changes queued one, it would be for another reason.
	h.run("ip link add stranger type bridge")
	<-h.a.Changed()
	if rep := h.apply(all["alone"]); rep.Resync != "link stranger appeared" {
		t.Errorf("resync because of %q", rep.Resync)
	}
}

func TestANameTakenAwayDoesNotInterruptTraffic(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	echo(t, c)
	h := n.hosts[0]
	if err := h.Namespaces.Delete(t.Context(), space); err != nil {
		t.Fatal(err)
	}
	n.reach(t, c)
	rep, err := h.a.Audit(t.Context())
	if err != nil || rep.Drift != (datapath.Counts{Namespaces: 1}) {
		t.Errorf("%+v, %v", rep, err)
	}
	h.run("ip link show vxlan0")
	n.reach(t, c)
}

func TestNothingIsLeftOfANetwork(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 1, 1500)
	before := nstest.Links(t, h.NS)
	for range 3 { // the VNI and the names are free at once
		p := plans()["three hosts"]
		h.apply(p)
		c := h.Container("c", endpoint(1).OuterName())
		if rep := h.apply(absent()); rep.Changes.Links != 4 {
			t.Errorf("%+v", rep)
		}
		names, err := h.Namespaces.List(t.Context(), "")
		if err != nil || len(names) != 0 {
			t.Errorf("namespaces left: %v, %v", names, err)
		}
		if now := nstest.Links(t, h.NS); fmt.Sprint(now) != fmt.Sprint(before) {
			t.Errorf("links of the host %v, before %v", now, before)
		}
		if now := nstest.Links(t, c.NS); len(now) != 1 {
			t.Errorf("links of the container %v", now)
		}
		h.Remove("c")
	}
	list, err := h.o.List(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("List = %v, %v", list, err)
	}
}

// TestNoDescriptorIsLeaked is not parallel: it counts what the whole process has
// open, so it must be alone.
func TestNoDescriptorIsLeaked(t *testing.T) {
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 1, 1500)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	cycle := func(i int) {
		n := carrick.NetworkID(fmt.Sprintf("%016x", i))
		p := plans()["three hosts"]
		p.ID, p.Namespace = n, plan.NamespacePrefix+string(n)
		a := h.o.Network(n)
		for _, p := range []plan.Network{p, {ID: n, Namespace: p.Namespace}} {
			if rep, err := a.Apply(t.Context(), p); err != nil || rep.Failed() != nil {
				t.Fatal(err, rep.Failed())
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cycle(0) // what the runtime opens once
	before := open()
	for i := range 10 {
		cycle(i + 1)
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors open after ten networks came and went, %d before", after, before)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), h.Dir+"/"+plan.NamespacePrefix) {
		t.Errorf("namespaces are still mounted in %s (%v)", h.Dir, err)
	}
}

func TestASweepAfterARealCrash(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 1, 1500)
	h.apply(plans()["three hosts"])
	if err := h.o.Close(); err != nil {
		t.Fatal(err)
	}
	half := carrick.NetworkID("00000000000000ff")
	if err := os.WriteFile(filepath.Join(h.Dir, plan.NamespacePrefix+string(half)), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	h.start()
	gone, err := sweep(t.Context(), h.o, id)
	if err != nil || !slices.Equal(gone, []carrick.NetworkID{half}) {
		t.Errorf("Sweep = %v, %v", gone, err)
	}
	list, err := h.o.List(t.Context())
	if err != nil || len(list) != 1 || list[0].VNI != 42 || !slices.Equal(list[0].Ports, []string{port1, port2}) {
		t.Errorf("List = %+v, %v", list, err)
	}
	gone, err = sweep(t.Context(), h.o)
	if err != nil || !slices.Equal(gone, []carrick.NetworkID{id}) {
		t.Errorf("Sweep = %v, %v", gone, err)
	}
	if got := h.reading(); got != "absent" {
		t.Errorf("left: %s", got)
	}
}

func TestARealConflictIsExplained(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 1, 1500)
	nstest.Run(t, h.NS, "ip link add mine type vxlan id 42 dstport 4789 local 192.0.2.1")
	_, err := h.a.Apply(t.Context(), plans()["three hosts"])
	const want = "VNI 42 on UDP port 4789 of this host is taken by link mine in the host's namespace: ip link del mine"
	if !isConflict(err, want) {
		t.Errorf("%v", err)
	}
	nstest.Run(t, h.NS, "ip link del mine")
	h.apply(plans()["three hosts"])
	h.apply(absent())

	// A program holds the port.
	nstest.Echo(t, h.NS, netip.MustParseAddrPort("0.0.0.0:4789"))
	if _, err := h.a.Apply(t.Context(), plans()["three hosts"]); !isConflict(err, "UDP port 4789 of this host is taken by the program datapath.test (process ") {
		t.Errorf("%v", err)
	}
}
