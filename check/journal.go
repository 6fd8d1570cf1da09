package check

import (
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
)

// Remedies that several rules have.
const (
	restart   = "restart the container"
	byItself  = "nothing: it is told when the store answers (carrick status)"
	recreate  = "remove the network on this host and create it again"
	collected = "nothing: it is collected within minutes; at once: carrick ipam release"
	readAgain = "restart the agent of this host, which compares its journal with the store"
)

// journal compares a host's journal with itself and with the store.
func (r *run) journal(id carrick.HostID, h Host) {
	j := h.Journal
	if j == nil {
		return
	}
	if j.Fenced {
		r.at(Transient, FencedRule, "", id, "journal", "wait; for what stays cut off, restart its containers", "the host was removed, and is asking for its addresses again")
	}
	if s := r.Store; s != nil {
		if _, known := s.Hosts[id]; !known {
			r.at(r.soon(h, ""), HostRule, "", id, "v1/host/"+string(id), readAgain, "the host has no record in the store")
		}
		if e := j.Epoch; e.Inc != "" && e.Inc == s.Epoch.Inc && e.Seq > s.Epoch.Seq || e.Num > s.Epoch.Num {
			r.at(Transient, EpochRule, "", id, "v1/epoch", "wait: the hosts begin a recovery", "the store lost its past: this host has seen %d/%d, the store is at %d/%d", e.Num, e.Seq, s.Epoch.Num, s.Epoch.Seq)
		}
	}
	for _, nid := range sorted(j.Networks) {
		n := j.Networks[nid]
		if n.Leaving {
			r.at(Transient, Unpublished, nid, id, "network", byItself, "left by this host, and the store has not been told")
			continue
		}
		r.leases(nid, id, h, n)
		r.endpoints(nid, id, h, n)
		if r.Store != nil {
			r.published(nid, id, h, n)
		}
	}
	if r.Store != nil {
		r.strangers(id, h)
	}
}

// leases checks the addresses of a journal's blocks.
func (r *run) leases(nid carrick.NetworkID, id carrick.HostID, h Host, n JournalNetwork) {
	for i, b := range n.Blocks {
		p, ok := poolOf(n.Conf, b.Addr())
		if !ok || b.Bits() != p.Block && !borrowed(p, b) {
			r.at(Wrong, BlockRule, nid, id, b.String(), readAgain, "in the journal, and fits no pool of the network")
		}
		if slices.Contains(n.Blocks[:i], b) {
			r.at(Wrong, BlockRule, nid, id, b.String(), readAgain, "twice in the journal")
		}
	}
	for _, a := range sortedAddrs(n.Leases) {
		l := n.Leases[a]
		switch {
		case l.Resting:
			continue
		case !n.owns(a):
			r.at(r.soon(h, nid), Unowned, nid, id, a.String(), restart, "given out, and in no block of this host")
		}
		if l.Lent != "" {
			if l.Endpoint != "" {
				r.at(Wrong, LoanRule, nid, id, a.String(), restart, "lent to %s, and endpoint %s has it here", r.name(l.Lent), l.Endpoint.Short())
			}
			continue
		}
		if p, ok := poolOf(n.Conf, a); ok {
			if why := p.Reserved(a); why != "" {
				r.at(Wrong, Forbidden, nid, id, a.String(), restart, "given out, and it is the %s address", why)
			}
		}
		if l.Endpoint == "" {
			r.at(Transient, Leak, nid, id, a.String(), collected, "given out, and no endpoint has it")
		} else if !slices.ContainsFunc(n.Endpoints, func(e Endpoint) bool { return e.ID == l.Endpoint && slices.Contains(e.Addrs, a) }) {
			r.at(Wrong, Unbound, nid, id, a.String(), restart, "given out to endpoint %s, which does not have it", l.Endpoint.Short())
		}
	}
}

// owns says whether an address is of this host's blocks, borrowed ones included.
func (n JournalNetwork) owns(a netip.Addr) bool {
	return slices.ContainsFunc(n.Blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

// endpoints checks a journal's endpoints against its leases.
func (r *run) endpoints(nid carrick.NetworkID, id carrick.HostID, h Host, n JournalNetwork) {
	for _, e := range n.Endpoints {
		if e.Fenced {
			r.at(Wrong, FencedRule, nid, id, e.ID.Short(), restart, "cut off: this host was removed, and %v was not given to it again", e.Addrs)
			continue
		}
		// The host's own is of no Docker network.
		if !slices.Contains(n.Aliases, e.Docker) && e.ID != carrick.LegID(nid, id) {
			r.at(Wrong, Unbound, nid, id, e.ID.Short(), restart, "an endpoint of docker network %s, which is not this network", e.Docker.Short())
		}
		for _, a := range e.Addrs {
			r.address(nid, n.Conf, id, e.ID, a)
			switch l, ok := n.Leases[a]; {
			case !ok || l.Resting || l.Lent != "":
				r.at(Wrong, Unbound, nid, id, a.String(), restart, "endpoint %s has it, and it was not given out", e.ID.Short())
			case l.Endpoint != e.ID:
				r.at(Wrong, Unbound, nid, id, a.String(), restart, "endpoint %s has it, and it was given out to %q", e.ID.Short(), l.Endpoint.Short())
			}
		}
	}
}

// published checks that the store has what a journal has of a network.
func (r *run) published(nid carrick.NetworkID, id carrick.HostID, h Host, n JournalNetwork) {
	late := r.soon(h, nid)
	s, ok := r.Store.Networks[nid]
	if !ok || s.Conf == nil {
		r.at(late, NetworkRule, nid, id, "v1/net/"+string(nid)+"/conf", recreate, "a network of this host that the store does not have")
		return
	}
	if !sameSet(s.Aliases[id], n.Aliases) {
		r.at(late, Unpublished, nid, id, "v1/net/"+string(nid)+"/alias/"+string(id), readAgain, "the store has docker networks %s, the journal %s", short(s.Aliases[id]), short(n.Aliases))
	}
	for _, b := range n.Blocks {
		if o, ok := s.Blocks[b]; !ok || o.Host != id || o.Freed {
			r.at(late, BlockRule, nid, id, b.String(), readAgain, "a block of this host, and in the store %s", r.holder(o.Host))
		}
	}
	for _, b := range sortedPrefixes(s.Blocks) {
		o := s.Blocks[b]
		if o.Host != id || o.Freed || slices.Contains(n.Blocks, b) {
			continue
		}
		if slices.Contains(n.Freeing, b) {
			r.at(Transient, Unpublished, nid, id, b.String(), byItself, "given up by this host, and the store still has it in its name")
		} else {
			r.at(late, BlockRule, nid, id, b.String(), readAgain, "in this host's name in the store, and not in its journal")
		}
	}
	stored := map[carrick.EndpointID]carrick.Endpoint{}
	for _, e := range s.Endpoints[id] {
		stored[e.ID] = e
	}
	for _, e := range n.Endpoints {
		o, ok := stored[e.ID]
		delete(stored, e.ID)
		switch {
		case e.Fenced:
			if ok {
				r.at(late, Unpublished, nid, id, e.ID.Short(), byItself, "cut off, and published")
			}
		case !ok:
			r.at(late, Unpublished, nid, id, e.ID.Short(), byItself, "not in the store: other hosts cannot reach it")
		case !o.Equal(e.Endpoint):
			r.at(late, Unpublished, nid, id, e.ID.Short(), byItself, "in the store with %v %s, here with %v %s", o.Addrs, o.MAC, e.Addrs, e.MAC)
		}
	}
	for _, e := range sorted(stored) {
		r.at(late, Unpublished, nid, id, e.Short(), byItself, "in the store, and not on this host any more")
	}
}

// strangers finds what the store has in the name of a host whose journal does not
// know the network.
func (r *run) strangers(id carrick.HostID, h Host) {
	for _, nid := range sorted(r.Store.Networks) {
		if _, known := h.Journal.Networks[nid]; known {
			continue
		}
		s, late := r.Store.Networks[nid], r.soon(h, nid)
		if as := s.Aliases[id]; len(as) > 0 {
			r.at(late, Unpublished, nid, id, "v1/net/"+string(nid)+"/alias/"+string(id), readAgain, "in the store with docker networks %s, and not in the journal", short(as))
		}
		if len(s.Endpoints[id]) > 0 {
			r.at(late, Unpublished, nid, id, "v1/net/"+string(nid)+"/host/"+string(id), readAgain, "endpoints in the store of a network that is not in the journal")
		}
		for _, b := range sortedPrefixes(s.Blocks) {
			if o := s.Blocks[b]; o.Host == id && !o.Freed {
				r.at(late, BlockRule, nid, id, b.String(), readAgain, "in this host's name in the store, and the network is not in its journal")
			}
		}
	}
}

func sameSet[T comparable](a, b []T) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x T) bool { return !slices.Contains(b, x) })
}

func short(ids []carrick.DockerNetworkID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, id.Short())
	}
	return out
}
