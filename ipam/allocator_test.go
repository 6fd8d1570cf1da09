package ipam

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

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
	broadcast := a.Is4() && a == carrick.LastAddr(p.Prefix)
	return inRange && p.Prefix.Contains(a) && a != p.Gateway && a != p.Prefix.Addr() && !broadcast
}

// fakeMemory is what the journal would remember.
type fakeMemory struct {
	pool     carrick.Pool
	taken    map[netip.Addr]bool
	released map[netip.Addr]uint64
}

func (m fakeMemory) Use(a netip.Addr) Use { return Use{Taken: m.taken[a], Released: m.released[a]} }

func (m fakeMemory) Known(b netip.Prefix) (n int) {
	for a := range addrs(b) {
		if m.pool.Allocatable(a) && m.Use(a) != (Use{}) {
			n++
		}
	}
	return n
}

func (m fakeMemory) Resting() iter.Seq[netip.Addr] {
	rested := slices.Collect(maps.Keys(m.released))
	slices.SortFunc(rested, func(a, b netip.Addr) int { return cmp.Compare(m.released[a], m.released[b]) })
	return slices.Values(slices.DeleteFunc(rested, func(a netip.Addr) bool { return !m.pool.Allocatable(a) }))
}

// FuzzAllocator drives the allocator and the naive model with the same random
// operations; they must agree on every answer.
func FuzzAllocator(f *testing.F) {
	f.Add([]byte{24, 0, 1, 2, 3, 1, 1, 1, 2, 0, 2, 1})
	f.Add([]byte{29, 5, 1, 1, 1, 1, 1, 1, 1, 1, 2, 0, 2, 3, 1, 1})
	f.Add([]byte{16, 30, 1, 0, 1, 0, 2, 2, 1, 1, 3, 1})
	f.Add([]byte{129, 30, 0, 1, 1, 2, 1, 1, 5, 1, 0, 1, 4, 1, 1})
	f.Add([]byte{134, 1, 0, 0, 1, 1, 1, 1, 2, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 3 {
			return
		}
		bits := 16 + int(in[0])%14 // /16 to /29
		prefix := netip.PrefixFrom(netip.MustParseAddr("10.42.0.0"), bits)
		if in[0] >= 128 {
			bits = []int{48, 64, 112, 121, 122, 123, 124, 125, 126}[int(in[0])%9]
			prefix = netip.PrefixFrom(netip.MustParseAddr("fd00:42::"), bits)
		}
		pool := carrick.Pool{Prefix: prefix, Gateway: prefix.Addr().Next(), Block: carrick.BlockBits(prefix)}
		if in[1]%3 == 0 {
			most := 30
			if prefix.Addr().Is6() {
				most = 126
			}
			pool.Range = netip.PrefixFrom(prefix.Addr(), min(bits+1+int(in[1])%4, most))
		}
		if in[1]%2 == 1 {
			pool.Aux = map[string]netip.Addr{"x": prefix.Addr().Next().Next()}
		}
		n := &naive{pool: pool, taken: map[netip.Addr]bool{}, used: map[netip.Addr]bool{}}
		released := map[netip.Addr]uint64{}
		var order uint64
		mem := fakeMemory{pool, n.taken, released}
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
				got, ok := Pick(pool, n.blocks, mem)
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
		size := 0
		for _, b := range n.blocks {
			for a := range addrs(b) {
				if n.allowed(a) {
					size++
				}
			}
		}
		if got := Size(pool, n.blocks); got != size {
			t.Fatalf("%d addresses in %v, the model counts %d", got, n.blocks, size)
		}
	})
}

// An address that was borrowed is given out when this host has no other, so that it
// can go back to its owner.
func TestBorrowedAddressesComeLast(t *testing.T) {
	t.Parallel()
	p := netip.MustParsePrefix("10.42.0.0/27")
	pool := carrick.Pool{Prefix: p, Gateway: p.Addr().Next(), Block: carrick.BlockBits(p)}
	guest, own := netip.MustParsePrefix("10.42.0.9/32"), netip.MustParsePrefix("10.42.0.20/31")
	blocks := []netip.Prefix{guest, own}
	mem := fakeMemory{pool, map[netip.Addr]bool{}, map[netip.Addr]uint64{guest.Addr(): 1}} // it has rested longest
	var order uint64 = 1
	take := func(want string) {
		t.Helper()
		a, ok := Pick(pool, blocks, mem)
		if !ok || a.String() != want {
			t.Fatalf("picked %v (%v), want %s", a, ok, want)
		}
		mem.taken[a] = true
		delete(mem.released, a)
	}
	release := func(addr string) {
		a := netip.MustParseAddr(addr)
		order++
		mem.taken[a], mem.released[a] = false, order
	}
	take("10.42.0.20")
	release("10.42.0.20")
	take("10.42.0.21")
	take("10.42.0.20")
	take("10.42.0.9")
	if a, ok := Pick(pool, blocks, mem); ok {
		t.Fatalf("picked %s, which somebody has", a)
	}
	release("10.42.0.9")
	release("10.42.0.21")
	take("10.42.0.21")
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
		{"fd00::/120", "", 254}, {"fd00::/126", "", 2}, {"fd00::/121", "", 126}, {"fd00::/64", "fd00::a:0/117", 2048},
		{"fd00::/48", "fd00:0:0:7::/120", 256},
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
		if total := Size(pool, blocks); total != tt.want {
			t.Errorf("%s range %q: %d addresses in %d blocks, want %d", tt.subnet, tt.rng, total, len(blocks), tt.want)
		}
	}
}

// The blocks of a /64 are more than anybody can count; the next one is found all
// the same, whatever far ones explicit addresses have claimed.
func TestAHugePoolIsNotWalked(t *testing.T) {
	t.Parallel()
	p := netip.MustParsePrefix("fd00:42::/64")
	pool := carrick.Pool{Prefix: p, Gateway: p.Addr().Next(), Block: 122}
	asked := 0
	owned := map[netip.Prefix]bool{
		netip.MustParsePrefix("fd00:42::/122"): true, netip.MustParsePrefix("fd00:42::40/122"): true,
		netip.MustParsePrefix("fd00:42::dead:beef:0:0/122"): true,
	}
	b, ok := NextBlock(pool, func(b netip.Prefix) bool { asked++; return owned[b] })
	if !ok || b.String() != "fd00:42::80/122" || asked != 3 {
		t.Errorf("chose %s after looking at %d blocks", b, asked)
	}
}

func TestPoolIDs(t *testing.T) {
	t.Parallel()
	p := netip.MustParsePrefix("10.42.0.0/16")
	id := poolID("blue.1", p)
	if tenant, prefix, err := parsePoolID(id); err != nil || tenant != "blue.1" || prefix != p {
		t.Errorf("%s reads as %s %s %v", id, tenant, prefix, err)
	}
	six := netip.MustParsePrefix("fd00:42::/64")
	if tenant, prefix, err := parsePoolID(poolID("default", six)); err != nil || tenant != "default" || prefix != six {
		t.Errorf("%s reads as %s %s %v", poolID("default", six), tenant, prefix, err)
	}
	for _, bad := range []string{"", "carrick/", "carrick/a/fd00:42:0::/64", "carrick/a/fd00::1/64", "carrick/a", "carrick//10.0.0.0/8", "other/a/10.0.0.0/8", "carrick/a/10.0.0.1/8", "carrick/../10.0.0.0/8", "carrick/a/10.0.0.0/8/9"} {
		if _, _, err := parsePoolID(bad); err == nil {
			t.Errorf("%q was taken for a pool id", bad)
		}
	}
}

func FuzzPoolID(f *testing.F) {
	f.Add("carrick/default/10.42.0.0/16")
	f.Add("carrick/default/fd00:42::/64")
	f.Fuzz(func(t *testing.T, s string) {
		tenant, prefix, err := parsePoolID(s)
		if err == nil && poolID(tenant, prefix) != s {
			t.Errorf("%q reads as %q %s, which is %q", s, tenant, prefix, poolID(tenant, prefix))
		}
	})
}
