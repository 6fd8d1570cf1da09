package mirror_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
)

// A host that was off while a network was removed, and that was then named as gone for
// good, has the network in its journal and in its engine. It brings nothing back.
func TestARemovedHostBringsNoNetworkBack(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	for _, n := range []string{"app", "kept"} {
		hosts[0].MustCreate(n, sim.Create{})
		everywhere(t, hosts, n, "")
	}
	hosts[2].PowerOff()
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "the other hosts have let it go", func() bool { return hosts[0].Networks()["app"] == nil && hosts[1].Networks()["app"] == nil })
	if _, err := hosts[0].Cluster.RemoveHost(t.Context(), "h3", true); err != nil {
		t.Fatal(err)
	}
	hosts[2].PowerOn()
	hosts[2].Start()
	if err := hosts[2].EngineStart(); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "its engine has let it go as well", func() bool {
		f, err := sim.Look(t.Context(), s, hosts, nil)
		return err == nil && len(f.Store.Networks) == 1 && hosts[2].Networks()["app"] == nil && !hosts[2].Cluster.Journal().Meta().Fenced
	})
	everywhere(t, hosts, "kept", "")
	looked(t, hosts)
	nowhereName(t, hosts, "app")
	sound(t, s, hosts)
}

// A host whose agent does not manage its engine's networks has a say nonetheless: a
// network that containers use there stays, and one that nobody uses waits for its user.
func TestARemovalWhereAHostDoesNotMirror(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	alone := sim.NewHostWith(t, s, sim.Options{Number: 4, Whole: true})
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	old := everywhere(t, hosts, "app", "10.42.0.0/16")[0].ID
	c := alone.MustRun(alone.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), sim.Run{})
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "it is back, and the reason is known", func() bool {
		n := hosts[0].Networks()["app"]
		specs, _ := hosts[0].Cluster.Specs()
		return n != nil && n.ID != old && len(specs) == 1 && specs[0].Refusal != nil && specs[0].Refusal.Host == alone.Cluster.Self()
	})
	everywhere(t, hosts, "app", "10.42.0.0/16")
	alone.Stop(c)
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "the others have let it go", func() bool { return len(hosts[1].Cluster.Journal().Networks()) == 0 })
	_, err := hosts[1].NetworkCreate("other", sim.Create{Subnet: "10.42.0.0/16"})
	if err == nil || !strings.Contains(err.Error(), "waits for h4") || !strings.Contains(err.Error(), "docker network rm there") {
		t.Errorf("a create of the subnet: %v", err)
	}
	if err := alone.NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	nowhere(t, s, append(hosts, alone), "app")
}

// An engine that cannot keep a network which its driver has made has the driver remove
// it. That is no user's wish: the others keep theirs.
func TestAnEngineThatCannotKeepANetwork(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[2].FailKeeping(3)
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	first := hosts[0].Networks()["app"].ID
	everywhere(t, hosts, "app", "10.42.0.0/16")
	if n := hosts[0].Networks()["app"]; n.ID != first {
		t.Error("the network was removed where it was made")
	}
	sound(t, s, hosts)
}

// A backup of the store may have a removal that came to nothing since. Nobody wants the
// network gone.
func TestARemovalFromABackup(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	nets := everywhere(t, hosts, "app", "10.42.0.0/16")
	c := hosts[2].MustRun(nets[2], sim.Run{})
	hosts[2].CutStore()
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "two hosts have let it go", func() bool {
		f, err := sim.Look(t.Context(), s, hosts, nil)
		return err == nil && len(f.Store.Networks) == 1 && hosts[1].Networks()["app"] == nil && onlyAliases(f.Store.Networks, 1)
	})
	backup := s.Snapshot()
	hosts[2].HealStore()
	nets = everywhere(t, hosts, "app", "10.42.0.0/16")
	hosts[2].Stop(c)
	sim.Eventually(t, "the store knows it", func() bool {
		f, err := sim.Look(t.Context(), s, hosts, nil)
		return err == nil && onlyAliases(f.Store.Networks, 3)
	})
	s.Restore(backup)
	sim.Eventually(t, "the store is whole again", func() bool {
		f, err := sim.Look(t.Context(), s, hosts, nil)
		return err == nil && !f.Store.Epoch.Recovering && onlyAliases(f.Store.Networks, 3) && f.Store.Epoch.Num > 1
	})
	looked(t, hosts)
	for i, n := range everywhere(t, hosts, "app", "10.42.0.0/16") {
		if n.ID != nets[i].ID {
			t.Errorf("h%d: the network was removed and made again", i+1)
		}
	}
	sound(t, s, hosts)
}

// A network is removed on one host while another's engine is about to have it. The
// engine does not end up with a network that nobody knows.
func TestARemovalWhileAnEngineMakesTheNetwork(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[2].WhileKeeping(func() {
		hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
		everywhere(t, hosts[:2], "app", "10.42.0.0/16")
		if err := hosts[0].NetworkRm("app"); err != nil {
			t.Error(err)
		}
		nowhereName(t, hosts[:2], "app")
	})
	hosts[2].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	nowhere(t, s, hosts, "app")
	sound(t, s, hosts)
}

// looked waits until every host has compared its engine with the cluster, and again:
// whatever it would have done by itself it has done.
func looked(t *testing.T, hosts []*sim.Host) {
	t.Helper()
	for i := range 2 {
		name := fmt.Sprintf("looked%d", i)
		sim.Eventually(t, name+" is created", func() bool {
			_, err := hosts[0].NetworkCreate(name, sim.Create{Subnet: fmt.Sprintf("10.99.%d.0/24", i)})
			if err != nil && !strings.Contains(err.Error(), cluster.ErrRecovering.Error()) {
				t.Fatal(err)
			}
			return err == nil
		})
		everywhere(t, hosts, name, "")
		if err := hosts[0].NetworkRm(name); err != nil {
			t.Fatal(err)
		}
		nowhereName(t, hosts, name)
	}
}

func onlyAliases(nets map[carrick.NetworkID]check.StoreNetwork, n int) bool {
	for _, net := range nets {
		if len(net.Aliases) != n {
			return false
		}
	}
	return len(nets) > 0
}
