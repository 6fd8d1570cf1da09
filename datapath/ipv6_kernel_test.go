package datapath_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// solicit asks for the MAC of an IPv6 address, as a container does (RFC 4861
// §4.3): by multicast to the address's solicited-node group, or to one MAC.
func solicit(from carrick.MAC, me, who netip.Addr, to carrick.MAC) []byte {
	target := who.As16()
	dst := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(dst[13:], target[13:])
	if to.IsZero() {
		to = carrick.MAC{0x33, 0x33, dst[12], dst[13], dst[14], dst[15]}
	} else {
		dst = target
	}
	src := me.As16()
	icmp := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target[:], []byte{1, 1}, from[:])
	sum := uint32(len(icmp)) + 58 // of the pseudo-header: length, next header
	for _, part := range [][]byte{src[:], dst[:], icmp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))
	head := append([]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255}, src[:]...)
	return slices.Concat(to[:], from[:], []byte{0x86, 0xdd}, head, dst[:], icmp)
}

// advertised finds the answer to a solicitation: who is said to have the target.
func advertised(frames [][]byte, who netip.Addr) (carrick.MAC, bool) {
	target := who.As16()
	for _, f := range frames {
		if len(f) >= 86 && f[12] == 0x86 && f[13] == 0xdd && f[54] == 136 && slices.Equal(f[62:78], target[:]) {
			return carrick.MAC(f[80:86]), true
		}
	}
	return carrick.MAC{}, false
}

// Neighbour discovery is answered by the vxlan device from its rows, whether it is
// asked by multicast or, by somebody who wants to know whether the other is still
// there, by unicast. No solicitation leaves the host.
func TestNeighbourDiscoveryStaysOnItsHost(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	near, far := nstest.NewTap(t, c[0].NS), nstest.NewTap(t, c[1].NS)
	me, known, unknown := n.addr6(0), n.addr6(1), netip.MustParseAddr("fd00:10::99")
	for name, ask := range map[string][]byte{
		"multicast":            solicit(n.mac(0), me, known, carrick.MAC{}),
		"unicast":              solicit(n.mac(0), me, known, n.mac(1)),
		"for nobody's address": solicit(n.mac(0), me, unknown, carrick.MAC{}),
	} {
		near.Send(ask)
		if seen := near.Until(far, frame(n.mac(1), n.mac(0), "after "+name)); contains(seen, ask) {
			t.Errorf("%s: the solicitation reached the other host", name)
		}
		got := far.Until(near, frame(n.mac(0), n.mac(1), "back after "+name))
		mac, ok := advertised(got, known)
		if name == "for nobody's address" {
			if mac, ok := advertised(got, unknown); ok {
				t.Errorf("%s: answered with %s", name, mac)
			}
		} else if !ok || mac != n.mac(1) {
			t.Errorf("%s: answered with %s %v, want %s", name, mac, ok, n.mac(1))
		}
	}
}

// What somebody does to the rows of IPv6 is found and mended by an audit, as for
// IPv4.
func TestVandalsOfIPv6(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	n.joined = true
	echo(t, c)
	h := n.hosts[0]
	far := n.addr6(1).String()
	for _, line := range []string{
		"ip neigh del " + far + " dev vxlan0",
		"ip neigh replace " + far + " lladdr 02:66:00:00:00:00 dev vxlan0",
		"ip neigh replace fd00:10::66 lladdr 02:66:00:00:00:00 dev vxlan0",
		"ip neigh replace fd00:10::66 lladdr 02:66:00:00:00:00 dev vxlan0 nud noarp",
		"ip neigh replace " + far + " lladdr 02:66:00:00:00:00 dev vxlan0 router",
		"ip -6 neigh flush dev vxlan0 nud permanent",
		"ip link set vxlan0 mtu 1279",
		"ip link set vxlan0 addrgenmode eui64",
	} {
		if out, err := h.try(line); err != nil {
			t.Errorf("%s: %v: %s", line, err, out)
			continue
		}
		rep, err := h.a.Audit(t.Context())
		if err != nil || rep.Failed() != nil || rep.Drift.Total() == 0 && rep.Changes.Total() == 0 {
			t.Errorf("%s: %+v, %v, %v", line, rep, err, rep.Failed())
		}
		if rep, err = h.a.Audit(t.Context()); err != nil || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
			t.Errorf("%s: not healed at once: %+v, %v", line, rep, err)
		}
		n.reach(t, c)
	}
}

// A network of IPv6 only, with MACs that are made of IPv6 addresses.
func TestContainersOfIPv6Only(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	n := peers{vtep: v4, mtu: 1450, flood: true}
	six := func(i int) carrick.MAC { return carrick.MACFor(42, n.addr6(i)) }
	for i := range n.hosts {
		n.hosts[i] = newRealHost(t, l, i+1, 1500)
	}
	var c [2]*nstest.Container
	for i, h := range n.hosts {
		p := n.plan(i)
		p.Ports[0].MAC = six(i)
		p.FDB = []plan.FDBRow{{MAC: six(1 - i), VTEP: h.peer(n, 1-i)}, {VTEP: h.peer(n, 1-i)}}
		p.Bridged = []plan.BridgeRow{{MAC: six(i), Port: endpoint(i).PortName()}, {MAC: six(1 - i), Port: plan.VXLANName}}
		p.Neigh = []plan.NeighRow{{Addr: n.addr6(1 - i), MAC: six(1 - i)}}
		h.apply(p)
		c[i] = h.Container("c", endpoint(i).OuterName(), netip.PrefixFrom(n.addr6(i), 64))
	}
	echo(t, c)
	for i := range c {
		nstest.Exchange(t, c[i].NS, netip.AddrPortFrom(n.addr6(1-i), echoPort), n.mtu)
		if err := nstest.TryExchange(c[i].NS, netip.AddrPortFrom(n.addr6(1-i), echoPort), n.mtu+1, 0); err == nil || !strings.Contains(err.Error(), "too long") {
			t.Errorf("a packet larger than the MTU: %v", err)
		}
		rep, err := n.hosts[i].a.Audit(t.Context())
		if err != nil || rep.Drift != (datapath.Counts{}) || rep.Changes != (datapath.Counts{}) {
			t.Errorf("an audit found %+v, %v", rep, err)
		}
	}
}

// peer is the VTEP of host i.
func (h *realHost) peer(n peers, i int) netip.Addr { return n.vtep(n.hosts[i].Host) }
