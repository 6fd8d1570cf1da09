package daemon

import (
	"context"
	"net/netip"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster/journal"
)

// storeFacts reads the whole store.
func (s *source) storeFacts(ctx context.Context) (*check.Store, error) {
	nets, err := s.cluster.StoredNetworks(ctx)
	if err != nil {
		return nil, err
	}
	hosts, _ := s.cluster.Hosts()
	out := &check.Store{Hosts: map[carrick.HostID]carrick.Host{}, Alive: map[carrick.HostID]bool{}, Networks: map[carrick.NetworkID]check.StoreNetwork{}}
	for _, h := range hosts {
		out.Hosts[h.ID], out.Alive[h.ID] = h, h.Alive
	}
	for _, n := range nets {
		d, err := s.cluster.Detail(ctx, n.ID)
		if err != nil {
			return nil, err
		}
		sn := check.StoreNetwork{Conf: &n, Blocks: map[netip.Prefix]check.Block{}, Endpoints: d.Endpoints, Aliases: map[carrick.HostID][]carrick.DockerNetworkID{}}
		for b, h := range d.Blocks {
			if p, err := netip.ParsePrefix(b); err == nil {
				sn.Blocks[p] = check.Block{Host: h}
			}
		}
		for h, as := range d.Aliases {
			for _, a := range as {
				sn.Aliases[h] = append(sn.Aliases[h], a.Docker)
			}
		}
		out.Networks[n.ID] = sn
	}
	return out, nil
}

// journalFacts is this host's journal.
func (s *source) journalFacts() *check.Journal {
	jr := s.cluster.Journal()
	out := &check.Journal{Networks: map[carrick.NetworkID]check.JournalNetwork{}}
	for _, n := range jr.Networks() {
		out.Networks[n.Conf.ID] = journalNetwork(jr, n)
	}
	return out
}

func journalNetwork(jr *journal.Journal, n journal.Network) check.JournalNetwork {
	jn := check.JournalNetwork{Conf: n.Conf, Blocks: n.Blocks, Leaving: n.Leaving, Leases: map[netip.Addr]check.Lease{}}
	for _, a := range n.Aliases {
		jn.Aliases = append(jn.Aliases, a.Docker)
	}
	for a, l := range jr.Leases(n.Conf.ID) {
		jn.Leases[a] = check.Lease{Endpoint: l.Endpoint, Resting: l.Released != 0, Lent: l.Lent}
	}
	for _, e := range jr.Endpoints(n.Conf.ID) {
		jn.Endpoints = append(jn.Endpoints, check.Endpoint{Endpoint: e.Endpoint, Docker: e.Docker, Joined: e.Joined, Fenced: e.Fenced})
	}
	return jn
}
