package plan_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/plan"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	h1 = carrick.HostID("1111111111111111")
	h2 = carrick.HostID("2222222222222222")
	h3 = carrick.HostID("3333333333333333")
)

func ep(c string, vni carrick.VNI, addr string) carrick.Endpoint {
	a := netip.MustParseAddr(addr)
	return carrick.Endpoint{ID: carrick.EndpointID(strings.Repeat(c, 64/len(c))), Addrs: []netip.Addr{a}, MAC: carrick.MACFor(vni, a)}
}

// view is three hosts, two containers here, two on h2 and one on h3.
func view() carrick.View {
	return carrick.View{
		Network: carrick.Network{
			ID: "00000000000000aa", Name: "app", Tenant: "default", Mode: carrick.ModeVXLAN, VNI: 4242, Port: 4789, Flood: true,
			Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Gateway: netip.MustParseAddr("10.42.0.1"), Block: 26}},
		},
		Hosts: map[carrick.HostID]carrick.Host{
			h1: {ID: h1, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500},
			h2: {ID: h2, Name: "h2", VTEP: netip.MustParseAddr("192.0.2.2"), MTU: 1500},
			h3: {ID: h3, Name: "h3", VTEP: netip.MustParseAddr("192.0.2.3"), MTU: 1500},
		},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{
			h1: {ep("a1", 4242, "10.42.0.2"), ep("a2", 4242, "10.42.0.3")},
			h2: {ep("b1", 4242, "10.42.0.66"), ep("b2", 4242, "10.42.0.67")},
			h3: {ep("c1", 4242, "10.42.0.130")},
		},
		Joined: map[carrick.EndpointID]bool{},
		Fenced: map[carrick.EndpointID]bool{},
	}
}

// dualStack gives the network an IPv6 pool and each endpoint an address of it. The
// one on h3 goes without, as containers with IPv6 turned off do.
func dualStack(v *carrick.View) {
	v.Network.Pools = append(v.Network.Pools, carrick.Pool{Prefix: netip.MustParsePrefix("fd00:42::/64"), Gateway: netip.MustParseAddr("fd00:42::1"), Block: 122})
	for h, eps := range v.Endpoints {
		for i := range eps {
			last := eps[i].Addrs[0].As4()[3]
			six := netip.MustParseAddr(fmt.Sprintf("fd00:42::%x", last))
			eps[i].Addrs = append(slices.Clone(eps[i].Addrs), six)
		}
		if h == h3 {
			eps[0].Addrs = eps[0].Addrs[:1]
		}
	}
}

// onParent makes the network one that stands on a device of each host.
func onParent(v *carrick.View, mode carrick.Mode, submode, parent string) {
	v.Network.Mode, v.Network.Submode, v.Network.Parent = mode, submode, parent
	if mode == carrick.ModeIPvlan {
		v.Network.Flag = "bridge"
		for _, eps := range v.Endpoints {
			for i := range eps {
				eps[i].MAC = carrick.MAC{}
			}
		}
	}
}

// Each story is facts in and ip and bridge commands out.
func TestPlans(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*carrick.View){
		"three-hosts":       func(*carrick.View) {},
		"no-local-endpoint": func(v *carrick.View) { delete(v.Endpoints, h1) },
		"alone":             func(v *carrick.View) { delete(v.Endpoints, h2); delete(v.Endpoints, h3) },
		"joined":            func(v *carrick.View) { v.Joined[v.Endpoints[h1][0].ID] = true },
		"storm-off":         func(v *carrick.View) { v.Network.Storm = carrick.NoStorm },
		"snooping":          func(v *carrick.View) { v.Network.Snoop = true },
		"flood-off":         func(v *carrick.View) { v.Network.Flood = false },
		"own-mtu-and-port":  func(v *carrick.View) { v.Network.MTU, v.Network.Port = 1300, 8472 },
		"mtu-disagrees": func(v *carrick.View) {
			h := v.Hosts[h3]
			h.MTU = 9000
			v.Hosts[h3] = h
		},
		// The network's MTU is fixed, and the way to h2 is narrower than its device says.
		"narrow-way": func(v *carrick.View) {
			v.Network.MTU = 1450
			v.Paths = map[netip.Addr]int{v.Hosts[h2].VTEP: 1400, v.Hosts[h3].VTEP: 1500}
		},
		"this-host-carries-less": func(v *carrick.View) {
			v.Network.MTU = 8950
			for _, id := range []carrick.HostID{h2, h3} {
				h := v.Hosts[id]
				h.MTU = 9000
				v.Hosts[id] = h
			}
		},
		// They hold their TCP themselves.
		"others-carry-less": func(v *carrick.View) {
			v.Network.MTU = 8950
			h := v.Hosts[h1]
			h.MTU = 9000
			v.Hosts[h1] = h
		},
		"ipv6-underlay-narrow": func(v *carrick.View) {
			v.Network.MTU = 1430
			for i, id := range []carrick.HostID{h1, h2, h3} {
				h := v.Hosts[id]
				h.VTEP = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
				v.Hosts[id] = h
			}
			v.Paths = map[netip.Addr]int{v.Hosts[h3].VTEP: 1280}
		},
		"macvlan": func(v *carrick.View) { onParent(v, carrick.ModeMacvlan, "bridge", "eth1") },
		"macvlan-vlan-mtu": func(v *carrick.View) {
			onParent(v, carrick.ModeMacvlan, "private", "h2:eth0,h1:bond0.50,*:eth1")
			v.Network.MTU = 1400
			v.Joined[v.Endpoints[h1][0].ID] = true
		},
		"macvlan-fenced": func(v *carrick.View) {
			onParent(v, carrick.ModeMacvlan, "bridge", "eth1")
			e := v.Endpoints[h1][1].ID
			v.Joined[e], v.Fenced[e] = true, true
			v.Sandboxes = map[carrick.EndpointID]string{e: "/var/run/docker/netns/0123456789ab"}
		},
		"macvlan-no-parent-here": func(v *carrick.View) { onParent(v, carrick.ModeMacvlan, "bridge", "h2:eth0") },
		"macvlan-partial": func(v *carrick.View) {
			onParent(v, carrick.ModeMacvlan, "bridge", "eth1")
			v.Partial = true
		},
		"sriov": func(v *carrick.View) {
			onParent(v, carrick.ModeSRIOV, "", "eth1")
			e := v.Endpoints[h1][1].ID
			v.Joined[e], v.Fenced[e] = true, true
			v.Sandboxes = map[carrick.EndpointID]string{e: "/var/run/docker/netns/0123456789ab"}
		},
		"ipvlan-l2": func(v *carrick.View) { onParent(v, carrick.ModeIPvlan, "l2", "eth1") },
		"macvlan-host-access": func(v *carrick.View) {
			dualStack(v)
			onParent(v, carrick.ModeMacvlan, "bridge", "eth1")
			v.Network.HostAccess = true
			leg := v.Endpoints[h1][1]
			leg.ID = carrick.LegID(v.Network.ID, h1)
			v.Endpoints[h1][1] = leg
			v.Joined[v.Endpoints[h1][0].ID] = true
		},
		// Nobody on the segment answers for the others' containers.
		"ipvlan-l3": func(v *carrick.View) { onParent(v, carrick.ModeIPvlan, "l3", "eth1") },
		"ipvlan-l3s-dual": func(v *carrick.View) {
			dualStack(v)
			onParent(v, carrick.ModeIPvlan, "l3s", "eth1")
			delete(v.Endpoints, h3)
		},
		"ipvlan-l3-claimed-twice": func(v *carrick.View) {
			onParent(v, carrick.ModeIPvlan, "l3", "eth1")
			v.Endpoints[h2][0].Addrs = v.Endpoints[h1][0].Addrs
			v.Endpoints[h3][0].Addrs = v.Endpoints[h2][1].Addrs
		},
		"routed": func(v *carrick.View) {
			v.Network.Mode = carrick.ModeRouted
			v.Joined[v.Endpoints[h1][0].ID] = true
		},
		"routed-fenced": func(v *carrick.View) {
			v.Network.Mode = carrick.ModeRouted
			v.Fenced[v.Endpoints[h1][1].ID] = true
			v.Endpoints[h3][0].Addrs = v.Endpoints[h1][1].Addrs // who has the address now is reached
		},
		// Hosts that know each other by IPv4: IPv6 goes by the tunnel.
		"routed-dual-fallback": func(v *carrick.View) {
			dualStack(v)
			v.Network.Mode, v.Network.Fallback = carrick.ModeRouted, carrick.ModeVXLAN
			delete(v.Endpoints, h3)
		},
		"routed-dual": func(v *carrick.View) {
			dualStack(v)
			v.Network.Mode, v.Network.MTU = carrick.ModeRouted, 9000
			delete(v.Endpoints, h3)
		},
		"unknown-host": func(v *carrick.View) { delete(v.Hosts, h2) },
		"other-family": func(v *carrick.View) {
			h := v.Hosts[h2]
			h.VTEP = netip.MustParseAddr("2001:db8::2")
			v.Hosts[h2] = h
		},
		"same-vtep": func(v *carrick.View) {
			h := v.Hosts[h2]
			h.VTEP = v.Hosts[h1].VTEP
			v.Hosts[h2] = h
		},
		"address-claimed-twice": func(v *carrick.View) {
			v.Endpoints[h2][0].Addrs = v.Endpoints[h1][0].Addrs
			v.Endpoints[h3][0].MAC = v.Endpoints[h2][1].MAC
		},
		// The later use of an address is believed, whoever says so and in whatever
		// order.
		"later-use": func(v *carrick.View) {
			old, late := &v.Endpoints[h2][0], &v.Endpoints[h3][0]
			old.Gen, late.Gen = carrick.MakeGen(1, 7), carrick.MakeGen(1, 8)
			late.Addrs, late.MAC = old.Addrs, old.MAC
		},
		"later-incarnation": func(v *carrick.View) {
			old, late := &v.Endpoints[h3][0], &v.Endpoints[h2][0]
			old.Gen, late.Gen = carrick.MakeGen(1, 70), carrick.MakeGen(2, 8)
			late.Addrs, late.MAC = old.Addrs, old.MAC
		},
		// A host believes what runs on it.
		"own-use": func(v *carrick.View) {
			own, late := &v.Endpoints[h1][0], &v.Endpoints[h3][0]
			own.Gen, late.Gen = carrick.MakeGen(1, 7), carrick.MakeGen(1, 8)
			late.Addrs, late.MAC = own.Addrs, own.MAC
		},
		// Unless it was removed from the cluster meanwhile.
		"fenced": func(v *carrick.View) {
			own, late := &v.Endpoints[h1][0], &v.Endpoints[h3][0]
			late.Addrs, late.MAC = own.Addrs, own.MAC
			v.Fenced = map[carrick.EndpointID]bool{own.ID: true}
		},
		"partial":          func(v *carrick.View) { v.Partial = true; delete(v.Endpoints, h3) },
		"partial-and-gone": func(v *carrick.View) { v.Partial = true; delete(v.Endpoints, h1) },
		"dual-stack":       dualStack,
		"ipv6-only": func(v *carrick.View) {
			dualStack(v)
			v.Network.Pools = v.Network.Pools[1:]
			delete(v.Endpoints, h3)
			for _, eps := range v.Endpoints {
				for i := range eps {
					eps[i].Addrs = eps[i].Addrs[1:]
					eps[i].MAC = carrick.MACFor(4242, eps[i].Addrs[0])
				}
			}
		},
		"too-small-for-ipv6": func(v *carrick.View) {
			dualStack(v)
			v.Network.MTU = 1279
		},
		"user-mac": func(v *carrick.View) { v.Endpoints[h2][0].MAC = carrick.MAC{2, 0, 0, 0, 0, 7} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := view()
			change(&v)
			got := plan.Make(v, h1).String()
			path := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("plan differs from %s (go test ./plan -update rewrites it):\n%s", path, got)
			}
		})
	}
}

// The same facts in any order give the same plan.
func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	want := plan.Make(view(), h1)
	for range 50 {
		v := view()
		for _, eps := range v.Endpoints {
			r.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
		}
		if got := plan.Make(v, h1); !reflect.DeepEqual(got, want) {
			t.Fatalf("plan depends on order:\n%s\nwant\n%s", got, want)
		}
	}
}

// No plan ever claims a MAC or an address twice, whatever the facts say.
func TestContradictionsNeverReachTheKernel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		v := view()
		for _, eps := range v.Endpoints {
			for i := range eps {
				if r.IntN(2) == 0 {
					eps[i].MAC = carrick.MAC{2, 0, 0, 0, 0, byte(r.IntN(3))}
				}
				eps[i].Gen = carrick.MakeGen(1, uint64(r.IntN(3)))
				if r.IntN(4) == 0 {
					v.Fenced[eps[i].ID] = true
				}
				if r.IntN(2) == 0 {
					eps[i].Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 0, byte(r.IntN(3))})}
				}
			}
		}
		n := plan.Make(v, h1)
		macs, addrs := map[carrick.MAC]bool{}, map[netip.Addr]bool{}
		for _, row := range n.Bridged {
			if macs[row.MAC] {
				t.Fatalf("MAC %s is behind two ports:\n%s", row.MAC, n)
			}
			macs[row.MAC] = true
		}
		for _, row := range n.Neigh {
			if addrs[row.Addr] {
				t.Fatalf("%s has two neighbour rows:\n%s", row.Addr, n)
			}
			addrs[row.Addr] = true
		}
		for _, row := range n.Neigh {
			for _, e := range v.Endpoints[h1] {
				if slices.Contains(e.Addrs, row.Addr) && !v.Fenced[e.ID] {
					t.Fatalf("%s is this host's own and is looked for elsewhere:\n%s", row.Addr, n)
				}
			}
			best := carrick.Gen(0)
			held := carrick.Gen(0)
			for _, h := range []carrick.HostID{h2, h3} {
				for _, e := range v.Endpoints[h] {
					if slices.Contains(e.Addrs, row.Addr) {
						best = max(best, e.Gen)
						if e.MAC == row.MAC {
							held = max(held, e.Gen)
						}
					}
				}
			}
			if held != best {
				t.Fatalf("%s is behind %s, of a use at %d before one at %d:\n%s", row.Addr, row.MAC, held, best, n)
			}
		}
	}
}
