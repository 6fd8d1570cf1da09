package datapath_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/plan"
)

const (
	id    = carrick.NetworkID("00c0ffee00c0ffee")
	space = plan.NamespacePrefix + string(id)
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// endpoint i has the id iiii..., a MAC and an address that end in i.
func endpoint(i int) carrick.EndpointID {
	return carrick.EndpointID(strings.Repeat(fmt.Sprintf("%02x", 0xa0+i), 32))
}

func mac(i int) carrick.MAC { return carrick.MAC{2, 0, 10, 0, 0, byte(i)} }

func ip4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

func ip6(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:10::%x", i)) }

// spec is a plan in a few words.
type spec struct {
	local  []int            // endpoints here
	down   []int            // those of them that are cut off
	remote map[int][]string // endpoints there, with their VTEP
	vni    carrick.VNI
	port   uint16
	vtep   string
	mtu    int
	clamp  int // 0: none
	flood  bool
	snoop  bool
	storm  int
	dual   bool // endpoints there have IPv6 addresses as well
	macOf  func(int) carrick.MAC
}

func (s spec) plan() plan.Network {
	if s.vni == 0 {
		s.vni = 42
	}
	if s.port == 0 {
		s.port = carrick.DefaultPort
	}
	if s.vtep == "" {
		s.vtep = "192.0.2.1"
	}
	if s.mtu == 0 {
		s.mtu = 1450
	}
	if s.macOf == nil {
		s.macOf = mac
	}
	n := plan.Network{
		ID: id, Namespace: space, Present: true,
		Bridge:  plan.Bridge{Name: plan.BridgeName, MTU: s.mtu, Snoop: s.snoop},
		VXLAN:   plan.VXLAN{Name: plan.VXLANName, VNI: s.vni, Port: s.port, Local: addr(s.vtep), MTU: s.mtu},
		Clamp:   s.clamp,
		Storm:   s.storm,
		Sysctls: plan.Sysctls(s.dual && s.mtu >= carrick.MinMTU6),
	}
	for _, i := range s.local {
		e := endpoint(i)
		down := slices.Contains(s.down, i)
		n.Ports = append(n.Ports, plan.Port{Endpoint: e, Name: e.PortName(), Outer: e.OuterName(), MAC: s.macOf(i), MTU: s.mtu, Create: true, Down: down})
		if !down {
			n.Bridged = append(n.Bridged, plan.BridgeRow{MAC: s.macOf(i), Port: e.PortName()})
		}
	}
	hosts := map[string]bool{}
	for i := range 100 {
		vtep, ok := s.remote[i]
		if !ok {
			continue
		}
		hosts[vtep[0]] = true
		n.FDB = append(n.FDB, plan.FDBRow{MAC: s.macOf(i), VTEP: addr(vtep[0])})
		n.Bridged = append(n.Bridged, plan.BridgeRow{MAC: s.macOf(i), Port: plan.VXLANName})
		n.Neigh = append(n.Neigh, plan.NeighRow{Addr: ip4(i), MAC: s.macOf(i)})
		if s.dual {
			n.Neigh = append(n.Neigh, plan.NeighRow{Addr: ip6(i), MAC: s.macOf(i)})
		}
	}
	if s.flood {
		for h := range hosts { // in any order
			n.FDB = append(n.FDB, plan.FDBRow{VTEP: addr(h)})
		}
	}
	return n
}

func absent() plan.Network { return plan.Network{ID: id, Namespace: space} }

// plans is what a network may look like in its life.
func plans() map[string]plan.Network {
	far := map[int][]string{11: {"192.0.2.2"}, 12: {"192.0.2.2"}, 13: {"192.0.2.3"}}
	six := map[int][]string{11: {"2001:db8::2"}, 12: {"2001:db8::2"}, 13: {"2001:db8::3"}}
	return map[string]plan.Network{
		"absent":           absent(),
		"alone":            spec{}.plan(),
		"one container":    spec{local: []int{1}, flood: true}.plan(),
		"three hosts":      spec{local: []int{1, 2}, remote: far, flood: true}.plan(),
		"no flooding":      spec{local: []int{1, 2}, remote: far}.plan(),
		"smaller MTU":      spec{local: []int{1, 2}, remote: far, flood: true, mtu: 1400}.plan(),
		"clamped":          spec{local: []int{1, 2}, remote: far, flood: true, clamp: 1400}.plan(),
		"clamped more":     spec{local: []int{1, 2}, remote: far, flood: true, clamp: 1200}.plan(),
		"tiny MTU":         spec{local: []int{1, 2}, remote: far, flood: true, mtu: 1200}.plan(),
		"other VNI":        spec{local: []int{1, 2}, remote: far, flood: true, vni: 43}.plan(),
		"other port":       spec{local: []int{1, 2}, remote: far, flood: true, port: 8472}.plan(),
		"other VTEP":       spec{local: []int{1, 2}, remote: far, flood: true, vtep: "192.0.2.9"}.plan(),
		"IPv6 underlay":    spec{local: []int{1, 2}, remote: six, flood: true, vtep: "2001:db8::1"}.plan(),
		"snooping":         spec{local: []int{1, 2}, remote: far, flood: true, snoop: true}.plan(),
		"bounded":          spec{local: []int{1, 2}, remote: far, flood: true, storm: 2000}.plan(),
		"bounded and held": spec{local: []int{1, 2}, remote: far, flood: true, storm: 500, clamp: 1400}.plan(),
		"dual stack":       spec{local: []int{1, 2}, remote: far, flood: true, dual: true}.plan(),
		"other containers": spec{local: []int{2, 3}, remote: map[int][]string{11: {"192.0.2.3"}, 1: {"192.0.2.2"}}, flood: true}.plan(),
		"one cut off":      spec{local: []int{1, 2}, down: []int{1}, remote: far, flood: true}.plan(),
		"all cut off":      spec{local: []int{1, 2}, down: []int{1, 2}, remote: map[int][]string{1: {"192.0.2.2"}}, flood: true}.plan(),
		"other MACs": spec{local: []int{1, 2}, remote: far, flood: true, macOf: func(i int) carrick.MAC {
			return carrick.MAC{2, 1, 10, 0, 0, byte(i)}
		}}.plan(),
	}
}

func sortedNames[V any](m map[string]V) []string {
	var out []string
	for n := range m {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// text is the kernel that a plan asks for, in the words of its own String.
func text(p plan.Network) string {
	if !p.Present {
		return "\n"
	}
	if p.VXLAN.MTU < carrick.MinMTU6 { // nor those of a link without IPv6
		p.Sysctls = slices.DeleteFunc(slices.Clone(p.Sysctls), func(s plan.Sysctl) bool { return strings.HasPrefix(s.Name, "net.ipv6.") })
	}
	return sortLines(p.String())
}

func sortLines(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		// The fake does not print settings that are as the kernel makes them.
		return strings.HasPrefix(l, "#") || strings.HasSuffix(l, ".disable_ipv6=0")
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// host is an agent on a fake kernel.
type host struct {
	t *testing.T
	k *nltest.Kernel
	o *datapath.Overlay
	a *datapath.Applier
}

func newHost(t *testing.T) *host {
	h := &host{t: t, k: nltest.New()}
	h.start()
	t.Cleanup(func() { h.o.Close() }) // a second time if the test was done with it before
	return h
}

// start starts an agent that knows nothing yet.
func (h *host) start() {
	h.t.Helper()
	o, err := datapath.Open(h.t.Context(), datapath.Config{Kernel: h.k, Filter: h.k.Filter(), Namespaces: h.k.Namespaces()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.o, h.a = o, o.Network(id)
}

func (h *host) restart() {
	h.t.Helper()
	if err := h.o.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.start()
}

// apply must realise everything.
func (h *host) apply(p plan.Network) datapath.Report {
	h.t.Helper()
	rep, err := h.a.Apply(h.t.Context(), p)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := rep.Failed(); err != nil {
		h.t.Fatal(err)
	}
	if len(rep.Endpoints) != len(p.Ports) {
		h.t.Fatalf("%d verdicts for %d ports", len(rep.Endpoints), len(p.Ports))
	}
	return rep
}

// holds checks that the kernel holds the plan and nothing else, and that the
// applier knows it.
func (h *host) holds(p plan.Network) {
	h.t.Helper()
	if got, want := sortLines(h.k.Dump()), text(p); got != want {
		h.t.Fatalf("the kernel holds\n%s\nwant\n%s", got, want)
	}
	before := h.k.Messages()
	h.apply(p)
	if n := h.k.Messages() - before; n != 0 {
		h.t.Fatalf("an equal plan cost %d messages: %q", n, h.k.TakeLog()[before:])
	}
}
