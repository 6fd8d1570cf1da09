package check

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

const nextAudit = "wait for the next audit (a minute), then: carrick status"

// kernel compares what a kernel holds with its host's journal and with what the
// store says of the others.
func (r *run) kernel(id carrick.HostID, h Host) {
	k, j := h.Kernel, h.Journal
	if k == nil || j == nil {
		return
	}
	for _, nid := range sorted(k.Networks) {
		kn, n := k.Networks[nid], j.Networks[nid]
		for _, ep := range sorted(kn.Ports) {
			if !slices.ContainsFunc(n.Endpoints, func(e Endpoint) bool { return e.ID == ep }) {
				r.at(Wrong, KernelRule, nid, id, ep.Short(), nextAudit, "a port of an endpoint that is not in the journal")
			}
		}
		if len(n.Endpoints) == 0 {
			r.at(Wrong, KernelRule, nid, id, "network", nextAudit, "in the kernel, and no endpoint of it is here")
		}
	}
	for _, nid := range sorted(j.Networks) {
		n := j.Networks[nid]
		if n.Leaving || len(n.Endpoints) == 0 {
			continue
		}
		kn := k.Networks[nid]
		for _, e := range n.Endpoints {
			switch p, ok := kn.Ports[e.ID]; {
			case !ok && e.Joined:
				r.at(Wrong, KernelRule, nid, id, e.ID.Short(), restart, "no port: the container is not connected")
			case ok && e.Fenced && p.Up:
				r.at(Wrong, KernelRule, nid, id, e.ID.Short(), nextAudit, "cut off, and its port is up")
			case ok && !e.Fenced && !p.Up:
				r.at(Wrong, KernelRule, nid, id, e.ID.Short(), nextAudit, "its port is down")
			}
		}
		if r.Store != nil && n.Conf.Mode.Bridged() { // elsewhere the segment or the host's routes know
			r.rows(nid, id, h, n, kn)
		}
	}
}

// rows compares the rows of a network with the endpoints of the other hosts as
// the store has them. Addresses and MACs that two endpoints claim are another
// rule's.
func (r *run) rows(nid carrick.NetworkID, id carrick.HostID, h Host, n JournalNetwork, k KernelNetwork) {
	neigh, fdb := map[netip.Addr]carrick.MAC{}, map[carrick.MAC]netip.Addr{}
	twiceA, twiceM := map[netip.Addr]bool{}, map[carrick.MAC]bool{}
	for _, e := range n.Endpoints {
		twiceM[e.MAC] = true
		for _, a := range e.Addrs {
			twiceA[a] = true
		}
	}
	for oid, eps := range r.Store.Networks[nid].Endpoints {
		host, known := r.Store.Hosts[oid]
		if oid == id || !known {
			continue
		}
		for _, e := range eps {
			if _, again := fdb[e.MAC]; again {
				twiceM[e.MAC] = true
			}
			fdb[e.MAC] = host.VTEP
			for _, a := range e.Addrs {
				if _, again := neigh[a]; again {
					twiceA[a] = true
				}
				neigh[a] = e.MAC
			}
		}
	}
	late := r.soon(h, nid)
	keys := maps.Clone(neigh)
	for a, mac := range k.Neigh {
		// Link-local addresses are not facts: they follow from the MACs.
		if !a.IsLinkLocalUnicast() {
			keys[a] = mac
		}
	}
	for _, a := range sortedAddrs(keys) {
		want, wanted := neigh[a]
		got, there := k.Neigh[a]
		switch {
		case twiceA[a] || twiceM[want]:
		case wanted && !there:
			r.at(late, KernelRule, nid, id, a.String(), nextAudit, "no row: containers here cannot reach it")
		case !wanted:
			r.at(late, KernelRule, nid, id, a.String(), nextAudit, "a row of an address that no other host has")
		case got != want:
			r.at(late, KernelRule, nid, id, a.String(), nextAudit, "its row says %s, the store %s", got, want)
		}
	}
	macs := map[string]carrick.MAC{}
	for m := range fdb {
		macs[m.String()] = m
	}
	for m := range k.FDB {
		macs[m.String()] = m
	}
	for _, s := range sorted(macs) {
		m := macs[s]
		want, wanted := fdb[m]
		got, there := k.FDB[m]
		switch {
		case twiceM[m]:
		case wanted && !there:
			r.at(late, KernelRule, nid, id, s, nextAudit, "no row: containers here cannot reach it")
		case !wanted:
			r.at(late, KernelRule, nid, id, s, nextAudit, "a row of a MAC that no other host has")
		case got != want:
			r.at(late, KernelRule, nid, id, s, nextAudit, "behind %s in the kernel, %s in the store", got, want)
		}
	}
}
