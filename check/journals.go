package check

import (
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// journals compares the journals with each other: a block is one host's, and a
// loan has two sides.
func (r *run) journals() {
	type owned struct {
		host  carrick.HostID
		block netip.Prefix
	}
	owners := map[carrick.NetworkID][]owned{}
	for _, id := range sorted(r.Hosts) {
		h := r.Hosts[id]
		if h.Gone || h.Journal == nil {
			continue
		}
		for nid, n := range h.Journal.Networks {
			if n.Leaving {
				continue
			}
			for _, b := range n.Blocks {
				if p, ok := poolOf(n.Conf, b.Addr()); ok && !borrowed(p, b) {
					owners[nid] = append(owners[nid], owned{id, b})
				}
			}
			r.loans(nid, id, h, n)
		}
	}
	for nid, all := range owners {
		for i, a := range all {
			for _, b := range all[:i] {
				if a.host != b.host && a.block.Overlaps(b.block) {
					r.at(Wrong, BlockRule, nid, a.host, a.block.String(), "restart the agents of both hosts: the one that the store does not name gives the block up",
						"overlaps %s of host %s: both give out its addresses", b.block, r.name(b.host))
				}
			}
		}
	}
}

// loans checks what a host lent and what it borrowed against the store and the
// other side's journal.
func (r *run) loans(nid carrick.NetworkID, id carrick.HostID, h Host, n JournalNetwork) {
	for _, a := range sortedAddrs(n.Leases) {
		l := n.Leases[a]
		if l.Resting || l.Lent == "" {
			continue
		}
		single := netip.PrefixFrom(a, a.BitLen())
		const back = "nothing, if that host is there: it returns it; if it is gone for good: carrick node rm NAME"
		if s := r.Store; s != nil {
			if o, ok := s.Networks[nid].Blocks[single]; !ok || o.Host != l.Lent {
				r.at(r.soon(h, nid), LoanRule, nid, id, a.String(), back, "lent to %s, and in the store %s", r.name(l.Lent), r.holder(o.Host))
			}
			if s.Removed[l.Lent] {
				r.at(r.soon(h, nid), LoanRule, nid, id, a.String(), readAgain, "lent to %s, which was removed", r.name(l.Lent))
			}
		}
		if b, ok := r.Hosts[l.Lent]; ok && !b.Gone && b.Journal != nil {
			bn := b.Journal.Networks[nid]
			if !slices.Contains(bn.Blocks, single) && !slices.Contains(bn.Freeing, single) {
				r.at(milder(r.soon(h, nid), r.soon(b, nid)), LoanRule, nid, id, a.String(), back, "lent to %s, which does not know", r.name(l.Lent))
			}
		}
	}
	for _, b := range n.Blocks {
		p, ok := poolOf(n.Conf, b.Addr())
		if !ok || !borrowed(p, b) {
			continue
		}
		whole := netip.PrefixFrom(b.Addr(), p.Block).Masked()
		for _, oid := range sorted(r.Hosts) {
			o := r.Hosts[oid]
			if oid == id || o.Gone || o.Journal == nil {
				continue
			}
			if on := o.Journal.Networks[nid]; slices.Contains(on.Blocks, whole) && on.Leases[b.Addr()].Lent != id {
				r.at(milder(r.soon(h, nid), r.soon(o, nid)), LoanRule, nid, id, b.Addr().String(), "restart the container that has it, if any: it gets another address",
					"borrowed from %s, which does not know: it may give it out again", r.name(oid))
			}
		}
		if slices.Contains(n.Blocks, whole) {
			r.at(Wrong, LoanRule, nid, id, b.Addr().String(), readAgain, "borrowed, and its block %s is this host's own", whole)
		}
	}
}

// milder returns the milder of two severities: either side may have something to
// tell yet.
func milder(a, b Severity) Severity {
	if a == Transient || b == Transient {
		return Transient
	}
	return a
}
