package driver_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// routing is a host that can route, or says why not.
type routing struct{ err error }

func (r routing) CheckRouted(context.Context, carrick.Network) error { return r.err }

// A routed network is one option. Hosts that join inherit it; one that cannot route says
// why and is left out, with nothing left behind. Containers need routes of IPv6 alone, and
// their way out is Docker's bridge.
func TestARoutedNetwork(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	errForward := errors.New("it does not forward")
	host := func(n int, err error) *sim.Host {
		return sim.NewHostWith(t, s, sim.Options{Number: n, Routing: routing{err}})
	}
	h1, h2, h3 := host(1, nil), host(2, nil), host(3, errForward)
	create := sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:42::/64", Opts: map[string]string{"mode": "routed", "routed_fallback": "vxlan"}}
	if _, err := h3.NetworkCreate("net", create); !errors.Is(err, errForward) {
		t.Errorf("the first host cannot route: %v", err)
	}
	n1 := h1.MustCreate("net", create)
	create.Opts = nil
	n2 := h2.MustCreate("net", create)
	if _, err := h3.NetworkCreate("net", create); !errors.Is(err, errForward) {
		t.Errorf("a host that cannot route: %v", err)
	}
	if len(h3.Cluster.Journal().Networks()) != 0 {
		t.Error("it is in the network nonetheless")
	}
	a, b := h1.MustRun(n1, sim.Run{}), h2.MustRun(n2, sim.Run{NoIPv6: true})
	router := n1.Gateway6
	want := []dockerapi.StaticRoute{
		{Destination: netip.MustParsePrefix("fd00:42:0:0:8000::/65"), NextHop: router}, {Destination: netip.MustParsePrefix("fd00:42::/65"), NextHop: router},
	}
	if j := a.Joined; !slices.Equal(j.StaticRoutes, want) || j.Gateway.IsValid() || j.GatewayIPv6.IsValid() || j.DisableGatewayService {
		t.Errorf("Join answered %+v", j)
	}
	if len(b.Joined.StaticRoutes) != 0 {
		t.Errorf("without IPv6 Join answered %+v", b.Joined)
	}
	v, _ := h1.View(n1)
	if n := v.Network; n.Mode != carrick.ModeRouted || n.Fallback != carrick.ModeVXLAN || n.Flood || n.MTU != 0 || n.Port != carrick.DefaultPort || n.VNI == 0 {
		t.Errorf("the network is %+v", n)
	}
}

// Routes are a host's: two tenants' networks of one subnet cannot both have some.
func TestRoutedTenantsOfOneSubnet(t *testing.T) {
	t.Parallel()
	h := sim.NewHostWith(t, memory.NewServer(), sim.Options{Number: 1, Routing: routing{}})
	opts := map[string]string{"mode": "routed"}
	h.MustCreate("one", sim.Create{Subnet: "10.42.0.0/16", Opts: opts})
	_, err := h.NetworkCreate("two", sim.Create{Subnet: "10.42.7.0/24", IPAMOpts: map[string]string{"tenant": "other"}, Opts: opts})
	if err == nil || !strings.Contains(err.Error(), "-o mode=routed") || !strings.Contains(err.Error(), "(10.42.0.0/16) of tenant default") {
		t.Errorf("another tenant's: %v", err)
	}
	if _, err := h.NetworkCreate("three", sim.Create{Subnet: "10.43.0.0/16", Opts: map[string]string{"mode": "vxlan", "routed_fallback": "vxlan"}}); !errors.Is(err, cluster.ErrOption) {
		t.Errorf("a fallback of vxlan: %v", err)
	}
}
