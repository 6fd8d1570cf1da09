package driver_test

import (
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// mtu is what a host's view says of a network and of another host.
func mtuOf(t *testing.T, h *sim.Host, n *sim.Network) int {
	t.Helper()
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Conf.MTU
}

// A network is given what every host of the cluster carries when it is made, whoever
// makes it and wherever its containers will run; that stays, whatever a host carries
// later, and who joins has it as well.
func TestANetworkHasOneMTU(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h1 := sim.NewHostWith(t, s, sim.Options{Number: 1, MTU: 9000})
	alone := h1.MustCreate("alone", sim.Create{Subnet: "10.41.0.0/24"})
	if got := mtuOf(t, h1, alone); got != 8950 {
		t.Errorf("of the first host's network: %d", got)
	}
	h2 := sim.NewHostWith(t, s, sim.Options{Number: 2, MTU: 1500})
	hosts := func(h *sim.Host, mtus ...int) {
		t.Helper()
		sim.Eventually(t, h.Name+" knows of the others' MTUs", func() bool {
			list, _ := h.Cluster.Hosts()
			if len(list) != len(mtus) {
				return false
			}
			for i, m := range mtus {
				if list[i].MTU != m {
					return false
				}
			}
			return true
		})
	}
	hosts(h1, 9000, 1500)
	app := h1.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	if got := mtuOf(t, h1, app); got != 1450 {
		t.Errorf("of a network for both: %d", got)
	}
	for i, opts := range []map[string]string{nil, {"mtu": "1450"}, {"com.docker.network.driver.mtu": "1450"}} {
		n := h2.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24", Opts: opts})
		if got := mtuOf(t, h2, n); got != 1450 {
			t.Errorf("join %d: %d", i, got)
		}
		if err := h2.NetworkRm("app"); err != nil {
			t.Fatal(err)
		}
	}
	if n := h2.MustCreate("alone", sim.Create{Subnet: "10.41.0.0/24"}); mtuOf(t, h2, n) != 8950 {
		t.Error("who joins has another MTU")
	}
	// Its device shrinks: the others hear of it, and what is made from now on fits.
	h2.Cluster.SetMTU(1400)
	hosts(h1, 9000, 1400)
	if n := h1.MustCreate("late", sim.Create{Subnet: "10.43.0.0/24"}); mtuOf(t, h1, n) != 1350 {
		t.Errorf("of a network made later: %d", mtuOf(t, h1, n))
	}
	if got := mtuOf(t, h1, app); got != 1450 {
		t.Errorf("of the network of before: %d", got)
	}
	// A host that is too small for IPv6 is no reason to make a network that nobody can use.
	h2.Cluster.SetMTU(1300)
	hosts(h1, 9000, 1300)
	six := h1.MustCreate("six", sim.Create{Subnet: "10.44.0.0/24", IPv6: true, Subnet6: "fd00:44::/64"})
	if got := mtuOf(t, h1, six); got != 8950 {
		t.Errorf("of a network with IPv6: %d", got)
	}
	if _, err := h2.NetworkCreate("wide", sim.Create{Subnet: "10.45.0.0/24", Opts: map[string]string{"mtu": "1251"}}); err == nil ||
		!strings.Contains(err.Error(), "mtu=1251") || !strings.Contains(err.Error(), "1250") || !strings.Contains(err.Error(), "--advertise") {
		t.Errorf("more than the host carries: %v", err)
	}
	if n := h2.MustCreate("fits", sim.Create{Subnet: "10.45.0.0/24", Opts: map[string]string{"mtu": "1250"}}); mtuOf(t, h2, n) != 1250 {
		t.Error("what it does carry")
	}
}

// Nobody can have the VNI that hosts probe each other with, under either name.
func TestTheVNIOfProbesIsKept(t *testing.T) {
	t.Parallel()
	h := sim.NewHost(t, memory.NewServer(), 1)
	for _, key := range []string{"vni", "com.docker.network.driver.overlay.vxlanid_list"} {
		_, err := h.NetworkCreate("app", sim.Create{Subnet: "10.42.0.0/24", Opts: map[string]string{key: "16777215"}})
		if err == nil || !strings.Contains(err.Error(), key+"=16777215") || !strings.Contains(err.Error(), "16777214") {
			t.Errorf("%s: %v", key, err)
		}
	}
	if carrick.ProbeVNI != 16777215 {
		t.Error("agents of other versions probe with another VNI")
	}
}
