package routed

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
)

var (
	// ErrNotForwarding: the host is set not to forward packets of a family.
	ErrNotForwarding = errors.New("this host does not forward packets")
	// ErrReadOnly: the agent cannot set what its links need.
	ErrReadOnly = errors.New("this agent cannot change settings of the host's links: /proc/sys is read-only for it, as for a managed plugin: run it as a service")
	// ErrOverlap: the host has a route of somebody else's into a network's prefix.
	ErrOverlap = errors.New("this host has a route there")
)

// CheckRouted says why this host cannot route a network: the agent has no means to
// ([ErrReadOnly]), the host does not forward ([ErrNotForwarding]), or it has routes of others' into its prefixes ([ErrOverlap]), which
// containers' own would take traffic from. It changes nothing.
func (o *Host) CheckRouted(ctx context.Context, n carrick.Network) error {
	is, err := o.h.Sysctls(ctx, forwarding(true), forwarding(false))
	if err != nil {
		return err
	}
	// The loopback device's setting is of no consequence, and keeps its value.
	const harmless = "net.ipv4.conf.lo.proxy_arp"
	lo, err := o.h.Sysctls(ctx, harmless)
	if err != nil {
		return err
	}
	if err := one(ctx, o.h, nl.SetSysctl{Name: harmless, Value: lo[harmless]}); errors.Is(err, unix.EROFS) {
		return fmt.Errorf("-o mode=%s: %w", n.Mode, ErrReadOnly)
	}
	routes, err := o.h.Routes(ctx)
	if err != nil {
		return err
	}
	for _, p := range n.Pools {
		if why := notForwarding(is, p.Prefix.Addr().Is4()); why != "" {
			return fmt.Errorf("-o mode=%s: %w: %s", n.Mode, ErrNotForwarding, why)
		}
		for _, r := range routes {
			if r.Protocol == nl.RouteProtocol || r.Dst.Bits() == 0 || !r.Dst.Overlaps(p.Prefix) {
				continue
			}
			l, err := o.h.Link(ctx, nl.Ref{Index: r.Link})
			if err != nil {
				l.Name = "a device that is gone"
			}
			return fmt.Errorf("-o mode=%s: subnet %s: %w, to %s by %s: choose a --subnet that is free on all hosts", n.Mode, p.Prefix, ErrOverlap, r.Dst, l.Name)
		}
	}
	return nil
}

// forwarding is the setting by which a host forwards IPv4, or IPv6.
func forwarding(four bool) string {
	if four {
		return "net.ipv4.ip_forward"
	}
	return "net.ipv6.conf.all.forwarding"
}

// notForwarding says why a family is not forwarded and what to do, "" if it is. Engines
// turn it on, unless they are told otherwise, and of IPv6 many do not: it is the host's own
// setting, with consequences beyond this network.
func notForwarding(is map[string]string, four bool) string {
	v, known := is[forwarding(four)]
	switch {
	case known && v != "0":
		return ""
	case four:
		return "sysctl -w " + forwarding(four) + "=1"
	case !known:
		return "its kernel has no IPv6: start it without ipv6.disable=1"
	}
	return "sysctl -w " + forwarding(four) + "=1 (a device that gets its routes from router advertisements loses them unless net.ipv6.conf.DEVICE.accept_ra is 2)"
}
