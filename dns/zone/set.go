package zone

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
)

// Set is what one container may ask about: the zones of the networks it is in, and of
// no others. The zero Set knows nothing. It does not change, but its zones do. Safe
// for concurrent use.
type Set struct{ zones []*Zone }

// NewSet returns the set of some zones.
func NewSet(zones ...*Zone) *Set { return &Set{slices.Clone(zones)} }

// Addresses returns the addresses of a name of some families in a random order, each
// once. A name is looked up as it is, and as NAME.NETWORK. It is compared without
// regard to case and without its last dot.
func (s *Set) Addresses(name string, shuffle Shuffle, families ...carrick.Family) ([]netip.Addr, Kind) {
	name = Fold(name)
	var all []netip.Addr
	kind := Unknown
	for _, z := range s.zones {
		kind = max(kind, z.lookup(name, families, &all))
	}
	if len(all) > 1 {
		slices.SortFunc(all, netip.Addr.Compare)
		all = slices.Compact(all)
		if shuffle != nil {
			shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		}
	}
	return all, kind
}

// Knows says whether a name is somebody's, who need not be found by it just now.
func (s *Set) Knows(name string) bool {
	_, kind := s.Addresses(name, nil)
	return kind != Unknown
}

// Reverse returns the name of who has an address, as NAME.NETWORK.
func (s *Set) Reverse(a netip.Addr) (string, Kind) {
	kind := Unknown
	for _, z := range s.zones {
		name, k := z.reverse(a)
		if k == Answered {
			return name, k
		}
		kind = max(kind, k)
	}
	return "", kind
}

// ParseReverse returns the address that a name below in-addr.arpa (RFC 1035 §3.5) or
// ip6.arpa (RFC 3596 §2.5) asks about; false: it is none.
func ParseReverse(name string) (netip.Addr, bool) {
	name = Fold(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		var a [4]byte
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 10, 8)
			if err != nil || len(p) > 1 && p[0] == '0' || p[0] == '+' {
				return netip.Addr{}, false
			}
			a[3-i] = byte(n)
		}
		return netip.AddrFrom4(a), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range 32 {
		n := strings.IndexByte("0123456789abcdef", rest[2*i])
		if n < 0 || i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		a[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(a), true
}
