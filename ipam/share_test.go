package ipam_test

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// Ten hosts share a /24 of 253 addresses in blocks of eight. Whoever's turn it is
// gets an address until 240 are out, whichever host has the blocks; and every one
// is given once.
func TestTenHostsShareASmallSubnet(t *testing.T) {
	t.Parallel()
	const hosts, want = 10, 240
	for name, turn := range map[string]func(i int) int{
		"in turn":             func(i int) int { return i % hosts },
		"one after the other": func(i int) int { return i * hosts / want },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := memory.NewServer()
			var hs []*sim.Host
			var nets []*sim.Network
			for i := range hosts {
				h := sim.NewHost(t, s, i+1)
				hs, nets = append(hs, h), append(nets, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}))
			}
			holder := map[netip.Addr]string{}
			for i := range want {
				h, n := hs[turn(i)], nets[turn(i)]
				c, err := h.Run(n, sim.Run{})
				if err != nil {
					t.Fatalf("container %d, on %s: %v", i+1, h.Name, err)
				}
				a := c.Addr.Addr()
				if other, twice := holder[a]; twice {
					t.Fatalf("%s is on %s and was given to %s", a, other, h.Name)
				}
				if !n.Subnet.Contains(a) || a == n.Gateway || a == n.Subnet.Addr() {
					t.Errorf("%s got %s", h.Name, a)
				}
				holder[a] = h.Name
			}
		})
	}
}

// Many containers start at once on hosts that have nothing left: all get an
// address, borrowed or not, while there are any.
func TestHostsBorrowAtOnce(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	const hosts, each = 4, 12 // of the 61 that a /26 has, in blocks of four
	var hs []*sim.Host
	var nets []*sim.Network
	for i := range hosts {
		h := sim.NewHost(t, s, i+1)
		hs, nets = append(hs, h), append(nets, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/26"}))
	}
	var mu sync.Mutex
	holder := map[netip.Addr]string{}
	var all sync.WaitGroup
	for i, h := range hs {
		for range each {
			all.Go(func() {
				c, err := h.Run(nets[i], sim.Run{})
				if err != nil {
					t.Errorf("%s: %v", h.Name, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if other, twice := holder[c.Addr.Addr()]; twice {
					t.Errorf("%s is on %s and on %s", c.Addr, other, h.Name)
				}
				holder[c.Addr.Addr()] = h.Name
			})
		}
	}
	all.Wait()
}

// When nothing is left anywhere the message says so, and what to do.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	create := sim.Create{Subnet: "10.42.0.0/29", IPv6: true, Subnet6: "fd00:42::/125"}
	na, nb := a.MustCreate("app", create), b.MustCreate("app", create)
	var held []*sim.Container
	for range 5 {
		held = append(held, a.MustRun(na, sim.Run{}))
	}
	_, err := b.Run(nb, sim.Run{})
	if !errors.Is(err, ipam.ErrFull) {
		t.Fatalf("a sixth container: %v, want ErrFull", err)
	}
	for _, w := range []string{"10.42.0.0/29", "h1", "larger subnet"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not name %q", err, w)
		}
	}
	t.Log(err)
	// One that stops makes room where it was.
	a.Stop(held[2])
	if c := a.MustRun(na, sim.Run{}); c.Addr != held[2].Addr {
		t.Errorf("got %s, want the only free one, %s", c.Addr, held[2].Addr)
	}
}
