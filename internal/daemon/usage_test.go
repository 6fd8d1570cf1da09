package daemon

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/status"
)

const self, other = carrick.HostID("00000000000000b1"), carrick.HostID("00000000000000b2")

func names(id carrick.HostID) string { return map[carrick.HostID]string{self: "h1", other: "h2"}[id] }

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// A /24 shared by two hosts: each address counts once, for whoever has it, and a
// loan on both sides.
func TestUsageOfASharedPool(t *testing.T) {
	t.Parallel()
	pool := carrick.Pool{Prefix: pfx("10.42.0.0/24"), Gateway: addr("10.42.0.1"), Aux: map[string]netip.Addr{"router": addr("10.42.0.9")}, Block: 29}
	u := usage{
		of: []carrick.Pool{pool}, self: self, names: names,
		own: check.JournalNetwork{
			Blocks: []netip.Prefix{pfx("10.42.0.0/29"), pfx("10.42.0.12/32")},
			Leases: map[netip.Addr]check.Lease{
				addr("10.42.0.2"): {Endpoint: "a"},
				addr("10.42.0.3"): {},              // given out, no endpoint yet
				addr("10.42.0.4"): {Resting: true}, // used before
				addr("10.42.0.5"): {Lent: other},
				// Borrowed from the other host.
				addr("10.42.0.12"): {Endpoint: "b"},
			},
		},
		blocks: map[netip.Prefix]check.Block{
			pfx("10.42.0.0/29"):  {Host: self},
			pfx("10.42.0.8/29"):  {Host: other},
			pfx("10.42.0.16/29"): {Freed: true},
			pfx("10.42.0.5/32"):  {Host: other},
			pfx("10.42.0.12/32"): {Host: self},
			pfx("10.42.0.24/29"): {Host: self}, // the journal does not have it: it is given back
		},
		endpoints: map[carrick.HostID][]carrick.Endpoint{
			self:  {{ID: "stale", Addrs: []netip.Addr{addr("10.42.0.6")}}}, // the journal knows better
			other: {{ID: "c", Addrs: []netip.Addr{addr("10.42.0.10")}}, {ID: "d", Addrs: []netip.Addr{addr("10.42.0.5")}}},
		},
	}
	p := u.pools()[0]
	// 256 less network, broadcast, gateway and the router.
	if p.Usable != 252 || p.Reserved != 4 || p.InBlocks != 6+7 || p.Given != 5 || p.Free != 247 || p.Outside != 0 || p.Lent != 2 || p.FreeBlocks != 30 {
		t.Errorf("pool %+v", p)
	}
	one := uint64(1)
	want := []status.BlockUse{
		{Prefix: pfx("10.42.0.0/29"), Host: "h1", Usable: 6, Given: 2, Lent: 1, Resting: &one},
		{Prefix: pfx("10.42.0.8/29"), Host: "h2", Usable: 7, Given: 1, Lent: 1},
		{Prefix: pfx("10.42.0.16/29"), Freed: true, Usable: 8},
	}
	if len(p.Blocks) != len(want) {
		t.Fatalf("blocks %+v", p.Blocks)
	}
	for i, b := range p.Blocks {
		w := want[i]
		if (b.Resting == nil) != (w.Resting == nil) || b.Resting != nil && *b.Resting != *w.Resting {
			t.Errorf("block %s rests %v, want %v", b.Prefix, b.Resting, w.Resting)
		}
		b.Resting, w.Resting = nil, nil
		if b != w {
			t.Errorf("block %+v, want %+v", b, w)
		}
	}
	hosts := []status.HostUse{
		{Host: "h1", Self: true, Blocks: 1, Usable: 6, Given: 3, Lent: 1, Borrowed: 1, Resting: &one},
		{Host: "h2", Blocks: 1, Usable: 7, Given: 2, Lent: 1, Borrowed: 1},
	}
	if len(p.Hosts) != len(hosts) {
		t.Fatalf("hosts %+v", p.Hosts)
	}
	for i, h := range p.Hosts {
		w := hosts[i]
		if i == 0 && (h.Resting == nil || *h.Resting != 1) || i == 1 && h.Resting != nil {
			t.Errorf("host %s rests %v", h.Host, h.Resting)
		}
		h.Resting, w.Resting = nil, nil
		if h != w {
			t.Errorf("host %+v, want %+v", h, w)
		}
	}
}

// --ip-range narrows what counts, and what --ip gave out beside it is told apart.
func TestUsageOfARange(t *testing.T) {
	t.Parallel()
	pool := carrick.Pool{Prefix: pfx("10.42.0.0/16"), Range: pfx("10.42.1.0/28"), Gateway: addr("10.42.1.1"), Block: 26}
	u := usage{
		of: []carrick.Pool{pool}, self: self, names: names,
		own: check.JournalNetwork{
			Blocks: []netip.Prefix{pfx("10.42.1.0/26"), pfx("10.42.9.0/26")},
			Leases: map[netip.Addr]check.Lease{addr("10.42.9.9"): {Endpoint: "a"}, addr("10.42.1.2"): {Endpoint: "b"}},
		},
	}
	p := u.pools()[0]
	if p.Usable != 15 || p.Reserved != 1 || p.InBlocks != 15 || p.Given != 1 || p.Outside != 1 || p.Free != 14 || p.FreeBlocks != 0 {
		t.Errorf("pool %+v", p)
	}
	if p.Blocks[1].Usable != 0 || p.Blocks[1].Given != 1 {
		t.Errorf("the block outside of the range: %+v", p.Blocks[1])
	}
}

// A /64 has more addresses than can be counted, and none too few.
func TestUsageOfALargePool(t *testing.T) {
	t.Parallel()
	pools := []carrick.Pool{
		{Prefix: pfx("10.42.0.0/30"), Gateway: addr("10.42.0.1"), Block: 31},
		{Prefix: pfx("fd00::/64"), Gateway: addr("fd00::1"), Block: 122},
		{Prefix: pfx("fd01::/120"), Block: 122},
	}
	u := usage{of: pools, self: self, names: names, own: check.JournalNetwork{
		Blocks: []netip.Prefix{pfx("fd00::/122")},
		Leases: map[netip.Addr]check.Lease{addr("fd00::2"): {Endpoint: "a"}},
	}}
	got := u.pools()
	if p := got[0]; p.Usable != 1 || p.Reserved != 3 || p.Given != 0 || p.FreeBlocks != 1 {
		t.Errorf("the smallest pool: %+v", p) // only the upper half has an address to give
	}
	if p := got[1]; p.Usable != math.MaxUint64 || p.Given != 1 || p.Percent != 0 && p.Percent > 1e-9 || p.FreeBlocks != 1<<58-1 || p.Blocks[0].Usable != 62 {
		t.Errorf("the largest pool: %+v", p)
	}
	if p := got[2]; p.Usable != 255 || p.FreeBlocks != 4 {
		t.Errorf("a /120: %+v", p)
	}
}

// At 80 % there is a warning, and not before.
func TestWarnings(t *testing.T) {
	t.Parallel()
	almost := status.PoolUse{Prefix: pfx("10.42.0.0/24"), Usable: 1000, Given: 799, Percent: 79.9}
	full := status.PoolUse{Prefix: pfx("10.43.0.0/24"), Usable: 10, Given: 8, Percent: 80}
	if w := warnings([]status.PoolUse{almost}); len(w) != 0 {
		t.Errorf("warned too early: %q", w)
	}
	w := warnings([]status.PoolUse{almost, full})
	if len(w) != 1 || !strings.Contains(w[0], "10.43.0.0/24") || !strings.Contains(w[0], "8 of 10") {
		t.Errorf("warnings %q", w)
	}
}
