package check

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
)

// user is an endpoint and what it has, on whatever side that was seen.
type user struct {
	network carrick.NetworkID
	who     string // for people
	addrs   []netip.Addr
	macs    []carrick.MAC
}

// heldTwice finds addresses and MACs of a network that two endpoints have. What a
// host's own sides say counts; its record in the store only if neither its engine
// nor its journal were looked at. A cut-off endpoint has nothing.
func (r *run) heldTwice() {
	type addrKey struct {
		network carrick.NetworkID
		addr    netip.Addr
	}
	type macKey struct {
		network carrick.NetworkID
		mac     carrick.MAC
	}
	addrs, macs := map[addrKey][]string{}, map[macKey][]string{}
	for _, u := range r.users() {
		for _, a := range u.addrs {
			addrs[addrKey{u.network, a}] = append(addrs[addrKey{u.network, a}], u.who)
		}
		for _, m := range u.macs {
			if m.IsZero() {
				continue
			}
			macs[macKey{u.network, m}] = append(macs[macKey{u.network, m}], u.who)
		}
	}
	for k, who := range addrs {
		if len(who) > 1 {
			r.at(Wrong, HeldTwice, k.network, "", k.addr.String(), "restart all of these but one: they get other addresses", "held by %s", together(who))
		}
	}
	for k, who := range macs {
		if len(who) > 1 {
			r.at(Wrong, HeldTwice, k.network, "", k.mac.String(), "start all of these but one with another --mac-address, or none", "held by %s", together(who))
		}
	}
}

func together(who []string) string {
	slices.Sort(who)
	return strings.Join(who, " and ")
}

// users returns every endpoint once.
func (r *run) users() []user {
	var all []user
	for id, h := range r.Hosts {
		if !h.Gone {
			all = append(all, r.usersOf(id, h)...)
		}
	}
	if r.Store == nil {
		return all
	}
	for nid, n := range r.Store.Networks {
		for id, eps := range n.Endpoints {
			if h := r.Hosts[id]; h.Gone || h.Journal != nil || h.Engine != nil {
				continue
			}
			for _, e := range eps {
				all = append(all, user{nid, "endpoint " + e.ID.Short() + " on " + r.name(id), e.Addrs, []carrick.MAC{e.MAC}})
			}
		}
	}
	return all
}

// usersOf puts together what a host's engine and its journal say of an endpoint.
func (r *run) usersOf(id carrick.HostID, h Host) []user {
	of := map[carrick.EndpointID]user{}
	cut := map[carrick.EndpointID]bool{}
	if h.Journal != nil {
		for nid, n := range h.Journal.Networks {
			for _, e := range n.Endpoints {
				if cut[e.ID] = e.Fenced; !e.Fenced {
					of[e.ID] = user{nid, "endpoint " + e.ID.Short() + " on " + r.name(id), slices.Clone(e.Addrs), []carrick.MAC{e.MAC}}
				}
			}
		}
	}
	if h.Engine != nil {
		for _, c := range h.Engine.Containers {
			nid, known := r.aliases[alias{id, c.Network}]
			if !known || cut[c.Endpoint] {
				continue
			}
			u := of[c.Endpoint]
			u.network, u.who = nid, "container "+c.Name+" on "+r.name(id)
			for _, a := range c.Addrs {
				if !slices.Contains(u.addrs, a) {
					u.addrs = append(u.addrs, a)
				}
			}
			if !c.MAC.IsZero() && !slices.Contains(u.macs, c.MAC) {
				u.macs = append(u.macs, c.MAC)
			}
			of[c.Endpoint] = u
		}
	}
	var out []user
	for _, u := range of {
		out = append(out, u)
	}
	return out
}
