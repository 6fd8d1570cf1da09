package ipam

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// Use is what the owner of a block remembers of one of its addresses. The zero
// value is an address that was never given out.
type Use struct {
	Taken    bool
	Released uint64 // order of release, for a resting address; 0 = never used
}

// Memory is what a host remembers of the addresses of one pool.
type Memory interface {
	// Use tells the state of an address.
	Use(netip.Addr) Use
	// Known counts the addresses of a block that may be chosen and are taken or
	// resting.
	Known(block netip.Prefix) int
	// Resting yields the addresses that rest and may be chosen, the longest-rested
	// one first.
	Resting() iter.Seq[netip.Addr]
}

// Pick chooses an address for an endpoint from this host's blocks of a pool: the
// lowest one of the first block that has one never used, else the one that has
// rested longest. Resting is an order and never a reason to refuse. Blocks all
// of whose addresses are known are not looked into.
//
// Addresses that were borrowed come after all others. One that is not needed goes
// back to its owner, whose container may be waiting for it.
func Pick(pool carrick.Pool, blocks []netip.Prefix, mem Memory) (netip.Addr, bool) {
	for _, borrowed := range []bool{false, true} {
		if a, ok := pick(pool, blocks, mem, borrowed); ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// pick is Pick from the blocks that were borrowed, or from those that were not.
func pick(pool carrick.Pool, blocks []netip.Prefix, mem Memory, borrowed bool) (netip.Addr, bool) {
	among := func(b netip.Prefix) bool { return (b.Bits() > pool.Block) == borrowed }
	for _, b := range blocks {
		if !among(b) || mem.Known(b) >= pool.Usable(b) {
			continue
		}
		for a := range addrs(b) {
			if pool.Allocatable(a) && mem.Use(a) == (Use{}) {
				return a, true
			}
		}
	}
	for a := range mem.Resting() {
		if slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return among(b) && b.Contains(a) }) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Owned says whether an address lies in one of the blocks.
func Owned(blocks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

// BlocksOf returns those of a host's blocks that are of the pool.
func BlocksOf(pool carrick.Pool, blocks []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range blocks {
		if pool.Prefix.Contains(b.Addr()) {
			out = append(out, b)
		}
	}
	return out
}

// Size counts the addresses of the blocks that may be chosen.
func Size(pool carrick.Pool, blocks []netip.Prefix) (n int) {
	for _, b := range blocks {
		n += pool.Usable(b)
	}
	return n
}

// NextBlock returns the lowest block of the pool's range that nobody owns and
// that has an address to give. It looks at no more blocks than there are owned
// ones plus those without any usable address, however large the pool.
func NextBlock(pool carrick.Pool, owned func(netip.Prefix) bool) (netip.Prefix, bool) {
	r := pool.AllocRange()
	last := carrick.LastAddr(r)
	// A range smaller than a block lies in exactly one.
	for b := pool.BlockOf(r.Addr()); b.Addr().Compare(last) <= 0; {
		if !owned(b) && pool.Usable(b) > 0 {
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

// addrs iterates over a prefix's addresses in order.
func addrs(p netip.Prefix) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := p.Masked().Addr(); a.IsValid() && p.Contains(a); a = a.Next() {
			if !yield(a) {
				return
			}
		}
	}
}
