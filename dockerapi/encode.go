package dockerapi

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
)

// maxIfName is the kernel's limit for a device's name, IFNAMSIZ less its NUL.
const maxIfName = 15

// empty is the answer of calls that return nothing: {}.
type empty struct{}

// The functions below refuse what an engine would choke on, after the fact and
// with words that say nothing of the cause: better the driver's fault is named
// here.

func encodeCreateEndpoint(r CreateEndpointRequest, a CreateEndpointResponse) (any, error) {
	switch {
	case a.MAC.IsZero() || a.MAC == r.MAC:
		return empty{}, nil
	case !r.MAC.IsZero():
		return nil, fmt.Errorf("driver answered MAC %s where Docker has set %s", a.MAC, r.MAC)
	case !a.MAC.IsUnicast():
		return nil, fmt.Errorf("driver answered MAC %s, a group address", a.MAC)
	}
	return network.CreateEndpointResponse{
		Interface: &network.EndpointInterface{MacAddress: a.MAC.String()},
	}, nil
}

// Route types, from moby's daemon/libnetwork/types/types.go.
const (
	routeNextHop   = 0
	routeConnected = 1
)

func encodeJoin(a JoinResponse) (any, error) {
	if len(a.SrcName) > maxIfName {
		return nil, fmt.Errorf("driver answered device name %q, longer than the kernel's %d characters", a.SrcName, maxIfName)
	}
	if (a.SrcName == "") != (a.DstPrefix == "") {
		return nil, fmt.Errorf("driver answered SrcName %q with DstPrefix %q: both or none", a.SrcName, a.DstPrefix)
	}
	out := network.JoinResponse{
		InterfaceName:         network.InterfaceName{SrcName: a.SrcName, DstPrefix: a.DstPrefix},
		Gateway:               addrText(a.Gateway),
		GatewayIPv6:           addrText(a.GatewayIPv6),
		DisableGatewayService: a.DisableGatewayService,
	}
	if a.Gateway.IsValid() && !v4.has(a.Gateway) || a.GatewayIPv6.IsValid() && !v6.has(a.GatewayIPv6) {
		return nil, fmt.Errorf("driver answered gateways %s and %s, one of them of the wrong family", a.Gateway, a.GatewayIPv6)
	}
	for _, sr := range a.StaticRoutes {
		// An invalid destination makes Docker 29 panic, and a default route
		// fails a container's start on 20.10 or on 28 and later, as its type is.
		if !sr.Destination.IsValid() || sr.Destination.Bits() == 0 {
			return nil, fmt.Errorf("driver answered a static route to %q: engines cannot take it", sr.Destination)
		}
		if sr.NextHop.IsValid() && (!anyFamily.has(sr.NextHop) || sr.NextHop.Is4() != sr.Destination.Addr().Is4()) {
			return nil, fmt.Errorf("driver answered a static route to %s by %s, which is no plain address of its family", sr.Destination, sr.NextHop)
		}
		w := &network.StaticRoute{
			Destination: sr.Destination.Masked().String(),
			RouteType:   routeConnected,
			NextHop:     addrText(sr.NextHop),
		}
		if sr.NextHop.IsValid() {
			w.RouteType = routeNextHop
		}
		out.StaticRoutes = append(out.StaticRoutes, w)
	}
	return out, nil
}

func encodeRequestPool(r RequestPoolRequest, a RequestPoolResponse) (any, error) {
	if _, err := poolID(a.PoolID); err != nil {
		return nil, fmt.Errorf("driver answered: %w", err)
	}
	f := v4
	if r.V6 {
		f = v6
	}
	if !a.Pool.IsValid() || !f.has(a.Pool.Addr()) {
		return nil, fmt.Errorf("driver answered pool %q, want %s prefix", a.Pool, f)
	}
	out := ipam.RequestPoolResponse{PoolID: a.PoolID, Pool: a.Pool.Masked().String()}
	if a.Gateway.IsValid() {
		if !a.Pool.Contains(a.Gateway) {
			return nil, fmt.Errorf("driver answered gateway %s outside of pool %s", a.Gateway, a.Pool)
		}
		out.Data = map[string]string{optGateway: netip.PrefixFrom(a.Gateway, a.Pool.Bits()).String()}
	}
	return out, nil
}

func encodeRequestAddress(a RequestAddressResponse) (any, error) {
	if !a.Addr.IsValid() {
		return nil, errors.New("driver answered no address")
	}
	return ipam.RequestAddressResponse{Address: a.Addr.String()}, nil
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
