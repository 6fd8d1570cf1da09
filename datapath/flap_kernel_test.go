package datapath_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
)

// byHand runs commands in the network's namespace or, behind "host: ", in the
// host's; NS is the path of the former.
func (h *realHost) byHand(line string) {
	h.t.Helper()
	for _, c := range strings.Split(strings.ReplaceAll(line, "NS", filepath.Join(h.Dir, space)), " ; ") {
		if host, ok := strings.CutPrefix(c, "host: "); ok {
			nstest.Run(h.t, h.NS, host)
		} else {
			h.run(c)
		}
	}
}

// A link that goes down and up again, or goes and is made again, looks the same
// afterwards and is not: it lost rows, or all it had.
func TestALinkThatFlapsOrIsMadeAgainIsReadAgain(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	n.joined = true
	echo(t, c)
	n.reach(t, c)
	h := n.hosts[0]
	p := n.plan(0)
	h.apply(p)
	want := h.world(c[0])
	port := endpoint(0).PortName()
	vxlan := "host: ip link add ckvx42 netns NS mtu 1450 type vxlan id 42 dstport 4789 local 192.0.2.1 nolearning proxy ; ip link set ckvx42 name vxlan0 ; " +
		"ip link set vxlan0 master br0 addrgenmode none ; bridge link set dev vxlan0 learning off flood off ; ip link set vxlan0 up"
	for name, line := range map[string]string{
		"the vxlan device flaps":                  "ip link set vxlan0 down ; ip link set vxlan0 up",
		"the bridge flaps":                        "ip link set br0 down ; ip link set br0 up",
		"a port flaps":                            "ip link set " + port + " down ; ip link set " + port + " up",
		"the vxlan device leaves the bridge":      "ip link set vxlan0 nomaster ; ip link set vxlan0 master br0 ; bridge link set dev vxlan0 learning off flood off",
		"a port leaves the bridge":                "ip link set " + port + " nomaster ; ip link set " + port + " master br0 ; bridge link set dev " + port + " learning off flood off",
		"the vxlan device is made again":          "ip link del vxlan0 ; " + vxlan,
		"the vxlan device is made for another":    "ip link del vxlan0 ; " + strings.Replace(vxlan, "192.0.2.1", "192.0.2.77", 1),
		"the bridge is made again":                "ip link del br0 ; ip link add br0 mtu 1450 type bridge mcast_snooping 0 vlan_default_pvid 0 ; ip link set br0 addrgenmode none up ; ip link set vxlan0 master br0 ; ip link set " + port + " master br0",
		"all flaps":                               "ip link set br0 down ; ip link set vxlan0 down ; ip link set " + port + " down ; ip link set " + port + " up ; ip link set vxlan0 up ; ip link set br0 up",
		"the vxlan device is another for a while": "ip link set vxlan0 down ; ip link set vxlan0 name x ; ip link set x name vxlan0 ; ip link set vxlan0 up",
	} {
		h.byHand(line)
		// A value of before may be there, and the events of the last commands may come
		// after the first reading.
		for again := ""; again == "" || again == "audit"; {
			<-h.a.Changed()
			again = h.apply(p).Resync
		}
		for h.world(c[0]) != want {
			<-h.a.Changed()
			h.apply(p)
		}
		h.same(name, p, want, c[:1])
		n.reach(t, c)
	}
}

// A vxlan device has a local address and no lower device: its socket listens on
// any address, and each packet is routed anew. So whatever happens to the
// underlay's interface, traffic is back when that is, and nothing is to be done.
func TestTheUnderlaysInterfaceMayComeAndGo(t *testing.T) {
	t.Parallel()
	for name, u := range map[string]struct {
		vtep     func(*nstest.Host) netip.Addr
		overhead int
	}{"IPv4 underlay": {v4, 50}, "IPv6 underlay": {v6, 70}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, c := newPeers(t, u.vtep, u.overhead)
			n.joined = true
			echo(t, c)
			n.reach(t, c)
			h := n.hosts[0]
			h.apply(n.plan(0))
			want := h.reading()
			six := fmt.Sprintf("ip addr replace %s/64 dev eth0 nodad", h.VTEP6)
			both := []string{fmt.Sprintf("ip addr replace %s/24 dev eth0", h.VTEP), six}
			for name, x := range map[string]struct{ gone, back []string }{
				// The kernel takes IPv6 addresses off an interface that goes down.
				"the interface is down for a while":  {[]string{"ip link set eth0 down"}, []string{"ip link set eth0 up", six}},
				"the addresses are gone for a while": {[]string{"ip addr flush dev eth0 scope global"}, both},
				"the addresses are on another link":  {[]string{"ip addr flush dev eth0 scope global", "ip link add other type bridge", fmt.Sprintf("ip addr add %s/32 dev other", h.VTEP), "ip link set other up"}, append([]string{"ip link del other"}, both...)},
				"the interface is gone for a while":  {[]string{"ip link del eth0"}, nil},
				"the interface has another name":     {[]string{"ip link set eth0 down", "ip link set eth0 name eth1", "ip link set eth1 up"}, []string{"ip link set eth1 down", "ip link set eth1 name eth0", "ip link set eth0 up", six}},
				"the interface becomes a bridge's port": {[]string{"ip addr flush dev eth0 scope global", "ip link add lan0 type bridge", "ip link set lan0 up", "ip link set eth0 master lan0",
					fmt.Sprintf("ip addr add %s/24 dev lan0", h.VTEP), fmt.Sprintf("ip addr add %s/64 dev lan0 nodad", h.VTEP6)}, append([]string{"ip link del lan0"}, both...)},
			} {
				for _, line := range x.gone {
					nstest.Run(t, h.NS, line)
				}
				if strings.Contains(name, "bridge's") {
					n.reach(t, c) // another way, the same address
				} else if err := nstest.TryExchange(c[0].NS, netip.AddrPortFrom(n.addr4(1), echoPort), 100, 0); err == nil && !strings.Contains(name, "another name") {
					t.Errorf("%s: and still there was an answer", name)
				}
				if rep, err := h.a.Audit(t.Context()); err != nil || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
					t.Errorf("%s: meanwhile an audit found %+v, %v", name, rep, err)
				}
				if x.back == nil {
					h.Attach()
				}
				for _, line := range x.back {
					nstest.Run(t, h.NS, line)
				}
				n.reach(t, c)
				if rep, err := h.a.Audit(t.Context()); err != nil || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 || h.reading() != want {
					t.Errorf("%s: afterwards an audit found %+v, %v", name, rep, err)
				}
			}
		})
	}
}
