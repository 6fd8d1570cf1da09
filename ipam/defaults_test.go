package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// The pool offered last is not offered again while there is another.
func TestChoosePoolGoesRound(t *testing.T) {
	t.Parallel()
	from := []DefaultPool{{netip.MustParsePrefix("10.0.0.0/14"), 16}, {netip.MustParsePrefix("192.168.0.0/23"), 24}}
	busy := prefixes("10.1.0.0/24")
	var got []string
	last := netip.Prefix{}
	for range 6 {
		p, ok := ChoosePool(from, last, busy)
		if !ok {
			t.Fatal("no pool left")
		}
		got, last = append(got, p.String()), p
	}
	want := "10.0.0.0/16 10.2.0.0/16 10.3.0.0/16 192.168.0.0/24 192.168.1.0/24 10.0.0.0/16"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("offered %s, want %s", s, want)
	}
	if p, ok := ChoosePool(from, last, prefixes("0.0.0.0/0")); ok {
		t.Errorf("offered %s although everything is busy", p)
	}
	// The last one itself, if there is no other.
	if p, ok := ChoosePool(from, netip.MustParsePrefix("10.2.0.0/16"), prefixes("10.0.0.0/15", "10.3.0.0/24", "192.168.0.0/16")); !ok || p.String() != "10.2.0.0/16" {
		t.Errorf("offered %s %v, want the last one", p, ok)
	}
}

// What is chosen is one of the pool's prefixes and overlaps nothing, and if
// nothing is chosen everything is busy: checked by looking at each prefix.
func TestChoosePoolFindsWhatThereIs(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	d := DefaultPool{netip.MustParsePrefix("fd00:1::/60"), 64}
	for range 3000 {
		var busy []netip.Prefix
		for range r.IntN(14) {
			bits := []int{48, 61, 62, 63, 64, 65, 96}[r.IntN(7)]
			if bits == 48 && r.IntN(10) > 0 {
				bits = 64
			}
			b := d.random().Addr().As16()
			b[8] = byte(r.IntN(256))
			busy = append(busy, netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked())
		}
		free := map[netip.Prefix]bool{}
		for i := range 16 {
			b := d.Base.Addr().As16()
			b[7] = byte(i)
			p := netip.PrefixFrom(netip.AddrFrom16(b), 64)
			if !slices.ContainsFunc(busy, p.Overlaps) {
				free[p] = true
			}
		}
		after := d.random()
		p, ok := ChoosePool([]DefaultPool{d}, after, busy)
		if ok != (len(free) > 0) || ok && !free[p] {
			t.Fatalf("busy %v: chose %s %v, free are %v", busy, p, ok, free)
		}
		if ok && p == after && len(free) > 1 {
			t.Fatalf("busy %v: chose %s again, free are %v", busy, p, free)
		}
	}
}

// A base of 2^40 subnets is not walked, and a route that covers half of it is
// stepped over at once.
func TestAHugeDefaultPool(t *testing.T) {
	t.Parallel()
	from := []DefaultPool{{netip.MustParsePrefix("fd00::/24"), 64}}
	p, ok := ChoosePool(from, netip.Prefix{}, prefixes("fd00::/25", "fd00:80::/64", "fd00:80:0:1::/66"))
	if !ok || p.String() != "fd00:80:0:2::/64" {
		t.Errorf("chose %s %v", p, ok)
	}
}

// IPv6 prefixes are drawn: two hosts that choose at once rarely choose the same,
// and none is offered twice in a row.
func TestIPv6PrefixesAreDrawn(t *testing.T) {
	t.Parallel()
	defaults, err := ParseDefaultPools(nil)
	if err != nil {
		t.Fatal(err)
	}
	base := netip.MustParsePrefix("fd88:93b9:19b6::/48")
	seen := map[netip.Prefix]bool{}
	for range 20 {
		p, ok := newReservations(time.Now).choose(defaults, carrick.IPv6, nil, "default")
		if !ok || p.Bits() != 64 || !base.Contains(p.Addr()) {
			t.Fatalf("chose %s %v", p, ok)
		}
		seen[p] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 hosts drew %d different prefixes", len(seen))
	}
	r := newReservations(time.Now)
	tiny := []DefaultPool{{netip.MustParsePrefix("fd00::/63"), 64}}
	last := netip.Prefix{}
	for range 50 {
		p, ok := r.choose(tiny, carrick.IPv6, nil, "default")
		if !ok || p == last {
			t.Fatalf("offered %s %v, the last one was %s", p, ok, last)
		}
		r.drop("default", p)
		last = p
	}
}

func TestParseDefaultPool(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"base=10.128.0.0/9,size=16": true, "size=24,base=192.168.0.0/16": true, "base=fd00::/48,size=64": true,
		"base=2001:db8::/32,size=56": true, "base=fd00::/8,size=48": true, "base=fd00::/64,size=64": true,
		"": false, "10.0.0.0/8": false, "base=10.0.0.0/8": false, "base=10.0.0.1/8,size=16": false,
		"base=10.0.0.0/16,size=8": false, "base=10.0.0.0/8,size=x": false, "base=10.0.0.0/16,size=29": false,
		"base=fd00::/48,size=40": false, "base=fd00::/8,size=40": false, "base=fd00::/64,size=121": false, "base=fe80::/64,size=64": false,
		"base=ff00::/8,size=64": false, "base=::ffff:10.0.0.0/104,size=112": false, "base=224.0.0.0/4,size=16": false, "base=::/0,size=64": false,
	} {
		d, err := ParseDefaultPool(s)
		if (err == nil) != ok {
			t.Errorf("%q: %v %v", s, d, err)
		}
		if err == nil {
			if _, err := ParseDefaultPool(fmt.Sprint(d)); err != nil {
				t.Errorf("%v does not read back: %v", d, err)
			}
		}
	}
}

// A family that is not mentioned keeps its default.
func TestDefaultPoolsOfAFamilyNotMentioned(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"":                                   "[" + Default4 + " " + Default6 + "]",
		"base=192.168.0.0/16,size=24":        "[base=192.168.0.0/16,size=24 " + Default6 + "]",
		"base=fd00::/48,size=64":             "[base=fd00::/48,size=64 " + Default4 + "]",
		"base=fd00::/48,size=64 " + Default4: "[base=fd00::/48,size=64 " + Default4 + "]",
		"base=10.0.0.0/16,size=24 base=10.1.0.0/16,size=24": "[base=10.0.0.0/16,size=24 base=10.1.0.0/16,size=24 " + Default6 + "]",
	} {
		got, err := ParseDefaultPools(strings.Fields(given))
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v %v, want %s", given, got, err, want)
		}
	}
	if _, err := ParseDefaultPools([]string{"base=10.0.0.0/8,size=9", "nonsense"}); err == nil {
		t.Error("nonsense was accepted")
	}
}

func FuzzDefaultPool(f *testing.F) {
	f.Add(Default4)
	f.Add(Default6)
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDefaultPool(s)
		if err != nil {
			return
		}
		p := d.random()
		if p != p.Masked() || !d.Base.Contains(p.Addr()) || p.Bits() != d.Size || unusable(p) {
			t.Errorf("%q: drew %s", s, p)
		}
		if c, ok := ChoosePool([]DefaultPool{d}, p, nil); !ok || !d.Base.Contains(c.Addr()) || c.Bits() != d.Size {
			t.Errorf("%q: chose %s %v", s, c, ok)
		}
	})
}
