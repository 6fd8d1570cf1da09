package driver_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// A host has an address of its own in a network with host_access while it has containers
// there, as any container has one: nobody else's, published, and given back.
func TestHostAccess(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h1, _ := on(t, s, 1, "eth1")
	h2, _ := on(t, s, 2, "eth1")
	create := sim.Create{Subnet: "10.42.0.0/24", IPv6: true, Subnet6: "fd00:42::/64", Opts: map[string]string{"mode": "macvlan", "parent": "eth1", "host_access": "on"}}
	n1 := h1.MustCreate("lan", create)
	create.Opts = nil
	n2 := h2.MustCreate("lan", create)
	v, _ := h1.View(n1)
	id := v.Network.ID
	leg := func(h *sim.Host) (carrick.Endpoint, bool) {
		e, err := h.Cluster.Journal().Endpoint(carrick.LegID(id, h.Cluster.Self()))
		return e.Endpoint, err == nil
	}
	if _, ok := leg(h1); ok {
		t.Error("a host without a container has a leg")
	}
	a, b := h1.MustRun(n1, sim.Run{}), h1.MustRun(n1, sim.Run{})
	c := h2.MustRun(n2, sim.Run{})
	one, ok1 := leg(h1)
	two, ok2 := leg(h2)
	if !ok1 || !ok2 || len(one.Addrs) != 2 || one.MAC.IsZero() {
		t.Fatalf("legs %+v, %+v", one, two)
	}
	seen := map[netip.Addr]bool{}
	for _, addrs := range [][]netip.Addr{one.Addrs, two.Addrs, a.Addrs(), b.Addrs(), c.Addrs()} {
		for _, x := range addrs {
			if seen[x] {
				t.Errorf("%s is there twice", x)
			}
			seen[x] = true
		}
	}
	sim.Eventually(t, "h2 knows h1's leg, and nothing is amiss", func() bool {
		v, _ := h2.View(n2)
		f, err := sim.Look(t.Context(), s, []*sim.Host{h1, h2}, nil)
		return err == nil && slices.ContainsFunc(v.Endpoints[h1.Cluster.Self()], func(e carrick.Endpoint) bool { return e.ID == one.ID }) &&
			len(check.Only(check.Run(f), check.Wrong, check.Transient)) == 0
	})
	h1.Stop(a)
	if again, ok := leg(h1); !ok || !slices.Equal(again.Addrs, one.Addrs) {
		t.Errorf("with a container left the leg is %+v", again)
	}
	h1.Stop(b)
	if _, ok := leg(h1); ok {
		t.Error("the last container is gone, and the leg is not")
	}
	for _, x := range one.Addrs {
		if l := h1.Cluster.Journal().Leases(id)[x]; l.Released == 0 {
			t.Errorf("its address %s is not given back: %+v", x, l)
		}
	}
	if err := h1.NetworkRm("lan"); err != nil {
		t.Error(err)
	}
}

// A start that fails leaves no leg behind.
func TestNoLegWithoutAContainer(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h, _ := on(t, s, 1, "eth1")
	n := h.MustCreate("lan", sim.Create{Subnet: "10.42.0.0/30", Gateway: "10.42.0.1", Opts: map[string]string{"mode": "macvlan", "parent": "eth1", "host_access": "on"}})
	// There is one address, and the container asked first.
	if _, err := h.Run(n, sim.Run{}); err == nil || !strings.Contains(err.Error(), "host_access=on") {
		t.Errorf("a pool that is too small: %v", err)
	}
	if eps := h.Cluster.Journal().Endpoints(netID(t, h, n)); len(eps) != 0 {
		t.Errorf("endpoints %+v are left", eps)
	}
	for mode, opts := range map[string]map[string]string{
		"macvlan_mode=bridge": {"mode": "macvlan", "parent": "eth1", "macvlan_mode": "private", "host_access": "on"},
		"mode=macvlan":        {"mode": "ipvlan", "parent": "eth1", "host_access": "on"},
		"want on or off":      {"mode": "macvlan", "parent": "eth1", "host_access": "perhaps"},
	} {
		_, err := h.NetworkCreate("bad", sim.Create{Subnet: "10.43.0.0/24", Opts: opts})
		if err == nil || !strings.Contains(err.Error(), "host_access") || !strings.Contains(err.Error(), mode) {
			t.Errorf("%v: %v", opts, err)
		}
	}
}

func netID(t *testing.T, h *sim.Host, n *sim.Network) carrick.NetworkID {
	t.Helper()
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Conf.ID
}
