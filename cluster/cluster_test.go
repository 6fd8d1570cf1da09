package cluster_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

func endpoints(v carrick.View, host carrick.HostID) []string {
	var out []string
	for _, e := range v.Endpoints[host] {
		out = append(out, e.Addrs[0].String())
	}
	return out
}

// A host that was cut off learns everything when it is back: a gap longer than
// the ring is read in full.
func TestCatchUpAfterAGap(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	b.MustRun(nb, sim.Run{})
	first := a.MustRun(na, sim.Run{})
	see := func(n int) func() bool {
		return func() bool {
			v, ok := b.View(nb)
			return ok && len(v.Endpoints[a.Cluster.Self()]) == n
		}
	}
	sim.Eventually(t, "b sees a's container", see(1))
	b.Store.Cut()
	var more []*sim.Container
	for range 40 {
		more = append(more, a.MustRun(na, sim.Run{}))
	}
	a.Stop(first)
	for _, c := range more[:20] {
		a.Stop(c)
	}
	b.Store.Heal()
	sim.Eventually(t, "b sees what is left", see(20))
	v, _ := b.View(nb)
	got := strings.Join(endpoints(v, a.Cluster.Self()), " ")
	for _, c := range more[20:] {
		if !strings.Contains(got, c.Addr.Addr().String()) {
			t.Errorf("b does not know %s: %s", c.Addr, got)
		}
	}
}

// A publication whose reply was lost is not made twice, and the next one builds
// on it.
func TestLostRepliesOfPublications(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	b.MustRun(nb, sim.Run{})
	kept := a.MustRun(na, sim.Run{})
	for range 10 {
		a.Store.LoseReplies(1)
		if c, err := a.Run(na, sim.Run{}); err == nil {
			a.Stop(c)
		}
	}
	a.Store.LoseReplies(0)
	sim.Eventually(t, "b sees exactly the container that runs", func() bool {
		v, ok := b.View(nb)
		got := endpoints(v, a.Cluster.Self())
		return ok && len(got) == 1 && got[0] == kept.Addr.Addr().String()
	})
}

// A head that cannot be read, and is mended later, costs only the time between.
func TestDamagedHead(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	b.MustRun(nb, sim.Run{})
	a.MustRun(na, sim.Run{})
	rec, err := a.Cluster.Journal().ByAlias(na.ID)
	if err != nil {
		t.Fatal(err)
	}
	key := "v1/net/" + string(rec.Conf.ID) + "/head"
	good, err := a.Store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{", `{"v":2,"seq":99}`, `{"v":1,"seq":18446744073709551615}`} {
		if _, err := a.Store.Txn(t.Context(), (&kvstore.Txn{}).Put(key, []byte(bad))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Store.Txn(t.Context(), (&kvstore.Txn{}).Put(key, good.Value)); err != nil {
		t.Fatal(err)
	}
	c := a.MustRun(na, sim.Run{})
	sim.Eventually(t, "b sees the new container", func() bool {
		v, ok := b.View(nb)
		return ok && strings.Contains(strings.Join(endpoints(v, a.Cluster.Self()), " "), c.Addr.Addr().String())
	})
}

// A host that dies is lost when its lease ends, and keeps what it owns.
func TestLostHostKeepsItsAddresses(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	c := a.MustRun(na, sim.Run{})
	b.MustRun(nb, sim.Run{})
	sees(t, b, nb, a, c)
	alive := func(want bool) func() bool {
		return func() bool {
			hosts, _ := b.Cluster.Hosts()
			for _, h := range hosts {
				if h.Name == a.Name {
					return h.Alive == want
				}
			}
			return false
		}
	}
	sim.Eventually(t, "a is alive", alive(true))
	a.Crash() // in the simulation a clean stop of the lease
	sim.Eventually(t, "a is lost", alive(false))
	if _, err := b.Run(nb, sim.Run{IP: c.Addr.Addr().String()}); err == nil {
		t.Errorf("%s of a lost host was given away", c.Addr)
	}
	v, ok := b.View(nb)
	if !ok || len(v.Endpoints[a.Cluster.Self()]) != 1 {
		t.Errorf("the rows of a lost host are gone: %v", v.Endpoints)
	}
	a.Start()
	sim.Eventually(t, "a is alive again", alive(true))
}

// After one failed question a quiet host notices by itself that the store is
// back.
func TestTheStoresReturnIsNoticed(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := sim.NewHost(t, s, 1)
	sim.Eventually(t, "a failure that is in the health", func() bool {
		a.Store.FailNext(memory.List, kvstore.ErrUnavailable)
		_, err := a.Cluster.StoredNetworks(t.Context()) // or the host's own comparison meets it
		return err != nil && a.Cluster.Health().Err != nil
	})
	sim.Eventually(t, "well again", func() bool { return a.Cluster.Health().Err == nil })
}

// A lease that the store ended is made anew.
func TestLeaseLostIsAnnouncedAgain(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	lease := func() string {
		e, err := b.Store.Get(t.Context(), "v1/node/"+string(a.Cluster.Self()))
		if err != nil {
			return ""
		}
		return string(e.Lease)
	}
	sim.Eventually(t, "a has a lease", func() bool { return lease() != "" })
	old := lease()
	e, err := b.Store.Get(t.Context(), "v1/node/"+string(a.Cluster.Self()))
	if err != nil {
		t.Fatal(err)
	}
	s.ExpireLease(e.Lease)
	sim.Eventually(t, "a has another lease", func() bool { l := lease(); return l != "" && l != old })
}

// Stop and start with the store away: what the agent missed to say it says
// later.
func TestWithdrawalWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	c := a.MustRun(na, sim.Run{})
	b.MustRun(nb, sim.Run{})
	sees(t, b, nb, a, c)
	a.Store.Cut()
	a.Stop(c)
	if h := a.Cluster.Health(); h.Pending == 0 {
		t.Errorf("nothing is pending although the store was not told: %+v", h)
	}
	a.Store.Heal()
	sim.Eventually(t, "b no longer sees it", func() bool {
		v, ok := b.View(nb)
		return ok && len(v.Endpoints[a.Cluster.Self()]) == 0
	})
	sim.Eventually(t, "nothing is pending", func() bool { h := a.Cluster.Health(); return h.Pending == 0 && h.Err == nil })
}

// Engines' names for networks reach the store, and the first one names the
// network.
func TestNames(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app2", sim.Create{Subnet: "10.42.0.0/24"})
	if err := errors.Join(a.Cluster.NameAlias(t.Context(), na.ID, "app"), b.Cluster.NameAlias(t.Context(), nb.ID, "app2")); err != nil {
		t.Fatal(err)
	}
	nets, err := b.Cluster.StoredNetworks(t.Context())
	if err != nil || len(nets) != 1 || nets[0].Name != "app" {
		t.Fatalf("networks %+v %v", nets, err)
	}
	d, err := a.Cluster.Detail(t.Context(), nets[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Aliases[b.Cluster.Self()]; len(got) != 1 || got[0].Name != "app2" || got[0].Docker != nb.ID {
		t.Errorf("b's alias is %+v", got)
	}
	if _, err := a.Cluster.Detail(t.Context(), "ffffffffffffffff"); !errors.Is(err, cluster.ErrUnknownNetwork) {
		t.Errorf("detail of no network: %v", err)
	}
}

// A block belongs to one host, however many want it.
func TestBlocksAreClaimedOnce(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	rec, err := a.Cluster.Journal().ByAlias(na.ID)
	if err != nil {
		t.Fatal(err)
	}
	block := netip.MustParsePrefix("10.42.0.8/29")
	a.Store.LoseReplies(1)
	if err := a.Cluster.ClaimBlock(t.Context(), rec.Conf.ID, block); err == nil {
		t.Error("a claim whose reply was lost succeeded")
	}
	if err := b.Cluster.ClaimBlock(t.Context(), rec.Conf.ID, block); !errors.Is(err, cluster.ErrBlockTaken) {
		t.Errorf("b's claim: %v, want ErrBlockTaken", err)
	}
	if err := a.Cluster.ClaimBlock(t.Context(), rec.Conf.ID, block); err != nil {
		t.Errorf("a's claim of what it owns already: %v", err)
	}
}
