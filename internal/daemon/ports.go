package daemon

import (
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/plan"
	"github.com/carrick-net/carrick/probe"
)

// ports is what is to be probed: the UDP ports of the networks that this host is in
// now, each with the hosts that have containers in one of them.
func (s *source) ports() []probe.Port {
	hosts, _ := s.cluster.Hosts()
	return portsOf(s.rec.Networks(), hosts, s.under.Underlay().Interface)
}

func portsOf(networks []agent.NetworkState, hosts []carrick.Host, device string) []probe.Port {
	byVTEP := make(map[netip.Addr]carrick.Host, len(hosts))
	for _, h := range hosts {
		byVTEP[h.VTEP] = h
	}
	ports := map[uint16]*probe.Port{}
	mtus := map[uint16]map[netip.Addr]int{}
	for _, n := range networks {
		v := n.Plan.VXLAN
		switch {
		case !n.Plan.Present || n.Plan.Underlay != nil:
			continue
		case n.Plan.Routed != nil && n.Plan.Routed.Tunnel == nil:
			continue
		case n.Plan.Routed != nil:
			t := n.Plan.Routed.Tunnel
			v = plan.VXLAN{Port: t.Port, Local: t.Local, MTU: t.MTU}
		}
		if ports[v.Port] == nil {
			ports[v.Port] = &probe.Port{Port: v.Port, Local: v.Local, Device: device}
			mtus[v.Port] = map[netip.Addr]int{}
		}
		most := mtus[v.Port]
		for vtep, way := range n.Ways {
			if way.Tunnelled() {
				most[vtep] = max(most[vtep], v.MTU)
			}
		}
		for _, r := range n.Plan.Remote {
			most[r.VTEP] = max(most[r.VTEP], v.MTU)
		}
		for _, r := range n.Plan.FDB {
			most[r.VTEP] = max(most[r.VTEP], v.MTU)
		}
	}
	out := make([]probe.Port, 0, len(ports))
	for port, p := range ports {
		for vtep, mtu := range mtus[port] {
			h := byVTEP[vtep]
			p.Peers = append(p.Peers, probe.Peer{Name: h.Name, VTEP: vtep, MTU: mtu, Answers: h.Probes && h.Alive})
		}
		slices.SortFunc(p.Peers, func(a, b probe.Peer) int { return a.VTEP.Compare(b.VTEP) })
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b probe.Port) int { return int(a.Port) - int(b.Port) })
	return out
}
