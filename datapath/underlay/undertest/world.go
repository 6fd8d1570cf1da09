// Package undertest makes throwaway hosts with networks that stand on their devices, on
// the real kernel: of this machine, or of the virtual machine that has what this one
// lacks. Only tests import it.
package undertest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// Network is the id of the network of most tests.
const Network = carrick.NetworkID("00000000000000aa")

// Endpoint is the id of endpoint n, 1 to 255.
func Endpoint(n int) carrick.EndpointID { return carrick.EndpointID(fmt.Sprintf("%02x%062x", n, 0)) }

// HostID is the id of the host with an index.
func HostID(n int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", n)) }

// Addr is the IPv4 address of endpoint n.
func Addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(n)}) }

// Addr6 is the IPv6 address of endpoint n.
func Addr6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:42::%x", n)) }

// Dual gives a network IPv6 as well.
func Dual(n carrick.Network) carrick.Network {
	n.Pools = append(slices.Clone(n.Pools), carrick.Pool{Prefix: netip.MustParsePrefix("fd00:42::/64"), Block: 122})
	return n
}

// Prefixes are endpoint n's addresses in a network, as its container has them.
func Prefixes(conf carrick.Network, n int) (out []netip.Prefix) {
	for _, p := range conf.Pools {
		a := Addr(n)
		if p.Prefix.Addr().Is6() {
			a = Addr6(n)
		}
		out = append(out, netip.PrefixFrom(a, p.Prefix.Bits()))
	}
	return out
}

// Macvlan is a macvlan network on eth0 of every host.
func Macvlan(mode string) carrick.Network {
	return carrick.Network{
		ID: Network, Tenant: carrick.DefaultTenant, Mode: carrick.ModeMacvlan, Submode: mode, Parent: "eth0", VNI: 7,
		Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}},
	}
}

// IPvlan is an ipvlan network on eth0 of every host.
func IPvlan(mode, flag string) carrick.Network {
	n := Macvlan(mode)
	n.Mode, n.Flag = carrick.ModeIPvlan, flag
	return n
}

// World is some hosts on one segment, what the cluster says of a network, and an
// applier for each host.
type World struct {
	t     testing.TB
	lab   *nstest.Lab
	Hosts []*nstest.Host
	On    []*underlay.Host // by host
	View  carrick.View     // what all hosts know; the fields are the test's to change
}

// New makes hosts h1, h2 and so on, with a freshly started applier each, whose ends are
// the test's. It needs root.
func New(t testing.TB, conf carrick.Network, hosts int) *World {
	t.Helper()
	w := &World{t: t, lab: nstest.NewLab(t), View: carrick.View{
		Network: conf, Hosts: map[carrick.HostID]carrick.Host{}, Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Joined: map[carrick.EndpointID]bool{}, Fenced: map[carrick.EndpointID]bool{}, Sandboxes: map[carrick.EndpointID]string{},
	}}
	for i := range hosts {
		h := w.lab.Host(i+1, 1500)
		w.Hosts, w.On = append(w.Hosts, h), append(w.On, nil)
		w.View.Hosts[HostID(i)] = carrick.Host{ID: HostID(i), Name: fmt.Sprintf("h%d", i+1), VTEP: h.VTEP, MTU: 1500}
		w.Restart(i)
	}
	t.Cleanup(func() {
		for _, o := range w.On {
			if o != nil {
				_ = o.Close()
			}
		}
	})
	return w
}

// Restart is an agent that ends and starts anew: it knows nothing of before.
func (w *World) Restart(host int) {
	w.t.Helper()
	if o := w.On[host]; o != nil {
		if err := o.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	o, err := underlay.Open(w.t.Context(), underlay.Config{Kernel: nl.Linux{}, Namespaces: w.Hosts[host].Namespaces})
	if err != nil {
		w.t.Fatal(err)
	}
	w.On[host] = o
}

// Plan is what a host is to hold now.
func (w *World) Plan(host int) plan.Network { return plan.Make(w.View, HostID(host)) }

// Apply hands a host the plan of now.
func (w *World) Apply(host int) (datapath.Report, error) {
	return w.On[host].Network(w.View.Network.ID).Apply(w.t.Context(), w.Plan(host))
}

// MustApply fails the test unless all of the plan is in the kernel.
func (w *World) MustApply(host int) datapath.Report {
	w.t.Helper()
	rep, err := w.Apply(host)
	if err == nil {
		err = rep.Failed()
	}
	if err != nil {
		w.t.Fatalf("h%d: %v", host+1, err)
	}
	return rep
}

// Audit reads a host's kernel back.
func (w *World) Audit(host int) datapath.Report {
	w.t.Helper()
	w.On[host].Network(w.View.Network.ID).QueueResync("audit")
	return w.MustApply(host)
}

// Add says that a host has an endpoint, without a container yet.
func (w *World) Add(host, n int) carrick.EndpointID {
	e := carrick.Endpoint{ID: Endpoint(n), Gen: carrick.Gen(n)}
	for _, p := range Prefixes(w.View.Network, n) {
		e.Addrs = append(e.Addrs, p.Addr())
	}
	if !w.View.Network.SharesMAC() {
		e.MAC = carrick.MACFor(w.View.Network.VNI, Addr(n))
	}
	w.View.Endpoints[HostID(host)] = append(slices.Clone(w.View.Endpoints[HostID(host)]), e)
	return e.ID
}

// Run starts a container of an endpoint that is new: Join, then what Docker does.
func (w *World) Run(host, n int) *nstest.Container {
	w.t.Helper()
	ep := w.Add(host, n)
	w.MustApply(host)
	c := w.Take(host, n)
	w.View.Joined[ep] = true
	return c
}

// Take is Docker moving an endpoint's device into its container.
func (w *World) Take(host, n int) *nstest.Container {
	w.t.Helper()
	name := fmt.Sprintf("c%d", n)
	w.View.Sandboxes[Endpoint(n)] = w.Hosts[host].Sandbox(name)
	return w.Hosts[host].Container(name, Endpoint(n).OuterName(), Prefixes(w.View.Network, n)...)
}

// Gone says that an endpoint is no more.
func (w *World) Gone(host, n int) {
	w.View.Endpoints[HostID(host)] = slices.DeleteFunc(slices.Clone(w.View.Endpoints[HostID(host)]), func(e carrick.Endpoint) bool { return e.ID == Endpoint(n) })
}

// Reaches fails the test unless one container's packets come back from others, at all of
// their addresses.
func (w *World) Reaches(from *nstest.Container, to ...*nstest.Container) {
	w.t.Helper()
	for _, x := range to {
		for _, a := range x.Addrs {
			if err := nstest.TryExchange(from.NS, netip.AddrPortFrom(a, 7), 100, 5*time.Second); err != nil {
				w.t.Errorf("%s does not reach %s: %v", from.Addrs[0], a, err)
			}
		}
	}
}

// Misses fails the test if one container reaches another.
func (w *World) Misses(from, to *nstest.Container) {
	w.t.Helper()
	for _, a := range to.Addrs {
		if nstest.TryExchange(from.NS, netip.AddrPortFrom(a, 7), 100, 500*time.Millisecond) == nil {
			w.t.Errorf("%s reaches %s", from.Addrs[0], a)
		}
	}
}

// Answers has a container answer whoever asks.
func (w *World) Answers(cs ...*nstest.Container) {
	w.t.Helper()
	for _, c := range cs {
		for _, a := range c.Addrs {
			nstest.Echo(w.t, c.NS, netip.AddrPortFrom(a, 7))
		}
	}
}

// SRIOV is a network on virtual functions of eth0 of every host.
func SRIOV() carrick.Network {
	n := Macvlan("")
	n.Mode = carrick.ModeSRIOV
	return n
}
