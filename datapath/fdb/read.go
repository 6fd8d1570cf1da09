package fdb

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// read reads the rows that Carrick may own. clear removes rows which cannot be
// put right by writing over them; what they held counts as not there.
func read(ctx context.Context, h nl.Handle, dev Devices) (t tables, clear []nl.Change, err error) {
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
		case r.Of == 0 || port.Index == 0 || r.State&nl.StatePermanent != 0 || r.State&nl.StateNoARP == 0:
			// Of a link that is not ours, a device's own MAC, or learned: a wanted
			// row is written over it.
		case r.VLAN != 0:
			// Without VLAN filtering the bridge never looks at it. If a port has been
			// given VLANs, the kernel itself repeats each of our rows for them.
		case r.Odd:
			clear = append(clear, nl.DelBridged{Link: port, MAC: r.MAC})
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
	slices.SortFunc(t.fdb, orderFDB)
	slices.SortFunc(t.bridged, orderBridged)
	slices.SortFunc(t.neigh, orderNeigh)
	return t, clear, nil
}

// static says that a row does not age, so that somebody wrote it.
func static(s nl.NeighState) bool { return s&(nl.StatePermanent|nl.StateNoARP) != 0 }
