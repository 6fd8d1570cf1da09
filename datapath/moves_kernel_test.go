package datapath_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/announce"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// until runs a command in ns until its output pleases.
func until(t *testing.T, ns netns.Namespace, line string, pleases func(out string) bool) {
	t.Helper()
	out := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if out, _ = nstest.Try(ns, line); pleases(out) {
			return
		}
	}
	t.Fatalf("in %s: %s: %s", ns.Name(), line, out)
}

// remembers waits until a container has a MAC for an address in its neighbour
// table. Nobody in it sends anything meanwhile, so it must have been told.
func remembers(t *testing.T, c *nstest.Container, a netip.Addr, m carrick.MAC) {
	t.Helper()
	until(t, c.NS, "ip neigh show to "+a.String(), func(out string) bool { return strings.Contains(out, m.String()) })
}

// moved is the plan of host 0 after the far container has got another MAC.
func (n peers) moved(m carrick.MAC) plan.Network {
	p := n.plan(0)
	p.FDB[0].MAC, p.Bridged[1].MAC = m, m
	for i := range p.Neigh {
		p.Neigh[i].MAC = m
	}
	return p
}

var other = carrick.MAC{2, 0xee, 0, 0, 0, 7}

// A container comes back elsewhere with another MAC: those that remember the one
// before are told, on each host by its own agent, and nothing of it leaves the
// host.
func TestAnotherMACIsAnnounced(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]bool{"at once": false, "after it was gone": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, c := newPeers(t, v4, 50)
			echo(t, c)
			n.reach(t, c)
			far := nstest.NewTap(t, c[1].NS)
			n.joined = true
			if between {
				gone := n.moved(other)
				gone.FDB, gone.Bridged, gone.Neigh = nil, gone.Bridged[:1], nil
				n.hosts[0].apply(gone)
			}
			p := n.moved(other)
			p.FDB = append(p.FDB, plan.FDBRow{VTEP: n.vtep(n.hosts[1].Host)}) // flooding is on
			n.hosts[0].apply(p)
			remembers(t, c[0], n.addr4(1), other)
			remembers(t, c[0], n.addr6(1), other)
			for _, f := range nstest.NewTap(t, c[0].NS).Until(far, frame(broadcast, n.mac(0), "the end")) {
				if from := carrick.MAC(f[6:12]); from == other {
					t.Errorf("the other host heard %x", f)
				}
			}
		})
	}
}

// A container asks for an address that nobody has yet. It need not ask again when
// somebody has.
func TestWhoIsAskingIsTold(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	n.joined = true
	gone := n.plan(0)
	gone.FDB, gone.Bridged, gone.Neigh = nil, gone.Bridged[:1], nil
	n.hosts[0].apply(gone)
	if err := nstest.TryExchange(c[0].NS, netip.AddrPortFrom(n.addr4(1), echoPort), 100, 0); err == nil {
		t.Fatal("somebody answers")
	}
	until(t, c[0].NS, "ip neigh show to "+n.addr4(1).String(), func(out string) bool { return strings.Contains(out, "FAILED") })
	n.hosts[0].apply(n.plan(0))
	remembers(t, c[0], n.addr4(1), n.mac(1))
}

// The same when it comes back on this very host, whose agent is told nothing by
// anybody: it has just made the port.
func TestAnotherMACHereIsAnnounced(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	echo(t, c)
	n.reach(t, c)
	n.joined = true
	p := n.plan(0)
	e := endpoint(1)
	p.FDB, p.Bridged, p.Neigh = nil, p.Bridged[:1], nil
	p.Bridged = append(p.Bridged, plan.BridgeRow{MAC: other, Port: e.PortName()})
	p.Ports = append(p.Ports, plan.Port{Endpoint: e, Name: e.PortName(), Outer: e.OuterName(), MAC: other, MTU: n.mtu, Create: true})
	for _, a := range []netip.Addr{n.addr4(1), n.addr6(1)} {
		p.Here = append(p.Here, plan.HereRow{Endpoint: e, NeighRow: plan.NeighRow{Addr: a, MAC: other}})
	}
	n.hosts[0].apply(p)
	remembers(t, c[0], n.addr4(1), other)
	remembers(t, c[0], n.addr6(1), other)

	// Once: a pass that changes nothing says nothing, nor does an agent's restart.
	told := nstest.NewTap(t, c[0].NS)
	n.hosts[0].apply(p)
	if err := n.hosts[0].o.Close(); err != nil {
		t.Fatal(err)
	}
	n.hosts[0].start()
	p.Ports[1].Create = false
	n.hosts[0].apply(p)
	back := n.hosts[0].Container("d", e.OuterName(), netip.PrefixFrom(n.addr4(1), 24))
	for _, f := range nstest.NewTap(t, back.NS).Until(told, frame(n.mac(0), other, "the end")) {
		if f[12] == 8 && f[13] == 6 && carrick.MAC(f[6:12]) == other {
			t.Errorf("announced again: %x", f)
		}
	}
}

// A container moves to the host from which it was reached a moment ago, and makes
// sure that nobody else has its addresses (RFC 5227 is for IPv4, RFC 4862 §5.4
// for IPv6): the vxlan device does not answer for what is here.
func TestAContainerThatMovedMayProbeItsAddress(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	echo(t, c)
	n.reach(t, c)
	p := n.plan(0)
	e := endpoint(1)
	p.Ports[0].Create = false
	p.FDB, p.Bridged, p.Neigh = nil, p.Bridged[:1], nil
	p.Bridged = append(p.Bridged, plan.BridgeRow{MAC: n.mac(1), Port: e.PortName()})
	p.Ports = append(p.Ports, plan.Port{Endpoint: e, Name: e.PortName(), Outer: e.OuterName(), MAC: n.mac(1), MTU: n.mtu, Create: true})
	n.hosts[0].apply(p)
	moved := n.hosts[0].Container("moved", e.OuterName(), netip.PrefixFrom(n.addr4(1), 24))
	nstest.Run(t, moved.NS, fmt.Sprintf("ip addr add %s/64 dev eth0", n.addr6(1)))
	until(t, moved.NS, "ip -6 addr show dev eth0", func(out string) bool {
		if strings.Contains(out, "dadfailed") {
			t.Fatal(out)
		}
		return strings.Contains(out, n.addr6(1).String()) && strings.Contains(out, "fe80") && !strings.Contains(out, "tentative")
	})
	tap := nstest.NewTap(t, moved.NS)
	tap.Send(arp(n.mac(1), netip.IPv4Unspecified(), n.addr4(1)))
	for _, f := range nstest.NewTap(t, c[0].NS).Until(tap, frame(n.mac(1), n.mac(0), "the end")) {
		if f[12] == 8 && f[13] == 6 {
			t.Errorf("the probe was answered: %x", f)
		}
	}
	nstest.Echo(t, moved.NS, netip.AddrPortFrom(n.addr6(1), echoPort))
	nstest.Exchange(t, c[0].NS, netip.AddrPortFrom(n.addr6(1), echoPort), n.mtu)
}

// IPv6 applications speak to each other's link-local addresses: routers, mDNS,
// cluster discovery. They are found across hosts like any other.
func TestLinkLocalAddressesAreReached(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	n := &peers{vtep: v4, mtu: 1450}
	for i := range n.hosts {
		n.hosts[i] = newRealHost(t, l, i+1, 1500)
	}
	var c [2]*nstest.Container
	for i, h := range n.hosts {
		p := n.plan(i)
		far := n.mac(1 - i)
		p.Neigh = append(p.Neigh, plan.NeighRow{Addr: far.LinkLocal(), MAC: far})
		h.apply(p)
		c[i] = n.container(i)
		if rep, err := h.a.Audit(t.Context()); err != nil || rep.Drift.Total() != 0 || rep.Changes.Total() != 0 {
			t.Errorf("an audit found %+v, %v", rep, err)
		}
	}
	var at [2]netip.Addr
	for i := range c {
		until(t, c[i].NS, "ip -6 addr show dev eth0", func(out string) bool {
			return strings.Contains(out, n.mac(i).LinkLocal().String()) && !strings.Contains(out, "tentative")
		})
		index, _, _ := strings.Cut(nstest.Run(t, c[i].NS, "ip -o link show dev eth0"), ":")
		at[i] = n.mac(i).LinkLocal().WithZone(index)
		nstest.Echo(t, c[i].NS, netip.AddrPortFrom(at[i], echoPort))
	}
	for i := range c {
		nstest.Exchange(t, c[i].NS, netip.AddrPortFrom(n.mac(1-i).LinkLocal().WithZone(at[i].Zone()), echoPort), n.mtu)
	}
}

// A kernel that wants to know whether a neighbour is still there asks it by unicast.
// The vxlan device answers that as well, so entries for containers elsewhere are
// confirmed without a frame between hosts. What a container announces of itself is
// heard on its own host alone.
func TestARPStaysOnItsHost(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := [2]*realHost{newRealHost(t, l, 1, 1500), newRealHost(t, l, 2, 1500)}
	h[0].apply(spec{local: []int{1, 2}, remote: map[int][]string{3: {"192.0.2.2"}}, flood: true}.plan())
	h[1].apply(spec{local: []int{3}, remote: map[int][]string{1: {"192.0.2.1"}, 2: {"192.0.2.1"}}, vtep: "192.0.2.2", flood: true}.plan())
	c := map[int]*nstest.Container{}
	taps := map[int]*nstest.Tap{}
	for i := 1; i <= 3; i++ {
		c[i] = h[i/3].Container(fmt.Sprint("c", i), endpoint(i).OuterName(), netip.PrefixFrom(ip4(i), 24))
		taps[i] = nstest.NewTap(t, c[i].NS)
	}
	ask := arp(mac(1), ip4(1), ip4(3))
	to := mac(3)
	copy(ask, to[:])
	announced := announce.Frame(plan.NeighRow{Addr: ip4(1), MAC: mac(1)})
	taps[1].Send(ask)
	taps[1].Send(announced)
	for _, f := range taps[1].Until(taps[3], frame(broadcast, mac(1), "the end")) {
		if f[12] == 8 && f[13] == 6 {
			t.Errorf("the other host heard %x", f)
		}
	}
	if !contains(taps[1].Until(taps[2], frame(broadcast, mac(1), "the end here")), announced) {
		t.Error("a container of the same host has not heard the announcement")
	}
	answered := false
	for _, f := range taps[2].Until(taps[1], frame(broadcast, mac(2), "back")) {
		answered = answered || f[12] == 8 && f[13] == 6 && f[21] == 2 && carrick.MAC(f[22:28]) == mac(3)
	}
	if !answered {
		t.Error("a probe by unicast was not answered")
	}
	// Nothing in the world is reachable for half a second here, and is asked again at
	// once: an entry that is used stays confirmed.
	nstest.Run(t, c[1].NS, "ip ntable change name arp_cache dev eth0 base_reachable 500")
	nstest.Run(t, c[1].NS, "sysctl -qw net.ipv4.neigh.eth0.delay_first_probe_time=1")
	nstest.Echo(t, c[3].NS, netip.AddrPortFrom(ip4(3), echoPort))
	probes := 0
	for end := time.Now().Add(20 * time.Second); probes < 2 && time.Now().Before(end); {
		nstest.Exchange(t, c[1].NS, netip.AddrPortFrom(ip4(3), echoPort), 100)
		out := nstest.Run(t, c[1].NS, "ip neigh show to "+ip4(3).String())
		if strings.Contains(out, "FAILED") || strings.Contains(out, "INCOMPLETE") {
			t.Fatal(out)
		}
		if strings.Contains(out, "PROBE") || strings.Contains(out, "DELAY") {
			probes++
			until(t, c[1].NS, "ip neigh show to "+ip4(3).String(), func(out string) bool { return strings.Contains(out, "REACHABLE") })
		}
	}
	if probes < 2 {
		t.Error("the entry was never asked again")
	}
}
