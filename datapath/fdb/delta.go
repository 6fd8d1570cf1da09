package fdb

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// The keys of the tables. Rows of equal key replace one another in the kernel.

// orderFDB: a MAC has one VTEP, except that the zero MAC, which stands for all
// that goes to everybody, has many: there the VTEP belongs to the key.
func orderFDB(a, b plan.FDBRow) int {
	if c := bytes.Compare(a.MAC[:], b.MAC[:]); c != 0 || !a.MAC.IsZero() {
		return c
	}
	return a.VTEP.Compare(b.VTEP)
}

func orderBridged(a, b plan.BridgeRow) int { return bytes.Compare(a.MAC[:], b.MAC[:]) }

func orderNeigh(a, b plan.NeighRow) int { return a.Addr.Compare(b.Addr) }

// prepare sorts what is wanted and leaves out what there is no device for.
func prepare(want Rows, dev Devices, res *Result) tables {
	var t tables
	if dev.VXLAN.Index != 0 {
		t.fdb = canonical(want.FDB, orderFDB,
			func(r plan.FDBRow) plan.FDBRow { r.VTEP = r.VTEP.Unmap(); return r },
			func(a, b plan.FDBRow) {
				res.twice("%s is behind both %s and %s; using the first", a.MAC, a.VTEP, b.VTEP)
			})
		t.neigh = canonical(want.Neigh, orderNeigh,
			func(r plan.NeighRow) plan.NeighRow { r.Addr = r.Addr.Unmap(); return r },
			func(a, b plan.NeighRow) {
				res.twice("%s has both MACs %s and %s; using the first", a.Addr, a.MAC, b.MAC)
			})
	}
	bridged := want.Bridged
	missing := func(r plan.BridgeRow) bool { return dev.Ports[r.Port].Index == 0 }
	if slices.ContainsFunc(bridged, missing) {
		bridged = slices.DeleteFunc(slices.Clone(bridged), missing)
	}
	t.bridged = canonical(bridged, orderBridged,
		func(r plan.BridgeRow) plan.BridgeRow { return r },
		func(a, b plan.BridgeRow) {
			res.twice("%s is at both ports %s and %s; using the first", a.MAC, a.Port, b.Port)
		})
	return t
}

func (r *Result) twice(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// canonical returns rows with plain addresses, sorted, with one row per key; it
// copies only if it must.
func canonical[R comparable](rows []R, order func(a, b R) int, plain func(R) R, twice func(used, left R)) []R {
	ok := true
	for i, r := range rows {
		if plain(r) != r || i > 0 && order(rows[i-1], r) >= 0 {
			ok = false
			break
		}
	}
	if ok {
		return rows
	}
	out := make([]R, len(rows))
	for i, r := range rows {
		out[i] = plain(r)
	}
	slices.SortStableFunc(out, order)
	n := 0
	for i, r := range out {
		if i > 0 && order(out[n-1], r) == 0 {
			if out[n-1] != r {
				twice(out[n-1], r)
			}
			continue
		}
		out[n] = r
		n++
	}
	return out[:n]
}

// plus returns the tables with the rows of some hosts as well, whose keys they do
// not have.
func (t tables) plus(hosts []*plan.Remote, vxlan string) tables {
	if len(hosts) == 0 {
		return t
	}
	macs, neigh := 0, 0
	for _, h := range hosts {
		macs += len(h.MACs)
		neigh += len(h.Neigh)
	}
	out := tables{
		fdb:     append(make([]plan.FDBRow, 0, len(t.fdb)+macs), t.fdb...),
		bridged: append(make([]plan.BridgeRow, 0, len(t.bridged)+macs), t.bridged...),
		neigh:   append(make([]plan.NeighRow, 0, len(t.neigh)+neigh), t.neigh...),
	}
	for _, h := range hosts {
		for _, m := range h.MACs {
			out.fdb = append(out.fdb, plan.FDBRow{MAC: m, VTEP: h.VTEP.Unmap()})
			out.bridged = append(out.bridged, plan.BridgeRow{MAC: m, Port: vxlan})
		}
		for _, r := range h.Neigh {
			out.neigh = append(out.neigh, plan.NeighRow{Addr: r.Addr.Unmap(), MAC: r.MAC})
		}
	}
	slices.SortFunc(out.fdb, orderFDB)
	slices.SortFunc(out.bridged, orderBridged)
	slices.SortFunc(out.neigh, orderNeigh)
	return out
}

// apartRemote returns what of two lists is not in both.
func apartRemote(have, want []*plan.Remote) (goes, comes []*plan.Remote) {
	there := make(map[*plan.Remote]bool, len(have))
	for _, h := range have {
		there[h] = true
	}
	for _, w := range want {
		if there[w] {
			delete(there, w)
		} else {
			comes = append(comes, w)
		}
	}
	for _, h := range have {
		if there[h] {
			goes = append(goes, h)
		}
	}
	return goes, comes
}

// merge walks two sorted tables and returns the rows to write, new ones and
// such that have another value, and the rows to remove.
func merge[R comparable](have, want []R, order func(a, b R) int) (set, del []R) {
	i, j := 0, 0
	for i < len(have) && j < len(want) {
		if have[i] == want[j] {
			i++
			j++
			continue
		}
		switch c := order(have[i], want[j]); {
		case c < 0:
			del = append(del, have[i])
			i++
		case c > 0:
			set = append(set, want[j])
			j++
		default:
			set = append(set, want[j])
			i++
			j++
		}
	}
	return append(set, want[j:]...), append(del, have[i:]...)
}

// over lays wanted tables over those there are: a row gives way to one of its key.
func over(have, want tables) tables {
	return tables{
		fdb:     cover(have.fdb, want.fdb, orderFDB),
		bridged: cover(have.bridged, want.bridged, orderBridged),
		neigh:   cover(have.neigh, want.neigh, orderNeigh),
	}
}

func cover[R comparable](have, want []R, order func(a, b R) int) []R {
	var left []R
	for _, r := range have {
		if _, found := slices.BinarySearchFunc(want, r, order); !found {
			left = append(left, r)
		}
	}
	if len(left) == 0 {
		return want
	}
	out := append(left, want...)
	slices.SortFunc(out, order)
	return out
}

// has says whether there are rows of the key that a removal names.
func (t tables) has(c nl.Change) bool {
	ok := false
	switch c := c.(type) {
	case nl.DelFDB:
		_, ok = slices.BinarySearchFunc(t.fdb, c.MAC, func(r plan.FDBRow, m carrick.MAC) int { return bytes.Compare(r.MAC[:], m[:]) })
	case nl.DelBridged:
		_, ok = slices.BinarySearchFunc(t.bridged, plan.BridgeRow{MAC: c.MAC}, orderBridged)
	case nl.DelNeigh:
		_, ok = slices.BinarySearchFunc(t.neigh, plan.NeighRow{Addr: c.Addr}, orderNeigh)
	}
	return ok
}
