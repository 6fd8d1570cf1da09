package check

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
)

// deleteKey is the remedy for a record that nobody will ever remove.
func deleteKey(key string) string { return "delete the key " + key + " from the store" }

const waitRecovery = "wait for the hosts it waits for; one that is gone for good: carrick node rm NAME"

// store compares the store with itself.
func (r *run) store(s *Store) {
	for _, d := range s.Damaged {
		r.at(Wrong, Record, "", "", d.Key, "upgrade this agent if a newer one wrote it, else delete the key from the store", "%s", d.Why)
	}
	switch {
	case s.Epoch.Recovering:
		var names []string
		for _, h := range s.Epoch.Waiting {
			names = append(names, r.name(h))
		}
		r.at(Transient, EpochRule, "", "", "v1/epoch", waitRecovery, "the store lost its past and is being written again; waited for: %s", strings.Join(names, ", "))
	case s.Epoch.Inc == "" && len(s.Hosts) > 0:
		r.at(Transient, EpochRule, "", "", "v1/epoch", "wait: any connected host begins a recovery", "the store has no epoch")
	}
	r.storeHosts(s)
	r.storeSpace(s)
	for _, id := range sorted(s.Networks) {
		r.storeNetwork(s, id, s.Networks[id])
	}
	for _, id := range sorted(s.Specs) {
		key := "v1/spec/" + string(id)
		if n, ok := s.Networks[id]; !ok || n.Conf == nil {
			r.at(r.broken(), Leak, id, "", key, deleteKey(key), "what engines are told of a network that is not there")
		} else if s.Specs[id] {
			r.at(Transient, NetworkRule, id, "", key, "nothing, if those hosts are on; docker network rm on one whose agent does not mirror; carrick node rm for one that is gone for good", "being removed, which waits for %s", r.names(sorted(n.Aliases)))
		}
	}
	for _, a := range s.Asks {
		r.ask(s, a)
	}
}

func (r *run) names(hosts []carrick.HostID) string {
	out := make([]string, 0, len(hosts))
	for _, h := range hosts {
		out = append(out, r.name(h))
	}
	return strings.Join(out, ", ")
}

// ask checks a request between two hosts: it is on its way as long as both are
// there.
func (r *run) ask(s *Store, a Ask) {
	what := "any address"
	if a.Addr.IsValid() {
		what = a.Addr.String()
	}
	_, owner := s.Hosts[a.Owner]
	_, requester := s.Hosts[a.Requester]
	key := "v1/ask/" + string(a.Owner) + "/" + string(a.Requester)
	switch {
	case !owner || !requester:
		r.at(r.broken(), Leak, a.Network, a.Owner, key, deleteKey(key), "%s, asked by %s of %s, and one of them has no record", what, r.name(a.Requester), r.name(a.Owner))
	case a.Return:
		r.at(Transient, LoanRule, a.Network, a.Owner, key, "nothing: the owner takes it back when its agent runs", "%s, given back by %s", what, r.name(a.Requester))
	default:
		r.at(Transient, LoanRule, a.Network, a.Owner, key, "nothing: it is answered, or withdrawn", "%s, asked by %s", what, r.name(a.Requester))
	}
}

// broken is Wrong, but for a store that is being written again.
func (r *run) broken() Severity {
	if r.recovering() || r.Store.Epoch.Inc == "" {
		return Transient
	}
	return Wrong
}

func (r *run) storeHosts(s *Store) {
	for _, id := range sorted(s.Hosts) {
		h := s.Hosts[id]
		const again = "restart its agent, which registers again"
		if at := s.Names[h.Name]; at != id {
			r.at(r.broken(), HostRule, "", id, "v1/name/"+h.Name, again, "the name %s is %s", h.Name, r.holder(at))
		}
		if at := s.VTEPs[h.VTEP]; at != id {
			r.at(r.broken(), HostRule, "", id, "v1/vtep/"+h.VTEP.String(), again, "the VTEP address %s is %s", h.VTEP, r.holder(at))
		}
		if s.Removed[id] {
			r.at(r.broken(), HostRule, "", id, "v1/host/"+string(id), "carrick node rm "+h.Name, "removed, and its record is still there")
		}
	}
	for _, name := range sorted(s.Names) {
		if id := s.Names[name]; s.Hosts[id].Name != name {
			r.at(r.broken(), HostRule, "", id, "v1/name/"+name, deleteKey("v1/name/"+name), "held by a host that does not have it")
		}
	}
	for _, a := range sortedAddrs(s.VTEPs) {
		if id := s.VTEPs[a]; s.Hosts[id].VTEP != a {
			r.at(r.broken(), HostRule, "", id, "v1/vtep/"+a.String(), deleteKey("v1/vtep/"+a.String()), "held by a host that does not have it")
		}
	}
	for _, id := range sorted(s.Alive) {
		if _, known := s.Hosts[id]; s.Alive[id] && !known {
			r.at(r.broken(), HostRule, "", id, "v1/node/"+string(id), "restart its agent, which registers again", "alive, and has no record")
		}
	}
}

func (r *run) holder(id carrick.HostID) string {
	if id == "" {
		return "nobody's in the store"
	}
	return "held by " + r.name(id)
}

// storeSpace compares networks with what they take: prefixes and VNIs.
func (r *run) storeSpace(s *Store) {
	prefixes := map[carrick.NetworkID][]netip.Prefix{}
	for _, tenant := range sorted(s.Tenants) {
		all := s.Tenants[tenant]
		for i, p := range all {
			prefixes[p.Network] = append(prefixes[p.Network], p.Prefix)
			if n, ok := s.Networks[p.Network]; !ok || n.Conf != nil && n.Conf.Tenant != tenant {
				r.at(r.broken(), Leak, p.Network, "", p.Prefix.String(), "take the prefix out of the key v1/tenant/"+tenant, "kept in tenant %s for a network that is not there", tenant)
			}
			for _, o := range all[:i] {
				if p.Prefix.Overlaps(o.Prefix) {
					r.at(Wrong, NetworkRule, p.Network, "", p.Prefix.String(), "remove one of the two networks", "overlaps %s of network %s in tenant %s", o.Prefix, r.label(o.Network), tenant)
				}
			}
		}
	}
	for _, v := range sorted(s.VNIs) {
		key := "v1/vni/" + strconv.FormatUint(uint64(v), 10)
		if n, ok := s.Networks[s.VNIs[v]]; !ok || n.Conf != nil && n.Conf.VNI != v {
			r.at(r.broken(), Leak, s.VNIs[v], "", key, deleteKey(key), "kept for a network that is not there or has another")
		}
	}
	const anew = "remove the network on every host and create it again"
	for _, id := range sorted(s.Networks) {
		n := s.Networks[id].Conf
		if n == nil {
			continue
		}
		for _, p := range n.Pools {
			if !slices.Contains(prefixes[id], p.Prefix) {
				r.at(r.broken(), Missing, id, "", p.Prefix.String(), anew, "not in the address space of tenant %s: another network could take it", n.Tenant)
			}
		}
		if s.VNIs[n.VNI] != id {
			r.at(r.broken(), Missing, id, "", "VNI "+strconv.FormatUint(uint64(n.VNI), 10), anew, "not kept for this network: another could take it")
		}
	}
}

func (r *run) storeNetwork(s *Store, id carrick.NetworkID, n StoreNetwork) {
	if n.Conf == nil {
		r.at(r.broken(), NetworkRule, id, "", "v1/net/"+string(id)+"/conf", deleteKey("v1/net/"+string(id)+"/conf and all beside it"), "records of a network without a configuration")
		return
	}
	if len(n.Aliases) == 0 {
		r.at(r.broken(), Leak, id, "", "v1/net/"+string(id), deleteKey("v1/net/"+string(id)+"/ and all below it"), "a network that no host has")
	}
	for _, h := range sorted(n.Aliases) {
		r.member(s, id, h, "alias", "v1/net/"+string(id)+"/alias/"+string(h))
	}
	r.storeBlocks(s, id, n)
	for _, h := range sorted(n.Endpoints) {
		key := "v1/net/" + string(id) + "/host/" + string(h)
		r.member(s, id, h, "endpoints", key)
		if len(n.Aliases[h]) == 0 {
			r.at(r.soon(r.Hosts[h], id), Leak, id, h, key, deleteKey(key), "endpoints of a host that does not have the network")
		}
		for _, e := range n.Endpoints[h] {
			for _, a := range e.Addrs {
				r.address(id, *n.Conf, h, e.ID, a)
				if owner, ok := n.owner(*n.Conf, a); !ok || owner != h {
					r.at(r.soon(r.Hosts[h], id), Unowned, id, h, a.String(), "restart the container: it gets another address",
						"endpoint %s has it, and its block is %s", e.ID.Short(), r.holder(owner))
				}
			}
		}
	}
}

// owner returns the host that an address is given out by: who borrowed it, or
// the owner of its block.
func (n StoreNetwork) owner(conf carrick.Network, a netip.Addr) (carrick.HostID, bool) {
	p, ok := poolOf(conf, a)
	if !ok {
		return "", false
	}
	for _, b := range []netip.Prefix{netip.PrefixFrom(a, a.BitLen()), netip.PrefixFrom(a, p.Block).Masked()} {
		if o, ok := n.Blocks[b]; ok && !o.Freed {
			return o.Host, true
		}
	}
	return "", false
}

// member checks that the host of a record exists.
func (r *run) member(s *Store, id carrick.NetworkID, h carrick.HostID, what, key string) {
	switch _, known := s.Hosts[h]; {
	case s.Removed[h]:
		r.at(r.broken(), Leak, id, h, key, "carrick node rm "+string(h)+", once more", "%s of a removed host", what)
	case !known:
		r.at(r.broken(), Leak, id, h, key, "carrick node rm "+string(h)+" if that host is gone for good", "%s of a host that has no record", what)
	}
}

func (r *run) storeBlocks(s *Store, id carrick.NetworkID, n StoreNetwork) {
	var before netip.Prefix
	for _, b := range sortedPrefixes(n.Blocks) {
		o := n.Blocks[b]
		p, ok := poolOf(*n.Conf, b.Addr())
		key := "v1/net/" + string(id) + "/ipam/" + b.Addr().String() + "-" + strconv.Itoa(b.Bits())
		single := ok && borrowed(p, b)
		switch {
		case !ok || b.Bits() != p.Block && !single:
			r.at(Wrong, BlockRule, id, o.Host, b.String(), deleteKey(key), "fits no pool of the network")
			continue
		case !single && before.IsValid() && before.Overlaps(b):
			r.at(Wrong, BlockRule, id, o.Host, b.String(), deleteKey(key), "overlaps %s", before)
		}
		if !single {
			before = b
		}
		if o.Freed {
			continue
		}
		r.member(s, id, o.Host, "a block", key)
		if len(n.Aliases[o.Host]) == 0 {
			r.at(r.soon(r.Hosts[o.Host], id), Leak, id, o.Host, b.String(), deleteKey(key), "a block of a host that does not have the network")
		}
		if lender, ok := n.Blocks[netip.PrefixFrom(b.Addr(), p.Block).Masked()]; single && ok && !lender.Freed && lender.Host == o.Host {
			r.at(r.soon(r.Hosts[o.Host], id), LoanRule, id, o.Host, b.Addr().String(), deleteKey(key), "lent to the host that owns its block")
		}
	}
}

// address checks that an address may be an endpoint's at all.
func (r *run) address(id carrick.NetworkID, conf carrick.Network, h carrick.HostID, ep carrick.EndpointID, a netip.Addr) {
	const other = "restart the container: it gets another address"
	p, ok := poolOf(conf, a)
	if !ok {
		r.at(Wrong, Forbidden, id, h, a.String(), other, "endpoint %s has it, and it is in no pool of the network", ep.Short())
		return
	}
	if why := p.Reserved(a); why != "" {
		r.at(Wrong, Forbidden, id, h, a.String(), other, "endpoint %s has it, and it is the %s address", ep.Short(), why)
	}
}
