package daemon

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/status"
)

// nearlyFull is when a pool's use is worth a warning, in percent.
const nearlyFull = 80

// usage counts how much of a network's pools is in use: this host's part as its
// journal says, the others' as the store says, or as it was last heard.
type usage struct {
	of    []carrick.Pool
	self  carrick.HostID
	names func(carrick.HostID) string
	// own is this host's journal; its zero value if the network is not here.
	own check.JournalNetwork
	// blocks of all hosts, endpoints of the others.
	blocks    map[netip.Prefix]check.Block
	endpoints map[carrick.HostID][]carrick.Endpoint
}

func (u usage) pools() []status.PoolUse {
	out := make([]status.PoolUse, 0, len(u.of))
	for _, p := range u.of {
		out = append(out, u.pool(p))
	}
	return out
}

func (u usage) pool(p carrick.Pool) status.PoolUse {
	out := status.PoolUse{Prefix: p.Prefix, Range: p.Range, BlockBits: p.Block}
	out.Usable, out.Reserved = allocatable(p, p.AllocRange())

	// Blocks, and in whose hands single addresses of them are.
	owned := u.owned(p)
	loans := map[netip.Addr]carrick.HostID{}
	whole := map[netip.Prefix]check.Block{}
	for b, o := range owned {
		if b.Bits() > p.Block {
			loans[b.Addr()] = o.Host
		} else {
			whole[b] = o
		}
	}
	for a, l := range u.own.Leases {
		if l.Lent != "" && p.Prefix.Contains(a) {
			loans[a] = l.Lent // the store may not have it yet
		}
	}

	// Addresses given out, and by whom.
	given := map[netip.Addr]carrick.HostID{}
	for h, eps := range u.endpoints {
		if h == u.self {
			continue
		}
		for _, e := range eps {
			for _, a := range e.Addrs {
				if p.Prefix.Contains(a) {
					given[a] = h
				}
			}
		}
	}
	resting := map[netip.Prefix]uint64{}
	for a, l := range u.own.Leases {
		switch {
		case !p.Prefix.Contains(a) || l.Lent != "":
		case l.Resting:
			resting[p.BlockOf(a)]++
		default:
			given[a] = u.self
		}
	}

	perBlock, lentOf := map[netip.Prefix]uint64{}, map[netip.Prefix]uint64{}
	hosts := map[carrick.HostID]*status.HostUse{}
	host := func(id carrick.HostID) *status.HostUse {
		if hosts[id] == nil {
			hosts[id] = &status.HostUse{Host: u.names(id), Self: id == u.self}
			if id == u.self {
				hosts[id].Resting = new(uint64)
			}
		}
		return hosts[id]
	}
	for a, h := range given {
		host(h).Given++
		if p.Allocatable(a) {
			out.Given++
		} else {
			out.Outside++
		}
		if loans[a] == "" {
			perBlock[p.BlockOf(a)]++
		}
	}
	for a, h := range loans {
		out.Lent++
		host(h).Borrowed++
		lentOf[p.BlockOf(a)]++
	}
	for b, o := range whole {
		usable, _ := allocatable(p, b)
		use := status.BlockUse{Prefix: b, Freed: o.Freed, Usable: usable, Given: perBlock[b], Lent: lentOf[b]}
		if !o.Freed {
			h := host(o.Host)
			use.Host = h.Host
			h.Blocks++
			h.Usable += usable
			h.Lent += use.Lent
			out.InBlocks += usable
			if h.Self {
				n := resting[b]
				use.Resting = &n
				*h.Resting += n
			}
		}
		out.Blocks = append(out.Blocks, use)
	}
	out.FreeBlocks = freeBlocks(p, whole)
	out.Free = out.Usable - min(out.Given, out.Usable)
	if out.Usable > 0 {
		out.Percent = float64(out.Given) / float64(out.Usable) * 100
	}
	for _, h := range hosts {
		out.Hosts = append(out.Hosts, *h)
	}
	slices.SortFunc(out.Blocks, func(a, b status.BlockUse) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(out.Hosts, func(a, b status.HostUse) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// owned is the blocks and borrowed addresses of a pool: this host's as its
// journal says, the others' as the store says.
func (u usage) owned(p carrick.Pool) map[netip.Prefix]check.Block {
	out := map[netip.Prefix]check.Block{}
	for b, o := range u.blocks {
		if p.Prefix.Contains(b.Addr()) && (o.Freed || o.Host != u.self) {
			out[b] = o
		}
	}
	for _, b := range u.own.Blocks {
		if p.Prefix.Contains(b.Addr()) {
			out[b] = check.Block{Host: u.self}
		}
	}
	return out
}

// warnings is what an operator should do something about before it is too late.
func warnings(pools []status.PoolUse) []string {
	var out []string
	for _, p := range pools {
		if p.Percent >= nearlyFull {
			out = append(out, fmt.Sprintf("pool %s: %d of %d addresses are given out (%.0f %%): make a network with a larger subnet before they are used up",
				p.Prefix, p.Given, p.Usable, math.Floor(p.Percent)))
		}
	}
	return out
}

// allocatable counts the addresses of a part of a pool that may be chosen for
// endpoints, and those of the pool's range in it that may not.
func allocatable(p carrick.Pool, part netip.Prefix) (usable, reserved uint64) {
	r := p.AllocRange()
	if !r.Overlaps(part) {
		return 0, 0
	}
	if r.Bits() > part.Bits() {
		part = r
	}
	for a := range special(p) {
		if part.Contains(a) {
			reserved++
		}
	}
	size := count(part)
	if size == math.MaxUint64 {
		return size, reserved // cut; what is reserved does not show
	}
	return size - reserved, reserved
}

// special is the addresses of a pool that no endpoint may have.
func special(p carrick.Pool) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, a := range slices.Concat([]netip.Addr{p.Gateway, p.Prefix.Addr(), carrick.LastAddr(p.Prefix)}, slices.Collect(maps.Values(p.Aux))) {
		if p.Reserved(a) != "" {
			out[a] = true
		}
	}
	return out
}

// count is how many addresses a prefix has, at most 2^64-1.
func count(p netip.Prefix) uint64 {
	host := p.Addr().BitLen() - p.Bits()
	if host >= bits.UintSize {
		return math.MaxUint64
	}
	return 1 << host
}

// freeBlocks counts the blocks of a pool's range that are nobody's, resting ones
// included, and have an address to give.
func freeBlocks(p carrick.Pool, taken map[netip.Prefix]check.Block) uint64 {
	r := p.AllocRange()
	n := uint64(1) // a range smaller than a block lies in exactly one
	if d := p.Block - r.Bits(); d > 0 {
		n = math.MaxUint64
		if d < bits.UintSize {
			n = 1 << d
		}
	}
	useless := map[netip.Prefix]bool{}
	for a := range special(p) {
		b := p.BlockOf(a)
		if o, is := taken[b]; is && !o.Freed || !r.Overlaps(b) {
			continue
		}
		if usable, _ := allocatable(p, b); usable == 0 {
			useless[b] = true
		}
	}
	n -= min(n, uint64(len(useless)))
	for b, o := range taken {
		if !o.Freed && r.Overlaps(b) && n > 0 {
			n--
		}
	}
	return n
}
