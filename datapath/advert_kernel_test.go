package datapath_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
)

// advertisement is a frame with a router advertisement of a prefix (RFC 4861 §4.2
// and §4.6.2).
func advertisement(from carrick.MAC, prefix netip.Prefix) []byte {
	src, dst := netip.MustParseAddr("fe80::66").As16(), netip.MustParseAddr("ff02::1").As16()
	at := prefix.Addr().As16()
	icmp := slices.Concat(
		[]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8), // lifetime 1800 s
		[]byte{3, 4, byte(prefix.Bits()), 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0}, at[:])
	sum := uint32(58 + len(icmp))
	for _, b := range [][]byte{src[:], dst[:], icmp} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))
	ip := slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255}, src[:], dst[:])
	return slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, from[:], []byte{0x86, 0xdd}, ip, icmp)
}

// A container that plays router gives the bridge no address: with one, the bridge
// would answer in the network.
func TestARouterAdvertisementGivesTheBridgeNoAddress(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h := newRealHost(t, l, 1, 1500)
	h.apply(spec{local: []int{1, 2}}.plan())
	var taps [2]*nstest.Tap
	for i := range taps {
		c := h.Container([]string{"c1", "c2"}[i], endpoint(i+1).OuterName(), netip.PrefixFrom(ip4(i+1), 24))
		taps[i] = nstest.NewTap(t, c.NS)
	}
	ns, err := h.Namespaces.Open(t.Context(), space)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	advertised := netip.MustParsePrefix("fd66::/64")
	has := func() bool { return strings.Contains(nstest.Run(t, ns, "ip -6 addr show dev br0"), "fd66::") }

	// The other container hears it, so the bridge does.
	taps[0].Until(taps[1], advertisement(mac(1), advertised))
	taps[0].Until(taps[1], frame(broadcast, mac(1), "after it"))
	if has() {
		t.Error("the bridge has an address")
	}
	// It would have one, were it not for the setting; and an audit takes it away.
	h.run("sysctl -qw net.ipv6.conf.br0.accept_ra=1")
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for !has() {
		taps[0].Send(advertisement(mac(1), advertised))
		select {
		case <-limit.C:
			t.Fatal("no address although the setting allows it: the test shows nothing")
		case <-time.After(10 * time.Millisecond):
		}
	}
	rep, err := h.a.Audit(t.Context())
	if err != nil || rep.Drift.Sysctls != 1 || rep.Drift.Addresses != 1 || has() {
		t.Errorf("found %v, %v; an address is left: %v", rep.Found, err, has())
	}
}
