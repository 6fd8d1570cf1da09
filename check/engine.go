package check

import (
	"slices"

	"github.com/carrick-net/carrick"
)

// engine compares what an engine runs with its host's journal.
func (r *run) engine(id carrick.HostID, h Host) {
	e, j := h.Engine, h.Journal
	if e == nil || j == nil {
		return
	}
	type place struct {
		network carrick.NetworkID
		ep      Endpoint
	}
	known := map[carrick.EndpointID]place{}
	networks := map[carrick.DockerNetworkID]carrick.NetworkID{}
	for nid, n := range j.Networks {
		for _, a := range n.Aliases {
			networks[a] = nid
			if _, ok := e.Networks[a]; !ok {
				r.at(Transient, Leak, nid, id, a.Short(), collected, "an alias of a docker network that the engine does not have")
			}
		}
		for _, ep := range n.Endpoints {
			known[ep.ID] = place{nid, ep}
		}
	}
	for _, d := range sorted(e.Networks) {
		if _, ok := networks[d]; !ok {
			r.at(Wrong, Missing, "", id, d.Short(), "docker network rm "+e.Networks[d]+", and create it again", "the engine's network %s is not in the journal", e.Networks[d])
		}
	}
	runs := map[carrick.EndpointID]bool{}
	for _, c := range e.Containers {
		runs[c.Endpoint] = true
		p, ok := known[c.Endpoint]
		switch {
		case !ok:
			r.at(Wrong, Missing, networks[c.Network], id, c.Endpoint.Short(), "docker restart "+c.Name, "container %s with %v is not in the journal", c.Name, c.Addrs)
		case networks[c.Network] != p.network:
			r.at(Wrong, Unbound, p.network, id, c.Endpoint.Short(), "docker restart "+c.Name, "container %s is in docker network %s, which is not this network", c.Name, c.Network.Short())
		case !slices.Equal(c.Addrs, p.ep.Addrs) || !c.MAC.IsZero() && c.MAC != p.ep.MAC:
			r.at(Wrong, Unbound, p.network, id, c.Endpoint.Short(), "docker restart "+c.Name, "container %s has %v %s, the journal says %v %s", c.Name, c.Addrs, c.MAC, p.ep.Addrs, p.ep.MAC)
		}
	}
	for _, ep := range sorted(known) {
		if p := known[ep]; !runs[ep] && ep != carrick.LegID(p.network, id) {
			r.at(Transient, Leak, p.network, id, ep.Short(), collected, "an endpoint with %v that no container has", p.ep.Addrs)
		}
	}
}
