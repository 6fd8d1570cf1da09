package ipam

import (
	"net/netip"

	"github.com/carrick-net/carrick"
)

// Use is what the owner of a block remembers of one of its addresses.
type Use struct {
	Taken    bool
	Released uint64 // order of release, for a resting address; 0 = never used
}

// Pick chooses an address for an endpoint from this host's blocks: the lowest one
// that was never used, else the one that has rested longest. Resting is an order
// and never a reason to refuse. use tells the state of an address.
func Pick(pool carrick.Pool, blocks []netip.Prefix, use func(netip.Addr) Use) (netip.Addr, bool) {
	var best netip.Addr
	oldest := ^uint64(0)
	for _, b := range blocks {
		for a := range addrs(b) {
			if !Allocatable(pool, a) {
				continue
			}
			u := use(a)
			switch {
			case u.Taken:
			case u.Released == 0:
				return a, true
			case u.Released < oldest:
				best, oldest = a, u.Released
			}
		}
	}
	return best, best.IsValid()
}

// Allocatable says whether an address may be chosen for an endpoint that did not
// ask for one.
func Allocatable(pool carrick.Pool, a netip.Addr) bool {
	return pool.AllocRange().Contains(a) && pool.Reserved(a) == ""
}

// Free counts the addresses of the blocks that could be chosen, and those taken
// among them.
func Free(pool carrick.Pool, blocks []netip.Prefix, use func(netip.Addr) Use) (total, taken int) {
	for _, b := range blocks {
		for a := range addrs(b) {
			if !Allocatable(pool, a) {
				continue
			}
			total++
			if use(a).Taken {
				taken++
			}
		}
	}
	return total, taken
}

// NextBlock returns the lowest block of the pool's range that nobody owns and
// that has an address to give. It looks at no more blocks than there are owned
// ones plus those without any usable address.
func NextBlock(pool carrick.Pool, owned func(netip.Prefix) bool) (netip.Prefix, bool) {
	r := pool.AllocRange()
	last := carrick.LastAddr(r)
	// A range smaller than a block lies in exactly one.
	for b := BlockOf(pool, r.Addr()); b.Addr().Compare(last) <= 0; {
		if !owned(b) && hasUsable(pool, b) {
			return b, true
		}
		next := carrick.LastAddr(b).Next()
		if !next.IsValid() {
			break
		}
		b = netip.PrefixFrom(next, b.Bits())
	}
	return netip.Prefix{}, false
}

// BlockOf returns the block of the pool an address lies in.
func BlockOf(pool carrick.Pool, a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, pool.Block).Masked()
}

func hasUsable(pool carrick.Pool, b netip.Prefix) bool {
	for a := range addrs(b) {
		if Allocatable(pool, a) {
			return true
		}
	}
	return false
}

// addrs iterates over a prefix's addresses in order.
func addrs(p netip.Prefix) func(yield func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for a := p.Masked().Addr(); a.IsValid() && p.Contains(a); a = a.Next() {
			if !yield(a) {
				return
			}
		}
	}
}

// ChoosePool returns the first candidate prefix after the one offered last that
// overlaps nothing in busy, going round once; the one offered last itself only if
// there is no other.
func ChoosePool(from []DefaultPool, after netip.Prefix, busy []netip.Prefix) (netip.Prefix, bool) {
	var first, next, last netip.Prefix
	passed := !after.IsValid()
	for _, d := range from {
		for p := range d.candidates() {
			if overlapsAny(p, busy) {
				passed = passed || p == after
				continue
			}
			if p == after {
				passed, last = true, p
				continue
			}
			if passed {
				next = p
				break
			}
			if !first.IsValid() {
				first = p
			}
		}
		if next.IsValid() {
			return next, true
		}
	}
	if !first.IsValid() {
		first = last
	}
	return first, first.IsValid()
}

func overlapsAny(p netip.Prefix, busy []netip.Prefix) bool {
	for _, b := range busy {
		if p.Overlaps(b) {
			return true
		}
	}
	return false
}
