package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/dns"
	"github.com/carrick-net/carrick/mirror"
	"github.com/carrick-net/carrick/plan"
	"github.com/carrick-net/carrick/probe"
	"github.com/carrick-net/carrick/status"
)

// source answers the admin API from the parts of a running agent.
type source struct {
	cfg      Config
	under    wayOut
	cluster  *cluster.Cluster
	rec      *agent.Reconciler
	overlay  *datapath.Overlay
	devices  *underlay.Host // nil: no network stands on devices of the host
	witness  mirror.Witness
	prober   *probe.Prober  // nil: no probes
	engine   engine         // nil without --docker
	routed   *routed.Host   // nil: no network is routed
	mirror   *mirror.Mirror // nil without --docker
	answers  *dns.Service   // nil: names are not answered
	detector *detector      // nil: agents do not gossip
	started  time.Time
	// wait waits before a second look; nil: with a timer.
	wait func(context.Context, time.Duration) error
}

// wayOut is what the containers' packets leave by.
type wayOut interface {
	Underlay() datapath.Underlay
	// Problem is what is wrong with it, "" if nothing is.
	Problem() string
}

// engine is this host's Docker engine.
type engine interface {
	Networks(ctx context.Context) (map[carrick.DockerNetworkID]mirror.Network, error)
	Containers(ctx context.Context) (map[carrick.EndpointID]mirror.Container, error)
	fmt.Stringer
}

var _ status.Source = (*source)(nil)

// Networks implements [status.Source]: the cluster's networks, or, if the store
// does not answer, this host's.
func (s *source) Networks(ctx context.Context) ([]status.Network, error) {
	stored, err := s.cluster.StoredNetworks(ctx)
	if err != nil && !cluster.IsUnavailable(err) {
		return nil, err
	}
	byID := map[carrick.NetworkID]carrick.Network{}
	for _, n := range stored {
		byID[n.ID] = n
	}
	for _, rec := range s.cluster.Journal().Networks() {
		if _, ok := byID[rec.Conf.ID]; !ok && len(rec.Aliases) > 0 {
			byID[rec.Conf.ID] = rec.Conf
		}
	}
	out := make([]status.Network, 0, len(byID))
	for _, n := range byID {
		out = append(out, s.network(n))
	}
	s.addFates(ctx, out)
	slices.SortFunc(out, func(a, b status.Network) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Subnet.Compare(b.Subnet), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

func (s *source) network(n carrick.Network) status.Network {
	p := n.Pools[0]
	out := status.Network{
		ID: n.ID, Name: n.Name, Tenant: n.Tenant, Mode: n.Mode, VNI: n.VNI, Port: n.Port, MTU: plan.MTU(n, s.cluster.SelfHost()),
		Internal: n.Internal, Flood: n.Flood, Snoop: n.Snoop, Storm: n.StormRate(), Subnet: p.Prefix, Range: p.Range, Gateway: p.Gateway, Aux: p.Aux,
		Pools: n.Pools, Parent: n.Parent, Submode: n.Submode, Flag: n.Flag, Fallback: n.Fallback, HostAccess: n.HostAccess,
	}
	switch {
	case n.Mode.Underlay():
		out.VNI, out.Port, out.Storm, out.MTU = 0, 0, 0, n.MTU
	case n.Mode == carrick.ModeRouted:
		out.Storm = 0
		if n.Fallback == "" {
			out.VNI, out.Port = 0, 0
		}
	}
	if rec, err := s.cluster.Journal().Network(n.ID); err == nil && len(rec.Aliases) > 0 {
		out.Here = true
		if out.Name == "" {
			out.Name = rec.Aliases[0].Name
		}
	}
	return out
}

// Network implements [status.Source].
func (s *source) Network(ctx context.Context, ref string) (status.Network, error) {
	n, err := s.find(ctx, ref)
	if err != nil {
		return status.Network{}, err
	}
	d, err := s.cluster.Detail(ctx, n.ID)
	switch {
	case cluster.IsUnavailable(err):
		n.Problems = append(n.Problems, "the store does not answer; other hosts' part is missing: "+err.Error())
	case err != nil && !errors.Is(err, cluster.ErrUnknownNetwork):
		return status.Network{}, err
	}
	for host, aliases := range d.Aliases {
		for _, a := range aliases {
			n.Aliases = append(n.Aliases, status.Alias{Host: s.cluster.HostName(host), Docker: a.Docker, Name: a.Name})
		}
	}
	slices.SortFunc(n.Aliases, func(a, b status.Alias) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Docker, b.Docker))
	})
	for block, host := range d.Blocks {
		p, err := netip.ParsePrefix(block)
		if err != nil {
			return status.Network{}, err
		}
		n.Blocks = append(n.Blocks, status.Block{Prefix: p, Host: s.cluster.HostName(host)})
	}
	slices.SortFunc(n.Blocks, func(a, b status.Block) int { return a.Prefix.Compare(b.Prefix) })
	n.Endpoints = s.endpoints(ctx, n, d.Endpoints)
	for _, st := range s.rec.Networks() {
		if st.ID == n.ID {
			n.Drift = st.Drift.Total()
			n.Problems = append(n.Problems, problems(st)...)
			n.Ways = s.ways(st)
		}
	}
	return n, nil
}

// ways is how this host reaches the others of a routed network.
func (s *source) ways(st agent.NetworkState) map[string]string {
	hosts, _ := s.cluster.Hosts()
	names := map[netip.Addr]string{}
	for _, h := range hosts {
		names[h.VTEP] = h.Name
	}
	out := map[string]string{}
	for vtep, way := range st.Ways {
		out[cmp.Or(names[vtep], vtep.String())] = string(way)
	}
	return out
}

// find resolves what a user calls a network.
func (s *source) find(ctx context.Context, ref string) (status.Network, error) {
	if ref == "" {
		return status.Network{}, fmt.Errorf("network %w: give a name, id or subnet", status.ErrNotFound)
	}
	all, err := s.Networks(ctx)
	if err != nil {
		return status.Network{}, err
	}
	var byID carrick.NetworkID
	for _, rec := range s.cluster.Journal().Networks() {
		for _, a := range rec.Aliases {
			if len(ref) >= 12 && strings.HasPrefix(string(a.Docker), ref) {
				byID = rec.Conf.ID
			}
		}
	}
	var found []status.Network
	for _, n := range all {
		if n.Name == ref || string(n.ID) == ref || slices.ContainsFunc(n.Pools, func(p carrick.Pool) bool { return p.Prefix.String() == ref }) || n.ID == byID {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return status.Network{}, fmt.Errorf("network %q %w: carrick network ls shows those there are", ref, status.ErrNotFound)
	case 1:
		return found[0], nil
	}
	ids := make([]string, 0, len(found))
	for _, n := range found {
		ids = append(ids, fmt.Sprintf("%s (tenant %s)", n.ID, n.Tenant))
	}
	return status.Network{}, fmt.Errorf("network %q is %w: use the id of one of %s", ref, status.ErrAmbiguous, strings.Join(ids, ", "))
}

// endpoints lists a network's endpoints: the others' as the store says, this
// host's as its journal says.
func (s *source) endpoints(ctx context.Context, n status.Network, stored map[carrick.HostID][]carrick.Endpoint) []status.Endpoint {
	var out []status.Endpoint
	add := func(e carrick.Endpoint, id carrick.HostID, host string, local, cut bool) {
		x := status.Endpoint{ID: e.ID, Network: n.ID, NetName: n.Name, Addrs: e.Addrs, MAC: e.MAC, Host: host, Local: local, Cut: cut}
		if e.ID == carrick.LegID(n.ID, id) {
			x.Container = "(the host)"
		}
		out = append(out, x)
	}
	for host, eps := range stored {
		if host == s.cluster.Self() {
			continue
		}
		for _, e := range eps {
			add(e, host, s.cluster.HostName(host), false, false)
		}
	}
	for _, e := range s.cluster.Journal().Endpoints(n.ID) {
		add(e.Endpoint, s.cluster.Self(), s.cfg.Node, true, e.Fenced)
	}
	s.fillLocal(ctx, n.ID, out)
	slices.SortFunc(out, func(a, b status.Endpoint) int {
		return cmp.Or(a.Addrs[0].Compare(b.Addrs[0]), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// fillLocal adds what only this host knows: containers' names and the kernel's
// verdicts.
func (s *source) fillLocal(ctx context.Context, id carrick.NetworkID, eps []status.Endpoint) {
	s.nameContainers(ctx, eps)
	for _, st := range s.rec.Networks() {
		if st.ID != id {
			continue
		}
		for i := range eps {
			if err := st.Endpoints[eps[i].ID]; err != nil && eps[i].Local {
				eps[i].Error = err.Error()
			}
		}
	}
}

// nameContainers adds the names of this host's containers. They are a courtesy:
// without the engine the rest is still worth seeing.
func (s *source) nameContainers(ctx context.Context, eps []status.Endpoint) {
	if s.engine == nil || !slices.ContainsFunc(eps, func(e status.Endpoint) bool { return e.Local }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	names, _ := s.engine.Containers(ctx)
	for i := range eps {
		if c, ok := names[eps[i].ID]; ok && eps[i].Local {
			eps[i].Container = c.Name
		}
	}
}

// Endpoints implements [status.Source]: those of every network of the cluster.
func (s *source) Endpoints(ctx context.Context) ([]status.Endpoint, error) {
	nets, err := s.Networks(ctx)
	if err != nil {
		return nil, err
	}
	out := []status.Endpoint{}
	for _, n := range nets {
		d, err := s.cluster.Detail(ctx, n.ID)
		if err != nil && !cluster.IsUnavailable(err) && !errors.Is(err, cluster.ErrUnknownNetwork) {
			return nil, err
		}
		out = append(out, s.endpoints(ctx, n, d.Endpoints)...)
	}
	return out, nil
}
