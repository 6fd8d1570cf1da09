package datapath_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// pair is two hosts and a network with a container on each, planned from facts.
type pair struct {
	t     *testing.T
	v     carrick.View
	hosts [2]*realHost
	ids   [2]carrick.HostID
	cs    [2]*nstest.Container
	paths [2]map[netip.Addr]int // what each host knows of ways
}

// newPair makes hosts with these MTUs. mtu 0 is what both carry.
func newPair(t *testing.T, mtus [2]int, six bool, mtu int, pools ...carrick.Pool) *pair {
	l := nstest.NewLab(t)
	p := &pair{t: t, v: carrick.View{
		Network: carrick.Network{ID: id, Name: "app", VNI: 42, Port: carrick.DefaultPort, Flood: true, Pools: pools},
		Hosts:   map[carrick.HostID]carrick.Host{}, Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Joined: map[carrick.EndpointID]bool{}, Fenced: map[carrick.EndpointID]bool{},
	}}
	least := 1 << 16
	for i := range p.hosts {
		h := newRealHost(t, l, i+1, mtus[i])
		// A wire carries packets. A veth would hand over what is still to be cut into
		// packets, of whatever size.
		nstest.Run(t, h.NS, "ethtool -K eth0 tso off gso off gro off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
		hid := carrick.HostID(fmt.Sprintf("%016x", i+1))
		vtep := h.VTEP
		if six {
			vtep = h.VTEP6
		}
		host := carrick.Host{ID: hid, Name: fmt.Sprintf("h%d", i+1), VTEP: vtep, MTU: mtus[i]}
		p.hosts[i], p.ids[i], p.v.Hosts[hid] = h, hid, host
		least = min(least, host.Carries())
		e := carrick.Endpoint{ID: endpoint(i + 1)}
		for _, pool := range pools {
			b := pool.Prefix.Addr().AsSlice()
			b[len(b)-1] = byte(i + 1)
			a, _ := netip.AddrFromSlice(b)
			e.Addrs = append(e.Addrs, a)
		}
		e.MAC = carrick.MACFor(42, e.Addrs[0])
		p.v.Endpoints[hid] = []carrick.Endpoint{e}
	}
	if p.v.Network.MTU = mtu; mtu == 0 {
		p.v.Network.MTU = least
	}
	p.apply()
	for i, h := range p.hosts {
		var prefixes []netip.Prefix
		e := p.endpoint(i)
		for j, a := range e.Addrs {
			prefixes = append(prefixes, netip.PrefixFrom(a, pools[j].Prefix.Bits()))
		}
		p.cs[i] = h.Container("c", e.ID.OuterName(), prefixes...)
		p.v.Joined[e.ID] = true
		for _, a := range e.Addrs {
			nstest.Echo(t, p.cs[i].NS, netip.AddrPortFrom(a, echoPort))
		}
	}
	p.apply()
	return p
}

func (p *pair) endpoint(i int) carrick.Endpoint { return p.v.Endpoints[p.ids[i]][0] }

// apply brings both hosts to the facts.
func (p *pair) apply() (plans [2]plan.Network) {
	p.t.Helper()
	for i, h := range p.hosts {
		v := p.v
		v.Paths = p.paths[i]
		plans[i] = plan.Make(v, p.ids[i])
		h.apply(plans[i])
	}
	return plans
}

// full sends a datagram of exactly the network's MTU, not to be fragmented, and back,
// from each container to the other, over each family.
func (p *pair) full() {
	p.t.Helper()
	for i := range p.cs {
		for _, a := range p.endpoint(1 - i).Addrs {
			nstest.Exchange(p.t, p.cs[i].NS, netip.AddrPortFrom(a, echoPort), p.v.Network.MTU)
		}
	}
}

// bulk sends more than fits any buffer over TCP, both ways, over each family. The
// second host is first: a container of the first, which carries less, would be
// told so when it sends, and tell the other.
func (p *pair) bulk() {
	p.t.Helper()
	for _, i := range []int{1, 0} {
		for _, a := range p.endpoint(1 - i).Addrs {
			nstest.Bulk(p.t, p.cs[i].NS, p.cs[1-i].NS, netip.AddrPortFrom(a, 5001), 4<<20)
		}
	}
}

func pool4() carrick.Pool {
	return carrick.Pool{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}
}
func pool6() carrick.Pool {
	return carrick.Pool{Prefix: netip.MustParsePrefix("fd00:42::/64"), Block: 122}
}

// The matrix: hosts of 1450, 1500 and 9000 bytes mixed, over IPv4 and IPv6, with
// containers of IPv4, IPv6 and both. What their network says fits, fits, whole and
// both ways; and a network that was made for more than one of the hosts carries
// still carries TCP.
func TestMTUMatrix(t *testing.T) {
	t.Parallel()
	tenants := map[string][]carrick.Pool{"IPv4": {pool4()}, "IPv6": {pool6()}, "dual": {pool4(), pool6()}}
	for _, mtus := range [][2]int{{1450, 1450}, {1450, 1500}, {1450, 9000}, {1500, 1500}, {1500, 9000}, {9000, 9000}} {
		for _, six := range []bool{false, true} {
			for tenant, pools := range tenants {
				under := "IPv4"
				if six {
					under = "IPv6"
				}
				t.Run(fmt.Sprintf("%d and %d over %s, containers %s", mtus[0], mtus[1], under, tenant), func(t *testing.T) {
					t.Parallel()
					p := newPair(t, mtus, six, 0, pools...)
					for i, n := range p.apply() {
						if n.Clamp != 0 || mtus[0] == mtus[1] && len(n.Problems) != 0 {
							t.Errorf("h%d: clamp %d, problems %q", i+1, n.Clamp, n.Problems)
						}
					}
					p.full()
					p.bulk()
				})
				if mtus[0] == mtus[1] {
					continue
				}
				t.Run(fmt.Sprintf("%d joins a network made for %d over %s, containers %s", mtus[0], mtus[1], under, tenant), func(t *testing.T) {
					t.Parallel()
					p := newPair(t, mtus, six, mtus[1]-carrick.Overhead(p6(six)), pools...)
					if n := p.apply(); n[0].Clamp != mtus[0]-carrick.Overhead(p6(six)) || len(n[0].Problems) != 1 || len(n[1].Problems) != 1 {
						t.Errorf("clamp %d, problems %q and %q", n[0].Clamp, n[0].Problems, n[1].Problems)
					}
					p.bulk()
				})
			}
		}
	}
}

func p6(six bool) netip.Addr {
	if six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// A container that sends more than the way carries, and will not have it cut, is told
// what the way does carry: by the vxlan device, in the name of the other container.
// That is why all devices of the network keep its MTU.
func TestWhoSendsTooMuchIsTold(t *testing.T) {
	t.Parallel()
	p := newPair(t, [2]int{1500, 9000}, false, 8950, pool4(), pool6())
	for _, a := range p.endpoint(1).Addrs {
		to := netip.AddrPortFrom(a, echoPort)
		err := nstest.TryExchange(p.cs[0].NS, to, 8950, 20*time.Second)
		if !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("8950 bytes to %s by a host that carries 1450: %v", a, err)
		}
		nstest.Exchange(t, p.cs[0].NS, to, 1450)
	}
}

// Somebody holds a route to less while containers run. The agent hears of it from the
// kernel, not at its next regular look, and TCP goes on: what is connected already
// is told by the vxlan device, what connects is clamped. When the route is as it
// was, so is all.
func TestARouteIsHeldToLess(t *testing.T) {
	t.Parallel()
	for _, six := range []bool{false, true} {
		p := newPair(t, [2]int{9000, 9000}, six, 0, pool4(), pool6())
		h1, far := p.hosts[0], p.v.Hosts[p.ids[1]].VTEP
		ip, bits := "ip", 32
		if six {
			ip, bits = "ip -6", 128
		}
		under, err := h1.o.Underlay(t.Context(), p.v.Hosts[p.ids[0]].VTEP.String())
		if err != nil || under.MTU != 9000 {
			t.Fatalf("underlay %+v: %v", under, err)
		}
		changed := make(chan struct{}, 1)
		ways := h1.o.Ways(under, under.Addr.String(), time.Hour)
		ways.OnChange(func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		go func() { _ = ways.Run(t.Context()) }()
		// until waits for the way to carry so much, and applies it.
		until := func(mtu int) plan.Network {
			t.Helper()
			limit := time.After(time.Minute)
			for {
				got := ways.MTUs(t.Context(), []netip.Addr{far})
				if got[far] == mtu {
					p.paths[0] = got
					return p.apply()[0]
				}
				select {
				case <-changed:
				case <-limit:
					t.Fatalf("the way to %s carries %d, want %d", far, got[far], mtu)
				}
			}
		}
		if n := until(9000); n.Clamp != 0 {
			t.Errorf("clamp %d", n.Clamp)
		}
		p.full()
		nstest.Run(t, h1.NS, fmt.Sprintf("%s route add %s/%d dev eth0 mtu 1400", ip, far, bits))
		if n := until(1400); n.Clamp != 1400-carrick.Overhead(far) || len(n.Problems) != 1 {
			t.Errorf("clamp %d, problems %q", n.Clamp, n.Problems)
		}
		p.bulk()
		nstest.Run(t, h1.NS, fmt.Sprintf("%s route del %s/%d dev eth0", ip, far, bits))
		if n := until(9000); n.Clamp != 0 || len(n.Problems) != 0 {
			t.Errorf("clamp %d, problems %q", n.Clamp, n.Problems)
		}
		nstest.Run(t, h1.NS, "ip link set eth0 mtu 1500")
		until(1500)
		if u := ways.Underlay(); u.MTU != 1500 {
			t.Errorf("underlay %+v", u)
		}
		nstest.Run(t, h1.NS, fmt.Sprintf("%s addr del %s/%d dev eth0", ip, under.Addr, map[bool]int{false: 24, true: 64}[six]))
		limit := time.After(time.Minute)
		for ways.Problem() == "" {
			select {
			case <-limit:
				t.Fatal("nobody says that the VTEP's address is gone")
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}
