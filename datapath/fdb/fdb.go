// Package fdb keeps the forwarding rows and neighbours of one network's devices
// as they should be.
//
// Three tables are confusingly alike. The bridge's FDB ("master") says which
// port a MAC is behind: a container's, or the vxlan device. The vxlan device's
// own FDB ("self") says which VTEP, that is which host, the MAC is behind. Its
// neighbour table says which MAC an IP address has, and the device answers ARP
// and ND from it. So a packet to a container elsewhere meets them in reverse:
// the sender asks for the address and gets the MAC from the third, the frame
// goes to the vxlan port by the first and to the right host by the second.
//
// A table remembers what it read from the kernel and wrote to it, so that a
// change costs its difference. It reads everything back the first time, after
// any failure and when told to. It knows rows and devices, not where they come
// from, and makes no device.
package fdb

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// Rows is what the tables should hold. The order does not matter, but sorted
// rows are not copied.
type Rows struct {
	FDB     []plan.FDBRow
	Bridged []plan.BridgeRow
	Neigh   []plan.NeighRow
	// Remote is more rows of these tables: see [plan.Remote]. Those that were there
	// at the Apply before are not looked at.
	Remote []*plan.Remote
	// Partial: what the tables hold besides, under other keys, stays.
	Partial bool
}

// Devices says where rows can be written. Rows for devices that are not there
// are left out.
type Devices struct {
	VXLAN nl.Ref            // the zero Ref: there is none
	Ports map[string]nl.Ref // of the bridge, by name, the vxlan device included
}

// Counts counts rows by table.
type Counts struct {
	FDB, Bridged, Neigh int
}

// Total is the sum.
func (c Counts) Total() int { return c.FDB + c.Bridged + c.Neigh }

// Result is what one Apply did.
type Result struct {
	Changes Counts       // rows written or removed
	Drift   Counts       // rows that differed from what was remembered
	Found   []Difference // what they were, the first maxFound of each table
	Read    bool         // the kernel was read back
	// Moved are neighbours that were written over with another MAC, Added those that
	// are new. Without those that failed.
	Moved, Added []plan.NeighRow
	// Stale says that a row to be removed was gone already: somebody else is at
	// work, and the next Apply will read.
	Stale bool
	// Ports has the errors of the rows of single ports, by name. They are in
	// Apply's error as well.
	Ports map[string]error
	// Problems are contradictions in what was wanted.
	Problems []string
}

// Tables is the state of one network. Not safe for concurrent use.
type Tables struct {
	resync bool
	known  bool // have and remote are what the kernel held when last seen
	have   tables
	remote []*plan.Remote // rows besides have, as one Apply was given them
	vxlan  string         // the bridge's port that they lead to
}

type tables struct {
	fdb     []plan.FDBRow // each sorted by key
	bridged []plan.BridgeRow
	neigh   []plan.NeighRow
}

// New returns tables that know nothing: the first Apply reads.
func New() *Tables { return &Tables{resync: true} }

// QueueResync makes the next Apply read the kernel back.
func (t *Tables) QueueResync() { t.resync = true }

// Forget drops the memory of what the tables held: rows that go with a change of
// the device itself are nobody's doing. The next Apply reads the kernel back.
func (t *Tables) Forget() {
	t.resync, t.known, t.have, t.remote = true, false, tables{}, nil
}

// Gone notes that a device was deleted, and its rows with it. vxlan says that
// it was the vxlan device.
func (t *Tables) Gone(port string, vxlan bool) {
	if vxlan || port == t.vxlan {
		t.have, t.remote = t.have.plus(t.remote, t.vxlan), nil
	}
	if vxlan {
		t.have.fdb, t.have.neigh = nil, nil
	}
	// Not in place: the slice may be a plan's.
	var left []plan.BridgeRow
	for _, r := range t.have.bridged {
		if r.Port != port {
			left = append(left, r)
		}
	}
	t.have.bridged = left
}

// Apply makes the kernel hold want, and of what it held before removes what is
// not wanted, unless want is partial: rows that do not age, in the namespace's own
// tables. Dynamic rows are left alone unless they are in the way of a wanted one.
//
// Additions are sent before removals, so that a MAC that moves is never
// without a row. The error joins all that failed; the rest was done. The rows'
// slices are kept and must not be modified.
func (t *Tables) Apply(ctx context.Context, h nl.Handle, dev Devices, want Rows) (Result, error) {
	var res Result
	own := prepare(want, dev, &res)
	remote := want.Remote
	if dev.VXLAN.Index == 0 {
		remote = nil
	}
	var clear []nl.Change
	if t.resync {
		found, odd, err := read(ctx, h, dev)
		if err != nil {
			return res, fmt.Errorf("read back rows: %w", err)
		}
		res.Read = true
		if t.known {
			distance(&res, t.have.plus(t.remote, t.vxlan), found, odd, !want.Partial)
		}
		t.have, t.remote, t.known, t.resync = found, nil, true, false
		clear = odd
	}

	// What was there and stays is in neither.
	goes, comes := t.remote, remote
	if !want.Partial {
		goes, comes = apartRemote(t.remote, remote)
	}
	have, next := t.have.plus(goes, t.vxlan), own.plus(comes, dev.VXLAN.Name)
	add, del := difference(have, next, dev)
	if want.Partial {
		clear = slices.DeleteFunc(clear, func(c nl.Change) bool { return !next.has(c) })
		del, own, remote = nil, over(have, next), nil
	}
	err := send(ctx, h, &res, append(append(clear, add...), del...), have.neigh)
	if err != nil || res.Stale {
		t.resync = true
	}
	if err != nil {
		t.known = false
		return res, err
	}
	t.have, t.remote, t.vxlan = own, remote, dev.VXLAN.Name
	return res, nil
}

// difference is what leads from what the kernel holds to next. Additions come
// in the reverse of the order in which a packet meets them: whoever gets a MAC
// as answer must find the way to it. Removals come the other way round.
func difference(have, next tables, dev Devices) (add, del []nl.Change) {
	setF, delF := merge(have.fdb, next.fdb, orderFDB)
	setB, delB := merge(have.bridged, next.bridged, orderBridged)
	setN, delN := merge(have.neigh, next.neigh, orderNeigh)
	for _, r := range setF {
		add = append(add, nl.SetFDB{Link: dev.VXLAN, MAC: r.MAC, VTEP: r.VTEP})
	}
	for _, r := range setB {
		add = append(add, nl.SetBridged{Link: dev.Ports[r.Port], MAC: r.MAC})
	}
	for _, r := range setN {
		add = append(add, nl.SetNeigh{Link: dev.VXLAN, Addr: r.Addr, MAC: r.MAC})
	}
	for _, r := range delN {
		del = append(del, nl.DelNeigh{Link: dev.VXLAN, Addr: r.Addr})
	}
	for _, r := range delB {
		del = append(del, nl.DelBridged{Link: dev.Ports[r.Port], MAC: r.MAC})
	}
	for _, r := range delF {
		del = append(del, nl.DelFDB{Link: dev.VXLAN, MAC: r.MAC, VTEP: r.VTEP})
	}
	return add, del
}

// send sends changes, counts those that were made and joins the errors. before
// is what neighbours there were.
func send(ctx context.Context, h nl.Handle, res *Result, changes []nl.Change, before []plan.NeighRow) error {
	if len(changes) == 0 {
		return nil
	}
	results := h.Send(ctx, changes...)
	var errs []error
	for i, c := range changes {
		var err error
		if results != nil {
			err = results[i]
		}
		n, port, remove := about(c, &res.Changes)
		switch {
		case err == nil:
			*n++
			res.wrote(c, before)
		case remove && errors.Is(err, nl.ErrNotFound):
			res.Stale = true
		default:
			if port != "" {
				if res.Ports == nil {
					res.Ports = map[string]error{}
				}
				res.Ports[port] = errors.Join(res.Ports[port], err)
			}
			errs = append(errs, err)
		}
	}
	return joinSome(errs)
}

// wrote notes a neighbour that was written.
func (r *Result) wrote(c nl.Change, before []plan.NeighRow) {
	set, ok := c.(nl.SetNeigh)
	if !ok {
		return
	}
	row := plan.NeighRow{Addr: set.Addr, MAC: set.MAC}
	if _, there := slices.BinarySearchFunc(before, row, orderNeigh); there {
		r.Moved = append(r.Moved, row)
	} else {
		r.Added = append(r.Added, row)
	}
}

// about says in which table a change is counted, whose port it is about, and
// whether it removes.
func about(c nl.Change, counts *Counts) (n *int, port string, remove bool) {
	switch c := c.(type) {
	case nl.SetFDB:
		return &counts.FDB, "", false
	case nl.DelFDB:
		return &counts.FDB, "", true
	case nl.SetBridged:
		return &counts.Bridged, c.Link.Name, false
	case nl.DelBridged:
		return &counts.Bridged, c.Link.Name, true
	case nl.SetNeigh:
		return &counts.Neigh, "", false
	default: // nl.DelNeigh
		return &counts.Neigh, "", true
	}
}

// maxErrors is how many rows' errors are spelled out: when one fails for a
// reason of the device, all do.
const maxErrors = 5

func joinSome(errs []error) error {
	if len(errs) > maxErrors {
		errs = append(errs[:maxErrors:maxErrors], fmt.Errorf("and %d more rows failed", len(errs)-maxErrors))
	}
	return errors.Join(errs...)
}
