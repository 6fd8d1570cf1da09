package nltest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// world is a host and a network's namespace, on either kernel.
type world struct {
	ns        netns.Namespace // the network's
	host, net nl.Handle
}

func newWorld(t *testing.T, k nl.Kernel, store netns.Store) world {
	t.Helper()
	ctx := t.Context()
	host, err := store.Create(ctx, "host")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := store.Create(ctx, "net")
	if err != nil {
		t.Fatal(err)
	}
	w := world{ns: ns}
	if w.host, err = k.Open(ctx, host); err != nil {
		t.Fatal(err)
	}
	if w.net, err = k.Open(ctx, ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.host.Close(); w.net.Close(); host.Close(); ns.Close() })
	return w
}

func (w world) links(t *testing.T, h nl.Handle) map[string]nl.Link {
	t.Helper()
	list, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]nl.Link{}
	for _, l := range list {
		if l.Kind != "" { // not lo, nor what the real kernel puts there
			m[l.Name] = l
		}
	}
	return m
}

// text is all that can be read, without the numbers that the two kernels give
// as they like.
func (w world) text(t *testing.T) string {
	t.Helper()
	var out []string
	names := map[int]string{}
	for where, h := range map[string]nl.Handle{"host": w.host, "net": w.net} {
		links := w.links(t, h)
		if where == "net" {
			for _, l := range links {
				names[l.Index] = l.Name
			}
		}
		for _, l := range links {
			s := fmt.Sprintf("%s: link %s %s mtu %d up %v alias %q master %q", where, l.Name, l.Kind, l.MTU, l.Up, l.Alias, names[l.Master])
			if where == "net" {
				s += fmt.Sprintf(" nogen %v", l.NoAddrGen)
			}
			if where == "host" {
				s += " mac " + l.MAC.String()
			}
			if l.Port != nil {
				s += fmt.Sprintf(" port %+v", *l.Port)
			}
			if l.Bridge != nil {
				s += fmt.Sprintf(" bridge %+v", *l.Bridge)
			}
			if l.VXLAN != nil {
				s += fmt.Sprintf(" vxlan %+v", *l.VXLAN)
			}
			out = append(out, s)
		}
	}
	rows, err := w.net.FDB(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Self && r.VTEP.IsValid() || r.Of != 0 && r.State == nl.StateNoARP {
			out = append(out, fmt.Sprintf("row %s dev %s dst %v self %v of %q state %#x", r.MAC, names[r.Link], r.VTEP, r.Self, names[r.Of], r.State))
		}
	}
	for index, name := range names {
		list, err := w.net.Neighbours(t.Context(), nl.Ref{Index: index, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range list {
			if n.State == nl.StatePermanent {
				out = append(out, fmt.Sprintf("neigh %s %s dev %s", n.Addr, n.MAC, name))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// step makes one change; refs are looked up by name, so that the same step fits
// both kernels.
type step struct {
	text string
	host bool // sent in the host's namespace
	make func(w world, ref func(string) nl.Ref) nl.Change
}

// randomStep is a change as an applier or a vandal might make it, sensible or
// not. No name is used in both namespaces: there the fake is older than kernels
// since 6.14 (see its addVXLAN).
func randomStep(r *rand.Rand) step {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	device := func() string { return pick("br0", "br1", "vxlan0", "vxlan1", "p1", "p2", "none") }
	mac := carrick.MAC{2, 0, 0, 0, 0, byte(r.IntN(3))}
	if mac[5] == 0 {
		mac = carrick.MAC{}
	}
	nonzero := carrick.MAC{2, 0, 0, 0, 0, byte(1 + r.IntN(3))}
	vtep := netip.MustParseAddr(pick("192.0.2.1", "192.0.2.2", "192.0.2.3"))
	addr := netip.MustParseAddr(pick("10.0.0.1", "10.0.0.2", "fd00::1"))
	mtu := []int{1000, 1400, 1500}[r.IntN(3)]
	vni, port := carrick.VNI(1+r.IntN(2)), uint16(4789+r.IntN(2))
	name, dev, master := device(), device(), pick("br0", "br0", "br1", "p1", "none")
	up := []nl.Switch{nl.On, nl.Off}[r.IntN(2)]
	flags := nl.PortFlags{Learning: r.IntN(2) == 0, Flood: r.IntN(2) == 0, MulticastFlood: true, BroadcastFlood: r.IntN(2) == 0, Isolated: r.IntN(2) == 0}
	n := r.IntN(3)
	net := func(text string, fn func(ref func(string) nl.Ref) nl.Change) step {
		return step{text: text, make: func(_ world, ref func(string) nl.Ref) nl.Change { return fn(ref) }}
	}
	switch r.IntN(15) {
	case 0:
		return net("bridge", func(func(string) nl.Ref) nl.Change { return nl.AddBridge{Name: pick2(n, "br0", "br1", "br0")} })
	case 1:
		return step{"vxlan", true, func(w world, ref func(string) nl.Ref) nl.Change {
			return nl.AddVXLAN{Name: pick2(n, "vxlan0", "vxlan1", "vxlan0"), Target: w.ns, Master: ref(master), MTU: mtu, VNI: vni, Port: port, Local: netip.MustParseAddr("127.0.0.1")}
		}}
	case 2, 3:
		return step{"veth", true, func(w world, ref func(string) nl.Ref) nl.Change {
			return nl.AddVeth{Name: pick2(n, "p1", "p2", "p1"), Target: w.ns, Master: ref(master), MTU: mtu, Outer: "ckp1", OuterMAC: nonzero}
		}}
	case 4:
		return net("mtu", func(ref func(string) nl.Ref) nl.Change { return nl.SetLink{Link: ref(dev), MTU: mtu} })
	case 5, 6:
		return net("up", func(ref func(string) nl.Ref) nl.Change { return nl.SetLink{Link: ref(dev), Up: up} })
	case 7:
		return net("alias", func(ref func(string) nl.Ref) nl.Change { return nl.SetLink{Link: ref(dev), Alias: "a" + name} })
	case 8:
		return net("addrgenmode", func(ref func(string) nl.Ref) nl.Change { return nl.SetLink{Link: ref(dev), NoAddrGen: true} })
	case 9:
		return net("master", func(ref func(string) nl.Ref) nl.Change {
			m := nl.Ref{}
			if n > 0 {
				m = ref(master)
			}
			if l := ref(dev); l.Name == m.Name || strings.HasPrefix(l.Name, "br") {
				return nl.SetLink{Link: l, MTU: mtu} // bridges in bridges are nobody's idea
			} else {
				return nl.SetLink{Link: l, Master: &m}
			}
		})
	case 10:
		return net("flags", func(ref func(string) nl.Ref) nl.Change { return nl.SetLink{Link: ref(dev), Port: &flags} })
	case 11:
		if n > 0 {
			return net("self", func(ref func(string) nl.Ref) nl.Change {
				return nl.SetFDB{Link: ref(pick2(n, "", "vxlan0", "vxlan1")), MAC: mac, VTEP: vtep}
			})
		}
		return net("del self", func(ref func(string) nl.Ref) nl.Change { return nl.DelFDB{Link: ref("vxlan0"), MAC: mac, VTEP: vtep} })
	case 12:
		if n > 0 {
			return net("bridged", func(ref func(string) nl.Ref) nl.Change {
				return nl.SetBridged{Link: ref(pick2(n, "", "p1", "vxlan0")), MAC: nonzero}
			})
		}
		return net("del bridged", func(ref func(string) nl.Ref) nl.Change { return nl.DelBridged{Link: ref("p1"), MAC: nonzero} })
	case 13:
		if n > 0 {
			return net("neigh", func(ref func(string) nl.Ref) nl.Change {
				return nl.SetNeigh{Link: ref("vxlan0"), Addr: addr, MAC: nonzero}
			})
		}
		return net("del neigh", func(ref func(string) nl.Ref) nl.Change { return nl.DelNeigh{Link: ref("vxlan0"), Addr: addr} })
	default:
		return net("del", func(ref func(string) nl.Ref) nl.Change { return nl.DelLink{Link: ref(dev)} })
	}
}

// setup makes the devices on which most steps make sense.
var setup = []step{
	{"bridge", false, func(world, func(string) nl.Ref) nl.Change { return nl.AddBridge{Name: "br0"} }},
	{"vxlan", true, func(w world, ref func(string) nl.Ref) nl.Change {
		return nl.AddVXLAN{Name: "vxlan0", Target: w.ns, Master: ref("br0"), MTU: 1400, VNI: 1, Port: 4789, Local: netip.MustParseAddr("127.0.0.1")}
	}},
	{"veth", true, func(w world, ref func(string) nl.Ref) nl.Change {
		return nl.AddVeth{Name: "p1", Target: w.ns, Master: ref("br0"), MTU: 1400, Outer: "ckp1", OuterMAC: carrick.MAC{2, 0, 0, 0, 0, 9}}
	}},
}

func pick2(n int, of ...string) string { return of[n] }

// TestTheFakeIsAsHonestAsTheKernel does the same at random on both, and compares
// every errno and everything that can be read.
func TestTheFakeIsAsHonestAsTheKernel(t *testing.T) {
	t.Parallel()
	nstest.RequireRoot(t)
	for range 8 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			compare(t, rand.New(rand.NewPCG(seed, 0)), 150)
		})
	}
}

func compare(t *testing.T, r *rand.Rand, steps int) {
	fake := nltest.New()
	worlds := [2]world{
		newWorld(t, nl.Linux{}, netns.NewDir(netns.Config{Dir: nstest.Dir(t)})),
		newWorld(t, fake, fake.Namespaces()),
	}
	var history []string
	for i := range steps {
		s := randomStep(r)
		if i < len(setup) {
			s = setup[i]
		}
		var errnos [2]unix.Errno
		var texts [2]string
		for i, w := range worlds {
			links := w.links(t, w.net)
			c := s.make(w, func(name string) nl.Ref {
				if l, ok := links[name]; ok {
					return l.Ref
				}
				return nl.Ref{Index: 4711, Name: name}
			})
			h := w.net
			if s.host {
				h = w.host
			}
			if i == 0 {
				history = append(history, c.Command(map[bool]string{true: "host", false: "net"}[s.host]))
			}
			err := errors.Join(h.Send(t.Context(), c)...)
			errors.As(err, &errnos[i])
			if err != nil && i == 0 {
				history[len(history)-1] += " # " + err.Error()
			}
			texts[i] = w.text(t)
		}
		if errnos[0] != errnos[1] {
			t.Fatalf("after\n%s\nthe kernel says %v, the fake %v", strings.Join(history, "\n"), errnos[0], errnos[1])
		}
		if texts[0] != texts[1] {
			t.Fatalf("after\n%s\nthe kernel holds\n%s\nthe fake\n%s", strings.Join(history, "\n"), texts[0], texts[1])
		}
	}
}
