package ipam

import (
	"iter"
	"net/netip"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// memory is what the journal says of a pool, within a transaction.
type memory struct {
	tx   *journal.Tx
	at   poolOf
	pool carrick.Pool
}

var _ Memory = memory{}

func (m memory) Use(a netip.Addr) Use {
	l, ok := m.tx.Lease(m.at.network, a)
	return Use{Taken: ok && l.Released == 0, Released: l.Released}
}

// Known asks the journal's count for a block, and looks itself at an address that
// was borrowed.
func (m memory) Known(b netip.Prefix) int {
	if b.Bits() == m.pool.Block {
		return m.tx.Known(m.at.network, b)
	}
	n := 0
	for a := range addrs(b) {
		if _, ok := m.tx.Lease(m.at.network, a); ok && m.pool.Allocatable(a) {
			n++
		}
	}
	return n
}

func (m memory) Resting() iter.Seq[netip.Addr] { return m.tx.Resting(m.at.network, m.at.prefix) }
