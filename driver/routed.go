package driver

import (
	"context"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dockerapi"
)

// checkRouted says why this host cannot route a network.
func (d *Driver) checkRouted(ctx context.Context, n carrick.Network) error {
	if d.cfg.Routing == nil {
		return fmt.Errorf("-o mode=%s: this agent routes nothing", n.Mode)
	}
	if err := d.checkRoutes(n); err != nil {
		return err
	}
	return d.cfg.Routing.CheckRouted(ctx, n)
}

// wayToOthers gives a container its routes to the others: of IPv4 it needs none, since its
// host answers ARP for them. The way outside is docker_gwbridge, as of other networks.
func (d *Driver) wayToOthers(n carrick.Network, ep carrick.EndpointID, resp *dockerapi.JoinResponse) {
	e, err := d.cfg.Cluster.Journal().Endpoint(ep)
	if err != nil {
		return
	}
	for _, p := range n.Pools {
		// Engines from 28 on leave a family out whose sysctl is off in the container.
		if !slices.ContainsFunc(e.Addrs, p.Prefix.Contains) {
			continue
		}
		for _, half := range p.Halves() {
			resp.StaticRoutes = append(resp.StaticRoutes, dockerapi.StaticRoute{Destination: half, NextHop: p.Router()})
		}
	}
}
