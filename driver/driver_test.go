package driver_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/driver"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// The same create on each host gives one network: one id, one VNI, one pool.
func TestSameCreateOnEveryHostIsOneNetwork(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	var first carrick.Network
	for i := 1; i <= 3; i++ {
		h := sim.NewHost(t, s, i)
		n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
		rec, err := h.Cluster.Journal().ByAlias(n.ID)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			first = rec.Conf
		}
		if rec.Conf.ID != first.ID || rec.Conf.VNI != first.VNI || n.Gateway != netip.MustParseAddr("10.42.0.1") {
			t.Errorf("h%d has network %s VNI %d gateway %s, h1 has %s VNI %d", i, rec.Conf.ID, rec.Conf.VNI, n.Gateway, first.ID, first.VNI)
		}
	}
}

// Hosts that create the same subnet at the same moment end up in one network.
func TestRacingCreatesAreOneNetwork(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	var hosts []*sim.Host
	for i := 1; i <= 8; i++ {
		hosts = append(hosts, sim.NewHost(t, s, i))
	}
	nets := make([]*sim.Network, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			n, err := h.NetworkCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
			if err != nil {
				t.Errorf("%s: %v", h.Name, err)
				return
			}
			nets[i] = n
		})
	}
	wg.Wait()
	ids := map[carrick.NetworkID]bool{}
	for i, h := range hosts {
		if nets[i] == nil {
			continue
		}
		rec, err := h.Cluster.Journal().ByAlias(nets[i].ID)
		if err != nil {
			t.Fatal(err)
		}
		ids[rec.Conf.ID] = true
	}
	if len(ids) != 1 {
		t.Errorf("%d networks came of one subnet: %v", len(ids), ids)
	}
}

// What a joining host leaves out it inherits; what it says must be equal.
func TestJoinInheritsOrAgrees(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	a.MustCreate("app", sim.Create{
		Subnet: "10.42.0.0/16", Range: "10.42.7.0/24", Gateway: "10.42.0.9", Aux: map[string]string{"printer": "10.42.0.10"},
		Opts: map[string]string{"vni": "4242", "mtu": "1300"}, Internal: true,
	})
	for _, tt := range []struct {
		create sim.Create
		want   []string
	}{
		{sim.Create{Opts: map[string]string{"vni": "4243"}}, []string{"vni", "4242", "4243"}},
		{sim.Create{Opts: map[string]string{"mtu": "1400"}}, []string{"mtu", "1300", "1400"}},
		{sim.Create{Opts: map[string]string{"port": "8472"}}, []string{"port", "4789", "8472"}},
		{sim.Create{Opts: map[string]string{"flood": "off"}}, []string{"flood", "true", "false"}},
		{sim.Create{Opts: map[string]string{"storm": "off"}}, []string{"storm", "off", "2000"}},
		{sim.Create{Opts: map[string]string{"mcast_snooping": "on"}}, []string{"mcast_snooping", "true", "false"}},
		{sim.Create{Gateway: "10.42.0.2"}, []string{"--gateway", "10.42.0.9", "10.42.0.2"}},
		{sim.Create{Range: "10.42.8.0/24"}, []string{"--ip-range", "10.42.7.0/24", "10.42.8.0/24"}},
		{sim.Create{Aux: map[string]string{"printer": "10.42.0.11"}}, []string{"--aux-address printer", "10.42.0.10", "10.42.0.11"}},
	} {
		tt.create.Subnet = "10.42.0.0/16"
		_, err := b.NetworkCreate("app", tt.create)
		if !errors.Is(err, cluster.ErrMismatch) {
			t.Errorf("create %+v: %v, want ErrMismatch", tt.create, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("create %+v: error %q does not name %q", tt.create, err, w)
			}
		}
	}
	n := b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	if n.Gateway != netip.MustParseAddr("10.42.0.9") {
		t.Errorf("inherited gateway is %s", n.Gateway)
	}
	c := b.MustRun(n, sim.Run{})
	if !netip.MustParsePrefix("10.42.7.0/24").Contains(c.Addr.Addr()) {
		t.Errorf("address %s is not from the inherited range", c.Addr)
	}
}

// A failed create leaves nothing behind, in the store or on the host.
func TestBadCreatesLeaveNothing(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h, other := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	other.MustCreate("taken", sim.Create{Subnet: "10.50.0.0/16", Opts: map[string]string{"vni": "77"}})
	other.MustCreate("taken six", sim.Create{NoIPv4: true, IPv6: true, Subnet6: "fd00:52::/64"})
	h.MustCreate("mine", sim.Create{Subnet: "10.51.0.0/24", IPv6: true, Subnet6: "fd00:51::/64"})
	before := stable(s)
	for name, tt := range map[string]struct {
		create sim.Create
		want   []string
	}{
		"foreign IPAM":         {sim.Create{Subnet: "10.60.0.0/24", ForeignIPAM: true}, []string{"--ipam-driver carrick"}},
		"unknown option":       {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"colour": "red"}}, []string{"colour=red", "mtu"}},
		"vni not a number":     {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"vni": "abc"}}, []string{"vni=abc", "16777215"}},
		"vni zero":             {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"vni": "0"}}, []string{"vni=0", "16777215"}},
		"vni too large":        {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"vni": "16777216"}}, []string{"vni=16777216", "16777215"}},
		"vni taken":            {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"vni": "77"}}, []string{"vni=77", "taken", "10.50.0.0/16"}},
		"docker's vni twice":   {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"vni": "78", "com.docker.network.driver.overlay.vxlanid_list": "79"}}, []string{"78", "79"}},
		"mode unknown":         {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "teleport"}}, []string{"mode=teleport", "vxlan"}},
		"routed_fallback":      {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "routed", "routed_fallback": "gre"}}, []string{"routed_fallback=gre", "want vxlan"}},
		"fallback of another":  {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"routed_fallback": "vxlan"}}, []string{"routed_fallback=vxlan", "mode=routed"}},
		"port of no fallback":  {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "routed", "port": "4790"}}, []string{"port=4790", "routed"}},
		"parent of routed":     {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "routed", "parent": "eth1"}}, []string{"parent=eth1", "routed", "mode=macvlan"}},
		"flood of routed":      {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "routed", "flood": "on"}}, []string{"flood=on", "routed"}},
		"mtu of routed":        {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mode": "routed", "mtu": "1501"}}, []string{"mtu=1501", "1500"}},
		"port":                 {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"port": "70000"}}, []string{"port=70000", "65535"}},
		"mtu":                  {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mtu": "20"}}, []string{"mtu=20", "68"}},
		"storm":                {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"storm": "5"}}, []string{"storm=5", "off", "from 10 to"}},
		"storm in words":       {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"storm": "on"}}, []string{"storm=on", "want off, or how many"}},
		"mcast_snooping":       {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"mcast_snooping": "yes please"}}, []string{"mcast_snooping=yes please", "on or off"}},
		"flood":                {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"flood": "maybe"}}, []string{"flood=maybe", "on or off"}},
		"overlap":              {sim.Create{Subnet: "10.50.7.0/24"}, []string{"10.50.7.0/24", "10.50.0.0/16", "tenant"}},
		"overlap, larger":      {sim.Create{Subnet: "10.48.0.0/12"}, []string{"10.48.0.0/12", "10.5"}},
		"second on this host":  {sim.Create{Subnet: "10.51.0.0/24"}, []string{"10.51.0.0/24", "already"}},
		"ipam option":          {sim.Create{Subnet: "10.60.0.0/24", IPAMOpts: map[string]string{"x": "y"}}, []string{"x=y", "tenant"}},
		"tenant":               {sim.Create{Subnet: "10.60.0.0/24", IPAMOpts: map[string]string{"tenant": "a/b"}}, []string{"a/b"}},
		"network id":           {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"carrick.network": "zz"}}, []string{"carrick.network=zz"}},
		"network id not there": {sim.Create{Subnet: "10.60.0.0/24", Opts: map[string]string{"carrick.network": "0123456789abcdef"}}, []string{"0123456789abcdef"}},
		"range outside":        {sim.Create{Subnet: "10.60.0.0/24", Range: "10.61.0.0/25"}, []string{"10.61.0.0/25", "10.60.0.0/24"}},
		"gateway outside":      {sim.Create{Subnet: "10.60.0.0/24", Gateway: "10.61.0.1"}, []string{"10.61.0.1", "10.60.0.0/24"}},
		"gateway is broadcast": {sim.Create{Subnet: "10.60.0.0/24", Gateway: "10.60.0.255"}, []string{"10.60.0.255", "broadcast"}},
		"too small":            {sim.Create{Subnet: "10.60.0.0/31"}, []string{"10.60.0.0/31", "/30"}},
		"multicast":            {sim.Create{Subnet: "239.0.0.0/16"}, []string{"239.0.0.0/16"}},
		"aux is the gateway":   {sim.Create{Subnet: "10.60.0.0/24", Aux: map[string]string{"x": "10.60.0.1"}}, []string{"x=10.60.0.1", "gateway"}},
		"two IPv4 subnets":     {sim.Create{Subnet: "10.60.0.0/24", More: []string{"10.61.0.0/24"}}, []string{"one IPv4 --subnet", "10.60.0.0/24", "10.61.0.0/24"}},
		"two IPv6 subnets":     {sim.Create{Subnet: "10.60.0.0/24", IPv6: true, Subnet6: "fd00:60::/64", More: []string{"fd00:61::/64"}}, []string{"one IPv6 --subnet", "fd00:60::/64", "fd00:61::/64"}},
		"foreign IPAM, IPv6":   {sim.Create{Subnet: "10.60.0.0/24", IPv6: true, Subnet6: "fd00:60::/64", ForeignIPAM: true}, []string{"--ipam-driver carrick"}},
		"MTU too small, IPv6":  {sim.Create{Subnet: "10.60.0.0/24", IPv6: true, Subnet6: "fd00:60::/64", Opts: map[string]string{"mtu": "1279"}}, []string{"mtu=1279", "1280"}},
		"IPv6 too large":       {sim.Create{IPv6: true, Subnet6: "fd00::/47"}, []string{"fd00::/47", "/48", "/126"}},
		"IPv6 too small":       {sim.Create{IPv6: true, Subnet6: "fd00::/127"}, []string{"fd00::/127", "/48", "/126"}},
		"link-local":           {sim.Create{IPv6: true, Subnet6: "fe80:60::/64"}, []string{"fe80:60::/64", "unique local"}},
		"IPv6 multicast":       {sim.Create{IPv6: true, Subnet6: "ff05::/64"}, []string{"ff05::/64"}},
		"IPv6 overlap":         {sim.Create{Subnet: "10.60.0.0/24", IPv6: true, Subnet6: "fd00:52:0:0:8000::/65"}, []string{"fd00:52:0:0:8000::/65", "fd00:52::/64", "tenant"}},
		"IPv6 range outside":   {sim.Create{IPv6: true, Subnet6: "fd00:60::/64", Range6: "fd00:61::/80"}, []string{"fd00:61::/80", "fd00:60::/64"}},
		"IPv6 gateway outside": {sim.Create{IPv6: true, Subnet6: "fd00:60::/64", Gateway6: "fd00:61::1"}, []string{"fd00:61::1", "fd00:60::/64"}},
		"gateway is anycast":   {sim.Create{IPv6: true, Subnet6: "fd00:60::/64", Gateway6: "fd00:60::"}, []string{"fd00:60::", "anycast"}},
		"second, by IPv6":      {sim.Create{Subnet: "10.60.0.0/24", IPv6: true, Subnet6: "fd00:51::/64"}, []string{"fd00:51::/64", "already"}},
	} {
		_, err := h.NetworkCreate("bad", tt.create)
		if err == nil {
			t.Errorf("%s: create succeeded", name)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not name %q", name, err, w)
			}
		}
		if after := stable(s); after != before {
			t.Fatalf("%s: left behind:\n%s\nbefore:\n%s", name, after, before)
		}
	}
	// Nor does a reservation linger: the subnet is free at once.
	h.MustCreate("good", sim.Create{Subnet: "10.60.0.0/24"})
}

// published says whether any host has endpoints in the store.
func published(s *memory.Server) bool {
	for line := range strings.Lines(s.Dump()) {
		if strings.HasPrefix(line, "v1/net/") && strings.Contains(line, "/host/") {
			return true
		}
	}
	return false
}

// stable is the store without what changes by itself.
func stable(s *memory.Server) string {
	var keep []string
	for line := range strings.Lines(s.Dump()) {
		if !strings.HasPrefix(line, "v1/node/") && !strings.HasPrefix(line, "v1/epoch") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}

// Overlapping subnets live under different tenants.
func TestTenantsMayOverlap(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	a := h.MustCreate("a", sim.Create{Subnet: "10.42.0.0/24"})
	b := h.MustCreate("b", sim.Create{Subnet: "10.42.0.0/24", IPAMOpts: map[string]string{"tenant": "blue"}})
	ca, cb := h.MustRun(a, sim.Run{}), h.MustRun(b, sim.Run{})
	if ca.Addr != cb.Addr {
		t.Errorf("the first address is %s in one tenant and %s in the other", ca.Addr, cb.Addr)
	}
	if ca.MAC == cb.MAC {
		t.Errorf("both have MAC %s although their VNIs differ", ca.MAC)
	}
}

// Without --subnet a prefix is chosen that overlaps nothing.
func TestChosenSubnets(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	seen := []netip.Prefix{netip.MustParsePrefix("10.128.0.0/24")} // a host route of the simulation
	for i := range 6 {
		h := []*sim.Host{a, b}[i%2]
		n := h.MustCreate(fmt.Sprintf("n%d", i), sim.Create{})
		for _, p := range seen {
			if n.Subnet.Overlaps(p) {
				t.Errorf("network %d got %s, which overlaps %s", i, n.Subnet, p)
			}
		}
		seen = append(seen, n.Subnet)
	}
}

// --ip and --mac-address are honoured or refused with the reason.
func TestExplicitAddresses(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b, other := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2), sim.NewHost(t, s, 3)
	create := sim.Create{Subnet: "10.42.0.0/24", Aux: map[string]string{"router": "10.42.0.99"}}
	na, nb := a.MustCreate("app", create), b.MustCreate("app", create)
	c := a.MustRun(na, sim.Run{IP: "10.42.0.50", MAC: "02:42:0a:2a:00:07"})
	if c.Addr.String() != "10.42.0.50/24" || c.MAC.String() != "02:42:0a:2a:00:07" {
		t.Errorf("got %s %s", c.Addr, c.MAC)
	}
	b.MustRun(nb, sim.Run{}) // a host follows a network once it uses it
	sim.Eventually(t, "b knows a's container", func() bool {
		v, ok := b.View(nb)
		return ok && len(v.Endpoints) == 2
	})
	// A third host borrows an address and has no container with it yet.
	_, err := other.IPAM.RequestAddress(t.Context(), dockerapi.RequestAddressRequest{PoolID: other.MustCreate("app", create).PoolID, Addr: netip.MustParseAddr("10.42.0.51")})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		host *sim.Host
		net  *sim.Network
		run  sim.Run
		want error
		text string
	}{
		{a, na, sim.Run{IP: "10.43.0.1"}, ipam.ErrOutside, "10.42.0.0/24"},
		{a, na, sim.Run{IP: "10.42.0.1"}, ipam.ErrReserved, "gateway"},
		{a, na, sim.Run{IP: "10.42.0.99"}, ipam.ErrReserved, "auxiliary router"},
		{a, na, sim.Run{IP: "10.42.0.255"}, ipam.ErrReserved, "broadcast"},
		{a, na, sim.Run{IP: "10.42.0.50"}, ipam.ErrInUse, c.Endpoint.Short()},
		{b, nb, sim.Run{IP: "10.42.0.50"}, ipam.ErrInUse, "h1"},
		{b, nb, sim.Run{IP: "10.42.0.51"}, cluster.ErrBlockTaken, "belongs to host h1"},
		{b, nb, sim.Run{IP: "10.42.0.51"}, cluster.ErrRefused, "lent to host h3"},
		{a, na, sim.Run{IP: "10.42.0.51"}, ipam.ErrInUse, "host h3"},
		{b, nb, sim.Run{MAC: "02:42:0a:2a:00:07"}, driver.ErrMACInUse, "h1"},
		{b, nb, sim.Run{MAC: "03:42:0a:2a:00:07"}, nil, "group address"},
	} {
		_, err := tt.host.Run(tt.net, tt.run)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: run %+v: %v, want %v naming %q", tt.host.Name, tt.run, err, tt.want, tt.text)
		}
	}
	b.MustRun(nb, sim.Run{IP: "10.42.0.200"}) // nobody's block
	b.MustRun(nb, sim.Run{IP: "10.42.0.52"})  // borrowed of h1
	a.Stop(c)
	a.MustRun(na, sim.Run{IP: "10.42.0.50"}) // rest never refuses an explicit address
}

// Many containers on many hosts at once: every address once, and every host
// learns of every endpoint; after all have stopped the store is as before.
func TestEveryAddressOnceAndNothingLeft(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	const hosts, each = 4, 40
	var hs []*sim.Host
	var nets []*sim.Network
	for i := 1; i <= hosts; i++ {
		h := sim.NewHost(t, s, i)
		n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
		h.Stop(h.MustRun(n, sim.Run{})) // so that the host has its first block
		hs, nets = append(hs, h), append(nets, n)
	}
	keys := func() string {
		var out []string
		for line := range strings.Lines(s.Dump()) {
			out = append(out, strings.Fields(line)[0])
		}
		return strings.Join(out, "\n")
	}
	sim.Eventually(t, "first containers are withdrawn", func() bool { return !published(s) })
	before := keys()
	all := make([][]*sim.Container, hosts)
	var wg sync.WaitGroup
	for i, h := range hs {
		all[i] = make([]*sim.Container, each)
		for j := range each {
			wg.Go(func() {
				c, err := h.Run(nets[i], sim.Run{})
				if err != nil {
					t.Errorf("%s: %v", h.Name, err)
					return
				}
				all[i][j] = c
			})
		}
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := map[netip.Addr]string{}
	for i := range all {
		for _, c := range all[i] {
			if who, twice := seen[c.Addr.Addr()]; twice {
				t.Errorf("%s was given to %s and to %s", c.Addr, who, hs[i].Name)
			}
			seen[c.Addr.Addr()] = hs[i].Name
		}
	}
	for i, h := range hs {
		sim.Eventually(t, h.Name+" knows every endpoint", func() bool {
			v, ok := h.View(nets[i])
			n := 0
			for _, eps := range v.Endpoints {
				n += len(eps)
			}
			return ok && n == hosts*each
		})
	}
	for i, h := range hs {
		for _, c := range all[i] {
			wg.Go(func() { h.Stop(c) })
		}
	}
	wg.Wait()
	defer func() {
		if t.Failed() {
			t.Logf("before:\n%s\nafter:\n%s", before, keys())
		}
	}()
	sim.Eventually(t, "the keys are what they were", func() bool { return keys() == before })
}

// The last alias takes every trace with it.
func TestRemovalOnEveryHostLeavesNothing(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs := []*sim.Host{sim.NewHost(t, s, 1), sim.NewHost(t, s, 2), sim.NewHost(t, s, 3)}
	before := stable(s)
	for _, h := range hs {
		n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
		h.Stop(h.MustRun(n, sim.Run{}))
	}
	for i, h := range hs {
		if err := h.NetworkRm("app"); err != nil {
			t.Fatalf("%s: docker network rm: %v", h.Name, err)
		}
		if there := strings.Contains(s.Dump(), "v1/net/"); there != (i < 2) {
			t.Errorf("after rm on %s the network is there: %v", h.Name, there)
		}
	}
	sim.Eventually(t, "no trace", func() bool { return stable(s) == before })
}

// A removal while the store is away is finished when it is back, and never takes
// away what was created again meanwhile.
func TestRemovalWithTheStoreAway(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	before := stable(s)
	h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	h.Store.Cut()
	if err := h.NetworkRm("app"); err == nil {
		t.Error("docker network rm succeeded without the store; its log line would be missing")
	}
	if _, err := h.NetworkCreate("again", sim.Create{Subnet: "10.42.0.0/24"}); err == nil || !strings.Contains(err.Error(), "store") {
		t.Errorf("create without the store: %v, want an error that names the store", err)
	}
	h.Store.Heal()
	sim.Eventually(t, "no trace", func() bool { return stable(s) == before })
}

// A port that the kernel refuses fails its own Join, and its facts go.
func TestFailedJoinWithdrawsTheEndpoint(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	h.FailRealize(errors.New("link add: no buffer space available"))
	_, err := h.Run(n, sim.Run{})
	if err == nil || !strings.Contains(err.Error(), "no buffer space") {
		t.Fatalf("run: %v, want the kernel's reason", err)
	}
	sim.Eventually(t, "the endpoint is withdrawn", func() bool { return !published(s) })
	h.MustRun(n, sim.Run{})
}

// A restarted agent knows its networks, endpoints and addresses.
func TestRestartRemembers(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	c := h.MustRun(n, sim.Run{})
	h.Crash()
	h.Start()
	d := h.MustRun(n, sim.Run{})
	if c.Addr == d.Addr {
		t.Errorf("%s was given out twice over a restart", c.Addr)
	}
	h.Stop(c)
	h.Stop(d)
	if err := h.NetworkRm("app"); err != nil {
		t.Error(err)
	}
	sim.Eventually(t, "no trace", func() bool { return !strings.Contains(s.Dump(), "v1/net/") })
}

// lossy is a store that applies a change of certain keys, once it is told to, and
// does not answer.
type lossy struct {
	kvstore.Store
	keys  string // part of their names
	armed *atomic.Bool
}

func (l lossy) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	rev, err := l.Store.Txn(ctx, t)
	meant := slices.ContainsFunc(t.Ops, func(op kvstore.Op) bool { return strings.Contains(op.Key, l.keys) })
	if err == nil && meant && l.armed.CompareAndSwap(true, false) {
		return 0, fmt.Errorf("%w: the reply was lost", kvstore.ErrUnavailable)
	}
	return rev, err
}

// A create whose reply was lost leaves nothing: the engine never heard that it
// had succeeded.
func TestCreateWithALostReply(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	armed := &atomic.Bool{}
	h := sim.NewHostWith(t, s, sim.Options{Number: 1, Wrap: func(c *memory.Client) kvstore.Store { return lossy{c, "/conf", armed} }})
	before := stable(s)
	armed.Store(true)
	if _, err := h.NetworkCreate("app", sim.Create{Subnet: "10.42.0.0/24"}); err == nil {
		t.Fatal("create succeeded although its reply was lost")
	}
	if armed.Load() {
		t.Fatal("the create did not reach the store, so this shows nothing")
	}
	sim.Eventually(t, "no trace", func() bool { return stable(s) == before })
	// Nor is a network lost that is joined right after a lost try.
	armed.Store(true)
	_, _ = h.NetworkCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	c := h.MustRun(n, sim.Run{})
	h.Crash()
	h.Start()
	h.Stop(h.MustRun(n, sim.Run{}))
	h.Stop(c)
	if err := h.NetworkRm("app"); err != nil {
		t.Error(err)
	}
	sim.Eventually(t, "no trace", func() bool { return stable(s) == before })
}

// An alias that reached the store and not the journal is dropped at the next
// start.
func TestCrashBetweenStoreAndJournal(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	before := stable(s)
	h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	h.Crash()
	if err := os.WriteFile(filepath.Join(h.Dir, "state.db"), emptyJournal(t, h), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Start()
	sim.Eventually(t, "no trace", func() bool { return stable(s) == before })
}

// emptyJournal is the host's journal as it was before its first network.
func emptyJournal(t *testing.T, h *sim.Host) []byte {
	t.Helper()
	j, err := journal.Open(h.Dir, "machine-"+h.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range j.Networks() {
		if err := j.Update(func(tx *journal.Tx) error { tx.DeleteNetwork(n.Conf.ID); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(h.Dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A block whose claim was never answered is used, not stranded.
func TestLostClaimsAreTakenUp(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	armed := &atomic.Bool{}
	h := sim.NewHostWith(t, s, sim.Options{Number: 1, Wrap: func(c *memory.Client) kvstore.Store { return lossy{c, "/ipam/", armed} }})
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/29"})
	armed.Store(true)
	if _, err := h.Run(n, sim.Run{}); err == nil {
		t.Fatal("a container started although the claim's reply was lost")
	}
	for i := range 5 { // all that a /29 has beside the gateway
		if _, err := h.Run(n, sim.Run{}); err != nil {
			t.Fatalf("container %d: %v", i, err)
		}
	}
}

// The subnet that was chosen last is chosen again if there is no other.
func TestTheLastFreeDefaultPool(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	// The simulation's default pool has 128 prefixes; leave one.
	h.MustCreate("low", sim.Create{Subnet: "10.128.0.0/10"})
	h.MustCreate("high", sim.Create{Subnet: "10.192.0.0/11"})
	h.MustCreate("higher", sim.Create{Subnet: "10.224.0.0/12"})
	h.MustCreate("more", sim.Create{Subnet: "10.240.0.0/13"})
	h.MustCreate("and more", sim.Create{Subnet: "10.248.0.0/14"})
	h.MustCreate("yet more", sim.Create{Subnet: "10.252.0.0/15"})
	h.MustCreate("last but one", sim.Create{Subnet: "10.254.0.0/16"})
	for range 3 {
		if n := h.MustCreate("chosen", sim.Create{}); n.Subnet.String() != "10.255.0.0/16" {
			t.Errorf("chose %s", n.Subnet)
		}
		if err := h.NetworkRm("chosen"); err != nil {
			t.Fatal(err)
		}
	}
}

// ReleaseAddress without DeleteEndpoint (lost while the agent was down) takes the
// endpoint with it, so that nobody sends to a container that is gone.
func TestReleaseWithoutDelete(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	c := h.MustRun(n, sim.Run{})
	if err := h.IPAM.ReleaseAddress(t.Context(), n.PoolID, c.Addr.Addr()); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "the endpoint is withdrawn", func() bool { return !published(s) })
}

// A name or VTEP address that another host holds is a start error naming both.
func TestIdentityConflicts(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := sim.NewHost(t, s, 1)
	b := sim.NewHost(t, s, 2)
	b.Crash()
	for what, try := range map[string]struct {
		name string
		vtep netip.Addr
		want string
	}{
		"name": {a.Name, b.VTEP, "name h1"},
		"VTEP": {b.Name, a.VTEP, "VTEP address 192.0.2.1"},
	} {
		err := b.TryStart(try.name, try.vtep)
		if !errors.Is(err, cluster.ErrIdentity) {
			t.Fatalf("start with %s taken: %v, want ErrIdentity", what, err)
		}
		for _, w := range []string{try.want, string(a.Cluster.Self()), string(b.Cluster.Self())} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not name %q", what, err, w)
			}
		}
	}
	// Its own name and address it may take back, and it may move to new ones.
	if err := b.TryStart("h2b", netip.MustParseAddr("192.0.2.22")); err != nil {
		t.Fatalf("move: %v", err)
	}
	c := sim.NewHost(t, s, 3)
	c.Crash()
	if err := c.TryStart("h2", netip.MustParseAddr("192.0.2.2")); err != nil {
		t.Errorf("the name and address that h2 gave up: %v", err)
	}
}
