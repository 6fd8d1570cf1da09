package datapath

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick/internal/nl"
)

// Underlay is where a host's VTEP is.
type Underlay struct {
	Addr      netip.Addr
	Interface string
	MTU       int // bytes of the largest packet that leaves by the interface
}

// Underlay finds the VTEP: advertise is an address of this host, the name of an
// interface, or "" for the source address of the default route, IPv4 before
// IPv6.
func (o *Overlay) Underlay(ctx context.Context, advertise string) (Underlay, error) {
	links, err := o.hostH.Links(ctx)
	if err != nil {
		return Underlay{}, fmt.Errorf("find the VTEP address: %w", err)
	}
	addrs, err := o.hostH.Addresses(ctx)
	if err != nil {
		return Underlay{}, fmt.Errorf("find the VTEP address: %w", err)
	}
	routes, err := o.hostH.Routes(ctx)
	if err != nil {
		return Underlay{}, fmt.Errorf("find the VTEP address: %w", err)
	}
	h := hostView{links: links, addrs: addrs, routes: routes}
	if advertise == "" {
		return h.byDefaultRoute()
	}
	if a, err := netip.ParseAddr(advertise); err == nil {
		return h.byAddress(a.Unmap())
	}
	return h.byInterface(advertise)
}

// hostView is what a host's namespace holds.
type hostView struct {
	links  []nl.Link
	addrs  []nl.Address
	routes []nl.Route
}

func (h hostView) byAddress(a netip.Addr) (Underlay, error) {
	var have []netip.Addr
	for _, x := range h.addrs {
		if x.Prefix.Addr() == a {
			return h.on(a, x.Link)
		}
		if usable(x.Prefix.Addr()) {
			have = append(have, x.Prefix.Addr())
		}
	}
	return Underlay{}, fmt.Errorf("advertise %s: no interface of this host has that address; it has %v", a, have)
}

func (h hostView) byInterface(name string) (Underlay, error) {
	var names []string
	for _, l := range h.links {
		names = append(names, l.Name)
		if l.Name != name {
			continue
		}
		if a, ok := h.first(l.Index); ok {
			return h.on(a, l.Index)
		}
		return Underlay{}, fmt.Errorf("advertise %s: the interface has no address that other hosts could reach", name)
	}
	return Underlay{}, fmt.Errorf("advertise %q: neither an address nor an interface of this host; interfaces are %v", name, names)
}

func (h hostView) byDefaultRoute() (Underlay, error) {
	var defaults []nl.Route
	for _, r := range h.routes {
		if r.Dst.Bits() == 0 && r.Link != 0 {
			defaults = append(defaults, r)
		}
	}
	slices.SortStableFunc(defaults, func(a, b nl.Route) int {
		return cmp.Or(cmp.Compare(a.Dst.Addr().BitLen(), b.Dst.Addr().BitLen()), cmp.Compare(a.Metric, b.Metric))
	})
	for _, r := range defaults {
		if usable(r.Source) {
			return h.on(r.Source, r.Link)
		}
		for _, x := range h.addrs {
			if a := x.Prefix.Addr(); x.Link == r.Link && usable(a) && a.Is4() == r.Dst.Addr().Is4() {
				return h.on(a, r.Link)
			}
		}
	}
	return Underlay{}, fmt.Errorf("find the VTEP address: this host has no default route with an address: say --advertise ADDRESS or --advertise INTERFACE")
}

// first is an interface's first usable address, IPv4 before IPv6. The kernel
// lists primary addresses before secondary ones.
func (h hostView) first(link int) (netip.Addr, bool) {
	var six netip.Addr
	for _, x := range h.addrs {
		a := x.Prefix.Addr()
		switch {
		case x.Link != link || !usable(a):
		case a.Is4():
			return a, true
		case !six.IsValid():
			six = a
		}
	}
	return six, six.IsValid()
}

func (h hostView) on(a netip.Addr, link int) (Underlay, error) {
	for _, l := range h.links {
		if l.Index == link {
			return Underlay{Addr: a, Interface: l.Name, MTU: h.mtu(l, a)}, nil
		}
	}
	return Underlay{}, fmt.Errorf("find the VTEP address: the interface of %s is gone", a)
}

// mtu is what leaves by a link: what the link takes or, if every route over it is
// held to less, the most of those. Which route leads to which host is for [Ways].
func (h hostView) mtu(l nl.Link, a netip.Addr) int {
	most := 0
	for _, r := range h.routes {
		switch {
		case r.Link != l.Index || r.Dst.Addr().Is4() != a.Is4() || r.Dst.Addr().IsLinkLocalUnicast() || r.Dst.Addr().IsMulticast():
		case r.MTU == 0 || r.MTU >= l.MTU:
			return l.MTU
		default:
			most = max(most, r.MTU)
		}
	}
	if most == 0 {
		return l.MTU
	}
	return most
}

// usable says whether another host could send to the address.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() && !a.IsMulticast()
}

// HostPrefixes lists the prefixes that this host reaches by a route or holds an
// address of, sorted, each once: pools must not overlap them. Default routes and
// what is link-local or multicast are left out.
func (o *Overlay) HostPrefixes(ctx context.Context) ([]netip.Prefix, error) {
	addrs, err := o.hostH.Addresses(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the host's prefixes: %w", err)
	}
	routes, err := o.hostH.Routes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the host's prefixes: %w", err)
	}
	var out []netip.Prefix
	keep := func(p netip.Prefix) {
		if p = p.Masked(); p.Bits() > 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			out = append(out, p)
		}
	}
	for _, a := range addrs {
		keep(a.Prefix)
	}
	for _, r := range routes {
		keep(r.Dst)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out), nil
}
