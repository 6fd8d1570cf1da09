package mirror_test

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// cluster3 is three hosts on which networks are everywhere.
func cluster3(t *testing.T) (*memory.Server, []*sim.Host) {
	t.Helper()
	s := memory.NewServer()
	var hosts []*sim.Host
	for i := range 3 {
		hosts = append(hosts, sim.NewHostWith(t, s, sim.Options{Number: i + 1, Whole: true, Everywhere: true}))
	}
	return s, hosts
}

// everywhere waits until every host has a network of that name and subnet, and
// returns them.
func everywhere(t *testing.T, hosts []*sim.Host, name, subnet string) []*sim.Network {
	t.Helper()
	var out []*sim.Network
	sim.Eventually(t, name+" is on every host", func() bool {
		out = nil
		for _, h := range hosts {
			n := h.Networks()[name]
			if n == nil || subnet != "" && n.Subnet.String() != subnet || n.Subnet != hosts[0].Networks()[name].Subnet {
				return false
			}
			out = append(out, n)
		}
		return true
	})
	return out
}

// nowhere waits until no host has a network of that name, and nothing of it is left.
func nowhere(t *testing.T, s *memory.Server, hosts []*sim.Host, name string) {
	t.Helper()
	sim.Eventually(t, name+" is on no host", func() bool {
		for _, h := range hosts {
			if h.Networks()[name] != nil {
				return false
			}
		}
		f, err := sim.Look(t.Context(), s, hosts, nil)
		return err == nil && len(f.Store.Networks) == 0 && len(f.Store.Specs) == 0 && len(f.Store.Tenants) == 0 && len(f.Store.VNIs) == 0
	})
}

func sound(t *testing.T, s *memory.Server, hosts []*sim.Host) {
	t.Helper()
	var found []check.Finding
	sim.Eventually(t, "all sides agree", func() bool {
		f, err := sim.Look(t.Context(), s, hosts, nil)
		if err != nil {
			return false
		}
		found = check.Run(f)
		return len(check.Only(found, check.Wrong, check.Transient)) == 0
	})
}

// One create is enough: the network is the same on every host, whatever its user
// said, and one rm ends it.
func TestOneCreateIsEverywhere(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	want := hosts[1].MustCreate("app", sim.Create{
		Subnet: "10.42.0.0/16", Range: "10.42.4.0/22", Gateway: "10.42.0.9", Aux: map[string]string{"printer": "10.42.0.10"},
		Subnet6: "fd00:42::/64", IPv6: true, Internal: true, Attachable: true,
		Labels: map[string]string{"team": "a"}, Opts: map[string]string{"flood": "off", "mtu": "1400"}, IPAMOpts: map[string]string{"tenant": "t1"},
	})
	for i, n := range everywhere(t, hosts, "app", "10.42.0.0/16") {
		if n.Gateway != want.Gateway || n.Subnet6 != want.Subnet6 || n.Attachable != want.Attachable || !maps.Equal(n.Labels, want.Labels) {
			t.Errorf("h%d has %+v, want %+v", i+1, n, want)
		}
		for _, opts := range []map[string]string{n.Opts, n.IPAMOpts} {
			if i != 1 && !carrick.ValidID(opts["carrick.network"]) {
				t.Errorf("h%d: options %v name no network", i+1, opts)
			}
		}
		if n.Opts["flood"] != "off" || n.Opts["mtu"] != "1400" || n.IPAMOpts["tenant"] != "t1" {
			t.Errorf("h%d has options %v and %v", i+1, n.Opts, n.IPAMOpts)
		}
		rec, err := hosts[i].Cluster.Journal().ByAlias(n.ID)
		if err != nil || !rec.Conf.Internal || rec.Conf.Pools[0].Aux["printer"].String() != "10.42.0.10" || rec.Conf.Pools[0].Range.String() != "10.42.4.0/22" {
			t.Errorf("h%d: %+v, %v", i+1, rec.Conf, err)
		}
	}
	// Containers of all hosts are in it.
	var first *sim.Container
	for i, n := range everywhere(t, hosts, "app", "") {
		c := hosts[i].MustRun(n, sim.Run{})
		if first == nil {
			first = c
		}
		defer hosts[i].Stop(c)
	}
	sound(t, s, hosts)
	v := func() bool {
		v, ok := hosts[2].View(hosts[2].Networks()["app"])
		return ok && len(v.Endpoints) == 3
	}
	sim.Eventually(t, "the third host sees them all", v)
}

// A network is gone everywhere after one rm on any host, its subnet is free at once,
// and a host that was off does not bring it back.
func TestOneRemovalIsEverywhere(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	for i := range 3 {
		hosts[i].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
		everywhere(t, hosts, "app", "10.42.0.0/16")
		if err := hosts[(i+1)%3].NetworkRm("app"); err != nil {
			t.Fatal(err)
		}
		nowhere(t, s, hosts, "app")
	}
	// Its user does not wait for the others.
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	everywhere(t, hosts, "app", "10.42.0.0/16")
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16", Opts: map[string]string{"mtu": "1400"}})
	for i, n := range everywhere(t, hosts, "app", "10.42.0.0/16") {
		sim.Eventually(t, "each host has the new one", func() bool {
			n = hosts[i].Networks()["app"]
			rec, err := hosts[i].Cluster.Journal().ByAlias(n.ID)
			return err == nil && rec.Conf.MTU == 1400
		})
	}
	sound(t, s, hosts)

	// A host is off meanwhile. The subnet is kept until it has agreed.
	hosts[2].PowerOff()
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "the other hosts have let it go", func() bool {
		return hosts[0].Networks()["app"] == nil && hosts[1].Networks()["app"] == nil && len(hosts[1].Cluster.Journal().Networks()) == 0
	})
	_, err := hosts[1].NetworkCreate("other", sim.Create{Subnet: "10.42.0.0/16"})
	if err == nil || !strings.Contains(err.Error(), "being removed") || !strings.Contains(err.Error(), "waits for h3") || !strings.Contains(err.Error(), "carrick node rm") {
		t.Errorf("a create of the subnet: %v", err)
	}
	hosts[2].PowerOn()
	hosts[2].Start()
	if err := hosts[2].EngineStart(); err != nil {
		t.Fatal(err)
	}
	nowhere(t, s, hosts, "app")
	hosts[1].MustCreate("other", sim.Create{Subnet: "10.42.0.0/16"})
	everywhere(t, hosts, "other", "10.42.0.0/16")
}

// A removal that one engine refuses is none: the network comes back where it was
// removed, and everybody can be told why.
func TestARemovalThatIsRefused(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16", Labels: map[string]string{"team": "a"}})
	nets := everywhere(t, hosts, "app", "10.42.0.0/16")
	c := hosts[2].MustRun(nets[2], sim.Run{})
	old := nets[0].ID
	if err := hosts[0].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "it is back on the host where it was removed, and the reason is known", func() bool {
		n := hosts[0].Networks()["app"]
		specs, _ := hosts[0].Cluster.Specs()
		return n != nil && n.ID != old && n.Labels["team"] == "a" && len(specs) == 1 && specs[0].Removal == nil && specs[0].Refusal != nil &&
			specs[0].Refusal.Host == hosts[2].Cluster.Self() && strings.Contains(specs[0].Refusal.Why, "active endpoints")
	})
	everywhere(t, hosts, "app", "10.42.0.0/16")
	if live := hosts[2].Live(); len(live) != 1 || live[0] != c {
		t.Errorf("the container that uses it: %v", live)
	}
	sound(t, s, hosts)
	hosts[2].Stop(c)
	if err := hosts[1].NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	nowhere(t, s, hosts, "app")
}

// A user removes a network to make it again with other labels, as docker compose does
// when its file has changed, while a container of another host is in it. The removal is
// refused, and the new words count: at once where nobody uses the network, and elsewhere
// when nobody does any more.
func TestANetworkIsMadeAgainInOtherWords(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	create := func(team string) sim.Create {
		return sim.Create{Subnet: "10.42.0.0/16", Labels: map[string]string{"team": team}}
	}
	hosts[0].MustCreate("app", create("a"))
	nets := everywhere(t, hosts, "app", "10.42.0.0/16")
	c := hosts[2].MustRun(nets[2], sim.Run{})
	team := func(h *sim.Host) string {
		if n := h.Networks()["app"]; n != nil {
			return n.Labels["team"]
		}
		return "gone"
	}
	for _, want := range []string{"b", "c"} {
		if err := hosts[0].NetworkRm("app"); err != nil {
			t.Fatal(err)
		}
		hosts[0].MustCreate("app", create(want))
		sim.Eventually(t, "the idle host has it in the new words, and the removal is forgotten", func() bool {
			specs, _ := hosts[1].Cluster.Specs()
			return team(hosts[1]) == want && len(specs) == 1 && specs[0].Refusal == nil && specs[0].Removal == nil
		})
		if got := team(hosts[0]); got != want {
			t.Errorf("the user's own is of team %s, want %s", got, want)
		}
		if got := team(hosts[2]); got != "a" {
			t.Errorf("the one that is in use is of team %s, want a", got)
		}
	}
	if live := hosts[2].Live(); len(live) != 1 || live[0] != c {
		t.Errorf("the container that uses it: %v", live)
	}
	sound(t, s, hosts)
	hosts[2].Stop(c)
	sim.Eventually(t, "the last host has it in the new words", func() bool { return team(hosts[2]) == "c" })
	kept := hosts[1].Networks()["app"].ID
	sound(t, s, hosts)
	if got := hosts[1].Networks()["app"].ID; got != kept {
		t.Errorf("h2's network was made again without a reason")
	}
}

// Two hosts create a name at the same moment. With one subnet it is one network; with
// two, the one that was known first is everywhere, and the other's place is taken
// unless somebody uses it.
func TestOneNameTwice(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]string{"one subnet": "10.42.0.0/16", "two subnets": "10.43.0.0/16"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, hosts := cluster3(t)
			var both sync.WaitGroup
			for i, subnet := range []string{"10.42.0.0/16", second} {
				both.Go(func() {
					if _, err := hosts[i].NetworkCreate("app", sim.Create{Subnet: subnet}); err != nil && !strings.Contains(err.Error(), "name taken") && !strings.Contains(err.Error(), "already on this host") {
						t.Errorf("h%d: %v", i+1, err)
					}
				})
			}
			both.Wait()
			everywhere(t, hosts, "app", "")
			sim.Eventually(t, "there is one network", func() bool {
				f, err := sim.Look(t.Context(), s, hosts, nil)
				return err == nil && len(f.Store.Networks) == 1 && len(f.Store.Specs) == 1
			})
			sound(t, s, hosts)
		})
	}
}

// Fifty networks at once, from three hosts, and away again.
func TestFiftyNetworksAtOnce(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	const networks = 50
	var all sync.WaitGroup
	for i := range networks {
		all.Go(func() {
			hosts[i%3].MustCreate(fmt.Sprintf("n%d", i), sim.Create{Subnet: fmt.Sprintf("10.42.%d.0/24", i)})
		})
	}
	all.Wait()
	for i := range networks {
		everywhere(t, hosts, fmt.Sprintf("n%d", i), fmt.Sprintf("10.42.%d.0/24", i))
	}
	sound(t, s, hosts)
	for i := range networks {
		all.Go(func() {
			if err := hosts[(i+1)%3].NetworkRm(fmt.Sprintf("n%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range networks {
		nowhereName(t, hosts, fmt.Sprintf("n%d", i))
	}
	nowhere(t, s, hosts, "n0")
}

func nowhereName(t *testing.T, hosts []*sim.Host, name string) {
	t.Helper()
	sim.Eventually(t, name+" is on no host", func() bool {
		for _, h := range hosts {
			if h.Networks()[name] != nil {
				return false
			}
		}
		return true
	})
}

// While the store is away nothing comes or goes elsewhere; what a user removed then
// was removed on his host only, and is back.
func TestARemovalThatNobodyHeardOf(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	nets := everywhere(t, hosts, "app", "10.42.0.0/16")
	old := nets[0].ID
	hosts[0].CutStore()
	if err := hosts[0].NetworkRm("app"); err == nil || !strings.Contains(err.Error(), "the store will be told") {
		t.Errorf("removed without the store: %v", err)
	}
	hosts[0].HealStore()
	sim.Eventually(t, "it is back", func() bool { n := hosts[0].Networks()["app"]; return n != nil && n.ID != old })
	sound(t, s, hosts)
}

// An engine whose data was wiped, and a host that comes later, get what there is.
func TestAFreshEngine(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	everywhere(t, hosts, "app", "10.42.0.0/16")
	old := hosts[1].Networks()["app"].ID
	hosts[1].WipeEngine()
	sim.Eventually(t, "the wiped engine has it again", func() bool { n := hosts[1].Networks()["app"]; return n != nil && n.ID != old })
	hosts = append(hosts, sim.NewHostWith(t, s, sim.Options{Number: 4, Whole: true, Everywhere: true}))
	everywhere(t, hosts, "app", "10.42.0.0/16")
	sound(t, s, hosts)
}

// A store that lost its past is told anew by every engine what they have.
func TestNetworksSurviveTheStore(t *testing.T) {
	t.Parallel()
	s, hosts := cluster3(t)
	hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/16", Labels: map[string]string{"team": "a"}})
	everywhere(t, hosts, "app", "10.42.0.0/16")
	s.Restore(memory.NewServer().Snapshot())
	sim.Eventually(t, "the store knows it again", func() bool {
		f, err := sim.Look(t.Context(), s, hosts, nil)
		return err == nil && len(f.Store.Specs) == 1 && !f.Store.Epoch.Recovering
	})
	hosts = append(hosts, sim.NewHostWith(t, s, sim.Options{Number: 4, Whole: true, Everywhere: true}))
	for _, n := range everywhere(t, hosts, "app", "10.42.0.0/16") {
		if n.Labels["team"] != "a" {
			t.Errorf("labels %v", n.Labels)
		}
	}
	sound(t, s, hosts)
}
