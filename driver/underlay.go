package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dockerapi"
)

// ErrParentMode: another network of this host gives the same device another
// ipvlan_mode or ipvlan_flag, of which a device has one.
var ErrParentMode = errors.New("another network has the device in another mode")

// checkParent says why a network cannot stand on the device that it names for this
// host.
func (d *Driver) checkParent(ctx context.Context, n carrick.Network) error {
	parents, err := carrick.ParseParents(n.Parent)
	if err != nil {
		return fmt.Errorf("-o parent=%s: %w", n.Parent, err)
	}
	self := d.cfg.Cluster.SelfHost().Name
	p, ok := parents.For(self)
	switch {
	case !ok:
		return fmt.Errorf("-o parent=%s names no device of this host: add %s:DEVICE, or *:DEVICE for all that are not named", n.Parent, self)
	case d.cfg.Devices == nil:
		return fmt.Errorf("-o mode=%s: this agent has no devices", n.Mode)
	}
	if n.Mode == carrick.ModeIPvlan {
		if err := d.checkMode(n, p); err != nil {
			return err
		}
	}
	if n.Routes() {
		if err := d.checkRoutes(n); err != nil {
			return err
		}
	}
	return d.cfg.Devices.CheckParent(ctx, n, p)
}

// checkMode refuses a second mode on a device of this host.
func (d *Driver) checkMode(n carrick.Network, p carrick.Parent) error {
	for _, rec := range d.cfg.Cluster.Journal().Networks() {
		o := rec.Conf
		if rec.Leaving || o.ID == n.ID || o.Mode != carrick.ModeIPvlan || o.Submode == n.Submode && o.Flag == n.Flag {
			continue
		}
		parents, err := carrick.ParseParents(o.Parent)
		if err != nil {
			continue
		}
		if other, ok := parents.For(d.cfg.Cluster.SelfHost().Name); ok && other.Name == p.Name {
			return fmt.Errorf("-o ipvlan_mode=%s -o ipvlan_flag=%s: parent %s: %w: network %s has it in %s %s: choose the same, another device, or a VLAN of it (%s.N)",
				n.Submode, n.Flag, p.Name, ErrParentMode, o.Label(), o.Submode, o.Flag, p.Name)
		}
	}
	return nil
}

// checkRoutes refuses a second network of this host with routes into the same prefix, as
// two tenants may have: the host has one table.
func (d *Driver) checkRoutes(n carrick.Network) error {
	for _, rec := range d.cfg.Cluster.Journal().Networks() {
		o := rec.Conf
		if rec.Leaving || o.ID == n.ID || !o.Routes() {
			continue
		}
		for _, p := range n.Pools {
			if slices.ContainsFunc(o.Pools, func(x carrick.Pool) bool { return x.Prefix.Overlaps(p.Prefix) }) {
				what, instead := "mode=routed", "another mode"
				if n.Mode == carrick.ModeIPvlan {
					what, instead = "ipvlan_mode="+n.Submode, "mode l2"
				}
				return fmt.Errorf("-o %s: subnet %s: hosts hold routes to such a network's containers, and this one has them for network %s (%s) of tenant %s: choose another subnet, or %s",
					what, p.Prefix, o.Label(), o.Subnets(), o.Tenant, instead)
			}
		}
	}
	return nil
}

// wayOut tells Docker that the network itself leads outside, by its gateway, which is a
// machine on the segment and none of ours. Docker adds no docker_gwbridge then.
func (d *Driver) wayOut(n carrick.Network, ep carrick.EndpointID, resp *dockerapi.JoinResponse) {
	e, err := d.cfg.Cluster.Journal().Endpoint(ep)
	if err != nil || n.Internal {
		resp.DisableGatewayService = true
		return
	}
	for _, p := range n.Pools {
		// Engines from 28 on leave a family out whose sysctl is off in the container.
		has := slices.ContainsFunc(e.Addrs, p.Prefix.Contains)
		switch {
		case !has || !p.Gateway.IsValid():
		case p.Gateway.Is4():
			resp.Gateway = p.Gateway
		default:
			resp.GatewayIPv6 = p.Gateway
		}
	}
	resp.DisableGatewayService = !resp.Gateway.IsValid() && !resp.GatewayIPv6.IsValid()
}
