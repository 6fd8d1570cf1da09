package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

var errLooked = errors.New("only looked")

// BenchmarkPick is what an allocation does under the journal's lock, without the
// disk: choose an address and see whether it is time for another block. The
// host's blocks are full but for one address, which was never used or rests.
func BenchmarkPick(b *testing.B) {
	for _, family := range []struct {
		name, prefix string
	}{{"IPv4", "10.42.0.0/16"}, {"IPv6", "fd00:42::/64"}} {
		for _, blocks := range []int{1, 10, 100} {
			for _, last := range []string{"unused", "rested"} {
				b.Run(fmt.Sprintf("%s/blocks=%d/%s", family.name, blocks, last), func(b *testing.B) {
					benchmarkPick(b, netip.MustParsePrefix(family.prefix), blocks, last == "rested")
				})
			}
		}
	}
}

func benchmarkPick(b *testing.B, prefix netip.Prefix, blocks int, rested bool) {
	j, err := journal.Open(b.TempDir(), "machine")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	at := poolOf{"00000000000000aa", prefix}
	pool := carrick.Pool{Prefix: prefix, Gateway: prefix.Addr().Next(), Block: carrick.BlockBits(prefix)}
	var mine []netip.Prefix
	for len(mine) < blocks {
		next, _ := NextBlock(pool, func(x netip.Prefix) bool { return Owned(mine, x.Addr()) })
		mine = append(mine, next)
	}
	var free netip.Addr
	err = j.Update(func(tx *journal.Tx) error {
		tx.PutNetwork(journal.Network{Conf: carrick.Network{ID: at.network, Pools: []carrick.Pool{pool}}, Blocks: mine})
		for _, x := range mine {
			for a := range addrs(x) {
				if pool.Allocatable(a) {
					tx.PutLease(journal.Lease{Network: at.network, Addr: a})
					free = a
				}
			}
		}
		if rested {
			tx.Release(at.network, free, time.Now())
		} else {
			tx.DeleteLease(at.network, free)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	err = j.Update(func(tx *journal.Tx) error {
		for b.Loop() {
			n, pool, err := at.within(tx)
			if err != nil {
				return err
			}
			blocks := BlocksOf(pool, n.Blocks)
			got, ok := Pick(pool, blocks, memory{tx, at, pool})
			if !ok || got != free || !crowded(tx.Taken(at.network, at.prefix), Size(pool, blocks)) {
				b.Fatalf("picked %s, want %s", got, free)
			}
		}
		return errLooked
	})
	if !errors.Is(err, errLooked) {
		b.Fatal(err)
	}
}
