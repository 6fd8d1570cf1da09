package underlay_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// fact is one answer of the kernel, on a host with a dummy link d0 whose MAC is
// 02:00:00:00:00:01 and whose MTU is 1500.
type fact struct {
	what    string
	before  []string // commands that work
	command string
	shown   string // regular expression: the part of the output that is the answer; "" for how it ends
	want    string
}

// done is the answer of a command that works.
const done = "done"

func facts() []fact {
	child := func(name, kind string) string { return "ip link add " + name + " link d0 type " + kind }
	const (
		busy    = "Device or resource busy"
		invalid = "Invalid argument"
	)
	return []fact{
		{"macvlan beside ipvlan", []string{child("c1", "ipvlan mode l2")}, child("c2", "macvlan mode bridge"), "", busy},
		{"ipvlan beside macvlan", []string{child("c1", "macvlan mode bridge")}, child("c2", "ipvlan mode l2"), "", busy},
		{"a VLAN beside ipvlan", []string{child("c1", "ipvlan mode l2")}, child("d0.10", "vlan id 10"), "", done},
		{"a VLAN beside macvlan", []string{child("c1", "macvlan mode bridge")}, child("d0.10", "vlan id 10"), "", done},
		{"a child beside passthru", []string{child("c1", "macvlan mode passthru")}, child("c2", "macvlan mode bridge"), "", invalid},
		{"passthru beside a child", []string{child("c1", "macvlan mode bridge")}, child("c2", "macvlan mode passthru"), "", invalid},
		{"ipvlan on a port of a bridge", []string{"ip link add br0 type bridge", "ip link set d0 master br0"}, child("c1", "ipvlan mode l2"), "", busy},
		{"macvlan on a port of a bridge", []string{"ip link add br0 type bridge", "ip link set d0 master br0"}, child("c1", "macvlan mode bridge"), "", busy},
		{"the parent of ipvlan into a bridge", []string{child("c1", "ipvlan mode l2"), "ip link add br0 type bridge"}, "ip link set d0 master br0", "", busy},
		{"the parent of macvlan into a bridge", []string{child("c1", "macvlan mode bridge"), "ip link add br0 type bridge"}, "ip link set d0 master br0", "", busy},
		{"ipvlan on the loopback", nil, "ip link add c1 link lo type ipvlan mode l2", "", invalid},
		{"macvlan on the loopback", nil, "ip link add c1 link lo type macvlan mode bridge", "", invalid},
		{"a VLAN twice", []string{child("d0.10", "vlan id 10")}, child("again", "vlan id 10"), "", "8021q: VLAN device already exists."},
		{"an address twice on ipvlan", []string{child("c1", "ipvlan mode l2"), child("c2", "ipvlan mode l2"), "ip addr add 203.0.113.1/24 dev c1"}, "ip addr add 203.0.113.1/24 dev c2", "", "Address already assigned to an ipvlan device."},
		{"the host's address on ipvlan", []string{child("c1", "ipvlan mode l2"), "ip addr add 203.0.113.1/24 dev d0"}, "ip addr add 203.0.113.1/24 dev c1", "", done},
		{"a MAC twice on macvlan", []string{child("c1", "macvlan mode bridge"), "ip link set c1 address 02:00:00:00:00:02 up", child("c2", "macvlan mode bridge")}, "ip link set c2 address 02:00:00:00:00:02", "", "Address already in use"},

		{"mode of an ipvlan child after one in another mode", []string{child("c1", "ipvlan mode l2"), child("c2", "ipvlan mode l3")}, "ip -d link show c1", `ipvlan +mode (\S+)`, "l3"},
		{"flag of an ipvlan child after one with another flag", []string{child("c1", "ipvlan mode l2 bridge"), child("c2", "ipvlan mode l2 private")}, "ip -d link show c1", `ipvlan +mode \S+ +(\S+)`, "private"},
		{"mode of a macvlan child after one in another mode", []string{child("c1", "macvlan mode bridge"), child("c2", "macvlan mode private")}, "ip -d link show c1", `macvlan +mode (\S+)`, "bridge"},
		{"parent of ipvlan on ipvlan", []string{child("c1", "ipvlan mode l2"), "ip link add c2 link c1 type ipvlan mode l2"}, "ip link show c2", `c2@(\w+)`, "d0"},
		{"parent of macvlan on macvlan", []string{child("c1", "macvlan mode bridge"), "ip link add c2 link c1 type macvlan mode bridge"}, "ip link show c2", `c2@(\w+)`, "d0"},
		{"MAC of an ipvlan child", []string{child("c1", "ipvlan mode l2")}, "ip link show c1", `ether (\S+)`, "02:00:00:00:00:01"},
		{"MAC of an ipvlan child after the parent's was changed", []string{child("c1", "ipvlan mode l2"), "ip link set d0 address 02:00:00:00:00:02"}, "ip link show c1", `ether (\S+)`, "02:00:00:00:00:02"},
		{"another MAC for an ipvlan child", []string{child("c1", "ipvlan mode l2")}, "ip link set c1 address 02:00:00:00:00:02", "", "Operation not supported"},
		{"flags of an ipvlan child in mode l2", []string{"ip link set d0 up", child("c1", "ipvlan mode l2"), "ip link set c1 up"}, "ip link show c1", `<([A-Z_,-]+)`, "BROADCAST,MULTICAST,UP,LOWER_UP"},
		{"flags of an ipvlan child in mode l3", []string{"ip link set d0 up", child("c1", "ipvlan mode l3"), "ip link set c1 up"}, "ip link show c1", `<([A-Z_,-]+)`, "BROADCAST,MULTICAST,NOARP,UP,LOWER_UP"},

		{"a macvlan child up while the parent is down", []string{child("c1", "macvlan mode bridge")}, "ip link set c1 up", "", done},
		{"an ipvlan child up while the parent is down", []string{child("c1", "ipvlan mode l2")}, "ip link set c1 up", "", done},
		{"a macvlan child after the parent went down", []string{"ip link set d0 up", child("c1", "macvlan mode bridge"), "ip link set c1 up", "ip link set d0 down"}, "ip link show c1", `<[^>]*(M-DOWN)`, "M-DOWN"},
		{"an ipvlan child after the parent went down", []string{"ip link set d0 up", child("c1", "ipvlan mode l2"), "ip link set c1 up", "ip link set d0 down"}, "ip link show c1", `<[^>]*(M-DOWN)`, "M-DOWN"},
		{"a macvlan child after the parent was deleted", []string{child("c1", "macvlan mode bridge"), "ip link del d0"}, "ip link show c1", "", `Device "c1" does not exist.`},
		{"an ipvlan child after the parent was deleted", []string{child("c1", "ipvlan mode l2"), "ip link del d0"}, "ip link show c1", "", `Device "c1" does not exist.`},

		{"more MTU for a macvlan child than for the parent", []string{child("c1", "macvlan mode bridge")}, "ip link set c1 mtu 2000", "", invalid},
		{"more MTU for an ipvlan child than for the parent", []string{child("c1", "ipvlan mode l2")}, "ip link set c1 mtu 2000", "", done},
		{"MTU of a macvlan child after the parent's fell to 1400", []string{child("c1", "macvlan mode bridge"), "ip link set d0 mtu 1400"}, "ip link show c1", `mtu (\d+)`, "1400"},
		{"MTU of an ipvlan child after the parent's fell to 1400", []string{child("c1", "ipvlan mode l2"), "ip link set d0 mtu 1400"}, "ip link show c1", `mtu (\d+)`, "1400"},
		{"MTU of a macvlan child after the parent's rose to 9000", []string{child("c1", "macvlan mode bridge"), "ip link set d0 mtu 9000"}, "ip link show c1", `mtu (\d+)`, "1500"},
		{"MTU of an ipvlan child after the parent's rose to 9000", []string{child("c1", "ipvlan mode l2"), "ip link set d0 mtu 9000"}, "ip link show c1", `mtu (\d+)`, "9000"},
		{"MTU of a VLAN after the parent's rose to 9000", []string{child("d0.10", "vlan id 10"), "ip link set d0 mtu 9000"}, "ip link show d0.10", `mtu (\d+)`, "1500"},
	}
}

// ask finds a fact on a host of its own.
func (p *found) ask(t *testing.T, f fact) {
	ns, err := netns.NewDir(netns.Config{Dir: nstest.Dir(t)}).Create(t.Context(), "host")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	nstest.Batch(t, ns, append([]string{"ip link add d0 address 02:00:00:00:00:01 mtu 1500 type dummy"}, f.before...)...)
	out, err := nstest.Try(ns, f.command)
	answer := done
	switch {
	case err != nil:
		// The first line; what ip calls it differs between what the kernel said in words
		// and in a number.
		answer, _, _ = strings.Cut(strings.TrimSpace(out), "\n")
		answer = strings.TrimPrefix(strings.TrimPrefix(answer, "RTNETLINK answers: "), "Error: ")
	case f.shown != "":
		m := regexp.MustCompile(f.shown).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("%s: no %s in\n%s", f.command, f.shown, out)
		}
		answer = m[1]
	}
	if answer != f.want {
		t.Errorf("%s: %q, and should be %q", f.command, answer, f.want)
	}
	after := "-"
	if len(f.before) > 0 {
		after = "`" + strings.Join(f.before, "`<br>`") + "`"
	}
	p.keep(&p.said, f.what, line([]string{f.what, after, fmt.Sprintf("`%s`", f.command), answer}))
}
