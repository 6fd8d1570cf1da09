package daemon

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/status"
)

// secondLook is how long after the first look the second one follows: longer
// than a publication takes, or a container's start.
const secondLook = 4 * time.Second

// Check implements [status.Source].
func (s *source) Check(ctx context.Context, ref string) (status.Check, error) {
	out := status.Check{Node: s.cfg.Node, Findings: []status.Finding{}}
	if ref != "" {
		n, err := s.find(ctx, ref)
		if err != nil {
			return out, err
		}
		out.Network = n.ID
	}
	found, sides, names := s.look(ctx, out.Network)
	if len(check.Only(found, check.Wrong, check.Transient)) > 0 {
		if err := s.wait(ctx, secondLook); err != nil {
			return out, err
		}
		var again []check.Finding
		again, sides, names = s.look(ctx, out.Network)
		found = check.Confirm(found, again)
	}
	out.Sides = sides
	for _, f := range found {
		out.Findings = append(out.Findings, status.Finding{Finding: f, NetworkName: names[f.Network], HostName: s.hostName(f.Host)})
	}
	return out, nil
}

func (s *source) hostName(id carrick.HostID) string {
	if id == "" {
		return ""
	}
	return s.cluster.HostName(id)
}

// wait waits for a time or for the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Facts implements [status.Source].
func (s *source) Facts(ctx context.Context) (status.Facts, error) {
	facts, sides := s.gather(ctx)
	return status.Facts{Node: s.cfg.Node, Sides: sides, Facts: facts}, nil
}

// gather reads all sides once, as far as they can be read, and says which were.
func (s *source) gather(ctx context.Context) (check.Facts, []status.Side) {
	var sides []status.Side
	saw := func(name string, err error) bool {
		side := status.Side{Name: name}
		if err != nil {
			side.Error = err.Error()
		}
		sides = append(sides, side)
		return err == nil
	}
	// What is told last is read first: a fact is in the journal before it is
	// anywhere else, and leaves it first.
	host := check.Host{Name: s.cfg.Node}
	facts := check.Facts{}
	kernel, err := s.kernelFacts(ctx)
	if saw("kernel", err) {
		host.Kernel = kernel
	}
	if s.engine == nil {
		sides = append(sides, status.Side{Name: "engine", Off: true})
	} else if engine, err := s.engineFacts(ctx); saw("engine", err) {
		host.Engine = engine
	}
	store, err := s.cluster.Inspect(ctx)
	if saw("store", err) {
		facts.Store = store
	}
	host.Journal = s.cluster.InspectJournal()
	saw("journal", nil)
	facts.Hosts = map[carrick.HostID]check.Host{s.cluster.Self(): host}
	return facts, sides
}

// look compares all sides once, and returns what it found of a network, or of
// everything for "", which sides were seen, and the networks' names.
func (s *source) look(ctx context.Context, only carrick.NetworkID) ([]check.Finding, []status.Side, map[carrick.NetworkID]string) {
	facts, sides := s.gather(ctx)
	names := map[carrick.NetworkID]string{}
	for _, h := range facts.Hosts {
		for id, n := range h.Journal.Networks {
			names[id] = n.Conf.Label()
		}
	}
	if facts.Store != nil {
		for id, n := range facts.Store.Networks {
			if n.Conf != nil {
				names[id] = n.Conf.Label()
			}
		}
	}
	found := check.Run(facts)
	if only == "" {
		return found, sides, names
	}
	var of []check.Finding
	for _, f := range found {
		if f.Network == only {
			of = append(of, f)
		}
	}
	return of, sides, names
}

// engineFacts is what this host's engine has of Carrick's.
func (s *source) engineFacts(ctx context.Context) (*check.Engine, error) {
	networks, err := s.engine.Networks(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := s.engine.Containers(ctx)
	if err != nil {
		return nil, err
	}
	// A managed plugin's driver has the plugin's name, as in carrick:latest, which a
	// user may choose.
	drivers := map[string]bool{}
	for id, n := range networks {
		if _, err := s.cluster.Journal().ByAlias(id); err == nil || strings.HasPrefix(n.Driver, "carrick") {
			drivers[n.Driver] = true
		}
	}
	out := &check.Engine{Networks: map[carrick.DockerNetworkID]string{}}
	for id, n := range networks {
		if drivers[n.Driver] {
			out.Networks[id] = n.Name
		}
	}
	for ep, c := range containers {
		if _, ours := out.Networks[c.Network]; ours {
			out.Containers = append(out.Containers, check.Container{Endpoint: ep, Network: c.Network, Name: c.Name, Addrs: c.Addrs, MAC: c.MAC})
		}
	}
	return out, nil
}

// kernelFacts is what this host's kernel holds.
func (s *source) kernelFacts(ctx context.Context) (*check.Kernel, error) {
	existing, err := s.overlay.List(ctx)
	if err != nil {
		return nil, err
	}
	out := &check.Kernel{Networks: map[carrick.NetworkID]check.KernelNetwork{}}
	for _, e := range existing {
		held, err := s.overlay.Inspect(ctx, e.ID)
		if err != nil {
			return nil, err
		}
		if !held.Present {
			continue // it went meanwhile, or is half-made
		}
		n := check.KernelNetwork{Ports: map[carrick.EndpointID]check.Port{}, FDB: map[carrick.MAC]netip.Addr{}, Neigh: map[netip.Addr]carrick.MAC{}}
		for _, p := range held.Ports {
			if p.Endpoint != "" {
				n.Ports[p.Endpoint] = check.Port{Up: p.Up}
			}
		}
		for _, r := range held.Rows.FDB {
			if !r.MAC.IsZero() {
				n.FDB[r.MAC] = r.VTEP
			}
		}
		for _, r := range held.Rows.Neigh {
			n.Neigh[r.Addr] = r.MAC
		}
		out.Networks[e.ID] = n
	}
	return out, errors.Join(s.deviceFacts(ctx, out.Networks), s.routedFacts(ctx, out.Networks))
}

// routedFacts adds what the kernel holds of routed networks.
func (s *source) routedFacts(ctx context.Context, out map[carrick.NetworkID]check.KernelNetwork) error {
	if s.routed == nil {
		return nil
	}
	found, err := s.routed.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range found {
		held, err := s.routed.Inspect(ctx, id)
		if err != nil {
			return err
		}
		n := check.KernelNetwork{Ports: map[carrick.EndpointID]check.Port{}}
		for ep, d := range held {
			n.Ports[ep] = check.Port{Up: d.Up}
		}
		out[id] = n
	}
	return nil
}

// deviceFacts adds what the kernel holds of networks that stand on devices of the host.
func (s *source) deviceFacts(ctx context.Context, out map[carrick.NetworkID]check.KernelNetwork) error {
	if s.devices == nil {
		return nil
	}
	found, err := s.devices.List(ctx)
	if err != nil {
		return err
	}
	sandboxes := map[carrick.NetworkID]map[carrick.EndpointID]string{}
	fenced := map[carrick.EndpointID]bool{}
	for _, id := range found {
		sandboxes[id] = map[carrick.EndpointID]string{}
	}
	for _, rec := range s.cluster.Journal().Networks() {
		id := rec.Conf.ID
		if !rec.Conf.Mode.Underlay() {
			continue
		}
		for _, e := range s.cluster.Journal().Endpoints(id) {
			if sandboxes[id] == nil {
				sandboxes[id] = map[carrick.EndpointID]string{}
			}
			sandboxes[id][e.ID], fenced[e.ID] = e.Sandbox, e.Fenced
		}
	}
	for id, paths := range sandboxes {
		held, err := s.devices.Inspect(ctx, id, paths)
		if err != nil {
			return err
		}
		n := check.KernelNetwork{Ports: map[carrick.EndpointID]check.Port{}}
		for ep, d := range held {
			// One in the host's namespace is down until Docker takes it.
			n.Ports[ep] = check.Port{Up: d.Up || d.Home && !fenced[ep]}
		}
		out[id] = n
	}
	return nil
}
