package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
)

// naive is an allocator anybody can check by reading: a list of addresses that
// may be given, in order, and who used what when.
type naive struct {
	pool   carrick.Pool
	blocks []netip.Prefix
	taken  map[netip.Addr]bool
	rested []netip.Addr // in order of release
	used   map[netip.Addr]bool
}

func (n *naive) pick() (netip.Addr, bool) {
	for _, b := range n.blocks {
		for a := b.Addr(); b.Contains(a); a = a.Next() {
			if n.allowed(a) && !n.used[a] {
				return a, true
			}
		}
	}
	for _, a := range n.rested {
		if n.allowed(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (n *naive) allowed(a netip.Addr) bool {
	p := n.pool
	for _, aux := range p.Aux {
		if a == aux {
			return false
		}
	}
	inRange := !p.Range.IsValid() || p.Range.Contains(a)
	return inRange && p.Prefix.Contains(a) && a != p.Gateway && a != p.Prefix.Addr() && a != carrick.LastAddr(p.Prefix)
}

// FuzzAllocator drives the allocator and the naive model with the same random
// operations; they must agree on every answer.
func FuzzAllocator(f *testing.F) {
	f.Add([]byte{24, 0, 1, 2, 3, 1, 1, 1, 2, 0, 2, 1})
	f.Add([]byte{29, 5, 1, 1, 1, 1, 1, 1, 1, 1, 2, 0, 2, 3, 1, 1})
	f.Add([]byte{16, 30, 1, 0, 1, 0, 2, 2, 1, 1, 3, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 3 {
			return
		}
		bits := 16 + int(in[0])%14 // /16 to /29
		prefix := netip.PrefixFrom(netip.MustParseAddr("10.42.0.0"), bits)
		pool := carrick.Pool{Prefix: prefix, Gateway: prefix.Addr().Next(), Block: carrick.BlockBits(prefix)}
		if in[1]%3 == 0 {
			pool.Range = netip.PrefixFrom(prefix.Addr(), min(bits+1+int(in[1])%4, 30))
		}
		if in[1]%2 == 1 {
			pool.Aux = map[string]netip.Addr{"x": prefix.Addr().Next().Next()}
		}
		n := &naive{pool: pool, taken: map[netip.Addr]bool{}, used: map[netip.Addr]bool{}}
		released := map[netip.Addr]uint64{}
		var order uint64
		use := func(a netip.Addr) Use { return Use{Taken: n.taken[a], Released: released[a]} }
		var out []netip.Addr
		for _, op := range in[2:] {
			switch op % 3 {
			case 0: // claim
				b, ok := NextBlock(pool, func(b netip.Prefix) bool { return slices.Contains(n.blocks, b) })
				if !ok {
					break
				}
				if slices.Contains(n.blocks, b) || !pool.Prefix.Contains(b.Addr()) || b.Bits() != pool.Block {
					t.Fatalf("claimed %s of %+v twice or outside", b, pool)
				}
				n.blocks = append(n.blocks, b)
			case 1: // allocate
				got, ok := Pick(pool, n.blocks, use)
				want, wantOK := n.pick()
				if got != want || ok != wantOK {
					t.Fatalf("picked %v %v, the model says %v %v", got, ok, want, wantOK)
				}
				if ok {
					if n.taken[got] {
						t.Fatalf("%s was given out twice", got)
					}
					n.taken[got], n.used[got] = true, true
					n.rested = slices.DeleteFunc(n.rested, func(a netip.Addr) bool { return a == got })
					delete(released, got)
					out = append(out, got)
				}
			case 2: // release
				if len(out) == 0 {
					break
				}
				i := int(op) % len(out)
				a := out[i]
				out = slices.Delete(out, i, i+1)
				order++
				n.taken[a], released[a] = false, order
				n.rested = append(n.rested, a)
			}
		}
		total, taken := Free(pool, n.blocks, use)
		if taken != len(out) || total < taken {
			t.Fatalf("%d of %d taken, the model has %d", taken, total, len(out))
		}
	})
}

// Blocks cover every address of a pool that a container may have, and one host
// can use a whole pool.
func TestBlocksCoverThePool(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		subnet, rng string
		want        int
	}{
		{"10.42.0.0/24", "", 253}, {"10.42.0.0/30", "", 1}, {"10.42.0.0/28", "", 13}, {"10.42.0.0/20", "", 4093},
		{"10.42.0.0/24", "10.42.0.128/25", 127}, {"10.42.0.0/24", "10.42.0.4/30", 4}, {"10.42.0.0/16", "10.42.9.0/24", 256},
	} {
		p := netip.MustParsePrefix(tt.subnet)
		pool := carrick.Pool{Prefix: p, Gateway: p.Addr().Next(), Block: carrick.BlockBits(p)}
		if tt.rng != "" {
			pool.Range = netip.MustParsePrefix(tt.rng)
		}
		var blocks []netip.Prefix
		for {
			b, ok := NextBlock(pool, func(b netip.Prefix) bool { return slices.Contains(blocks, b) })
			if !ok {
				break
			}
			blocks = append(blocks, b)
		}
		if total, _ := Free(pool, blocks, func(netip.Addr) Use { return Use{} }); total != tt.want {
			t.Errorf("%s range %q: %d addresses in %d blocks, want %d", tt.subnet, tt.rng, total, len(blocks), tt.want)
		}
	}
}

// The pool offered last is not offered again while there is another.
func TestChoosePoolGoesRound(t *testing.T) {
	t.Parallel()
	from := []DefaultPool{{netip.MustParsePrefix("10.0.0.0/14"), 16}, {netip.MustParsePrefix("192.168.0.0/23"), 24}}
	busy := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
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
	if p, ok := ChoosePool(from, last, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}); ok {
		t.Errorf("offered %s although everything is busy", p)
	}
}

func TestPoolIDs(t *testing.T) {
	t.Parallel()
	p := netip.MustParsePrefix("10.42.0.0/16")
	id := poolID("blue.1", p)
	if tenant, prefix, err := parsePoolID(id); err != nil || tenant != "blue.1" || prefix != p {
		t.Errorf("%s reads as %s %s %v", id, tenant, prefix, err)
	}
	for _, bad := range []string{"", "carrick/", "carrick/a", "carrick//10.0.0.0/8", "other/a/10.0.0.0/8", "carrick/a/10.0.0.1/8", "carrick/../10.0.0.0/8", "carrick/a/10.0.0.0/8/9"} {
		if _, _, err := parsePoolID(bad); err == nil {
			t.Errorf("%q was taken for a pool id", bad)
		}
	}
}

func FuzzPoolID(f *testing.F) {
	f.Add("carrick/default/10.42.0.0/16")
	f.Fuzz(func(t *testing.T, s string) {
		tenant, prefix, err := parsePoolID(s)
		if err == nil && poolID(tenant, prefix) != s {
			t.Errorf("%q reads as %q %s, which is %q", s, tenant, prefix, poolID(tenant, prefix))
		}
	})
}

func TestParseDefaultPool(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"base=10.128.0.0/9,size=16": true, "size=24,base=192.168.0.0/16": true,
		"": false, "10.0.0.0/8": false, "base=10.0.0.0/8": false, "base=10.0.0.1/8,size=16": false,
		"base=10.0.0.0/16,size=8": false, "base=fd00::/48,size=64": false, "base=10.0.0.0/8,size=x": false,
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
