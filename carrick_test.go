package carrick_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
)

// A MAC is part of the protocol between hosts: it follows from VNI and address,
// and never changes with a version.
func TestMACFor(t *testing.T) {
	t.Parallel()
	a := netip.MustParseAddr("10.42.0.2")
	m := carrick.MACFor(4242, a)
	if got := m.String(); got != "02:f9:0a:2a:00:02" {
		t.Errorf("MAC of 10.42.0.2 in VNI 4242 is %s", got)
	}
	if carrick.MACFor(4242, netip.MustParseAddr("::ffff:10.42.0.2")) != m {
		t.Error("an IPv4-mapped address has another MAC")
	}
	six := carrick.MACFor(4242, netip.MustParseAddr("fd00::2"))
	if six[0] != 0x06 || six == carrick.MACFor(4243, netip.MustParseAddr("fd00::2")) || six == carrick.MACFor(4242, netip.MustParseAddr("fd00::3")) {
		t.Errorf("MAC of an IPv6 address is %s, alike in another network or for another address", six)
	}
	if got := six.String(); got != "06:7c:23:0f:1a:54" {
		t.Errorf("MAC of fd00::2 in VNI 4242 is %s", got)
	}
	for v := carrick.VNI(1); v < 300; v++ {
		if m := carrick.MACFor(v, a); !m.IsUnicast() || m[0]&2 == 0 {
			t.Fatalf("%s is no locally administered unicast address", m)
		}
	}
}

// Addresses that nobody asked for never meet in one MAC, whichever blocks they
// come from.
func TestMACsOfIPv6AddressesAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[carrick.MAC]netip.Addr{}
	note := func(a netip.Addr) {
		m := carrick.MACFor(4242, a)
		if other, twice := seen[m]; twice && other != a {
			t.Fatalf("%s and %s have MAC %s", other, a, m)
		}
		seen[m] = a
	}
	a := netip.MustParseAddr("fd00:42::2")
	for range 100000 {
		note(a)
		a = a.Next()
	}
	for i := range 300 {
		for k := range 300 {
			note(netip.MustParseAddr(fmt.Sprintf("fd00:42::%x:%x", i, k)))
		}
	}
}

func TestMACText(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "02:42", "zz:42:0a:00:00:01", "02:42:0a:00:00:01:02:03"} {
		if m, err := carrick.ParseMAC(s); err == nil {
			t.Errorf("%q was read as %s", s, m)
		}
	}
	for _, m := range []carrick.MAC{{}, {2, 0x42, 10, 0, 0, 1}} {
		raw, err := json.Marshal(m)
		var back carrick.MAC
		if err := json.Unmarshal(raw, &back); err != nil || back != m {
			t.Errorf("%s went as %s and came back as %s (%v, %v)", m, raw, back, err, err)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if (carrick.MAC{1}).IsUnicast() || (carrick.MAC{}).IsUnicast() {
		t.Error("a group or the zero address passes for unicast")
	}
}

func TestParseVNI(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]carrick.VNI{"1": 1, "4096": 4096, "16777214": carrick.MaxVNI - 1} {
		if got, err := carrick.ParseVNI(s); got != want || err != nil {
			t.Errorf("%q: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "16777215", "16777216", "1.5", "0x10", "99999999999999999999", "1 "} {
		if got, err := carrick.ParseVNI(s); err == nil || !strings.Contains(err.Error(), "16777215") {
			t.Errorf("%q: %d %v", s, got, err)
		}
	}
}

// Block sizes are part of a pool's record; hosts must agree on them.
func TestBlockBits(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{
		"10.0.0.0/8": 26, "10.0.0.0/16": 26, "10.0.0.0/20": 27, "10.0.0.0/22": 28, "10.0.0.0/24": 29,
		"10.0.0.0/26": 30, "10.0.0.0/28": 31, "10.0.0.0/30": 31, "fd00::/64": 122, "fd00::/126": 126,
	} {
		p := netip.MustParsePrefix(s)
		got := carrick.BlockBits(p)
		if got != want {
			t.Errorf("%s has blocks of /%d, want /%d", s, got, want)
		}
		if err := (carrick.Pool{Prefix: p, Block: got}).Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestReserved(t *testing.T) {
	t.Parallel()
	p := carrick.Pool{
		Prefix: netip.MustParsePrefix("10.42.0.0/24"), Gateway: netip.MustParseAddr("10.42.0.1"),
		Aux: map[string]netip.Addr{"b": netip.MustParseAddr("10.42.0.9"), "a": netip.MustParseAddr("10.42.0.9")},
	}
	for s, want := range map[string]string{
		"10.42.0.0": "network", "10.42.0.255": "broadcast", "10.42.0.1": "gateway", "10.42.0.9": "auxiliary a", "10.42.0.2": "",
	} {
		if got := p.Reserved(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s is %q, want %q", s, got, want)
		}
	}
}

func TestLastAddr(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"10.42.0.0/16": "10.42.255.255", "10.42.0.4/30": "10.42.0.7", "10.42.0.0/31": "10.42.0.1", "10.42.0.9/32": "10.42.0.9", "0.0.0.0/0": "255.255.255.255",
		"10.128.0.0/9": "10.255.255.255", "fd00:42::/64": "fd00:42::ffff:ffff:ffff:ffff", "fd00::40/122": "fd00::7f", "fd00::/126": "fd00::3",
		"fd00::1/128": "fd00::1", "::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::/29": "2001:dbf:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := carrick.LastAddr(netip.MustParsePrefix(s)); got.String() != want {
			t.Errorf("%s ends at %s, want %s", s, got, want)
		}
	}
}

// What is counted is what there is, one by one.
func TestUsable(t *testing.T) {
	t.Parallel()
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for _, p := range []carrick.Pool{
		{Prefix: prefix("10.42.0.0/28"), Gateway: addr("10.42.0.1"), Block: 30},
		{Prefix: prefix("10.42.0.0/28"), Gateway: addr("10.42.0.15"), Block: 30, Aux: map[string]netip.Addr{"a": addr("10.42.0.5"), "b": addr("10.42.0.5"), "c": addr("10.42.0.0")}},
		{Prefix: prefix("10.42.0.0/28"), Range: prefix("10.42.0.8/29"), Gateway: addr("10.42.0.9"), Block: 30},
		{Prefix: prefix("10.42.0.0/28"), Range: prefix("10.42.0.6/31"), Gateway: addr("10.42.0.7"), Block: 30},
		{Prefix: prefix("10.42.0.0/30"), Block: 31},
		{Prefix: prefix("fd00::/124"), Gateway: addr("fd00::1"), Block: 126, Aux: map[string]netip.Addr{"a": addr("fd00::f"), "b": addr("fd00::1")}},
		{Prefix: prefix("fd00::/124"), Range: prefix("fd00::8/126"), Gateway: addr("fd00::"), Block: 125},
		{Prefix: prefix("fd00::/126"), Gateway: addr("fd00::1"), Block: 126},
	} {
		for a := p.Prefix.Addr(); p.Prefix.Contains(a); a = a.Next() {
			for _, b := range []netip.Prefix{p.BlockOf(a), netip.PrefixFrom(a, a.BitLen())} {
				want := 0
				for x := b.Addr(); b.Contains(x); x = x.Next() {
					if p.Allocatable(x) {
						want++
					}
				}
				if got := p.Usable(b); got != want {
					t.Errorf("%+v: %s has %d usable addresses, want %d", p, b, got, want)
				}
			}
		}
	}
}

func TestPoolsOfANetwork(t *testing.T) {
	t.Parallel()
	four := carrick.Pool{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}
	six := carrick.Pool{Prefix: netip.MustParsePrefix("fd00:42::/64"), Block: 122}
	huge := carrick.Pool{Prefix: netip.MustParsePrefix("fd00:42::/64"), Block: 64}
	mapped := carrick.Pool{Prefix: netip.MustParsePrefix("::ffff:10.0.0.0/112"), Block: 122}
	for _, tt := range []struct {
		pools []carrick.Pool
		ok    bool
	}{
		{[]carrick.Pool{four}, true}, {[]carrick.Pool{six}, true}, {[]carrick.Pool{four, six}, true},
		{nil, false}, {[]carrick.Pool{six, four}, false}, {[]carrick.Pool{four, four}, false}, {[]carrick.Pool{four, six, six}, false},
		{[]carrick.Pool{huge}, false}, {[]carrick.Pool{mapped}, false}, {[]carrick.Pool{four, {}}, false},
	} {
		if err := carrick.ValidatePools(tt.pools); (err == nil) != tt.ok {
			t.Errorf("pools %q: %v", carrick.Subnets(tt.pools), err)
		}
	}
	n := carrick.Network{Pools: []carrick.Pool{four, six}}
	if p, ok := n.Pool(carrick.IPv6); !ok || p.Prefix != six.Prefix || n.Subnets() != "10.42.0.0/16 and fd00:42::/64" || !n.HasPrefix(four.Prefix) {
		t.Errorf("%s: %+v %v", n.Subnets(), p, ok)
	}
	if _, ok := (carrick.Network{Pools: []carrick.Pool{six}}).Pool(carrick.IPv4); ok {
		t.Error("a network of IPv6 has an IPv4 pool")
	}
}

func TestDeviceNamesFitTheKernel(t *testing.T) {
	t.Parallel()
	id := carrick.EndpointID(strings.Repeat("0123456789abcdef", 4))
	for _, name := range []string{id.OuterName(), id.PortName()} {
		if len(name) > 15 {
			t.Errorf("%s has %d characters", name, len(name))
		}
	}
	if id.OuterName() == id.PortName() || strings.HasPrefix(id.OuterName(), "eth") {
		t.Errorf("names %s and %s", id.OuterName(), id.PortName())
	}
	if !carrick.ValidID(string(carrick.NewNetworkID())) || !carrick.ValidID(string(carrick.NewHostID())) || carrick.ValidID("../../../../etc") {
		t.Error("ids do not look like ids")
	}
}
