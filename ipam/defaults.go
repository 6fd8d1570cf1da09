package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
)

// DefaultPool is where prefixes for networks without --subnet come from: Base is
// cut into prefixes of length Size.
type DefaultPool struct {
	Base netip.Prefix
	Size int
}

// Default pools of an agent that is told of none of the family. The IPv6 one is a
// unique local prefix (RFC 4193), 48 bits of which were drawn once, for Carrick.
const (
	Default4 = "base=10.128.0.0/9,size=16"
	Default6 = "base=fd88:93b9:19b6::/48,size=64"
)

// ParseDefaultPools reads pools in dockerd's spelling, "base=10.128.0.0/9,size=16".
// A family of which none is given has its default.
func ParseDefaultPools(list []string) ([]DefaultPool, error) {
	var out []DefaultPool
	has := map[carrick.Family]bool{}
	for _, s := range list {
		d, err := ParseDefaultPool(s)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
		has[d.family()] = true
	}
	for i, s := range []string{Default4, Default6} {
		if has[carrick.Families()[i]] {
			continue
		}
		d, err := ParseDefaultPool(s)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// ParseDefaultPool reads one.
func ParseDefaultPool(s string) (DefaultPool, error) {
	var d DefaultPool
	for part := range strings.SplitSeq(s, ",") {
		k, v, _ := strings.Cut(part, "=")
		var err error
		switch k {
		case "base":
			d.Base, err = netip.ParsePrefix(v)
		case "size":
			d.Size, err = strconv.Atoi(v)
		default:
			err = fmt.Errorf("unknown key %q", k)
		}
		if err != nil {
			return DefaultPool{}, fmt.Errorf("default pool %q: %w: want base=PREFIX,size=BITS as in %s or %s", s, err, Default4, Default6)
		}
	}
	if err := d.check(); err != nil {
		return DefaultPool{}, fmt.Errorf("default pool %q: %w, as in %s or %s", s, err, Default4, Default6)
	}
	return d, nil
}

// Largest sizes of chosen prefixes: a smaller network is asked for by its subnet.
const (
	maxSize4 = 28
	maxSize6 = 120
)

func (d DefaultPool) check() error {
	if !d.Base.IsValid() || d.Base != d.Base.Masked() {
		return errors.New("want a base without host bits")
	}
	if unusable(d.Base) {
		return errors.New("want a base of addresses that containers could use")
	}
	least, most := d.Base.Bits(), maxSize4
	if d.family() == carrick.IPv6 {
		least, most = max(least, minBits6), maxSize6
	}
	if d.Size < least || d.Size > most {
		return fmt.Errorf("want a size from %d to %d", least, most)
	}
	return nil
}

func (d DefaultPool) String() string { return fmt.Sprintf("base=%s,size=%d", d.Base, d.Size) }

func (d DefaultPool) family() carrick.Family { return carrick.FamilyOf(d.Base.Addr()) }

// random returns one of the pool's prefixes.
func (d DefaultPool) random() netip.Prefix {
	b := d.Base.Addr().AsSlice()
	for i := d.Base.Bits(); i < d.Size; i++ {
		b[i/8] |= byte(rand.N(2)) << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, d.Size)
}

// ChoosePool returns the first prefix behind after that overlaps nothing in busy,
// going round all the pools once; after itself only if there is no other. The
// zero after is before everything.
func ChoosePool(from []DefaultPool, after netip.Prefix, busy []netip.Prefix) (netip.Prefix, bool) {
	start := -1
	for i, d := range from {
		if after.IsValid() && d.Size == after.Bits() && d.Base.Overlaps(after) {
			start = i
			break
		}
	}
	if start >= 0 {
		d := from[start]
		if next := carrick.LastAddr(after).Next(); next.IsValid() {
			if p, ok := d.first(next, carrick.LastAddr(d.Base), busy); ok {
				return p, true
			}
		}
	}
	for i := range from {
		d := from[(start+1+i)%len(from)]
		last := carrick.LastAddr(d.Base)
		if (start+1+i)%len(from) == start {
			last = carrick.LastAddr(after) // the rest was looked at first
		}
		if p, ok := d.first(d.Base.Addr(), last, busy); ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// first returns the first of the pool's prefixes from a to last that overlaps
// nothing in busy. What is busy is stepped over at once, however many of them it
// covers.
func (d DefaultPool) first(a, last netip.Addr, busy []netip.Prefix) (netip.Prefix, bool) {
	for a.IsValid() && d.Base.Contains(a) && a.Compare(last) <= 0 {
		p := netip.PrefixFrom(a, d.Size)
		b, found := overlapping(p, busy)
		if !found {
			return p, true
		}
		if b.Bits() > p.Bits() {
			b = p
		}
		a = carrick.LastAddr(b).Next()
	}
	return netip.Prefix{}, false
}

func overlapping(p netip.Prefix, busy []netip.Prefix) (netip.Prefix, bool) {
	for _, b := range busy {
		if p.Overlaps(b) {
			return b, true
		}
	}
	return netip.Prefix{}, false
}
