package nl_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// pair is a "host" and a network's namespace, with a handle for each.
type pair struct {
	hostNS, netNS netns.Namespace
	host, net     nl.Handle
}

func newPair(t *testing.T) pair {
	t.Helper()
	nstest.RequireRoot(t)
	ctx := t.Context()
	d := netns.NewDir(netns.Config{Dir: nstest.Dir(t)})
	var p pair
	for _, x := range []struct {
		name string
		ns   *netns.Namespace
		h    *nl.Handle
	}{{"host", &p.hostNS, &p.host}, {"net", &p.netNS, &p.net}} {
		ns, err := d.Create(ctx, x.name)
		if err != nil {
			t.Fatal(err)
		}
		h, err := nl.Linux{}.Open(ctx, ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close(); ns.Close() })
		*x.ns, *x.h = ns, h
	}
	nstest.Run(t, p.hostNS, "ip link set lo up")
	return p
}

func send(t *testing.T, h nl.Handle, changes ...nl.Change) {
	t.Helper()
	if err := errors.Join(h.Send(t.Context(), changes...)...); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, h nl.Handle, name string) nl.Link {
	t.Helper()
	links, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name == name {
			for _, ref := range []nl.Ref{{Name: name}, {Index: l.Index}} {
				one, err := h.Link(t.Context(), ref)
				if err != nil || one.Ref != l.Ref || one.Kind != l.Kind {
					t.Errorf("Link(%+v) = %+v, %v; listed %+v", ref, one, err, l)
				}
			}
			return l
		}
	}
	t.Fatalf("no link %s in %+v", name, links)
	return nl.Link{}
}

var (
	mac1 = carrick.MAC{2, 0, 0, 0, 0, 1}
	mac2 = carrick.MAC{2, 0, 0, 0, 0, 2}
	all  = &nl.PortFlags{MulticastFlood: true, BroadcastFlood: true}
)

// overlay makes br0, vxlan0 and one port p1 with the other end ck1.
func overlay(t *testing.T, p pair) (br, vx, port nl.Link) {
	t.Helper()
	send(t, p.net, nl.AddBridge{Name: "br0"})
	br = link(t, p.net, "br0")
	send(t, p.net,
		nl.SetLink{Link: br.Ref, MTU: 1400, NoAddrGen: true},
		nl.SetLink{Link: br.Ref, Up: nl.On})
	send(t, p.host, nl.AddVXLAN{Name: "ckvx77", Target: p.netNS, Master: br.Ref, MTU: 1400,
		VNI: 77, Port: 4789, Local: netip.MustParseAddr("127.0.0.1")})
	vx = link(t, p.net, "ckvx77")
	send(t, p.net,
		nl.SetLink{Link: vx.Ref, Rename: "vxlan0", NoAddrGen: true, Port: all},
		nl.SetLink{Link: vx.Ref, Up: nl.On})
	send(t, p.host, nl.AddVeth{Name: "p1", Target: p.netNS, Master: br.Ref, MTU: 1400, Outer: "ck1", OuterMAC: mac1})
	port = link(t, p.net, "p1")
	send(t, p.net,
		nl.SetLink{Link: port.Ref, Alias: "endpoint one", NoAddrGen: true, Port: all},
		nl.SetLink{Link: port.Ref, Up: nl.On})
	return link(t, p.net, "br0"), link(t, p.net, "vxlan0"), link(t, p.net, "p1")
}

func TestAnOverlayReadsBackAsItWasMade(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	br, vx, port := overlay(t, p)

	if br.Kind != nl.KindBridge || br.MTU != 1400 || !br.Up || !br.NoAddrGen || br.Bridge == nil || *br.Bridge != (nl.BridgeInfo{}) {
		t.Errorf("br0 = %+v, bridge %+v", br, br.Bridge)
	}
	want := nl.VXLANInfo{VNI: 77, Port: 4789, Local: netip.MustParseAddr("127.0.0.1"), Proxy: true}
	if vx.Kind != nl.KindVXLAN || vx.MTU != 1400 || !vx.Up || vx.Master != br.Index || !vx.NoAddrGen || vx.VXLAN == nil || *vx.VXLAN != want {
		t.Errorf("vxlan0 = %+v, vxlan %+v", vx, vx.VXLAN)
	}
	if vx.Port == nil || *vx.Port != *all {
		t.Errorf("vxlan0's flags as a port: %+v", vx.Port)
	}
	outer := link(t, p.host, "ck1")
	if outer.Up || outer.MTU != 1400 || outer.MAC != mac1 || outer.Peer != port.Index {
		t.Errorf("ck1 = %+v", outer)
	}
	if !port.Up || port.MTU != 1400 || port.Master != br.Index || port.Alias != "endpoint one" || port.Peer != outer.Index || *port.Port != *all {
		t.Errorf("p1 = %+v", port)
	}
	if far, err := p.net.Peer(t.Context(), port); err != nil || far.Ref != outer.Ref || far.MAC != mac1 || far.MTU != 1400 {
		t.Errorf("p1's peer = %+v, %v; want %+v", far, err, outer)
	}
	// Both point at the host: the one with its socket, the other with its peer.
	id, err := p.net.NSID(t.Context(), p.hostNS)
	if err != nil || id == nl.NoNSID || vx.PeerNS != id || port.PeerNS != id {
		t.Errorf("the host is %d (%v), vxlan0 says %d, p1 says %d", id, err, vx.PeerNS, port.PeerNS)
	}
	stranger, err := netns.NewDir(netns.Config{Dir: nstest.Dir(t)}).Create(t.Context(), "stranger")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if id, err := p.net.NSID(t.Context(), stranger); err != nil || id != nl.NoNSID {
		t.Errorf("a namespace never met has the number %d, %v", id, err)
	}
	// No address was made on the way, not even a link-local one.
	if a, err := p.net.Addresses(t.Context()); err != nil || len(a) != 0 {
		t.Errorf("addresses in the network's namespace: %v, %v", a, err)
	}
}

func TestAPeerIsFoundWhereverDockerMovedIt(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	overlay(t, p)
	dir := nstest.Dir(t)
	c, err := netns.NewDir(netns.Config{Dir: dir}).Create(t.Context(), "container")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nstest.Run(t, p.hostNS, "ip link set ck1 netns "+dir+"/container name eth0 mtu 1300 up")
	port := link(t, p.net, "p1")
	far, err := p.net.Peer(t.Context(), port)
	if err != nil || far.Name != "eth0" || far.MAC != mac1 || far.MTU != 1300 {
		t.Errorf("the peer of %+v = %+v, %v", port, far, err)
	}
	if id, err := p.net.NSID(t.Context(), p.hostNS); err != nil || id == port.PeerNS {
		t.Errorf("the peer is said to be in the host still: %d, %v", id, err)
	}
	// Its container may end between two looks, and the number stands for nothing.
	port.PeerNS = 4000
	if far, err := p.net.Peer(t.Context(), port); !errors.Is(err, nl.ErrNotFound) {
		t.Errorf("a peer in a namespace that is gone: %+v, %v; want ErrNotFound", far, err)
	}
}

func TestTheVXLANSocketIsTheHosts(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	overlay(t, p)
	// /proc/net/udp prints the local port in hex.
	const want = ":12B5"
	for _, x := range []struct {
		ns   netns.Namespace
		want bool
	}{{p.hostNS, true}, {p.netNS, false}} {
		out := nstest.Run(t, x.ns, "cat /proc/thread-self/net/udp")
		if got := strings.Contains(out, want); got != x.want {
			t.Errorf("UDP port 4789 open in %s: %v, want %v\n%s", x.ns.Name(), got, x.want, out)
		}
	}
}

func TestRowsAreKeptByMACAndDestination(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	_, vx, port := overlay(t, p)
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::3")
	var zero carrick.MAC
	send(t, p.net,
		nl.SetFDB{Link: vx.Ref, MAC: zero, VTEP: a},
		nl.SetFDB{Link: vx.Ref, MAC: zero, VTEP: b},
		nl.SetFDB{Link: vx.Ref, MAC: zero, VTEP: b}, // twice is once
		nl.SetFDB{Link: vx.Ref, MAC: mac1, VTEP: a},
		nl.SetFDB{Link: vx.Ref, MAC: mac1, VTEP: b}, // a move
		nl.SetBridged{Link: vx.Ref, MAC: mac1},
		nl.SetBridged{Link: port.Ref, MAC: mac1}, // a move
		nl.SetNeigh{Link: vx.Ref, Addr: netip.MustParseAddr("10.9.0.1"), MAC: mac1},
		nl.SetNeigh{Link: vx.Ref, Addr: netip.MustParseAddr("10.9.0.1"), MAC: mac2},
		nl.SetNeigh{Link: vx.Ref, Addr: c, MAC: mac1})

	self, bridged := rows(t, p.net)
	wantSelf := []string{"00:00:00:00:00:00 10.0.0.1", "00:00:00:00:00:00 10.0.0.2", "02:00:00:00:00:01 10.0.0.2"}
	if !slices.Equal(self, wantSelf) {
		t.Errorf("self rows %v, want %v", self, wantSelf)
	}
	if want := []string{"02:00:00:00:00:01 p1"}; !slices.Equal(bridged, want) {
		t.Errorf("master rows %v, want %v", bridged, want)
	}
	n, err := p.net.Neighbours(t.Context(), vx.Ref)
	slices.SortFunc(n, func(a, b nl.Neighbour) int { return a.Addr.Compare(b.Addr) })
	want := []nl.Neighbour{
		{Link: vx.Index, Addr: netip.MustParseAddr("10.9.0.1"), MAC: mac2, State: nl.StatePermanent},
		{Link: vx.Index, Addr: c, MAC: mac1, State: nl.StatePermanent},
	}
	if err != nil || !slices.Equal(n, want) {
		t.Errorf("neighbours %+v, %v; want %+v", n, err, want)
	}

	send(t, p.net,
		nl.DelFDB{Link: vx.Ref, MAC: zero, VTEP: a},
		nl.DelFDB{Link: vx.Ref, MAC: mac1, VTEP: b},
		nl.DelBridged{Link: port.Ref, MAC: mac1},
		nl.DelNeigh{Link: vx.Ref, Addr: c})
	self, bridged = rows(t, p.net)
	if want := []string{"00:00:00:00:00:00 10.0.0.2"}; !slices.Equal(self, want) || len(bridged) != 0 {
		t.Errorf("after deletion: self %v, master %v", self, bridged)
	}
	for _, c := range []nl.Change{
		nl.DelFDB{Link: vx.Ref, MAC: mac1, VTEP: b},
		nl.DelBridged{Link: port.Ref, MAC: mac1},
		nl.DelNeigh{Link: vx.Ref, Addr: c},
		nl.DelLink{Link: nl.Ref{Index: 999, Name: "none"}},
		nl.SetLink{Link: nl.Ref{Index: 999, Name: "none"}, Up: nl.On},
	} {
		if err := errors.Join(p.net.Send(t.Context(), c)...); !errors.Is(err, nl.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", c.Command("net"), err)
		}
	}
}

// rows returns the rows that Carrick may have written, as text, sorted.
func rows(t *testing.T, h nl.Handle) (self, bridged []string) {
	t.Helper()
	links, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	all, err := h.FDB(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		switch {
		case r.Odd:
			t.Errorf("odd row %+v", r)
		case r.Self && names[r.Link] == "vxlan0":
			self = append(self, r.MAC.String()+" "+r.VTEP.String())
		case r.Of != 0 && r.State == nl.StateNoARP:
			if r.VLAN != 0 {
				t.Errorf("row %+v has a VLAN: the default PVID is not 0", r)
			}
			bridged = append(bridged, r.MAC.String()+" "+names[r.Link])
		}
	}
	slices.Sort(self)
	slices.Sort(bridged)
	return self, bridged
}

func TestABatchReportsExactlyTheChangesThatFailed(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	_, vx, _ := overlay(t, p)
	var changes []nl.Change
	bad := map[int]bool{0: true, 63: true, 64: true, 100: true, 199: true}
	for i := range 200 {
		if bad[i] {
			changes = append(changes, nl.DelNeigh{Link: vx.Ref, Addr: netip.MustParseAddr("10.9.9.9")})
			continue
		}
		changes = append(changes, nl.SetFDB{Link: vx.Ref, MAC: carrick.MAC{2, 1, 0, 0, 0, byte(i)}, VTEP: netip.MustParseAddr("10.0.0.1")})
	}
	errs := p.net.Send(t.Context(), changes...)
	if len(errs) != len(changes) {
		t.Fatalf("%d errors for %d changes", len(errs), len(changes))
	}
	for i, err := range errs {
		if bad[i] != errors.Is(err, unix.ENOENT) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if self, _ := rows(t, p.net); len(self) != 195 {
		t.Errorf("%d rows were written, want 195", len(self))
	}
}

func TestErrorsSayWhatFailedAndWhy(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	br, _, _ := overlay(t, p)

	err := errors.Join(p.host.Send(t.Context(), nl.AddVXLAN{Name: "ckvx78", Target: p.netNS, Master: br.Ref, MTU: 1400,
		VNI: 77, Port: 4789, Local: netip.MustParseAddr("127.0.0.1")})...)
	if !errors.Is(err, unix.EEXIST) || !errors.Is(err, nl.ErrExists) {
		t.Errorf("the same VNI twice: %v", err)
	}
	// The kernel's own words are kept.
	want := "ip -n host link add ckvx78 netns net mtu 1400 master br0 type vxlan id 77 dstport 4789 local 127.0.0.1 nolearning proxy: " +
		"file exists: A VXLAN device with the specified VNI already exists"
	if err == nil || err.Error() != want {
		t.Errorf("error text\n got %v\nwant %v", err, want)
	}
	for _, ref := range []nl.Ref{{Name: "none"}, {Index: 4711}} {
		if _, err := p.net.Link(t.Context(), ref); !errors.Is(err, nl.ErrNotFound) {
			t.Errorf("Link(%+v): %v, want ErrNotFound", ref, err)
		}
	}
	if err := p.net.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.net.Send(t.Context(), nl.DelLink{Link: br.Ref})...); !errors.Is(err, nl.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	if _, err := p.net.Links(t.Context()); !errors.Is(err, nl.ErrClosed) {
		t.Errorf("Links after Close: %v", err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if errs := p.host.Send(done, nl.DelLink{}, nl.DelLink{}); len(errs) != 2 || !errors.Is(errs[1], context.Canceled) {
		t.Errorf("Send after cancel: %v", errs)
	}
}

func TestEventsOfAChangeAreThereWhenSendReturns(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	br, vx, _ := overlay(t, p)
	ev, err := p.net.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ev.Close()

	send(t, p.net, nl.SetLink{Link: br.Ref, MTU: 1390})
	got, err := ev.Poll()
	if err != nil || len(got) == 0 || got[len(got)-1].Link.MTU != 1390 || got[len(got)-1].Link.Name != "br0" {
		t.Errorf("after an MTU change: %+v, %v", got, err)
	}
	if got, err := ev.Poll(); err != nil || len(got) != 0 {
		t.Errorf("nothing changed: %+v, %v", got, err)
	}
	// Somebody changes a bridge flag in a way that only the bridge speaks of.
	nstest.Run(t, p.netNS, "bridge link set dev vxlan0 learning on")
	got, err = waitFor(t, ev)
	if err != nil || len(got) == 0 || !got[0].PortOnly || got[0].Link.Index != vx.Index || !got[0].Link.Port.Learning {
		t.Errorf("after learning on: %+v, %v", got, err)
	}
	send(t, p.net, nl.DelLink{Link: vx.Ref})
	got, err = ev.Poll()
	if i := slices.IndexFunc(got, func(e nl.LinkEvent) bool { return e.Gone }); err != nil || i < 0 || got[i].Link.Index != vx.Index {
		t.Errorf("after deletion: %+v, %v", got, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ev.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait after cancel: %v", err)
	}
	// The subscription is still good.
	send(t, p.net, nl.SetLink{Link: br.Ref, MTU: 1380})
	if got, err := waitFor(t, ev); err != nil || len(got) == 0 {
		t.Errorf("Wait: %+v, %v", got, err)
	}
	// Poll does not wait for the one who waits, and takes nothing from the next.
	waited := make(chan error)
	go func() { waited <- ev.Wait(t.Context()) }()
	if got, err := ev.Poll(); err != nil || len(got) != 0 {
		t.Errorf("Poll beside Wait: %+v, %v", got, err)
	}
	send(t, p.net, nl.SetLink{Link: br.Ref, MTU: 1370})
	if err := <-waited; err != nil {
		t.Errorf("Wait: %v", err)
	}
	if got, err := ev.Poll(); err != nil || len(got) == 0 || got[len(got)-1].Link.MTU != 1370 {
		t.Errorf("Poll after Wait: %+v, %v", got, err)
	}
	if err := ev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ev.Wait(t.Context()); !errors.Is(err, nl.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
	if _, err := ev.Poll(); !errors.Is(err, nl.ErrClosed) {
		t.Errorf("Poll after Close: %v", err)
	}
}

// waitFor waits for events and takes them.
func waitFor(t *testing.T, ev nl.Events) ([]nl.LinkEvent, error) {
	t.Helper()
	if err := ev.Wait(t.Context()); err != nil {
		return nil, err
	}
	return ev.Poll()
}

func TestLostEventsAreNoticed(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	br, _, _ := overlay(t, p)
	ev, err := p.net.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ev.Close()
	// Far more than the buffer holds: each event is a kilobyte or more.
	for i := range 8000 {
		send(t, p.net, nl.SetLink{Link: br.Ref, MTU: 1300 + i%2})
	}
	if _, err := ev.Poll(); !errors.Is(err, nl.ErrOverrun) {
		t.Errorf("Poll: %v, want ErrOverrun", err)
	}
	for {
		got, err := ev.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
	}
	send(t, p.net, nl.SetLink{Link: br.Ref, MTU: 1390})
	if got, err := waitFor(t, ev); err != nil || len(got) == 0 {
		t.Errorf("after an overrun the subscription goes on: %+v, %v", got, err)
	}
}

func TestRoutesAndAddressesOfAHost(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, line := range []string{
		"ip link add eth0 type veth peer name far",
		"ip link set eth0 up", "ip link set far up",
		"ip addr add 192.0.2.5/24 dev eth0",
		"ip addr add 2001:db8::5/64 dev eth0 nodad",
		"ip route add default via 192.0.2.1 src 192.0.2.5",
		"ip route add 198.51.100.0/24 via 192.0.2.9 metric 7",
		"ip route add blackhole 203.0.113.0/24",
		"ip route add default via 2001:db8::1",
	} {
		nstest.Run(t, p.hostNS, line)
	}
	eth0 := link(t, p.host, "eth0").Index
	addrs, err := p.host.Addresses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.5/24", "2001:db8::5/64"} {
		if !slices.Contains(addrs, nl.Address{Link: eth0, Prefix: netip.MustParsePrefix(want)}) {
			t.Errorf("no %s in %v", want, addrs)
		}
	}
	routes, err := p.host.Routes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	src := netip.MustParseAddr("192.0.2.5")
	for _, want := range []nl.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: eth0, Via: netip.MustParseAddr("192.0.2.1"), Source: src, Protocol: unix.RTPROT_BOOT},
		{Dst: netip.MustParsePrefix("192.0.2.0/24"), Link: eth0, Source: src, Protocol: unix.RTPROT_KERNEL},
		{Dst: netip.MustParsePrefix("198.51.100.0/24"), Link: eth0, Via: netip.MustParseAddr("192.0.2.9"), Metric: 7, Protocol: unix.RTPROT_BOOT},
		{Dst: netip.MustParsePrefix("::/0"), Link: eth0, Via: netip.MustParseAddr("2001:db8::1"), Metric: 1024, Protocol: unix.RTPROT_BOOT},
		{Dst: netip.MustParsePrefix("2001:db8::/64"), Link: eth0, Metric: 256, Protocol: unix.RTPROT_KERNEL},
	} {
		if !slices.Contains(routes, want) {
			t.Errorf("no %+v in %+v", want, routes)
		}
	}
	for _, r := range routes {
		if r.Dst == netip.MustParsePrefix("203.0.113.0/24") {
			t.Errorf("a blackhole is not a unicast route: %+v", r)
		}
	}
}
