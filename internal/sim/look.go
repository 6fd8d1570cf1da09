package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/mirror"
	"github.com/carrick-net/carrick/plan"
)

// eye is how a host's agent looks at its engine, and at its kernel, where a
// container's pair is while the container runs.
type eye struct{ h *Host }

var (
	_ mirror.Docker  = eye{}
	_ mirror.Witness = eye{}
)

func (e eye) Networks(context.Context) (map[carrick.DockerNetworkID]mirror.Network, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	if e.h.off {
		return nil, ErrOff
	}
	out := map[carrick.DockerNetworkID]mirror.Network{}
	for _, n := range e.h.networks {
		out[n.ID] = mirror.Network{Name: n.Name, Driver: "carrick", Labels: n.Labels, Options: n.Opts, IPAM: n.IPAMOpts, Attachable: n.Attachable}
	}
	return out, nil
}

func (e eye) Containers(context.Context) (map[carrick.EndpointID]mirror.Container, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	if e.h.off {
		return nil, ErrOff
	}
	out := map[carrick.EndpointID]mirror.Container{}
	for id, c := range e.h.live {
		out[id] = mirror.Container{ID: c.name, Name: c.name, Network: c.Network.ID, Addrs: c.Addrs(), MAC: c.MAC}
	}
	return out, nil
}

func (e eye) HasEndpoint(_ context.Context, id carrick.DockerNetworkID, ep carrick.EndpointID) (bool, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	if e.h.off {
		return false, ErrOff
	}
	c, ok := e.h.stored[ep]
	return ok && c.Network.ID == id, nil
}

func (e eye) HasContainers(_ context.Context, id carrick.DockerNetworkID, _ string) (bool, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	for _, c := range e.h.stored {
		if c.Network.ID == id {
			return true, nil
		}
	}
	return false, nil
}

func (e eye) Events(ctx context.Context, _ func(mirror.Event)) error {
	<-ctx.Done()
	return ctx.Err()
}

func (e eye) CreateNetwork(_ context.Context, w mirror.NetworkWanted) (carrick.DockerNetworkID, error) {
	c := Create{Labels: w.Labels, Opts: w.Options, IPAMOpts: w.IPAM, Internal: w.Internal, Attachable: w.Attachable, NoIPv4: w.NoIPv4, IPv6: w.WithIPv6}
	text := func(p netip.Prefix) string {
		if !p.IsValid() {
			return ""
		}
		return p.String()
	}
	for _, p := range w.Pools {
		gateway := ""
		if p.Gateway.IsValid() {
			gateway = p.Gateway.String()
		}
		if p.Prefix.Addr().Is4() {
			c.Subnet, c.Range, c.Gateway = text(p.Prefix), text(p.Range), gateway
		} else {
			c.Subnet6, c.Range6, c.Gateway6 = text(p.Prefix), text(p.Range), gateway
		}
		for name, a := range p.Aux {
			if c.Aux == nil {
				c.Aux = map[string]string{}
			}
			c.Aux[name] = a.String()
		}
	}
	n, err := e.h.NetworkCreate(w.Name, c)
	if err != nil {
		return "", err
	}
	return n.ID, nil
}

func (e eye) RemoveNetwork(_ context.Context, id carrick.DockerNetworkID) error {
	for name, n := range e.h.Networks() {
		if n.ID != id {
			continue
		}
		err := e.h.NetworkRm(name)
		if errors.Is(err, ErrActive) {
			return fmt.Errorf("%w: %w", mirror.ErrInUse, err)
		}
		return err
	}
	return nil
}

func (e eye) Attachments(_ context.Context, container string) ([]mirror.Attachment, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	var out []mirror.Attachment
	for id, c := range e.h.live {
		if c.name == container {
			out = append(out, mirror.Attachment{Endpoint: id, Names: []string{c.name}})
		}
	}
	return out, nil
}

// lookAtEngine tells the mirror that the cluster's networks changed.
func (h *Host) lookAtEngine() {
	h.mu.Lock()
	m := h.mirror
	h.mu.Unlock()
	if m != nil {
		m.SpecsChanged()
	}
}

func (e eye) InUse(_ context.Context, _ carrick.NetworkID, ep carrick.EndpointID) (bool, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	_, ok := e.h.live[ep]
	return ok, nil
}

// Live returns the endpoints of containers that run.
func (h *Host) Live() []*Container {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]*Container, 0, len(h.live))
	for _, c := range h.live {
		out = append(out, c)
	}
	return out
}

// Networks returns the engine's networks by name.
func (h *Host) Networks() map[string]*Network {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]*Network{}
	for name, n := range h.networks {
		out[name] = n
	}
	return out
}

// Sides is what the host's journal, engine and kernel say.
func (h *Host) Sides() check.Host {
	out := check.Host{Name: h.Name, Engine: &check.Engine{Networks: map[carrick.DockerNetworkID]string{}}}
	for name, n := range h.Networks() {
		out.Engine.Networks[n.ID] = name
	}
	for _, c := range h.Live() {
		out.Engine.Containers = append(out.Engine.Containers, check.Container{
			Endpoint: c.Endpoint, Network: c.Network.ID, Name: c.name, Addrs: c.Addrs(), MAC: c.MAC,
		})
	}
	slices.SortFunc(out.Engine.Containers, func(a, b check.Container) int {
		if a.Endpoint < b.Endpoint {
			return -1
		}
		return 1
	})
	if a := h.running(); a != nil {
		out.Journal = a.cluster.InspectJournal()
		out.Kernel = a.kernel()
	}
	return out
}

// kernel is what the kernel would hold if every pass over every network had been
// made now.
func (a *agent) kernel() *check.Kernel {
	k := &check.Kernel{Networks: map[carrick.NetworkID]check.KernelNetwork{}}
	for _, n := range a.jr.Networks() {
		v, _, err := a.cluster.View(n.Conf.ID)
		if err != nil {
			continue
		}
		p := plan.Make(v, a.cluster.Self())
		if !p.Present {
			continue
		}
		kn := check.KernelNetwork{Ports: map[carrick.EndpointID]check.Port{}, FDB: map[carrick.MAC]netip.Addr{}, Neigh: map[netip.Addr]carrick.MAC{}}
		if p.Underlay != nil {
			for _, c := range p.Underlay.Children {
				kn.Ports[c.Endpoint] = check.Port{Up: !c.Down}
			}
		}
		if p.Routed != nil {
			for _, pair := range p.Routed.Pairs {
				kn.Ports[pair.Endpoint] = check.Port{Up: !pair.Down}
			}
		}
		for _, port := range p.Ports {
			kn.Ports[port.Endpoint] = check.Port{Up: !v.Fenced[port.Endpoint]}
		}
		for _, r := range p.FDB {
			if !r.MAC.IsZero() {
				kn.FDB[r.MAC] = r.VTEP
			}
		}
		for _, r := range p.Neigh {
			kn.Neigh[r.Addr] = r.MAC
		}
		k.Networks[n.Conf.ID] = kn
	}
	return k
}

// Look gathers what a store and the hosts say. Hosts in gone count as removed and
// not yet back.
func Look(ctx context.Context, server *memory.Server, hosts []*Host, gone map[*Host]bool) (check.Facts, error) {
	client := server.Client("look")
	defer func() { _ = client.Close() }()
	s, err := cluster.Inspect(ctx, client)
	if err != nil {
		return check.Facts{}, err
	}
	f := check.Facts{Store: s, Hosts: map[carrick.HostID]check.Host{}}
	for _, h := range hosts {
		side := h.Sides()
		side.Gone = gone[h]
		f.Hosts[h.Cluster.Self()] = side
	}
	return f, nil
}
