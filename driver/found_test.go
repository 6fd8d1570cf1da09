package driver_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// An address that has changed its owner is given out though this host has not
// heard of its last holder's end: what it heard is older than its ownership. (A
// story that random histories told first.)
func TestAnAddressesLastHolderIsNoHindrance(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
		na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		last := a.MustRun(na, sim.Run{})
		b.Stop(b.MustRun(nb, sim.Run{}))
		sim.Eventually(t, "b knows a's container", func() bool {
			v, ok := b.View(nb)
			return ok && len(v.Endpoints[a.Cluster.Self()]) == 1
		})
		b.BlindStore() // it asks and claims, and hears nothing
		a.Stop(last)
		<-time.After(20 * time.Minute) // a's block is idle, rests, and is given up
		if v, _ := b.View(nb); len(v.Endpoints[a.Cluster.Self()]) != 1 {
			t.Fatal("b heard of the end, so this shows nothing")
		}
		c := b.MustRun(nb, sim.Run{IP: last.Addr.Addr().String()})
		if c.MAC != last.MAC {
			t.Fatalf("%s has another MAC than its last holder, so this shows nothing", c.Addr)
		}
	})
}
