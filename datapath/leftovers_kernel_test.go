package datapath_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// made makes the network's namespace by hand and runs commands in it. A line that
// begins with "host: " runs in the host's namespace instead; NS stands for the
// path of the network's.
func (h *realHost) made(lines ...string) {
	h.t.Helper()
	ns, err := h.Namespaces.Create(h.t.Context(), space)
	if err != nil {
		h.t.Fatal(err)
	}
	defer ns.Close()
	for _, line := range lines {
		line = strings.ReplaceAll(line, "NS", filepath.Join(h.Dir, space))
		if host, ok := strings.CutPrefix(line, "host: "); ok {
			nstest.Run(h.t, h.NS, host)
		} else {
			nstest.Run(h.t, ns, line)
		}
	}
}

func (h *realHost) file() string { return filepath.Join(h.Dir, space) }

const (
	oldVXLAN  = "host: ip link add ckvx42 netns NS type vxlan id 42 dstport 4789 local 192.0.2.1 nolearning proxy"
	otherPort = "host: ip link add ckvx42 netns NS type vxlan id 42 dstport 8472 local 192.0.2.1 nolearning proxy"
)

// leftovers is what somebody who died, or an older program, may have left of a
// network. The applier is to take it for its own: what is right it keeps, the
// rest it puts right or makes again.
func leftovers() map[string]func(h *realHost) {
	by := func(lines ...string) func(h *realHost) { return func(h *realHost) { h.made(lines...) } }
	pair := "host: ip link add " + outer1 + " address " + mac(1).String() + " mtu 1450 type veth peer name " + port1 + " netns NS"
	return map[string]func(h *realHost){
		"a file that is no mount": func(h *realHost) {
			if err := touch(h.file()); err != nil {
				h.t.Fatal(err)
			}
		},
		"a namespace of another kind": func(h *realHost) {
			if err := errors.Join(touch(h.file()), unix.Mount("/proc/self/ns/uts", h.file(), "none", unix.MS_BIND, "")); err != nil {
				h.t.Fatal(err)
			}
		},
		"a namespace without anything":        by(),
		"a bridge and no vxlan device":        by("ip link add br0 type bridge"),
		"a bridge with the kernel's settings": by("ip link add br0 mtu 9000 type bridge stp_state 1 mcast_snooping 1", "ip link set br0 up"),
		"a vxlan device and no bridge":        by(oldVXLAN),
		"a vxlan device on its way":           by("ip link add br0 type bridge mcast_snooping 0", oldVXLAN, "ip link set ckvx42 master br0"),
		"one of another port on its way":      by("ip link add br0 type bridge mcast_snooping 0", otherPort),
		"two of them":                         by("ip link add br0 type bridge", oldVXLAN, "ip link set ckvx42 name vxlan0", otherPort),
		"a vxlan device of another VNI":       by("host: ip link add vxlan0 netns NS type vxlan id 41 dstport 4789 local 192.0.2.1 nolearning proxy", oldVXLAN),
		"a vxlan device that learns":          by("host: ip link add ckvx42 netns NS type vxlan id 42 dstport 4789 local 192.0.2.1 proxy", "ip link set ckvx42 name vxlan0"),
		"a vxlan socket in the wrong place":   by("ip link add br0 type bridge", "ip link add vxlan0 type vxlan id 42 dstport 4789 local 192.0.2.1 nolearning proxy", "ip link set vxlan0 up master br0"),
		"a port without an alias":             by("ip link add br0 type bridge", pair, "ip link set "+port1+" master br0 up"),
		"a port without an alias or a name":   by("ip link add br0 type bridge", pair, "ip link set "+port1+" name old0"),
		"a pair of another address":           by("host: ip link add "+outer1+" type veth peer name "+port1+" netns NS", "ip link set "+port1+" alias "+string(endpoint(1))),
		"a pair of a container that is gone":  by("host: ip link add ckdeadbeef000 type veth peer name pdeadbeef000 netns NS"),
		"a link of a program nobody knows":    by("ip link add mine type bridge", "ip link add mine1 type veth peer name mine2"),
		"rows that were learned": by("ip link add br0 type bridge", oldVXLAN, "ip link set ckvx42 name vxlan0", "ip link set vxlan0 up master br0", "ip link set br0 up",
			"bridge fdb add "+mac(11).String()+" dev vxlan0 master dynamic extern_learn",
			"bridge fdb add "+mac(12).String()+" dev vxlan0 master dynamic",
			"bridge fdb add "+mac(13).String()+" dev vxlan0 master static sticky",
			"bridge fdb add "+mac(77).String()+" dev vxlan0 master static",
			"bridge fdb add "+mac(11).String()+" dev vxlan0 dst 192.0.2.66 self dynamic",
			"bridge fdb add "+mac(12).String()+" dev vxlan0 dst 192.0.2.66 self extern_learn",
			"bridge fdb add "+mac(77).String()+" dev vxlan0 dst 192.0.2.66 self extern_learn",
			"bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.66 self",
			"bridge fdb append 01:00:5e:00:00:01 dev vxlan0 dst 192.0.2.66 self",
			"bridge fdb append 01:00:5e:00:00:01 dev vxlan0 dst 192.0.2.67 self",
			"ip neigh add 10.0.0.11 lladdr 02:66:00:00:00:00 dev vxlan0 nud reachable",
			"ip neigh add 10.0.0.12 lladdr 02:66:00:00:00:00 dev vxlan0 nud permanent extern_learn",
			"ip neigh add 10.0.0.13 lladdr 02:66:00:00:00:00 dev vxlan0 nud permanent router",
			"ip neigh add 10.0.0.77 lladdr 02:66:00:00:00:00 dev vxlan0 nud noarp"),
	}
}

func TestWhatADeadAgentLeftIsTakenOver(t *testing.T) {
	t.Parallel()
	for name, leave := range leftovers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newRealHost(t, nstest.NewLab(t), 1, 1500)
			p := plans()["three hosts"]
			empty := h.world()
			h.apply(p)
			want := h.world()
			again := func() {
				h.t.Helper()
				h.apply(absent())
				if got := h.world(); got != empty {
					t.Fatalf("of the network was left\n%s", got)
				}
				if err := h.o.Close(); err != nil {
					t.Fatal(err)
				}
				leave(h)
				h.start()
			}
			again()
			h.apply(p)
			h.same("adopted", p, want, nil)

			// What is in the way goes although the facts are not whole.
			again()
			h.apply(partial(p))
			h.settled(partial(p))
			h.apply(p)
			h.same("adopted in two steps", p, want, nil)

			// Nobody knows the network any more.
			again()
			if _, err := sweep(t.Context(), h.o); err != nil {
				t.Fatal(err)
			}
			if got := h.world(); got != empty {
				t.Errorf("swept, but left is\n%s", got)
			}
			h.apply(p)
		})
	}
}

func TestANamespaceMountedTwiceIsUsedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	empty := h.world()
	h.made("ip link add br0 type bridge")
	if err := unix.Mount(h.file(), h.file(), "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	p := plans()["three hosts"]
	h.apply(p)
	h.settled(p)
	h.apply(absent())
	if got := h.world(); got != empty {
		t.Errorf("left is\n%s", got)
	}
}

// A pair that a container uses is never made again, whatever it lacks.
func TestThePairOfARunningContainerIsAdoptedAsItIs(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	h.made("host: ip link add " + outer1 + " address " + mac(1).String() + " mtu 1450 type veth peer name " + port1 + " netns NS")
	c := h.Container("c", outer1)
	before := nstest.Run(t, c.NS, "ip -o link show eth0")
	p := plans()["one container"]
	p.Ports[0].Create = false
	h.apply(p)
	if after := nstest.Run(t, c.NS, "ip -o link show eth0"); strings.Fields(after)[0] != strings.Fields(before)[0] {
		t.Errorf("the container's device was %s, is %s", before, after)
	}
	h.settled(p)
}

func TestWhatIsNotOursStays(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	// Docker's bridges with a container each, a network of swarm mode with its own
	// namespace on the same UDP port, a vxlan device of the same VNI on another and
	// one of another VNI on the same, a user's namespaces, and a pair whose ends
	// look like ours and are nobody's.
	elsewhere := nstest.Dir(t)
	swarm := netns.NewDir(netns.Config{Dir: elsewhere})
	open := func(d *netns.Dir, name string) netns.Namespace {
		ns, err := d.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		return ns
	}
	overlay, user, blue := open(swarm, "1-swarmnet"), open(h.Namespaces, "carrick-of-a-user"), open(h.Namespaces, "blue")
	for _, line := range []string{
		"ip link add docker0 type bridge", "ip link add docker_gwbridge type bridge", "ip link add br-0123456789ab type bridge",
		"ip link add vethd0c4e21 type veth peer name eth9", "ip link set vethd0c4e21 master docker_gwbridge up",
		"ip link add vx-001001-swarm netns " + filepath.Join(elsewhere, "1-swarmnet") + " type vxlan id 4097 dstport 4789 proxy l2miss l3miss",
		"ip link add flannel.1 type vxlan id 42 dstport 8472 local 192.0.2.1",
		"ip link add mine type vxlan id 43 dstport 4789 local 192.0.2.1",
		"ip link add vxlan0 type bridge", "ip link add br0 type bridge", "ip link add ckvx42 type bridge",
		"ip link add ckdeadbeef000 type veth peer name ckdeadbeef001",
		"bridge fdb append 00:00:00:00:00:00 dev mine dst 192.0.2.77 self", "ip neigh add 192.0.2.9 lladdr 02:66:00:00:00:00 dev eth0 nud permanent",
	} {
		nstest.Run(t, h.NS, line)
	}
	for _, ns := range []netns.Namespace{overlay, user, blue} {
		nstest.Run(t, ns, "ip link add br0 type bridge")
		nstest.Run(t, ns, "ip addr add 10.9.9.1/24 dev br0")
	}
	others := func() string {
		var out []string
		for _, ns := range []netns.Namespace{h.NS, overlay, user, blue} {
			out = append(out, "# "+ns.Name())
			out = append(out, h.describe(ns, true)...)
		}
		names, err := h.Namespaces.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == space })
		// Ours in the host are known by their peers.
		out = slices.DeleteFunc(out, func(l string) bool {
			return strings.Contains(l, outer1) || strings.Contains(l, endpoint(2).OuterName()) || strings.Contains(l, endpoint(3).OuterName())
		})
		return strings.Join(append(out, names...), "\n")
	}
	before := others()
	for _, name := range []string{"three hosts", "other containers", "one cut off", "tiny MTU", "dual stack", "absent", "three hosts"} {
		h.apply(plans()[name])
		if got := others(); got != before {
			t.Fatalf("%s: the others hold\n%s\nand held\n%s", name, got, before)
		}
		if err := h.o.Close(); err != nil {
			t.Fatal(err)
		}
		h.start()
	}
	if gone, err := sweep(t.Context(), h.o); err != nil || len(gone) != 1 {
		t.Errorf("swept %v, %v", gone, err)
	}
	if got := others(); got != before {
		t.Fatalf("after the sweep the others hold\n%s\nand held\n%s", got, before)
	}
}

// What is somebody else's and in the way is named, with what to do, and stays.
func TestWhatIsInTheWayIsNamed(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		before, after string // in the host's namespace
		want          string
	}{
		"our VNI on our port": {"ip link add mine type vxlan id 42 dstport 4789 local 192.0.2.1", "ip link del mine",
			"VNI 42 on UDP port 4789 of this host is taken by link mine in the host's namespace: ip link del mine"},
		"our VNI on our port, in a namespace": {"ip link add mine netns ELSEWHERE type vxlan id 42 dstport 4789 local 192.0.2.1", "ip -n ELSEWHERE link del mine",
			"VNI 42 on UDP port 4789 of this host is taken by link mine in network namespace theirs"},
		"our VNI on our port, in a namespace without a name": {
			"ip link add mine netns ELSEWHERE type vxlan id 42 dstport 4789 local 192.0.2.1 ; ip netns del theirs ; " +
				"other: ip link add innocent type vxlan id 42 dstport 4789 local 192.0.2.1 ; other: ip link add too type vxlan id 42 dstport 4789 local 2001:db8::1",
			"ip -n ELSEWHERE link del mine", "is taken by a link in a namespace that has no name here"},
		"an outer end's name": {"ip link add " + outer1 + " type bridge", "ip link del " + outer1,
			"the host has a link " + outer1 + " (kind \"bridge\", alias \"\") already: ip link del " + outer1},
		"a pair of nobody's": {"ip link add " + outer1 + " type veth peer name ckdeadbeef001", "ip link del " + outer1,
			"the host has a link " + outer1 + " (kind \"veth\", alias \"\") already: ip link del " + outer1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newRealHost(t, nstest.NewLab(t), 1, 1500)
			theirs, err := h.Namespaces.Create(t.Context(), "theirs")
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			path := filepath.Join(h.Dir, "theirs")
			other, err := h.Namespaces.Create(t.Context(), "innocent")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			run := func(line string) {
				if line == "ip netns del theirs" {
					if err := h.Namespaces.Delete(t.Context(), "theirs"); err != nil {
						t.Fatal(err)
					}
					return
				}
				if args, ok := strings.CutPrefix(line, "other: "); ok {
					nstest.Run(t, other, args)
					return
				}
				if args, ok := strings.CutPrefix(line, "ip -n ELSEWHERE "); ok {
					nstest.Run(t, theirs, "ip "+args)
					return
				}
				nstest.Run(t, h.NS, strings.ReplaceAll(line, "ELSEWHERE", path))
			}
			p := plans()["three hosts"]
			h.apply(p)
			want := h.reading()
			h.apply(absent())
			for _, line := range strings.Split(x.before, " ; ") {
				run(line)
			}
			held := h.describe(h.NS, true)
			rep, err := h.a.Apply(t.Context(), p)
			if err = errors.Join(err, rep.Failed()); !isConflict(err, x.want) || strings.Contains(err.Error(), "file exists") {
				t.Errorf("%v", err)
			}
			if rep.Endpoints[endpoint(2)] != nil && strings.HasPrefix(name, "an outer") {
				t.Errorf("its neighbour: %v", rep.Endpoints[endpoint(2)])
			}
			now := h.describe(h.NS, true)
			for _, l := range held {
				if !slices.Contains(now, l) {
					t.Errorf("it is gone: %s", l)
				}
			}
			run(x.after)
			h.apply(p)
			if got := h.reading(); got != want {
				t.Errorf("once it is gone the kernel holds\n%s\nwant\n%s", got, want)
			}
			h.settled(p)
		})
	}
}
