package sriov_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/datapath/underlay/undertest"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/vmtest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// slow is how long an emulated machine may take for what takes no time.
const slow = 20 * time.Second

// world is a guest whose first card is the host's, pf0, and whose second is another
// machine's on the segment.
type world struct {
	t          *testing.T
	namespaces *netns.Dir // of the host
	host       netns.Namespace
	dir        string // of the containers
	containers *netns.Dir
	far        *nstest.Container
	on         *underlay.Host
	view       carrick.View
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: nstest.Dir(t), namespaces: netns.NewDir(netns.Config{Dir: nstest.Dir(t)}), view: carrick.View{
		Network:   undertest.SRIOV(),
		Hosts:     map[carrick.HostID]carrick.Host{undertest.HostID(0): {ID: undertest.HostID(0), Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500}},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{}, Joined: map[carrick.EndpointID]bool{},
		Fenced: map[carrick.EndpointID]bool{}, Sandboxes: map[carrick.EndpointID]string{},
	}}
	w.view.Network.Parent = "pf0"
	w.containers = netns.NewDir(netns.Config{Dir: w.dir})
	var err error
	if w.host, err = w.namespaces.Host(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.host.Close() })
	for i, name := range []string{"pf0", "pf1"} {
		w.run("ip link set " + w.nameOf(vmtest.CardMAC(i)) + " name " + name)
	}
	w.far = &nstest.Container{NS: w.namespace("far"), Addrs: []netip.Addr{undertest.Addr(200)}}
	w.run("ip link set pf1 netns " + filepath.Join(w.dir, "far"))
	nstest.Batch(t, w.far.NS, "ip link set lo up", "ip addr add 10.42.0.200/16 dev pf1", "ip link set pf1 up")
	w.run("ip link set pf0 up")
	w.restart()
	t.Cleanup(func() { _ = w.on.Close() })
	return w
}

// nameOf is the name of the host's device that has a MAC.
func (w *world) nameOf(mac carrick.MAC) string {
	w.t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range list {
		if i.HardwareAddr.String() == mac.String() {
			return i.Name
		}
	}
	w.t.Fatalf("no device has MAC %s: %v", mac, list)
	return ""
}

func (w *world) namespace(name string) netns.Namespace {
	w.t.Helper()
	ns, err := w.containers.Create(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return ns
}

// run runs a command on the host.
func (w *world) run(line string) string {
	w.t.Helper()
	return nstest.Run(w.t, w.host, line)
}

// functions has the card make virtual functions.
func (w *world) functions(n int) {
	w.t.Helper()
	if err := os.WriteFile("/sys/class/net/pf0/device/sriov_numvfs", []byte(fmt.Sprint(n)), 0); err != nil {
		w.t.Fatal(err)
	}
	for i := range n {
		w.eventually("virtual functions have devices", func() bool {
			list, err := os.ReadDir(fmt.Sprintf("/sys/class/net/pf0/device/virtfn%d/net", i))
			return err == nil && len(list) == 1
		})
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	limit, again := time.After(slow), time.NewTicker(20*time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-limit:
			w.t.Fatalf("not within %s: %s\n%s", slow, what, w.run("ip -d link show"))
		}
	}
}

// restart is an agent that ends and starts anew.
func (w *world) restart() {
	w.t.Helper()
	if w.on != nil {
		if err := w.on.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	o, err := underlay.Open(w.t.Context(), underlay.Config{Kernel: nl.Linux{}, Namespaces: w.namespaces, Name: "h1"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.on = o
}

func (w *world) apply() (datapath.Report, error) {
	return w.on.Network(undertest.Network).Apply(w.t.Context(), plan.Make(w.view, undertest.HostID(0)))
}

func (w *world) mustApply() datapath.Report {
	w.t.Helper()
	rep, err := w.apply()
	if err == nil {
		err = rep.Failed()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return rep
}

func (w *world) audit() datapath.Report {
	w.t.Helper()
	w.on.Network(undertest.Network).QueueResync("audit")
	return w.mustApply()
}

// collect is what the agent does at its start and at each audit.
func (w *world) collect() {
	w.t.Helper()
	err := w.on.Collect(w.t.Context(), func() underlay.Wanted {
		need := underlay.Wanted{Parents: map[string]bool{"pf0": true}, Children: map[string]bool{}}
		for _, e := range w.view.Endpoints[undertest.HostID(0)] {
			need.Children[e.ID.OuterName()] = true
		}
		return need
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func mac(n int) carrick.MAC { return carrick.MACFor(7, undertest.Addr(n)) }

// add says that the host has an endpoint, without a container yet.
func (w *world) add(n int) {
	id := undertest.HostID(0)
	w.view.Endpoints[id] = append(slices.Clone(w.view.Endpoints[id]), carrick.Endpoint{
		ID: undertest.Endpoint(n), Addrs: []netip.Addr{undertest.Addr(n)}, MAC: mac(n), Gen: carrick.Gen(n)})
}

// gone says that an endpoint is no more.
func (w *world) gone(ns ...int) {
	id := undertest.HostID(0)
	w.view.Endpoints[id] = slices.DeleteFunc(slices.Clone(w.view.Endpoints[id]), func(e carrick.Endpoint) bool {
		return slices.ContainsFunc(ns, func(n int) bool { return e.ID == undertest.Endpoint(n) })
	})
}

func name(n int) string { return fmt.Sprintf("c%d", n) }

// start starts a container of a new endpoint: Join, then what Docker does. It gives the
// device the MAC that it has already.
func (w *world) start(n int) *nstest.Container {
	w.t.Helper()
	w.add(n)
	w.mustApply()
	c := &nstest.Container{NS: w.namespace(name(n)), Addrs: []netip.Addr{undertest.Addr(n)}}
	path := filepath.Join(w.dir, name(n))
	w.run(fmt.Sprintf("ip link set %s netns %s", undertest.Endpoint(n).OuterName(), path))
	nstest.Batch(w.t, c.NS, "ip link set lo up",
		fmt.Sprintf("ip link set %s down", undertest.Endpoint(n).OuterName()),
		fmt.Sprintf("ip link set %s name eth0", undertest.Endpoint(n).OuterName()),
		fmt.Sprintf("ip link set eth0 address %s", mac(n)),
		fmt.Sprintf("ip addr add %s/16 dev eth0", undertest.Addr(n)),
		"ip link set eth0 up")
	w.view.Joined[undertest.Endpoint(n)], w.view.Sandboxes[undertest.Endpoint(n)] = true, path
	w.mustApply()
	return c
}

// answers has a container answer whoever asks, until the test ends, and so does its
// namespace not end before.
func (w *world) answers(cs ...*nstest.Container) {
	w.t.Helper()
	for _, c := range cs {
		nstest.Echo(w.t, c.NS, netip.AddrPortFrom(c.Addrs[0], 7))
	}
}

// stop ends a container as Docker does: first its device comes back, then the endpoint
// is deleted.
func (w *world) stop(c *nstest.Container, n int) {
	w.t.Helper()
	nstest.Run(w.t, c.NS, "ip link set eth0 down")
	nstest.Run(w.t, c.NS, fmt.Sprintf("ip link set eth0 netns 1 name %s", undertest.Endpoint(n).OuterName()))
	w.gone(n)
	w.mustApply()
}

// die ends a container's namespace, with its device in it.
func (w *world) die(c *nstest.Container, n int) {
	w.t.Helper()
	if err := errors.Join(c.NS.Close(), w.containers.Delete(w.t.Context(), name(n))); err != nil {
		w.t.Fatal(err)
	}
}

// home says whether a device of an endpoint is in the host's namespace.
func (w *world) home(n int) bool {
	return strings.Contains(w.run("ip link show"), plan.ChildAlias(undertest.Network, undertest.Endpoint(n)))
}

// state is what the host's links are, in an order of their own: without indices, without
// the carrier, which follows in its own time, and without what the card or a driver says
// of MACs that it was told once.
func (w *world) state() string {
	w.t.Helper()
	out := w.run("ip -o link show")
	for _, x := range []string{`(?m)^\d+: `, `NO-CARRIER,`, `,LOWER_UP`, ` state \S+`, ` permaddr \S+`, `\\\s+vf .*`} {
		out = regexp.MustCompile(x).ReplaceAllString(out, "")
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (w *world) tries(from, to *nstest.Container, limit time.Duration) error {
	return nstest.TryExchange(from.NS, netip.AddrPortFrom(to.Addrs[0], 7), 100, limit)
}

func (w *world) reaches(from *nstest.Container, to ...*nstest.Container) {
	w.t.Helper()
	for _, x := range to {
		if err := w.tries(from, x, slow); err != nil {
			w.t.Errorf("%s does not reach %s: %v", from.Addrs[0], x.Addrs[0], err)
		}
	}
}

func (w *world) misses(from, to *nstest.Container) {
	w.t.Helper()
	if w.tries(from, to, time.Second) == nil {
		w.t.Errorf("%s reaches %s", from.Addrs[0], to.Addrs[0])
	}
}
