package underlay_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/datapath/underlay/undertest"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/plan"
)

// card is a host with a network card that has virtual functions, on a fake kernel. eth0
// is the physical function, its functions' devices are eth1 and so on.
type card struct {
	t    *testing.T
	k    *nltest.Kernel
	o    *underlay.Host
	pci  string
	view carrick.View
}

const pfDevice = "0000:01:00.0"

func vfDevice(n int) string { return fmt.Sprintf("0000:01:10.%d", n) }

// was is the MAC of a virtual function that nobody has.
func was(n int) carrick.MAC { return carrick.MAC{0x06, 0, 0, 0, 0, byte(n)} }

func newCard(t *testing.T, functions int) *card {
	t.Helper()
	c := &card{t: t, k: nltest.New(), pci: t.TempDir(), view: carrick.View{
		Network:   undertest.SRIOV(),
		Hosts:     map[carrick.HostID]carrick.Host{undertest.HostID(0): {ID: undertest.HostID(0), Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500}},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{}, Joined: map[carrick.EndpointID]bool{}, Fenced: map[carrick.EndpointID]bool{},
	}}
	c.write(pfDevice+"/sriov_totalvfs", "7\n")
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "eth0"}, MTU: 1500, Up: true, Device: pfDevice})
	for n := range functions {
		c.symlink("../"+vfDevice(n), fmt.Sprintf("%s/virtfn%d", pfDevice, n))
		c.symlink("../"+pfDevice, vfDevice(n)+"/physfn")
		c.symlink("../../../bus/pci/drivers/igbvf", vfDevice(n)+"/driver")
		c.write(vfDevice(n)+"/net/x", "")
		c.k.AddVF("eth0", n, nl.Link{Ref: nl.Ref{Name: fmt.Sprintf("eth%d", n+1)}, MTU: 1500, MAC: was(n), Device: vfDevice(n)})
	}
	c.restart()
	return c
}

func (c *card) write(name, text string) {
	c.t.Helper()
	path := filepath.Join(c.pci, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *card) symlink(to, name string) {
	c.t.Helper()
	path := filepath.Join(c.pci, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(to, path)); err != nil {
		c.t.Fatal(err)
	}
}

// restart is an agent that starts anew.
func (c *card) restart() {
	c.t.Helper()
	if c.o != nil {
		_ = c.o.Close()
	}
	o, err := underlay.Open(c.t.Context(), underlay.Config{Kernel: c.k, Namespaces: c.k.Namespaces(), PCI: c.pci, Name: "h1"})
	if err != nil {
		c.t.Fatal(err)
	}
	c.o = o
	c.t.Cleanup(func() { _ = o.Close() })
}

// add says that the host has an endpoint.
func (c *card) add(n int) {
	id := undertest.HostID(0)
	c.view.Endpoints[id] = append(c.view.Endpoints[id], carrick.Endpoint{ID: undertest.Endpoint(n), Addrs: []netip.Addr{undertest.Addr(n)}, MAC: mac(n), Gen: carrick.Gen(n)})
}

func mac(n int) carrick.MAC { return carrick.MACFor(7, undertest.Addr(n)) }

func (c *card) apply(reason string) datapath.Report {
	c.t.Helper()
	a := c.o.Network(undertest.Network)
	if reason != "" {
		a.QueueResync(reason)
	}
	rep, err := a.Apply(c.t.Context(), plan.Make(c.view, undertest.HostID(0)))
	if err != nil {
		c.t.Fatal(err)
	}
	return rep
}

// state is the host's links with hardware, one a line, and what the physical function
// says of its functions.
func (c *card) state() string {
	c.t.Helper()
	ns, err := c.k.Namespaces().Host(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	defer ns.Close()
	h, err := c.k.Open(c.t.Context(), ns)
	if err != nil {
		c.t.Fatal(err)
	}
	defer h.Close()
	links, err := h.Links(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range links {
		if l.Device != "" && l.Name != "eth0" {
			fmt.Fprintf(&b, "%s %s mtu %d %q up %v\n", l.Name, l.MAC, l.MTU, l.Alias, l.Up)
		}
	}
	macs, err := h.VFs(c.t.Context(), c.k.Ref("", "eth0"))
	if err != nil {
		c.t.Fatal(err)
	}
	fmt.Fprint(&b, macs)
	return b.String()
}

// collect is what the agent does at its start and at each audit; endpoints are those of
// its journal.
func (c *card) collect(endpoints ...int) {
	c.t.Helper()
	w := underlay.Wanted{Parents: map[string]bool{"eth0": true}, Children: map[string]bool{}}
	for _, n := range endpoints {
		w.Children[undertest.Endpoint(n).OuterName()] = true
	}
	if err := c.o.Collect(c.t.Context(), func() underlay.Wanted { return w }); err != nil {
		c.t.Fatal(err)
	}
}

// Two endpoints get the two functions, a third is told who has them, and what was lent
// comes back as it was.
func TestVirtualFunctionsAreLent(t *testing.T) {
	t.Parallel()
	c := newCard(t, 2)
	before := c.state()
	c.view.Network.MTU = 1400
	for n := 2; n <= 4; n++ {
		c.add(n)
	}
	rep := c.apply("")
	for n := 2; n <= 3; n++ {
		if err := rep.Endpoints[undertest.Endpoint(n)]; err != nil {
			t.Error(err)
		}
		want := fmt.Sprintf("%s %s mtu 1400 %q up false", undertest.Endpoint(n).OuterName(), mac(n),
			plan.FunctionAlias(undertest.Network, undertest.Endpoint(n), plan.Function{Name: fmt.Sprintf("eth%d", n-1), MAC: was(n - 2)}))
		if got := c.state(); !strings.Contains(got, want) {
			t.Errorf("the host has\n%s\nwant\n%s", got, want)
		}
	}
	err := rep.Endpoints[undertest.Endpoint(4)]
	if !errors.Is(err, underlay.ErrFunctionsTaken) {
		t.Errorf("a third endpoint: %v", err)
	}
	says(t, err, "host h1", "parent eth0", "it has 2", "virtfn0: endpoint "+undertest.Endpoint(2).Short(), "virtfn1: endpoint "+undertest.Endpoint(3).Short(), "sriov_numvfs")
	if rep := c.apply("audit"); rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
		t.Errorf("once more: %v, drift %v", rep.Changes, rep.Drift)
	}
	// One ends; the one that was refused gets its function.
	id := undertest.HostID(0)
	c.view.Endpoints[id] = c.view.Endpoints[id][1:]
	c.apply("")
	rep = c.apply("")
	if err := rep.Endpoints[undertest.Endpoint(4)]; err != nil {
		t.Error(err)
	}
	c.view.Endpoints[id] = nil
	c.apply("")
	// Their MTU is not what it was: whoever is next sets it.
	if got := strings.ReplaceAll(c.state(), "mtu 1400", "mtu 1500"); got != before {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
}

// A function that somebody else uses is nobody's to take.
func TestFunctionsOfOthers(t *testing.T) {
	t.Parallel()
	c := newCard(t, 6)
	c.k.Alter("", "eth1", func(l *nl.Link) { l.Up = true })
	c.k.Alter("", "eth2", func(l *nl.Link) { l.Alias = "the backup's" })
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "br9"}, Kind: nl.KindBridge, MTU: 1500, Bridge: &nl.BridgeInfo{}})
	c.k.Alter("", "eth3", func(l *nl.Link) { l.Master = c.masterOf(l) })
	c.k.Alter("", "eth4", func(l *nl.Link) { l.Name = "ck0123456789a" })
	if err := os.RemoveAll(filepath.Join(c.pci, vfDevice(4), "driver")); err != nil {
		t.Fatal(err)
	}
	c.k.Alter("", "eth5", func(l *nl.Link) { l.Device = "" }) // it is elsewhere
	c.k.Alter("", "eth6", func(l *nl.Link) { l.Device = "" })
	before := c.state()
	c.add(2)
	err := c.apply("").Endpoints[undertest.Endpoint(2)]
	if !errors.Is(err, underlay.ErrFunctionsTaken) {
		t.Errorf("%v", err)
	}
	says(t, err, "virtfn0: eth1, which is up", `virtfn1: eth2, whose alias is "the backup's"`, "virtfn2: eth3, which is a port", "virtfn3: ck0123456789a", "virtfn4: without a driver", "virtfn5: in a network namespace")
	if got := c.state(); got != before {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
}

// masterOf avoids looking a name up while the kernel is held.
func (c *card) masterOf(*nl.Link) int { return 99 }

// A device that has none is refused before anybody hears of the network, in words that
// say what would do.
func TestDevicesWithoutFunctions(t *testing.T) {
	t.Parallel()
	c := newCard(t, 1)
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "plain0"}, MTU: 1500, Up: true, Device: "0000:02:00.0"})
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "soft0"}, MTU: 1500, Up: true})
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "off0"}, MTU: 1500, Up: true, Device: "0000:03:00.0"})
	c.write("0000:03:00.0/sriov_totalvfs", "63\n")
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "guest0"}, MTU: 1500, Up: true, Device: "0000:04:00.0"})
	c.write("0000:04:00.0/sriov_totalvfs", "8\n")
	c.symlink("../0000:04:10.0", "0000:04:00.0/virtfn0")
	c.symlink("../../../bus/pci/drivers/vfio-pci", "0000:04:10.0/driver")
	c.k.Alter("", "eth1", func(l *nl.Link) { l.Up = true })
	for parent, words := range map[string][]string{
		"plain0": {"host h1", "parent plain0", "hardware has none", "eth0, guest0, off0"},
		"soft0":  {"no PCI device", "5.13"},
		"off0":   {"it can have 63", "echo 63 >/sys/class/net/off0/device/sriov_numvfs"},
		"guest0": {"it has 1", "virtfn0", "vfio-pci", "igbvf"},
		"eth1":   {"itself a virtual function", "eth0"},
	} {
		err := c.o.CheckParent(t.Context(), undertest.SRIOV(), carrick.Parent{Name: parent})
		if !errors.Is(err, underlay.ErrNoFunctions) {
			t.Errorf("%s: %v", parent, err)
		}
		says(t, err, words...)
	}
	if err := c.o.CheckParent(t.Context(), undertest.SRIOV(), carrick.Parent{Name: "eth0"}); err != nil {
		t.Error(err) // all are used, which may change
	}
	n := undertest.SRIOV()
	n.MTU = 9000
	says(t, c.o.CheckParent(t.Context(), n, carrick.Parent{Name: "eth0"}), "-o mtu=9000", "eth0 carries 1500")
}

// crash lets an apply send some messages and no more, and starts the agent anew. It says
// whether that was too few.
func (c *card) crash(after int) bool {
	c.t.Helper()
	c.k.CrashAfter(after)
	rep, err := c.o.Network(undertest.Network).Apply(c.t.Context(), plan.Make(c.view, undertest.HostID(0)))
	c.k.Recover()
	c.restart()
	return errors.Is(err, nltest.ErrCrashed) || errors.Is(rep.Failed(), nltest.ErrCrashed)
}

// A crash at any message, and the start after it: the function is the endpoint's or
// nobody's, and as it was.
func TestACrashWhileAFunctionIsLent(t *testing.T) {
	t.Parallel()
	for after := 0; ; after++ {
		c := newCard(t, 1)
		before := c.state()
		c.add(2)
		crashed := c.crash(after)
		if after < 4 && !crashed {
			t.Fatalf("it took %d messages", after)
		}
		c.collect(2)
		if err := c.apply("").Endpoints[undertest.Endpoint(2)]; err != nil {
			t.Errorf("a crash after %d messages, and the start: %v", after, err)
		}
		c.restart()
		c.view.Endpoints = nil
		c.collect()
		if got := c.state(); got != before {
			t.Errorf("a crash after %d messages: the host has\n%s\nhad\n%s", after, got, before)
		}
		if !crashed {
			return
		}
	}
}

// A crash while one is given back: the next audit goes on.
func TestACrashWhileAFunctionComesBack(t *testing.T) {
	t.Parallel()
	for after := 0; ; after++ {
		c := newCard(t, 1)
		before := c.state()
		c.add(2)
		c.apply("")
		c.view.Endpoints = nil
		crashed := c.crash(after)
		if after < 4 && !crashed {
			t.Fatalf("it took %d messages", after)
		}
		c.collect()
		if got := c.state(); got != before {
			t.Errorf("a crash after %d messages: the host has\n%s\nhad\n%s", after, got, before)
		}
		if !crashed {
			return
		}
	}
}

// What somebody does to a function in the host's namespace is put right, and counted.
func TestFunctionsAreVandalised(t *testing.T) {
	t.Parallel()
	c := newCard(t, 1)
	before := c.state()
	c.add(2)
	c.apply("")
	want := c.state()
	name := undertest.Endpoint(2).OuterName()
	for what, change := range map[string]nl.Change{
		"name": nl.SetLink{Link: c.k.Ref("", name), Rename: "mine"},
		"MTU":  nl.SetLink{Link: c.k.Ref("", name), MTU: 1300},
		"MAC":  nl.SetVF{PF: c.k.Ref("", "eth0"), Number: 0, MAC: carrick.MAC{2, 9, 9, 9, 9, 9}},
	} {
		if err := c.k.As("", change); err != nil {
			t.Fatal(err)
		}
		rep := c.apply("audit")
		if rep.Drift != (datapath.Counts{Links: 1}) || len(rep.Found) != 1 {
			t.Errorf("%s: drift %v, found %v", what, rep.Drift, rep.Found)
		}
		if got := c.state(); got != want {
			t.Errorf("%s: the host has\n%s\nwant\n%s", what, got, want)
		}
	}
	// What it was before is lost with the alias.
	if err := c.k.As("", nl.SetLink{Link: c.k.Ref("", name), NoAlias: true}); err != nil {
		t.Fatal(err)
	}
	if rep := c.apply("audit"); rep.Drift != (datapath.Counts{Links: 1}) {
		t.Errorf("alias: drift %v, found %v", rep.Drift, rep.Found)
	}
	c.view.Endpoints = nil
	c.apply("")
	if got := c.state(); !strings.HasPrefix(got, "eth0v0 ") || strings.Contains(got, mac(2).String()) || strings.Contains(got, "carrick") {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
}

// One that came home from a container that died is the endpoint's while it is there, and
// free after that.
func TestAFunctionComesHome(t *testing.T) {
	t.Parallel()
	c := newCard(t, 1)
	before := c.state()
	c.add(2)
	c.apply("")
	c.view.Joined[undertest.Endpoint(2)] = true
	c.apply("")
	a := c.o.Network(undertest.Network)
	drain(a.Changed())
	if err := c.k.As("", nl.SetLink{Link: c.k.Ref("", undertest.Endpoint(2).OuterName()), Rename: "dev7"}); err != nil {
		t.Fatal(err)
	}
	heard(t, a.Changed())
	c.apply("")
	drain(a.Changed())
	// It may as well have the name that it had before it was lent.
	if err := c.k.As("", nl.SetLink{Link: c.k.Ref("", undertest.Endpoint(2).OuterName()), Rename: "eth1"}); err != nil {
		t.Fatal(err)
	}
	heard(t, a.Changed())
	if rep := c.apply(""); rep.Drift.Total() != 0 || rep.Endpoints[undertest.Endpoint(2)] != nil {
		t.Errorf("drift %v, %v", rep.Drift, rep.Endpoints)
	}
	if got := c.state(); !strings.Contains(got, undertest.Endpoint(2).OuterName()) {
		t.Errorf("the host has\n%s", got)
	}
	c.view.Endpoints = nil
	c.apply("")
	if got := c.state(); got != before {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
}

// A card that cannot be told leaves the function as it was, and one that must be told some
// MAC is told the one of before.
func TestACardRefuses(t *testing.T) {
	t.Parallel()
	c := newCard(t, 1)
	before := c.state()
	c.add(2)
	c.k.FailNext("SetVF", unix.EOPNOTSUPP)
	err := c.apply("").Endpoints[undertest.Endpoint(2)]
	if !errors.Is(err, nl.ErrNotSupported) {
		t.Errorf("%v", err)
	}
	says(t, err, "host h1", "parent eth0", "virtfn0", "ip link set eth0 vf 0 mac "+mac(2).String())
	if got := c.state(); got != before {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
	if err := c.apply("").Endpoints[undertest.Endpoint(2)]; err != nil {
		t.Error(err)
	}
	c.view.Endpoints = nil
	c.k.FailNext("SetVF", unix.EINVAL)
	c.apply("")
	if got := c.state(); got != strings.Replace(before, carrick.MAC{}.String(), was(0).String(), 1) {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
}

// The network's device is another one from now on: a function that no container has yet
// goes back to its card, and the endpoint gets one of the other.
func TestAnotherCard(t *testing.T) {
	t.Parallel()
	c := newCard(t, 1)
	const other, function = "0000:05:00.0", "0000:05:10.0"
	c.write(other+"/sriov_totalvfs", "7\n")
	c.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: "ens9"}, MTU: 1500, Up: true, Device: other})
	c.symlink("../"+function, other+"/virtfn0")
	c.symlink("../"+other, function+"/physfn")
	c.symlink("../../../bus/pci/drivers/igbvf", function+"/driver")
	c.write(function+"/net/x", "")
	c.k.AddVF("ens9", 0, nl.Link{Ref: nl.Ref{Name: "ens10"}, MTU: 1500, MAC: was(9), Device: function})
	c.add(2)
	c.apply("")
	c.view.Network.Parent = "ens9"
	if err := c.apply("audit").Endpoints[undertest.Endpoint(2)]; err != nil {
		t.Error(err)
	}
	got := c.state()
	for _, want := range []string{fmt.Sprintf("eth1 %s mtu 1500 %q up false", was(0), ""), undertest.Endpoint(2).OuterName() + " " + mac(2).String(), "/vf/ens10/" + was(9).String()} {
		if !strings.Contains(got, want) {
			t.Errorf("the host has\n%s\nwant %s", got, want)
		}
	}
}

// Two containers die, and the function of one comes home under the name that the other's
// had before it was lent: both are what they were.
func TestFunctionsComeHomeUnderEachOthersNames(t *testing.T) {
	t.Parallel()
	c := newCard(t, 2)
	before := c.state()
	c.add(2)
	c.add(3)
	c.apply("")
	if err := c.k.As("",
		nl.SetLink{Link: c.k.Ref("", undertest.Endpoint(2).OuterName()), Rename: "dev9"},
		nl.SetLink{Link: c.k.Ref("", undertest.Endpoint(3).OuterName()), Rename: "eth1"}); err != nil {
		t.Fatal(err)
	}
	c.view.Endpoints = nil
	c.apply("")
	if got := c.state(); got != before {
		t.Errorf("the host has\n%s\nhad\n%s", got, before)
	}
}
