package routed_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

const network = carrick.NetworkID("00000000000000aa")

func endpoint(n int) carrick.EndpointID { return carrick.EndpointID(fmt.Sprintf("%02x%062x", n, 0)) }

func hostID(n int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", n)) }

func addr4(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(n)}) }

func addr6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:42::%x", n)) }

// dual is a network of both families.
func dual() carrick.Network {
	return carrick.Network{
		ID: network, Tenant: carrick.DefaultTenant, Mode: carrick.ModeRouted, VNI: 7, Port: carrick.DefaultPort,
		Pools: []carrick.Pool{
			{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26},
			{Prefix: netip.MustParsePrefix("fd00:42::/64"), Gateway: netip.MustParseAddr("fd00:42::1"), Block: 122},
		},
	}
}

// world is some hosts that a cluster tells of one network, and an applier for each.
type world struct {
	t     *testing.T
	hosts []*nstest.Host
	on    []*routed.Host // by host
	view  carrick.View   // what all hosts know; the fields are the test's to change
}

// newWorld makes hosts on one segment that forward and have Docker's chain for users, as
// engines have left them. VTEPs are IPv6 of six.
func newWorld(t *testing.T, conf carrick.Network, hosts int, six bool) *world {
	t.Helper()
	lab := nstest.NewLab(t)
	w := &world{t: t, view: carrick.View{
		Network: conf, Hosts: map[carrick.HostID]carrick.Host{}, Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Joined: map[carrick.EndpointID]bool{}, Fenced: map[carrick.EndpointID]bool{},
	}}
	for i := range hosts {
		h := lab.Host(i+1, 1500)
		for _, line := range []string{
			"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
			"iptables-nft -N DOCKER-USER", "iptables-nft -A FORWARD -j DOCKER-USER", "iptables-nft -P FORWARD DROP",
			"ip6tables-nft -N DOCKER-USER", "ip6tables-nft -A FORWARD -j DOCKER-USER", "ip6tables-nft -P FORWARD DROP",
		} {
			nstest.Run(t, h.NS, line)
		}
		w.hosts, w.on = append(w.hosts, h), append(w.on, nil)
		vtep := h.VTEP
		if six {
			vtep = h.VTEP6
		}
		w.view.Hosts[hostID(i)] = carrick.Host{ID: hostID(i), Name: fmt.Sprintf("h%d", i+1), VTEP: vtep, MTU: 1500}
		w.restart(i)
	}
	t.Cleanup(func() {
		for _, o := range w.on {
			_ = o.Close()
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
	o, err := routed.Open(w.t.Context(), routed.Config{Kernel: nl.Linux{}, Namespaces: w.hosts[host].Namespaces, Accepts: nft.User{}, Sources: nft.Sources{}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.on[host] = o
}

func (w *world) apply(host int) (datapath.Report, error) {
	return w.on[host].Network(w.view.Network.ID).Apply(w.t.Context(), plan.Make(w.view, hostID(host)))
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

// all has every host converge.
func (w *world) all() {
	w.t.Helper()
	for i := range w.hosts {
		w.mustApply(i)
	}
}

// audit reads a host's kernel back.
func (w *world) audit(host int) datapath.Report {
	w.t.Helper()
	w.on[host].Network(w.view.Network.ID).QueueResync("audit")
	return w.mustApply(host)
}

// add says that a host has an endpoint, without a container yet.
func (w *world) add(host, n int) carrick.EndpointID {
	e := carrick.Endpoint{ID: endpoint(n), Gen: carrick.Gen(n), MAC: carrick.MACFor(w.view.Network.VNI, addr4(n))}
	for _, p := range w.prefixes(n) {
		e.Addrs = append(e.Addrs, p.Addr())
	}
	w.view.Endpoints[hostID(host)] = append(slices.Clone(w.view.Endpoints[hostID(host)]), e)
	return e.ID
}

// prefixes are endpoint n's addresses as its container has them.
func (w *world) prefixes(n int) (out []netip.Prefix) {
	for _, p := range w.view.Network.Pools {
		a := addr4(n)
		if p.Prefix.Addr().Is6() {
			a = addr6(n)
		}
		out = append(out, netip.PrefixFrom(a, p.Prefix.Bits()))
	}
	return out
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

// take is Docker moving an endpoint's end into its container, with the routes that Join
// asks for.
func (w *world) take(host, n int) *nstest.Container {
	w.t.Helper()
	c := w.hosts[host].Container(fmt.Sprintf("c%d", n), endpoint(n).OuterName(), w.prefixes(n)...)
	for _, p := range w.view.Network.Pools {
		for _, half := range p.Halves() {
			nstest.Run(w.t, c.NS, fmt.Sprintf("ip route add %s via %s", half, p.Router()))
		}
	}
	for _, a := range c.Addrs {
		nstest.Echo(w.t, c.NS, netip.AddrPortFrom(a, 7))
	}
	return c
}

// gone says that an endpoint is no more.
func (w *world) gone(host, n int) {
	w.view.Endpoints[hostID(host)] = slices.DeleteFunc(slices.Clone(w.view.Endpoints[hostID(host)]), func(e carrick.Endpoint) bool { return e.ID == endpoint(n) })
}

// reach fails the test unless containers' packets come back from each other, over every
// family.
func (w *world) reach(cs ...*nstest.Container) {
	w.t.Helper()
	for _, from := range cs {
		for _, to := range cs {
			for _, a := range to.Addrs {
				if err := nstest.TryExchange(from.NS, netip.AddrPortFrom(a, 7), 100, patience); from != to && err != nil {
					w.t.Errorf("%s does not reach %s: %v", from.Addrs[0], a, err)
				}
			}
		}
	}
}

// misses fails the test if one container reaches another.
func (w *world) misses(from, to *nstest.Container) {
	w.t.Helper()
	for _, a := range to.Addrs {
		if nstest.TryExchange(from.NS, netip.AddrPortFrom(a, 7), 100, 500*time.Millisecond) == nil {
			w.t.Errorf("%s reaches %s", from.Addrs[0], a)
		}
	}
}

// routes are a host's routes that are ours, in one line each.
func (w *world) routes(host int) string {
	w.t.Helper()
	var out []string
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(nstest.Run(w.t, w.hosts[host].NS, "ip "+f+" route show proto 67")) {
			line = strings.NewReplacer(" metric 1073741824", "", " scope link", "", " metric 1024", "", " pref medium", "", " dev lo", "").Replace(line)
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// accepts are a host's rules and tables that are ours.
func (w *world) accepts(host int) int {
	w.t.Helper()
	n := strings.Count(nstest.Run(w.t, w.hosts[host].NS, "nft list tables"), "carrick")
	for _, p := range []string{"iptables-nft", "ip6tables-nft"} {
		n += strings.Count(nstest.Run(w.t, w.hosts[host].NS, p+" -S DOCKER-USER"), "carrick "+string(network))
	}
	return n
}

// ours are the links of a host that are.
func (w *world) ours(host int) (out []string) {
	w.t.Helper()
	for name := range nstest.Links(w.t, w.hosts[host].NS) {
		if strings.HasPrefix(name, "ck") || strings.HasPrefix(name, "cr") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// patience is how long a packet may be under way on a busy machine.
const patience = 5 * time.Second

// eventually waits for something.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	limit, again := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-limit:
			t.Fatal("it did not come")
		}
	}
}
