package fdb

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// readTries is how often rows are read before a key that is there twice is
// believed to be.
const readTries = 3

// read reads the rows that Carrick may own. clear removes rows which cannot be
// put right by writing over them; what they held counts as not there.
//
// The kernel lists these tables bucket by bucket and says nothing if they change
// meanwhile (no NLM_F_DUMP_INTR: rtnl_fdb_dump, neigh_dump_table): rows may come
// twice or not at all. One that came twice and was taken for two would be
// deleted as the second.
func read(ctx context.Context, h nl.Handle, dev Devices) (t tables, clear []nl.Change, err error) {
	for try := 1; ; try++ {
		if t, clear, err = readOnce(ctx, h, dev); err != nil {
			return tables{}, nil, err
		}
		again := t.double(dev)
		if len(again) == 0 {
			return t, clear, nil
		}
		if try == readTries {
			return t, append(clear, again...), nil
		}
	}
}

// double takes out the keys that are there twice, and says how to remove them.
func (t *tables) double(dev Devices) (clear []nl.Change) {
	t.fdb, clear = once(t.fdb, clear,
		func(a, b plan.FDBRow) bool {
			// Several destinations may stand behind a group address.
			return a.MAC == b.MAC && (a.VTEP == b.VTEP || a.MAC.IsUnicast())
		},
		func(r plan.FDBRow) nl.Change { return nl.DelFDB{Link: dev.VXLAN, MAC: r.MAC, VTEP: r.VTEP} })
	t.bridged, clear = once(t.bridged, clear,
		func(a, b plan.BridgeRow) bool { return a.MAC == b.MAC },
		func(r plan.BridgeRow) nl.Change { return nl.DelBridged{Link: dev.Ports[r.Port], MAC: r.MAC} })
	t.neigh, clear = once(t.neigh, clear,
		func(a, b plan.NeighRow) bool { return a.Addr == b.Addr },
		func(r plan.NeighRow) nl.Change { return nl.DelNeigh{Link: dev.VXLAN, Addr: r.Addr} })
	return clear
}

// once keeps of sorted rows those whose key is there once.
func once[R comparable](rows []R, clear []nl.Change, same func(a, b R) bool, del func(R) nl.Change) ([]R, []nl.Change) {
	n := 0
	for i := 0; i < len(rows); {
		j := i + 1
		for j < len(rows) && same(rows[i], rows[j]) {
			j++
		}
		if j == i+1 {
			rows[n] = rows[i]
			n++
		}
		for k := i; j > i+1 && k < j; k++ {
			if k == i || rows[k] != rows[k-1] {
				clear = append(clear, del(rows[k]))
			}
		}
		i = j
	}
	return rows[:n], clear
}

func readOnce(ctx context.Context, h nl.Handle, dev Devices) (t tables, clear []nl.Change, err error) {
	rows, err := h.FDB(ctx)
	if err != nil {
		return tables{}, nil, err
	}
	ports := make(map[int]nl.Ref, len(dev.Ports))
	for _, p := range dev.Ports {
		ports[p.Index] = p
	}
	// A row of the vxlan device with a port, VNI or next hop of its own can only
	// be addressed by saying all of that, so its MAC is cleared as a whole.
	odd := map[carrick.MAC]bool{}
	for _, r := range rows {
		if r.Self && r.Link == dev.VXLAN.Index && static(r.State) && (r.Odd || !r.VTEP.IsValid() || r.State&nl.StatePermanent == 0) {
			odd[r.MAC] = true
		}
	}
	for _, r := range rows {
		switch port := ports[r.Link]; {
		case r.Self:
			// Rows that were learned are written over, or age.
			if r.Link == dev.VXLAN.Index && static(r.State) && !odd[r.MAC] {
				t.fdb = append(t.fdb, plan.FDBRow{MAC: r.MAC, VTEP: r.VTEP})
			}
		case r.Of == 0 || port.Index == 0 || r.State&nl.StatePermanent != 0:
			// Of a link that is not ours, or a device's own MAC.
		case r.VLAN != 0:
			// Without VLAN filtering the bridge never looks at it. If a port has been
			// given VLANs, the kernel itself repeats each of our rows for them.
		case r.Odd:
			// Also one that ages: writing over it would leave its flags.
			clear = append(clear, nl.DelBridged{Link: port, MAC: r.MAC})
		case r.State&nl.StateNoARP == 0:
			// Learned: a wanted row is written over it.
		default:
			t.bridged = append(t.bridged, plan.BridgeRow{MAC: r.MAC, Port: port.Name})
		}
	}
	for _, mac := range slices.SortedFunc(maps.Keys(odd), func(a, b carrick.MAC) int { return bytes.Compare(a[:], b[:]) }) {
		clear = append(clear, nl.DelFDB{Link: dev.VXLAN, MAC: mac})
	}
	if dev.VXLAN.Index != 0 {
		neigh, err := h.Neighbours(ctx, dev.VXLAN)
		if err != nil {
			return tables{}, nil, err
		}
		for _, n := range neigh {
			// The kernel itself makes NOARP rows, of multicast addresses only. It
			// would answer ARP from any other as from a permanent one.
			switch {
			case !static(n.State) || n.State&nl.StatePermanent == 0 && n.Addr.IsMulticast():
			case n.Odd || n.State != nl.StatePermanent:
				clear = append(clear, nl.DelNeigh{Link: dev.VXLAN, Addr: n.Addr})
			default:
				t.neigh = append(t.neigh, plan.NeighRow{Addr: n.Addr, MAC: n.MAC})
			}
		}
	}
	slices.SortFunc(t.fdb, func(a, b plan.FDBRow) int { return cmp.Or(orderFDB(a, b), a.VTEP.Compare(b.VTEP)) })
	slices.SortFunc(t.bridged, func(a, b plan.BridgeRow) int { return cmp.Or(orderBridged(a, b), cmp.Compare(a.Port, b.Port)) })
	slices.SortFunc(t.neigh, func(a, b plan.NeighRow) int { return cmp.Or(orderNeigh(a, b), bytes.Compare(a.MAC[:], b.MAC[:])) })
	return t, clear, nil
}

// static says that a row does not age, so that somebody wrote it.
func static(s nl.NeighState) bool { return s&(nl.StatePermanent|nl.StateNoARP) != 0 }
