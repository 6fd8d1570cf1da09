package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/mirror"
	"github.com/carrick-net/carrick/status"
)

// driverName returns what finds out the name that the engine has for this agent as a
// driver: that of its socket, or for a managed plugin the plugin's, with its tag.
func driverName(cfg Config, e *mirror.Engine) func(context.Context) (string, error) {
	socket := filepath.Base(cfg.PluginSocket)
	if !cfg.Managed {
		return func(context.Context) (string, error) { return strings.TrimSuffix(socket, filepath.Ext(socket)), nil }
	}
	return func(ctx context.Context) (string, error) {
		name, err := e.ManagedName(ctx, socket)
		if err == nil && name == "" {
			err = fmt.Errorf("--managed: the engine %s has no enabled plugin with a socket %s: is this agent one?", e, socket)
		}
		return name, err
	}
}

// fate says what becomes of a network on all hosts, in words; "" if it just is.
func (s *source) fate(spec cluster.Spec, waits []string) string {
	switch r := spec.Refusal; {
	case spec.Removal != nil:
		out := fmt.Sprintf("being removed since %s (docker network rm on %s)", spec.Removal.At.Local().Format(time.DateTime), s.cluster.HostName(spec.Removal.Host))
		if len(waits) > 0 {
			out += ", waits for " + strings.Join(waits, ", ")
		}
		return out
	case r != nil:
		return fmt.Sprintf("kept: removed on %s at %s, refused by %s: %s", s.cluster.HostName(r.By), r.At.Local().Format(time.DateTime), s.cluster.HostName(r.Host), r.Why)
	}
	return ""
}

// addFates fills in what becomes of networks.
func (s *source) addFates(ctx context.Context, list []status.Network) {
	specs, _ := s.cluster.Specs()
	byID := map[carrick.NetworkID]cluster.Spec{}
	for _, spec := range specs {
		byID[spec.Network.ID] = spec
	}
	for i, n := range list {
		spec, ok := byID[n.ID]
		if !ok {
			continue
		}
		if list[i].Name == "" {
			list[i].Name = spec.Name
		}
		var waits []string
		if spec.Removal != nil {
			waits, _ = s.cluster.WaitsFor(ctx, n.ID) // without it the rest is still worth knowing
		}
		list[i].Fate = s.fate(spec, waits)
	}
}

// errNoEngine: what was asked for needs the engine's API.
var errNoEngine = errors.New("this agent does not use the engine's API (--docker): use docker network instead")

// CreateNetwork implements [status.Source].
func (s *source) CreateNetwork(ctx context.Context, w status.NetworkWanted) (status.Network, error) {
	if s.mirror == nil {
		return status.Network{}, fmt.Errorf("network create %s: %w: %w", w.Name, status.ErrRefused, errNoEngine)
	}
	pools, err := poolsWanted(w)
	if err != nil {
		return status.Network{}, fmt.Errorf("network create %s: %w: %w", w.Name, status.ErrRefused, err)
	}
	id, err := s.mirror.Create(ctx, mirror.NetworkWanted{
		Name: w.Name, Labels: w.Labels, Options: w.Options, IPAM: w.IPAM, Pools: pools,
		Internal: w.Internal, Attachable: w.Attachable, NoIPv4: w.NoIPv4, WithIPv6: w.IPv6,
	})
	if err != nil {
		return status.Network{}, fmt.Errorf("network create %s: %w: %w", w.Name, status.ErrRefused, err)
	}
	return s.find(ctx, string(id))
}

// RemoveNetwork implements [status.Source].
func (s *source) RemoveNetwork(ctx context.Context, ref string) (status.Network, error) {
	n, err := s.find(ctx, ref)
	if err != nil {
		return n, err
	}
	if s.mirror == nil {
		return n, fmt.Errorf("network rm %s: %w: %w", ref, status.ErrRefused, errNoEngine)
	}
	rec, err := s.cluster.Journal().Network(n.ID)
	if err != nil || len(rec.Aliases) == 0 {
		return n, fmt.Errorf("network rm %s: %w: this host has no Docker network for it: run it on one that has (carrick network inspect %s)", ref, status.ErrRefused, n.ID)
	}
	for _, a := range rec.Aliases {
		if err := s.mirror.Remove(ctx, a.Docker); err != nil {
			return n, fmt.Errorf("network rm %s: %w: %w", ref, status.ErrRefused, err)
		}
	}
	return n, nil
}

// poolsWanted puts what belongs to one subnet together, as docker network create
// does: a range, a gateway and auxiliary addresses belong to the subnet they lie in.
func poolsWanted(w status.NetworkWanted) ([]carrick.Pool, error) {
	var pools []carrick.Pool
	for _, p := range w.Subnets {
		if p != p.Masked() {
			return nil, fmt.Errorf("--subnet %s has host bits set: did you mean %s?", p, p.Masked())
		}
		pools = append(pools, carrick.Pool{Prefix: p})
	}
	in := func(option string, a netip.Addr) (*carrick.Pool, error) {
		i := slices.IndexFunc(pools, func(p carrick.Pool) bool { return p.Prefix.Contains(a) })
		if i < 0 {
			return nil, fmt.Errorf("%s %s lies in no --subnet", option, a)
		}
		return &pools[i], nil
	}
	for _, r := range w.Ranges {
		p, err := in("--ip-range", r.Addr())
		if err != nil {
			return nil, err
		}
		p.Range = r
	}
	for _, a := range w.Gateways {
		p, err := in("--gateway", a)
		if err != nil {
			return nil, err
		}
		p.Gateway = a
	}
	for _, name := range slices.Sorted(maps.Keys(w.Aux)) {
		p, err := in("--aux-address "+name+"=", w.Aux[name])
		if err != nil {
			return nil, err
		}
		if p.Aux == nil {
			p.Aux = map[string]netip.Addr{}
		}
		p.Aux[name] = w.Aux[name]
	}
	return pools, nil
}
