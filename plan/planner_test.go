package plan_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/plan"
)

// world is facts that change at random, with every contradiction that there can be,
// as a cluster hands them out: what did not change is the slice it was.
type world struct {
	r *rand.Rand
	v carrick.View
}

func (w *world) endpoint(host int) carrick.Endpoint {
	addr := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, byte(host), byte(2 + w.r.IntN(n))}) }
	e := carrick.Endpoint{
		ID:  carrick.EndpointID(fmt.Sprintf("%064x", w.r.IntN(1000))),
		Gen: carrick.MakeGen(1, uint64(w.r.IntN(5))), Addrs: []netip.Addr{addr(200)},
	}
	e.MAC = carrick.MACFor(4242, e.Addrs[0])
	switch w.r.IntN(12) {
	case 0:
		e.MAC = carrick.MAC{2, 0, 0, 0, 0, byte(w.r.IntN(3))}
	case 1:
		host = w.r.IntN(3)
		e.Addrs[0] = addr(6)
	case 2:
		e.Addrs = append(e.Addrs, addr(6))
	case 3:
		e.Addrs = append(e.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00:42::%x", w.r.IntN(50))))
	}
	return e
}

// step changes one thing.
func (w *world) step(hosts []carrick.HostID) {
	v, i := &w.v, w.r.IntN(len(hosts))
	h := hosts[i]
	switch w.r.IntN(12) {
	case 0:
		delete(v.Endpoints, h)
	case 1:
		if _, ok := v.Hosts[h]; ok && h != h1 {
			delete(v.Hosts, h)
		}
	case 2, 3:
		v.Hosts[h] = carrick.Host{ID: h, Name: string(h), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), MTU: 1500}
	case 4:
		x := v.Hosts[h]
		x.MTU = []int{1320, 1500, 9000}[w.r.IntN(3)]
		if w.r.IntN(3) == 0 {
			x.VTEP = []netip.Addr{netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("192.0.2.99")}[w.r.IntN(2)]
		}
		v.Hosts[h] = x
	case 5:
		v.Network.Flood = !v.Network.Flood
	case 6:
		if eps := v.Endpoints[h1]; len(eps) > 0 {
			id := eps[w.r.IntN(len(eps))].ID
			v.Fenced[id] = !v.Fenced[id]
		}
	default:
		eps := slices.Clone(v.Endpoints[h])
		if len(eps) > 0 && w.r.IntN(2) == 0 {
			eps = slices.Delete(eps, 0, 1)
		} else {
			eps = append(eps, w.endpoint(i))
		}
		v.Endpoints[h] = eps
	}
}

// However facts change and contradict each other, a planner's plan is the one that
// is made of the facts alone, and no key is in two of its parts.
func TestAPlannersPlanIsThatOfTheFactsAlone(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := &world{r: rand.New(rand.NewPCG(seed, 0)), v: view()}
	dualStack(&w.v)
	w.v.Endpoints = map[carrick.HostID][]carrick.Endpoint{}
	hosts := []carrick.HostID{h1, h2, h3}
	for i := range 5 {
		hosts = append(hosts, carrick.HostID(fmt.Sprintf("%016x", 0x4444+i)))
	}
	var p plan.Planner
	shared, disputed := 0, 0
	for range 1500 {
		w.step(hosts)
		want, got := plan.Make(w.v, h1), p.Make(w.v, h1)
		if !reflect.DeepEqual(got.Flat(), want) {
			t.Fatalf("the planner says\n%s\nwant\n%s", got, want)
		}
		macs, addrs := map[carrick.MAC]bool{}, map[netip.Addr]bool{}
		once := func(ok bool, what any) {
			if !ok {
				t.Fatalf("%v is in the plan twice:\n%s", what, got)
			}
		}
		for _, r := range got.FDB {
			once(r.MAC.IsZero() || !macs[r.MAC], r)
			macs[r.MAC] = true
		}
		for _, r := range got.Neigh {
			once(!addrs[r.Addr], r)
			addrs[r.Addr] = true
		}
		for _, h := range got.Remote {
			for _, m := range h.MACs {
				once(!macs[m], m)
				macs[m] = true
			}
			for _, r := range h.Neigh {
				once(!addrs[r.Addr], r)
				addrs[r.Addr] = true
			}
		}
		shared += len(got.Remote)
		if len(got.Problems) > 0 && len(got.Remote) > 0 {
			disputed++
		}
	}
	if shared < 300 || disputed < 30 {
		t.Errorf("%d parts shared, %d plans with both parts and problems: this shows little", shared, disputed)
	}
}

// One container more on one of many hosts makes that host's part anew and no other:
// what a change costs does not grow with the network.
func TestAChangeMakesOneHostsPartAnew(t *testing.T) {
	t.Parallel()
	var p plan.Planner
	v := big(30)
	before := p.Make(v, h1)
	if len(before.Remote) != 30 {
		t.Fatalf("%d parts of 30 hosts", len(before.Remote))
	}
	changed := before.Remote[7].Host
	later := v
	later.Endpoints = maps.Clone(v.Endpoints)
	later.Endpoints[changed] = append(slices.Clone(v.Endpoints[changed]), ep("ff", 4242, "10.200.0.1"))
	after := p.Make(later, h1)
	for i, r := range after.Remote {
		if same := r == before.Remote[i]; same == (r.Host == changed) {
			t.Errorf("the part of host %s is the one it was: %v; %s changed", r.Host, same, changed)
		}
	}
	if got, want := len(after.Remote[7].MACs), len(before.Remote[7].MACs)+1; got != want {
		t.Errorf("%d containers on the host that changed, want %d", got, want)
	}
}
