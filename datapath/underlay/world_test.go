package underlay_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// network is the id of the network of most tests.
const network = carrick.NetworkID("00000000000000aa")

func endpoint(n int) carrick.EndpointID { return carrick.EndpointID(fmt.Sprintf("%02x%062x", n, 0)) }

func hostID(n int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", n)) }

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(n)}) }

// macvlan is a macvlan network on eth0 of every host.
func macvlan(mode string) carrick.Network {
	return carrick.Network{
		ID: network, Tenant: carrick.DefaultTenant, Mode: carrick.ModeMacvlan, Submode: mode, Parent: "eth0", VNI: 7,
		Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}},
	}
}

// world is some hosts on one segment, what the cluster says of a network, and an
// applier for each host.
type world struct {
	t     *testing.T
	lab   *nstest.Lab
	hosts []*nstest.Host
	on    []*underlay.Host
	view  carrick.View
}

func newWorld(t *testing.T, conf carrick.Network, hosts int) *world {
	t.Helper()
	w := &world{t: t, lab: nstest.NewLab(t), view: carrick.View{
		Network: conf, Hosts: map[carrick.HostID]carrick.Host{}, Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Joined: map[carrick.EndpointID]bool{}, Fenced: map[carrick.EndpointID]bool{}, Sandboxes: map[carrick.EndpointID]string{},
	}}
	for i := range hosts {
		h := w.lab.Host(i+1, 1500)
		w.hosts, w.on = append(w.hosts, h), append(w.on, nil)
		w.view.Hosts[hostID(i)] = carrick.Host{ID: hostID(i), Name: fmt.Sprintf("h%d", i+1), VTEP: h.VTEP, MTU: 1500}
		w.restart(i)
	}
	t.Cleanup(func() {
		for _, o := range w.on {
			if o != nil {
				_ = o.Close()
			}
		}
	})
	return w
}

// restart is an agent that ends and starts anew: it knows nothing of before.
func (w *world) restart(host int) {
	w.t.Helper()
	if o := w.on[host]; o != nil {
		if err := o.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	o, err := underlay.Open(w.t.Context(), underlay.Config{Kernel: nl.Linux{}, Namespaces: w.hosts[host].Namespaces})
	if err != nil {
		w.t.Fatal(err)
	}
	w.on[host] = o
}

func (w *world) plan(host int) plan.Network { return plan.Make(w.view, hostID(host)) }

// apply hands a host the plan of now.
func (w *world) apply(host int) (datapath.Report, error) {
	return w.on[host].Network(w.view.Network.ID).Apply(w.t.Context(), w.plan(host))
}

// mustApply fails the test unless all of the plan is in the kernel.
func (w *world) mustApply(host int) datapath.Report {
	w.t.Helper()
	rep, err := w.apply(host)
	if err == nil {
		err = rep.Failed()
	}
	if err != nil {
		w.t.Fatalf("h%d: %v", host+1, err)
	}
	return rep
}

// audit reads a host's kernel back.
func (w *world) audit(host int) datapath.Report {
	w.t.Helper()
	w.on[host].Network(w.view.Network.ID).QueueResync("audit")
	return w.mustApply(host)
}

// add says that a host has an endpoint, without a container yet.
func (w *world) add(host, n int) carrick.EndpointID {
	e := carrick.Endpoint{ID: endpoint(n), Addrs: []netip.Addr{addr(n)}, Gen: carrick.Gen(n)}
	if w.view.Network.Mode == carrick.ModeMacvlan {
		e.MAC = carrick.MACFor(w.view.Network.VNI, addr(n))
	}
	w.view.Endpoints[hostID(host)] = append(slices.Clone(w.view.Endpoints[hostID(host)]), e)
	return e.ID
}

// run starts a container of an endpoint that is new: Join, then what Docker does.
func (w *world) run(host, n int) *nstest.Container {
	w.t.Helper()
	ep := w.add(host, n)
	w.mustApply(host)
	c := w.take(host, n)
	w.view.Joined[ep] = true
	return c
}

// take is Docker moving an endpoint's device into its container.
func (w *world) take(host, n int) *nstest.Container {
	w.t.Helper()
	name := fmt.Sprintf("c%d", n)
	w.view.Sandboxes[endpoint(n)] = w.hosts[host].Sandbox(name)
	return w.hosts[host].Container(name, endpoint(n).OuterName(), netip.PrefixFrom(addr(n), 16))
}

// gone says that an endpoint is no more.
func (w *world) gone(host, n int) {
	w.view.Endpoints[hostID(host)] = slices.DeleteFunc(slices.Clone(w.view.Endpoints[hostID(host)]), func(e carrick.Endpoint) bool { return e.ID == endpoint(n) })
}

// reaches fails the test unless one container's packets come back from another.
func (w *world) reaches(from *nstest.Container, to ...*nstest.Container) {
	w.t.Helper()
	for _, x := range to {
		if err := exchange(w.t, from, x); err != nil {
			w.t.Errorf("%s does not reach %s: %v", from.Addrs[0], x.Addrs[0], err)
		}
	}
}

func exchange(t *testing.T, from, to *nstest.Container) error {
	t.Helper()
	return nstest.TryExchange(from.NS, netip.AddrPortFrom(to.Addrs[0], 7), 100, 5*time.Second)
}

// misses fails the test if one container reaches another.
func (w *world) misses(from, to *nstest.Container) {
	w.t.Helper()
	if nstest.TryExchange(from.NS, netip.AddrPortFrom(to.Addrs[0], 7), 100, 500*time.Millisecond) == nil {
		w.t.Errorf("%s reaches %s", from.Addrs[0], to.Addrs[0])
	}
}

// answers has a container answer whoever asks.
func (w *world) answers(cs ...*nstest.Container) {
	w.t.Helper()
	for _, c := range cs {
		nstest.Echo(w.t, c.NS, netip.AddrPortFrom(c.Addrs[0], 7))
	}
}

// says fails the test unless an error has some words.
func says(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, want := range words {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
