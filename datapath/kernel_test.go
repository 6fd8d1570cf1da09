package datapath_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/announce"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// The tests below run on the real kernel: hosts are namespaces on an underlay,
// containers are namespaces into which the outer ends of pairs are moved.

const echoPort = 7777

// realHost is an agent on a throwaway host.
type realHost struct {
	*nstest.Host
	t *testing.T
	k *countingKernel
	o *datapath.Overlay
	a *datapath.Applier
}

func newRealHost(t *testing.T, l *nstest.Lab, n, mtu int) *realHost {
	h := &realHost{Host: l.Host(n, mtu), t: t, k: &countingKernel{}}
	h.start()
	t.Cleanup(func() { h.o.Close() })
	return h
}

func (h *realHost) start() {
	h.t.Helper()
	o, err := datapath.Open(h.t.Context(), datapath.Config{Kernel: h.k, Filter: nft.Linux{}, Namespaces: h.Namespaces, Announcer: announce.Linux{}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.o, h.a = o, o.Network(id)
}

func (h *realHost) apply(p plan.Network) datapath.Report {
	h.t.Helper()
	rep, err := h.a.Apply(h.t.Context(), p)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := rep.Failed(); err != nil {
		h.t.Fatal(err)
	}
	return rep
}

// try runs commands in the network's namespace.
func (h *realHost) try(line string) (string, error) {
	ns, err := h.Namespaces.Open(h.t.Context(), space)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	for _, c := range strings.Split(line, " ; ") {
		if out, err := nstest.Try(ns, c); err != nil {
			return out, err
		}
	}
	return "", nil
}

func (h *realHost) run(line string) {
	h.t.Helper()
	if out, err := h.try(line); err != nil {
		h.t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// peers is a network with one container on each of two hosts, as both see it.
type peers struct {
	hosts  [2]*realHost
	vtep   func(*nstest.Host) netip.Addr
	mtu    int // of the containers
	flood  bool
	joined bool // the pairs are Docker's
}

func (n peers) addr4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}) }
func (n peers) addr6(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:10::%d", i+1))
}

func (n peers) mac(i int) carrick.MAC { return carrick.MACFor(42, n.addr4(i)) }

// plan is what host i should hold.
func (n peers) plan(i int) plan.Network {
	far, e := 1-i, endpoint(i)
	p := plan.Network{
		ID: id, Namespace: space, Present: true,
		Bridge: plan.Bridge{Name: plan.BridgeName, MTU: n.mtu},
		VXLAN:  plan.VXLAN{Name: plan.VXLANName, VNI: 42, Port: carrick.DefaultPort, Local: n.vtep(n.hosts[i].Host), MTU: n.mtu},
		Ports:  []plan.Port{{Endpoint: e, Name: e.PortName(), Outer: e.OuterName(), MAC: n.mac(i), MTU: n.mtu, Create: !n.joined}},
		FDB:    []plan.FDBRow{{MAC: n.mac(far), VTEP: n.vtep(n.hosts[far].Host)}},
		Bridged: []plan.BridgeRow{
			{MAC: n.mac(i), Port: e.PortName()},
			{MAC: n.mac(far), Port: plan.VXLANName},
		},
		Neigh: []plan.NeighRow{{Addr: n.addr4(far), MAC: n.mac(far)}, {Addr: n.addr6(far), MAC: n.mac(far)}},
	}
	if n.flood {
		p.FDB = append(p.FDB, plan.FDBRow{VTEP: n.vtep(n.hosts[far].Host)})
	}
	return p
}

func (n *peers) container(i int) *nstest.Container {
	n.hosts[i].t.Helper()
	return n.hosts[i].Container("c", endpoint(i).OuterName(),
		netip.PrefixFrom(n.addr4(i), 24), netip.PrefixFrom(n.addr6(i), 64))
}

func v4(h *nstest.Host) netip.Addr { return h.VTEP }
func v6(h *nstest.Host) netip.Addr { return h.VTEP6 }

// newPeers makes both hosts and both containers.
func newPeers(t *testing.T, vtep func(*nstest.Host) netip.Addr, overhead int) (*peers, [2]*nstest.Container) {
	l := nstest.NewLab(t)
	n := &peers{vtep: vtep, mtu: 1500 - overhead, flood: true}
	for i := range n.hosts {
		n.hosts[i] = newRealHost(t, l, i+1, 1500)
	}
	var c [2]*nstest.Container
	for i, h := range n.hosts {
		h.apply(n.plan(i))
		c[i] = n.container(i)
	}
	return n, c
}

// reach checks that the containers reach each other, both ways, with both
// families and with the largest packet.
func (n *peers) reach(t *testing.T, c [2]*nstest.Container) {
	t.Helper()
	for i := range c {
		for _, a := range []netip.Addr{n.addr4(1 - i), n.addr6(1 - i)} {
			nstest.Exchange(t, c[i].NS, netip.AddrPortFrom(a, echoPort), n.mtu)
		}
	}
}

func echo(t *testing.T, c [2]*nstest.Container) {
	t.Helper()
	for _, c := range c {
		for _, a := range c.Addrs {
			nstest.Echo(t, c.NS, netip.AddrPortFrom(a, echoPort))
		}
	}
}

func TestContainersOfTwoHostsReachEachOther(t *testing.T) {
	t.Parallel()
	for name, u := range map[string]struct {
		vtep     func(*nstest.Host) netip.Addr
		overhead int
	}{"IPv4 underlay": {v4, 50}, "IPv6 underlay": {v6, 70}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, c := newPeers(t, u.vtep, u.overhead)
			echo(t, c)
			n.reach(t, c)
		})
	}
}

// frame is an Ethernet frame of a type reserved for experiments.
func frame(to, from carrick.MAC, text string) []byte {
	f := append(slices.Concat(to[:], from[:], []byte{0x88, 0xb5}), text...)
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

// arp asks who has an address.
func arp(from carrick.MAC, me, who netip.Addr) []byte {
	f := slices.Concat(broadcast[:], from[:], []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1}, from[:], me.AsSlice(), make([]byte, 6), who.AsSlice())
	return append(f, make([]byte, 60-len(f))...)
}

var broadcast = carrick.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func contains(frames [][]byte, f []byte) bool {
	return slices.ContainsFunc(frames, func(g []byte) bool { return string(f) == string(g) })
}

func TestWhatIsUnknownStaysOnItsHost(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	near, far := nstest.NewTap(t, c[0].NS), nstest.NewTap(t, c[1].NS)
	unknown := carrick.MAC{2, 0xff, 0, 0, 0, 9}
	arpUnknown := arp(n.mac(0), n.addr4(0), netip.MustParseAddr("10.0.0.99"))
	arpKnown := arp(n.mac(0), n.addr4(0), n.addr4(1))
	stray := frame(unknown, n.mac(0), "to nobody")
	marker := frame(broadcast, n.mac(0), "to everybody")

	near.Send(arpUnknown)
	near.Send(arpKnown)
	near.Send(stray)
	seen := near.Until(far, marker)
	for what, f := range map[string][]byte{
		"ARP for an address nobody has":     arpUnknown,
		"ARP for an address that is known":  arpKnown,
		"a frame for a MAC that nobody has": stray,
	} {
		if contains(seen, f) {
			t.Errorf("%s reached the other host", what)
		}
	}

	// With flood=off broadcast stays as well, and what is addressed arrives.
	n.flood = false
	n.hosts[0].apply(n.plan(0))
	near.Send(marker)
	if seen := near.Until(far, frame(n.mac(1), n.mac(0), "to you")); contains(seen, marker) {
		t.Error("with flood=off a broadcast reached the other host")
	}
}

func TestContainersOfOneHostDoNotHearWhatIsForOthers(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 1, 1500)
	h.apply(spec{local: []int{1, 2, 3}}.plan())
	var taps [3]*nstest.Tap
	for i := range taps {
		c := h.Container(fmt.Sprintf("c%d", i+1), endpoint(i+1).OuterName(), netip.PrefixFrom(ip4(i+1), 24))
		taps[i] = nstest.NewTap(t, c.NS)
	}
	for _, f := range [][]byte{frame(mac(2), mac(1), "to 2"), frame(mac(99), mac(1), "to nobody")} {
		taps[0].Send(f)
		if contains(taps[0].Until(taps[2], frame(broadcast, mac(1), "to all "+string(f[14:20]))), f) {
			t.Errorf("3 heard %q", f[14:])
		}
	}
	taps[0].Until(taps[1], frame(mac(2), mac(1), "again to 2"))
}

func TestTheMTUChangesInPlace(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	n := &peers{vtep: v4, mtu: 1450}
	for i := range n.hosts {
		n.hosts[i] = newRealHost(t, l, i+1, 1500)
		if i == 0 {
			continue
		}
		for i := range n.hosts {
			n.hosts[i].apply(n.plan(i))
		}
	}
	n.mtu = 1300
	h := n.hosts[0]
	h.k.reset()
	rep := h.apply(n.plan(0))
	if want := (datapath.Counts{Links: 3}); rep.Changes != want || len(h.k.reset()) != 4 {
		t.Errorf("%+v", rep)
	}
	n.hosts[1].apply(n.plan(1))
	c := [2]*nstest.Container{n.container(0), n.container(1)}
	echo(t, c)
	n.reach(t, c)
	if err := nstest.TryExchange(c[0].NS, netip.AddrPortFrom(n.addr4(1), echoPort), 1301, 0); err == nil {
		t.Error("a packet larger than the MTU was sent")
	}
}

func TestTheUnderlayIsFound(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 7, 1400)
	nstest.Run(t, h.NS, "ip link add docker0 type bridge")
	nstest.Run(t, h.NS, "ip addr add 172.17.0.1/16 dev docker0")
	nstest.Run(t, h.NS, "ip route add 198.51.100.0/24 via 192.0.2.254")
	nstest.Run(t, h.NS, "ip route add fd00:99::/64 via 2001:db8::fe")
	ctx := t.Context()
	for in, want := range map[string]datapath.Underlay{
		"":             {Addr: h.VTEP, Interface: "eth0", MTU: 1400},
		"eth0":         {Addr: h.VTEP, Interface: "eth0", MTU: 1400},
		"192.0.2.7":    {Addr: h.VTEP, Interface: "eth0", MTU: 1400},
		"2001:db8::7":  {Addr: h.VTEP6, Interface: "eth0", MTU: 1400},
		"172.17.0.1":   {Addr: netip.MustParseAddr("172.17.0.1"), Interface: "docker0", MTU: 1500},
		"192.0.2.8":    {},
		"eth9":         {},
		"lo":           {},
		"not a name/1": {},
	} {
		got, err := h.o.Underlay(ctx, in)
		if got != want || (err == nil) != (want != datapath.Underlay{}) {
			t.Errorf("Underlay(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	nstest.Run(t, h.NS, "ip route del default")
	if got, err := h.o.Underlay(ctx, ""); err == nil {
		t.Errorf("without a default route: %+v", got)
	}
	got, err := h.o.HostPrefixes(ctx)
	var want []netip.Prefix
	for _, p := range []string{"127.0.0.0/8", "172.17.0.0/16", "192.0.2.0/24", "198.51.100.0/24", "::1/128", "2001:db8::/64", "fd00:99::/64"} {
		want = append(want, netip.MustParsePrefix(p))
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("HostPrefixes = %v, %v; want %v", got, err, want)
	}
}
