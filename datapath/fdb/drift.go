package fdb

import (
	"slices"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// Table is one of the three.
type Table string

// The tables.
const (
	FDB     Table = "fdb"
	Bridged Table = "bridged"
	Neigh   Table = "neigh"
)

// Difference is a row that was not as it was left.
type Difference struct {
	Table  Table
	Object string // its key: a MAC or an address
	// Found is what stood there, "" if the row was missing; Want is what had been
	// written, "" for a row of somebody else's.
	Found, Want string
}

// maxFound is how many differences of a table are spelled out.
const maxFound = 20

// distance counts and notes the rows in which what was left and what was found
// differ. odd are the rows that cannot be written over: those of a key that was
// written are counted with it, the others are somebody else's, and counted if they
// are to go.
func distance(res *Result, have, found tables, odd []nl.Change, whole bool) {
	res.Drift = Counts{
		FDB: compare(res, FDB, have.fdb, found.fdb, orderFDB,
			func(r plan.FDBRow) (string, string) { return r.MAC.String(), "dst " + r.VTEP.String() }),
		Bridged: compare(res, Bridged, have.bridged, found.bridged, orderBridged,
			func(r plan.BridgeRow) (string, string) { return r.MAC.String(), "dev " + r.Port }),
		Neigh: compare(res, Neigh, have.neigh, found.neigh, orderNeigh,
			func(r plan.NeighRow) (string, string) { return r.Addr.String(), "lladdr " + r.MAC.String() }),
	}
	for _, c := range odd {
		if have.has(c) || !whole {
			continue
		}
		switch c := c.(type) {
		case nl.DelFDB:
			res.Drift.FDB++
			res.Found = append(res.Found, Difference{FDB, c.MAC.String(), "of a form that is not ours", ""})
		case nl.DelBridged:
			res.Drift.Bridged++
			res.Found = append(res.Found, Difference{Bridged, c.MAC.String(), "of a form that is not ours", ""})
		case nl.DelNeigh:
			res.Drift.Neigh++
			res.Found = append(res.Found, Difference{Neigh, c.Addr.String(), "of a form that is not ours", ""})
		}
	}
}

func compare[R comparable](res *Result, table Table, have, found []R, order func(a, b R) int, text func(R) (key, value string)) int {
	lost, extra := merge(found, have, order)
	for _, r := range lost[:min(len(lost), maxFound)] {
		key, want := text(r)
		d := Difference{Table: table, Object: key, Want: want}
		if i, ok := slices.BinarySearchFunc(found, r, order); ok {
			_, d.Found = text(found[i])
		}
		res.Found = append(res.Found, d)
	}
	for _, r := range extra[:min(len(extra), maxFound)] {
		key, value := text(r)
		res.Found = append(res.Found, Difference{Table: table, Object: key, Found: value})
	}
	return len(lost) + len(extra)
}
