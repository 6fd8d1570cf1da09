package driver_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

var errNoDevice = errors.New("no such device")

// devices are the links of a host that networks can stand on.
type devices struct {
	names []string

	mu    sync.Mutex
	asked []string // what was asked, in order; guarded by mu
}

func (d *devices) CheckParent(_ context.Context, n carrick.Network, p carrick.Parent) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", p.Name, n.Mode, n.Submode, n.Flag)))
	for _, name := range d.names {
		if name == p.Name || name == p.Base {
			return nil
		}
	}
	return fmt.Errorf("parent %s: %w", p.Name, errNoDevice)
}

// on is a host with some devices.
func on(t *testing.T, s *memory.Server, n int, names ...string) (*sim.Host, *devices) {
	t.Helper()
	d := &devices{names: names}
	return sim.NewHostWith(t, s, sim.Options{Number: n, Devices: d}), d
}

// One network over the devices that each host has; what a host leaves out it inherits,
// and its device is looked at all the same.
func TestANetworkOnDevices(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h1, d1 := on(t, s, 1, "eth1")
	h2, d2 := on(t, s, 2, "enp3s0")
	h3, d3 := on(t, s, 3, "eth9")
	opts := map[string]string{"mode": "macvlan", "parent": "h2:enp3s0.50,*:eth1", "macvlan_mode": "private"}
	n1 := h1.MustCreate("lan", sim.Create{Subnet: "10.42.0.0/16", Gateway: "10.42.0.254", Opts: opts})
	n2 := h2.MustCreate("lan", sim.Create{Subnet: "10.42.0.0/16"})
	if _, err := h3.NetworkCreate("lan", sim.Create{Subnet: "10.42.0.0/16"}); !errors.Is(err, errNoDevice) {
		t.Errorf("a host without the device: %v", err)
	}
	if len(h3.Cluster.Journal().Networks()) != 0 {
		t.Error("it is in the network nonetheless")
	}
	for d, want := range map[*devices]string{d1: "eth1 macvlan private", d2: "enp3s0.50 macvlan private", d3: "eth1 macvlan private"} {
		if got := strings.Join(d.asked, "; "); got != want {
			t.Errorf("asked about %s, want %s", got, want)
		}
	}
	a, b := h1.MustRun(n1, sim.Run{}), h2.MustRun(n2, sim.Run{})
	for _, c := range []*sim.Container{a, b} {
		if c.Joined.Gateway != netip.MustParseAddr("10.42.0.254") || c.Joined.DisableGatewayService || c.Joined.SrcName != c.Endpoint.OuterName() {
			t.Errorf("Join answered %+v", c.Joined)
		}
		if c.MAC.IsZero() {
			t.Error("a container without a MAC of its own")
		}
	}
	if a.Addr == b.Addr || a.MAC == b.MAC {
		t.Errorf("%s %s and %s %s", a.Addr, a.MAC, b.Addr, b.MAC)
	}
	v, ok := h1.View(n1)
	if !ok || v.Network.Parent == "" {
		t.Errorf("view %+v", v.Network)
	}
	if n := v.Network; n.Mode != carrick.ModeMacvlan || n.Submode != "private" || n.Flag != "" || n.MTU != 0 || n.Flood || n.Parent != "h2:enp3s0.50,*:eth1" {
		t.Errorf("the network is %+v", n)
	}
}

// ipvlan containers have their parent's MAC: none is given, and none can be asked for.
// Internal networks, and families that a container does not have, have no way out.
func TestIPvlan(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h1, _ := on(t, s, 1, "eth1", "eth2")
	h2, _ := on(t, s, 2, "eth1")
	create := sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:42::/64", Opts: map[string]string{"mode": "ipvlan", "parent": "eth1", "ipvlan_mode": "l3"}}
	n1, n2 := h1.MustCreate("lan", create), h2.MustCreate("lan", create)
	a, b := h1.MustRun(n1, sim.Run{}), h2.MustRun(n2, sim.Run{NoIPv6: true})
	if !a.MAC.IsZero() || a.Joined.Gateway != n1.Gateway || a.Joined.GatewayIPv6 != n1.Gateway6 {
		t.Errorf("MAC %s, Join answered %+v", a.MAC, a.Joined)
	}
	if b.Joined.GatewayIPv6.IsValid() || !b.Joined.Gateway.IsValid() {
		t.Errorf("without IPv6 Join answered %+v", b.Joined)
	}
	sim.Eventually(t, "h1 knows h2's container", func() bool {
		v, ok := h1.View(n1)
		return ok && len(v.Endpoints[h2.Cluster.Self()]) == 1
	})
	if _, err := h1.Run(n1, sim.Run{MAC: "02:00:00:00:00:07"}); err == nil || !strings.Contains(err.Error(), "--mac-address") || !strings.Contains(err.Error(), "macvlan") {
		t.Errorf("--mac-address: %v", err)
	}
	// A device has one mode.
	for mode, want := range map[string]string{"l2": "lan", "l3": ""} {
		opts := map[string]string{"mode": "ipvlan", "parent": "eth1", "ipvlan_mode": mode}
		_, err := h1.NetworkCreate("second"+mode, sim.Create{Subnet: map[string]string{"l2": "10.43.0.0/16", "l3": "10.44.0.0/16"}[mode], Opts: opts})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), "ipvlan_mode="+mode)) {
			t.Errorf("a second network in %s on the same device: %v", mode, err)
		}
	}
	h1.MustCreate("elsewhere", sim.Create{Subnet: "10.45.0.0/16", Internal: true, Opts: map[string]string{"mode": "ipvlan", "parent": "eth2"}})
	inside := h1.MustRun(h1.Networks()["elsewhere"], sim.Run{})
	if inside.Joined.Gateway.IsValid() || !inside.Joined.DisableGatewayService {
		t.Errorf("an internal network's Join answered %+v", inside.Joined)
	}
}

// Containers on virtual functions have MACs of their own, chosen or given, and the
// segment's way out.
func TestSRIOV(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h1, d1 := on(t, s, 1, "eth1")
	h2, _ := on(t, s, 2, "ens1f0")
	n1 := h1.MustCreate("lan", sim.Create{Subnet: "10.42.0.0/16", Gateway: "10.42.0.254", Opts: map[string]string{"mode": "sriov", "parent": "h2:ens1f0,*:eth1"}})
	n2 := h2.MustCreate("lan", sim.Create{Subnet: "10.42.0.0/16"})
	if got := strings.Join(d1.asked, "; "); got != "eth1 sriov" {
		t.Errorf("asked about %s", got)
	}
	a, b := h1.MustRun(n1, sim.Run{}), h2.MustRun(n2, sim.Run{MAC: "02:00:00:00:00:07"})
	if a.MAC.IsZero() || a.MAC == b.MAC || a.Joined.Gateway != n1.Gateway || a.Joined.SrcName != a.Endpoint.OuterName() {
		t.Errorf("MACs %s and %s, Join answered %+v", a.MAC, b.MAC, a.Joined)
	}
	if v, ok := h1.View(n1); !ok || v.Network.Mode != carrick.ModeSRIOV || v.Network.Submode != "" || v.Network.Flag != "" || v.Network.MTU != 0 {
		t.Errorf("the network is %+v", v.Network)
	}
}

// What does not go together is refused in words that name the option and what would do,
// and leaves nothing.
func TestOptionsOfOtherModes(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h, _ := on(t, s, 1, "eth1")
	other, _ := on(t, s, 2, "eth1")
	other.MustCreate("lan", sim.Create{Subnet: "10.50.0.0/16", Opts: map[string]string{"mode": "macvlan", "parent": "eth1"}})
	before := stable(s)
	for name, c := range map[string]struct {
		subnet string
		opts   map[string]string
		want   []string
	}{
		"no parent":        {"", map[string]string{"mode": "macvlan"}, []string{"mode=macvlan", "parent=DEVICE"}},
		"parent of vxlan":  {"", map[string]string{"parent": "eth1"}, []string{"parent=eth1", "(vxlan)", "mode=macvlan"}},
		"vni":              {"", map[string]string{"mode": "macvlan", "parent": "eth1", "vni": "7"}, []string{"vni=7", "(macvlan)", "mode=vxlan"}},
		"flood":            {"", map[string]string{"mode": "ipvlan", "parent": "eth1", "flood": "off"}, []string{"flood=off", "(ipvlan)"}},
		"macvlan_mode":     {"", map[string]string{"mode": "macvlan", "parent": "eth1", "macvlan_mode": "l2"}, []string{"macvlan_mode=l2", "bridge, private, vepa or passthru"}},
		"ipvlan_mode":      {"", map[string]string{"mode": "ipvlan", "parent": "eth1", "ipvlan_mode": "l4"}, []string{"ipvlan_mode=l4", "l2, l3 or l3s"}},
		"ipvlan_flag":      {"", map[string]string{"mode": "ipvlan", "parent": "eth1", "ipvlan_flag": "x"}, []string{"ipvlan_flag=x", "bridge, private or vepa"}},
		"the other's mode": {"", map[string]string{"mode": "ipvlan", "parent": "eth1", "macvlan_mode": "bridge"}, []string{"macvlan_mode=bridge", "(ipvlan)"}},
		"two parents":      {"", map[string]string{"mode": "macvlan", "parent": "eth1,eth2"}, []string{"parent=eth1,eth2", "hostA:eth1"}},
		"no name":          {"", map[string]string{"mode": "macvlan", "parent": "/dev/eth1"}, []string{"parent=/dev/eth1", "eth1.50"}},
		"VLAN":             {"", map[string]string{"mode": "macvlan", "parent": "eth1.5000"}, []string{"eth1.5000", "4094"}},
		"VLAN of sriov":    {"", map[string]string{"mode": "sriov", "parent": "h2:eth0,*:eth1.50"}, []string{"eth1.50", "(sriov)", "name eth1", "ip link set eth1 vf N vlan 50", "mode=macvlan"}},
		"mode of sriov":    {"", map[string]string{"mode": "sriov", "parent": "eth1", "macvlan_mode": "bridge"}, []string{"macvlan_mode=bridge", "(sriov)"}},
		"no parent of it":  {"", map[string]string{"mode": "sriov"}, []string{"mode=sriov", "parent=DEVICE"}},
		"no such mode":     {"", map[string]string{"mode": "sr-iov"}, []string{"mode=sr-iov", "vxlan, routed, macvlan, ipvlan or sriov"}},
		"not this host":    {"", map[string]string{"mode": "macvlan", "parent": "h2:eth1"}, []string{"parent=h2:eth1", "h1:DEVICE"}},
		"not there":        {"", map[string]string{"mode": "macvlan", "parent": "eth7"}, []string{"eth7", "no such device"}},
		"another parent":   {"10.50.0.0/16", map[string]string{"mode": "macvlan", "parent": "eth1.3"}, []string{"parent is eth1 there and eth1.3 here"}},
		"another mode":     {"10.50.0.0/16", map[string]string{"mode": "vxlan"}, []string{"mode is macvlan there and vxlan here"}},
		"another submode":  {"10.50.0.0/16", map[string]string{"macvlan_mode": "vepa"}, []string{"macvlan_mode is bridge there and vepa here"}},
	} {
		subnet := c.subnet
		if subnet == "" {
			subnet = "10.60.0.0/24"
		}
		_, err := h.NetworkCreate("bad", sim.Create{Subnet: subnet, Opts: c.opts})
		if err == nil {
			t.Errorf("%s: create succeeded", name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not name %q", name, err, w)
			}
		}
		if after := stable(s); after != before {
			t.Fatalf("%s: left behind:\n%s\nbefore:\n%s", name, after, before)
		}
	}
	if _, err := h.NetworkCreate("bad", sim.Create{Subnet: "10.50.0.0/16", Opts: map[string]string{"macvlan_mode": "vepa"}}); !errors.Is(err, cluster.ErrMismatch) {
		t.Errorf("%v, want ErrMismatch", err)
	}
	if _, err := h.NetworkCreate("bad", sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "macvlan"}}); !errors.Is(err, cluster.ErrOption) {
		t.Errorf("%v, want ErrOption", err)
	}
}

// foreign are addresses that machines on the segment have which are none of Carrick's.
type foreign struct {
	mu    sync.Mutex
	held  map[netip.Addr]bool // guarded by mu
	asked int                 // guarded by mu
	err   error
}

func (f *foreign) Foreign(_ context.Context, _ carrick.Network, a netip.Addr) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.held[a] {
		return "02:66:00:00:00:01 on the segment of eth1", f.err
	}
	return "", f.err
}

// An address that a foreign machine on the segment has is never given out: not by itself,
// and not if it is asked for. When all that are tried are taken, the reason is said.
func TestForeignAddresses(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	f := &foreign{held: map[netip.Addr]bool{}}
	for i := 2; i <= 5; i++ {
		f.held[netip.AddrFrom4([4]byte{10, 42, 0, byte(i)})] = true
	}
	h := sim.NewHostWith(t, s, sim.Options{Number: 1, Devices: &devices{names: []string{"eth1", "eth2"}}, Segment: f})
	n := h.MustCreate("lan", sim.Create{Subnet: "10.42.0.0/16", Opts: map[string]string{"mode": "macvlan", "parent": "eth1"}})
	for range 6 {
		if c := h.MustRun(n, sim.Run{}); f.held[c.Addr.Addr()] {
			t.Errorf("%s was given out", c.Addr)
		}
	}
	if _, err := h.Run(n, sim.Run{IP: "10.42.0.3"}); err == nil || !strings.Contains(err.Error(), "--ip 10.42.0.3") || !strings.Contains(err.Error(), "02:66:00:00:00:01") {
		t.Errorf("--ip of a foreign machine's address: %v", err)
	}
	if c := h.MustRun(n, sim.Run{IP: "10.42.0.77"}); c.Addr.Addr() != netip.MustParseAddr("10.42.0.77") {
		t.Errorf("--ip gave %s", c.Addr)
	}
	// It goes away, and its address is as good as any.
	f.mu.Lock()
	delete(f.held, netip.MustParseAddr("10.42.0.3"))
	f.mu.Unlock()
	h.MustRun(n, sim.Run{IP: "10.42.0.3"})

	// Who cannot be asked is not in the way: without its device the container does not start.
	f.err = errNoDevice
	h.MustRun(n, sim.Run{})
	f.err = nil

	f.mu.Lock()
	for i := range 256 {
		f.held[netip.AddrFrom4([4]byte{10, 42, 0, byte(i)})] = true
	}
	f.mu.Unlock()
	if c, err := h.Run(n, sim.Run{}); err == nil || !strings.Contains(err.Error(), "--ip-range") || !strings.Contains(err.Error(), "10 in a row") {
		t.Errorf("with all addresses taken: %+v, %v", c, err)
	}
	if f := h.Live(); len(f) != 9 {
		t.Errorf("%d containers", len(f))
	}

	// Nobody on the segment answers for such a network's addresses, and nothing is encapsulated
	// that anybody else could have.
	f.mu.Lock()
	f.asked = 0
	f.mu.Unlock()
	routed := h.MustCreate("routed", sim.Create{Subnet: "10.43.0.0/16", Opts: map[string]string{"mode": "ipvlan", "parent": "eth2", "ipvlan_mode": "l3"}})
	h.MustRun(routed, sim.Run{})
	h.MustRun(h.MustCreate("app", sim.Create{Subnet: "10.44.0.0/16"}), sim.Run{})
	if f.asked != 0 {
		t.Errorf("%d addresses were asked for in networks that have a segment of their own", f.asked)
	}
}

// Two networks whose containers this host has routes to cannot have one prefix, as two
// tenants may: there is one table of routes. In other modes they can.
func TestRoutesOfTwoTenants(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h, _ := on(t, s, 1, "eth1", "eth2")
	create := func(name, mode, parent string) error {
		_, err := h.NetworkCreate(name, sim.Create{
			Subnet: "10.42.0.0/16", IPAMOpts: map[string]string{"tenant": name}, Opts: map[string]string{"mode": "ipvlan", "parent": parent, "ipvlan_mode": mode},
		})
		return err
	}
	if err := create("a", "l3", "eth1"); err != nil {
		t.Fatal(err)
	}
	if err := create("b", "l3", "eth2"); err == nil || !strings.Contains(err.Error(), "10.42.0.0/16") || !strings.Contains(err.Error(), "tenant a") {
		t.Errorf("a second network with routes: %v", err)
	}
	if err := create("c", "l2", "eth2"); err != nil {
		t.Error(err)
	}
}
