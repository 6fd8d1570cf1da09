package driver_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/driver"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// dual is a network of both families.
func dual() sim.Create {
	return sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:42::/64"}
}

// conf is the cluster's network of a Docker network.
func conf(t *testing.T, h *sim.Host, n *sim.Network) carrick.Network {
	t.Helper()
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Conf
}

// A container of a dual-stack network has an address of each family, and every
// host knows both. Its MAC is made of the IPv4 address.
func TestDualStack(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", dual()), b.MustCreate("app", dual())
	if x, y := conf(t, a, na), conf(t, b, nb); x.ID != y.ID || len(x.Pools) != 2 || x.Pools[1].Block != 122 {
		t.Fatalf("h1 has %+v, h2 has %+v", x, y)
	}
	if na.Gateway6.String() != "fd00:42::1" || nb.Gateway6 != na.Gateway6 {
		t.Errorf("gateways %s and %s", na.Gateway6, nb.Gateway6)
	}
	c := a.MustRun(na, sim.Run{})
	if !na.Subnet.Contains(c.Addr.Addr()) || c.Addr6.String() != "fd00:42::2/64" || c.MAC != carrick.MACFor(conf(t, a, na).VNI, c.Addr.Addr()) {
		t.Errorf("container has %s, %s and MAC %s", c.Addr, c.Addr6, c.MAC)
	}
	d := b.MustRun(nb, sim.Run{IP: "10.42.77.7", IP6: "fd00:42::dead:beef:7"})
	if d.Addr.String() != "10.42.77.7/16" || d.Addr6.String() != "fd00:42::dead:beef:7/64" {
		t.Errorf("--ip and --ip6 gave %s and %s", d.Addr, d.Addr6)
	}
	want := []netip.Addr{c.Addr.Addr(), c.Addr6.Addr()}
	sim.Eventually(t, "h2 knows both addresses", func() bool {
		v, ok := b.View(nb)
		eps := v.Endpoints[a.Cluster.Self()]
		return ok && len(eps) == 1 && slices.Equal(eps[0].Addrs, want)
	})
	// The store lists the network once, and it goes with all it had.
	if nets, err := b.Cluster.StoredNetworks(t.Context()); err != nil || len(nets) != 1 {
		t.Errorf("the store has %d networks (%v)", len(nets), err)
	}
	a.Stop(c)
	b.Stop(d)
	for _, h := range []*sim.Host{a, b} {
		if err := h.NetworkRm("app"); err != nil {
			t.Error(err)
		}
	}
	sim.Eventually(t, "no trace", func() bool {
		return !strings.Contains(s.Dump(), "v1/net/") && !strings.Contains(s.Dump(), "v1/tenant/")
	})
}

// A network of IPv6 only: engines from 28 on can do without IPv4.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	six := sim.Create{NoIPv4: true, IPv6: true, Subnet6: "2001:db8:42::/64", Range6: "2001:db8:42::8:0/112", Gateway6: "2001:db8:42::ffff"}
	na, nb := a.MustCreate("six", six), b.MustCreate("six", six)
	c, d := a.MustRun(na, sim.Run{}), b.MustRun(nb, sim.Run{})
	within := netip.MustParsePrefix("2001:db8:42::8:0/112")
	for _, x := range []*sim.Container{c, d} {
		if x.Addr.IsValid() || !within.Contains(x.Addr6.Addr()) || x.MAC != carrick.MACFor(conf(t, a, na).VNI, x.Addr6.Addr()) || x.MAC[0] != 0x06 {
			t.Errorf("container has %s, %s and MAC %s", x.Addr, x.Addr6, x.MAC)
		}
	}
	if c.Addr6 == d.Addr6 {
		t.Errorf("both have %s", c.Addr6)
	}
	e := a.MustRun(na, sim.Run{IP6: "2001:db8:42::77"})
	for run, want := range map[sim.Run]string{
		{IP6: "2001:db8:42::77"}:   e.Endpoint.Short(),
		{IP6: "2001:db8:42::ffff"}: "gateway",
		{IP6: "2001:db8:42::"}:     "anycast",
		{IP6: "2001:db8:43::1"}:    "2001:db8:42::/64",
		{NoIPv6: true}:             "disable_ipv6",
	} {
		if _, err := a.Run(na, run); err == nil || !strings.Contains(err.Error(), want) || run.IP6 != "" && !strings.Contains(err.Error(), "--ip6 "+run.IP6) {
			t.Errorf("run %+v: %v, want an error that names %q", run, err, want)
		}
	}
}

// Engines from 28 on take the families as options, too, and pass them on. Those of
// before do not know them, and what was meant is not what was made.
func TestFamiliesByOption(t *testing.T) {
	t.Parallel()
	h := sim.NewHost(t, memory.NewServer(), 1)
	off := map[string]string{"com.docker.network.enable_ipv4": "false"}
	h.MustCreate("new engine", sim.Create{NoIPv4: true, IPv6: true, Subnet6: "fd00:42::/64", Opts: off})
	for name, create := range map[string]sim.Create{
		"--ipv4=false": {Subnet: "10.43.0.0/24", Opts: off},
		"--ipv6":       {Subnet: "10.43.0.0/24", Opts: map[string]string{"com.docker.network.enable_ipv6": "true"}},
	} {
		if _, err := h.NetworkCreate("old engine", create); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %v, want an error that names %s", create.Opts, err, name)
		}
	}
}

// Without an IPv6 subnet one is drawn, in each of the ways to leave it out.
func TestChosenIPv6Subnets(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	base := netip.MustParsePrefix("fd88:93b9:19b6::/48")
	seen := sim.HostPrefixes()
	for name, create := range map[string]sim.Create{
		"both chosen":  {IPv6: true},
		"IPv6 chosen":  {Subnet: "10.42.0.0/24", IPv6: true},
		"IPv4 chosen":  {IPv6: true, Subnet6: "fd00:42::/64"},
		"IPv6 only":    {NoIPv4: true, IPv6: true},
		"other tenant": {IPv6: true, IPAMOpts: map[string]string{"tenant": "blue"}},
	} {
		n := h.MustCreate(name, create)
		if name != "IPv4 chosen" && (n.Subnet6.Bits() != 64 || !base.Contains(n.Subnet6.Addr())) {
			t.Errorf("%s: IPv6 subnet %s", name, n.Subnet6)
		}
		if (name == "both chosen" || name == "IPv4 chosen") && !netip.MustParsePrefix("10.128.0.0/9").Contains(n.Subnet.Addr()) {
			t.Errorf("%s: IPv4 subnet %s", name, n.Subnet)
		}
		for _, p := range seen {
			if n.Subnet6.Overlaps(p) {
				t.Errorf("%s: %s overlaps %s", name, n.Subnet6, p)
			}
		}
		if name != "other tenant" {
			seen = append(seen, n.Subnet6)
		}
		c := h.MustRun(n, sim.Run{})
		if !n.Subnet6.Contains(c.Addr6.Addr()) {
			t.Errorf("%s: container has %s of %s", name, c.Addr6, n.Subnet6)
		}
	}
}

// A joining host must ask for the families the network has, and may leave the
// IPv6 subnet to it.
func TestJoiningBothFamilies(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	create := dual()
	create.Gateway6, create.Range6, create.Aux = "fd00:42::9", "fd00:42::1:0/112", map[string]string{"printer": "fd00:42::10"}
	both := conf(t, a, a.MustCreate("both", create))
	four := conf(t, a, a.MustCreate("four", sim.Create{Subnet: "10.44.0.0/16"}))
	six := conf(t, a, a.MustCreate("six", sim.Create{NoIPv4: true, IPv6: true, Subnet6: "fd00:46::/64"}))
	byID := func(id carrick.NetworkID, c sim.Create) sim.Create {
		c.IPAMOpts = map[string]string{"carrick.network": string(id)}
		c.Opts = c.IPAMOpts
		return c
	}
	before := stable(s)
	for name, tt := range map[string]struct {
		create sim.Create
		want   []string
	}{
		"IPv6 left out":           {sim.Create{Subnet: "10.42.0.0/16"}, []string{"--ipv6 --subnet fd00:42::/64"}},
		"IPv6 left out, by id":    {byID(both.ID, sim.Create{}), []string{"--ipv6 --subnet fd00:42::/64"}},
		"IPv4 switched off":       {sim.Create{NoIPv4: true, IPv6: true, Subnet6: "fd00:42::/64"}, []string{"--subnet 10.42.0.0/16", "--ipv4=false"}},
		"IPv4 left out":           {sim.Create{IPv6: true, Subnet6: "fd00:42::/64"}, []string{"10.42.0.0/16", "10.1"}},
		"another IPv6":            {sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:43::/64"}, []string{"fd00:42::/64", "fd00:43::/64"}},
		"another IPv4":            {sim.Create{Subnet: "10.43.0.0/16", IPv6: true, Subnet6: "fd00:42::/64"}, []string{"10.42.0.0/16", "10.43.0.0/16"}},
		"IPv4 of another network": {sim.Create{Subnet: "10.44.0.0/16", IPv6: true, Subnet6: "fd00:42::/64"}, []string{"10.44.0.0/16", "fd00:42::/64"}},
		"IPv6 where there is none": {sim.Create{Subnet: "10.44.0.0/16", IPv6: true, Subnet6: "fd00:47::/64"},
			[]string{"not set there", "fd00:47::/64", "leave out --ipv6"}},
		"IPv6 where there is none, chosen": {sim.Create{Subnet: "10.44.0.0/16", IPv6: true}, []string{"not set there", "leave out --ipv6"}},
		"IPv6 where there is none, by id":  {byID(four.ID, sim.Create{IPv6: true}), []string{"no IPv6 subnet", "10.44.0.0/16", "leave out --ipv6"}},
		"IPv4 where there is none":         {sim.Create{Subnet: "10.47.0.0/16", IPv6: true, Subnet6: "fd00:46::/64"}, []string{"10.47.0.0/16", "--ipv4=false"}},
		"IPv4 where there is none, by id":  {byID(six.ID, sim.Create{IPv6: true}), []string{"no IPv4 subnet", "--ipv4=false"}},
		"another IPv6 gateway":             {sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:42::/64", Gateway6: "fd00:42::1"}, []string{"--gateway", "fd00:42::9", "fd00:42::1"}},
		"another IPv6 range":               {sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:42::/64", Range6: "fd00:42::/80"}, []string{"--ip-range", "fd00:42::1:0/112", "fd00:42::/80"}},
		"another auxiliary address":        {sim.Create{Subnet: "10.42.0.0/16", IPv6: true, Subnet6: "fd00:42::/64", Aux: map[string]string{"printer": "fd00:42::11"}}, []string{"--aux-address printer", "fd00:42::10", "fd00:42::11"}},
	} {
		_, err := b.NetworkCreate("app", tt.create)
		if err == nil {
			t.Errorf("%s: it was accepted", name)
			continue
		}
		t.Logf("%s: %v", name, err)
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not name %q", name, err, w)
			}
		}
		if after := stable(s); after != before {
			t.Fatalf("%s: left behind:\n%s\nbefore:\n%s", name, after, before)
		}
	}
	for name, create := range map[string]sim.Create{
		"all said":            dual(),
		"IPv6 inherited":      {Subnet: "10.42.0.0/16", IPv6: true},
		"by id":               byID(both.ID, sim.Create{IPv6: true}),
		"by id and subnets":   byID(both.ID, dual()),
		"by id and one":       byID(both.ID, sim.Create{Subnet: "10.42.0.0/16", IPv6: true}),
		"by id and the other": byID(both.ID, sim.Create{IPv6: true, Subnet6: "fd00:42::/64"}),
	} {
		n, err := b.NetworkCreate("app", create)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := conf(t, b, n); got.ID != both.ID || n.Gateway6.String() != "fd00:42::9" {
			t.Errorf("%s: joined %+v with gateway %s", name, got, n.Gateway6)
		}
		// A second create for either of its subnets is one too many.
		for _, again := range []sim.Create{dual(), {IPv6: true, Subnet6: "fd00:42::/64"}} {
			if _, err := b.NetworkCreate("again", again); !errors.Is(err, cluster.ErrAliased) {
				t.Errorf("%s, and again: %v, want ErrAliased", name, err)
			}
		}
		if err := b.NetworkRm("app"); err != nil {
			t.Fatal(err)
		}
		sim.Eventually(t, "h2 has left", func() bool { return !strings.Contains(s.Dump(), "/alias/"+string(b.Cluster.Self())) })
	}
}

// Two creates of one host at the same time, one that joins and leaves the IPv6
// subnet to its network, one that leaves both to the driver: each gets its own.
func TestTwoCreatesAtOnce(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	a.MustCreate("app", dual())
	request := func(subnet string, six bool) netip.Prefix {
		t.Helper()
		r := dockerapi.RequestPoolRequest{AddressSpace: dockerapi.AddressSpace, V6: six}
		if subnet != "" {
			r.Pool = netip.MustParsePrefix(subnet)
		}
		got, err := b.IPAM.RequestPool(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return got.Pool
	}
	request("10.42.0.0/16", false) // the one that joins
	request("", false)             // the other one
	if got := request("", true); got.String() != "fd00:42::/64" {
		t.Errorf("who joins was given %s", got)
	}
	if got := request("", true); !netip.MustParsePrefix("fd88:93b9:19b6::/48").Contains(got.Addr()) {
		t.Errorf("the other one was given %s", got)
	}
}

// Engines from 28 on ask for no IPv6 address for a container that has IPv6 turned
// off by a sysctl of its own, or give it back once its interface is up.
func TestContainersWithoutIPv6(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", dual()), b.MustCreate("app", dual())
	b.MustRun(nb, sim.Run{})
	four, both := a.MustRun(na, sim.Run{NoIPv6: true}), a.MustRun(na, sim.Run{})
	if four.Addr6.IsValid() {
		t.Errorf("it has %s", four.Addr6)
	}
	if err := a.IPAM.ReleaseAddress(t.Context(), na.PoolID6, both.Addr6.Addr()); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "h2 knows that both have IPv4 only", func() bool {
		v, ok := b.View(nb)
		eps := v.Endpoints[a.Cluster.Self()]
		return ok && len(eps) == 2 && len(eps[0].Addrs) == 1 && len(eps[1].Addrs) == 1
	})
	// The address is free again, and not lost: it may be asked for.
	a.MustRun(na, sim.Run{IP6: both.Addr6.Addr().String()})
	a.Stop(both)
}

// If the second address of a container cannot be had, the first one is not lost:
// engines do not give it back.
func TestHalfAContainer(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/29", IPv6: true, Subnet6: "fd00:42::/64"})
	c := h.MustRun(n, sim.Run{})
	for range 20 { // a /29 has five
		if _, err := h.Run(n, sim.Run{IP6: c.Addr6.Addr().String()}); !errors.Is(err, ipam.ErrInUse) {
			t.Fatalf("run with a taken --ip6: %v", err)
		}
	}
	if got := h.Cluster.Journal().Taken(conf(t, h, n).ID, n.Subnet); got != 1 {
		t.Errorf("%d addresses are taken by one container", got)
	}
	if d := h.MustRun(n, sim.Run{}); d.Addr == c.Addr || d.Addr6 == c.Addr6 {
		t.Errorf("two containers have %s %s and %s %s", c.Addr, c.Addr6, d.Addr, d.Addr6)
	}
}

// An IPv6 address of another host's block is asked of that host, as an IPv4 one
// is, and is the borrower's afterwards.
func TestBorrowedIPv6(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", dual()), b.MustCreate("app", dual())
	a.MustRun(na, sim.Run{})
	c := b.MustRun(nb, sim.Run{IP6: "fd00:42::33"}) // in h1's first block
	rec, err := b.Cluster.Journal().ByAlias(nb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if loan := netip.MustParsePrefix("fd00:42::33/128"); !slices.Contains(rec.Blocks, loan) {
		t.Errorf("h2 has blocks %v, want %s among them", rec.Blocks, loan)
	}
	if _, err := a.Run(na, sim.Run{IP6: "fd00:42::33"}); !errors.Is(err, ipam.ErrInUse) || !strings.Contains(err.Error(), "h2") {
		t.Errorf("h1 gives out what it lent: %v", err)
	}
	b.Stop(c)
	b.MustRun(nb, sim.Run{IP6: "fd00:42::33"}) // without asking again
}

// Each family has blocks of its own; what one is short of is no reason to claim of
// the other.
func TestBlocksOfBothFamilies(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	n := h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24", IPv6: true, Subnet6: "fd00:42::/64"})
	var all []*sim.Container
	for range 40 {
		all = append(all, h.MustRun(n, sim.Run{}))
	}
	count := func() (four, six int) {
		rec, err := h.Cluster.Journal().ByAlias(n.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range rec.Blocks {
			if b.Addr().Is4() {
				four++
			} else {
				six++
			}
		}
		return four, six
	}
	// 40 addresses and a quarter to spare: /29s, and one /122.
	sim.Eventually(t, "blocks for 40 containers", func() bool { four, six := count(); return four >= 6 && six == 1 })
	seen := map[netip.Addr]bool{}
	for _, c := range all {
		if seen[c.Addr.Addr()] || seen[c.Addr6.Addr()] {
			t.Errorf("%s or %s was given out twice", c.Addr, c.Addr6)
		}
		seen[c.Addr.Addr()], seen[c.Addr6.Addr()] = true, true
		h.Stop(c)
	}
}

// IPv6 does not fit on an underlay that is too small for it, and who makes the
// network is told.
func TestIPv6OnASmallUnderlay(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHostWith(t, s, sim.Options{Number: 1, MTU: 1329}) // 1279 for containers
	if _, err := h.NetworkCreate("app", dual()); err == nil || !strings.Contains(err.Error(), "1279") || !strings.Contains(err.Error(), "1280") {
		t.Errorf("create: %v", err)
	}
	h.MustCreate("four", sim.Create{Subnet: "10.44.0.0/16"})
	sim.NewHostWith(t, s, sim.Options{Number: 2, MTU: 1330}).MustCreate("app", dual())
}

// A MAC that another endpoint has is refused, also one that is made of an IPv6
// address: those are hashes.
func TestMACsOfIPv6Addresses(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	h := sim.NewHost(t, s, 1)
	n := h.MustCreate("six", sim.Create{NoIPv4: true, IPv6: true, Subnet6: "fd00:42::/64"})
	next := netip.MustParseAddr("fd00:42::77")
	h.MustRun(n, sim.Run{MAC: carrick.MACFor(conf(t, h, n).VNI, next).String()})
	_, err := h.Run(n, sim.Run{IP6: next.String()})
	if !errors.Is(err, driver.ErrMACInUse) || !strings.Contains(err.Error(), next.String()) {
		t.Errorf("run: %v", err)
	}
	h.MustRun(n, sim.Run{IP6: next.String(), MAC: "02:00:00:00:00:07"})
}

// Two hosts that choose the same subnet at the same moment do not find themselves
// in one network, which neither asked for: the later one is told to try again, and
// then gets another.
func TestChosenSubnetsNeverMeet(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	hs := []*sim.Host{sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)}
	// Both agents have just started, so both offer the same subnet first.
	var offers []dockerapi.PoolData
	for _, h := range hs {
		got, err := h.IPAM.RequestPool(t.Context(), dockerapi.RequestPoolRequest{AddressSpace: dockerapi.AddressSpace})
		if err != nil {
			t.Fatal(err)
		}
		offers = append(offers, dockerapi.PoolData{AddressSpace: dockerapi.AddressSpace, Pool: got.Pool, Gateway: got.Pool.Addr().Next()})
	}
	if offers[0].Pool != offers[1].Pool {
		t.Fatalf("offered %s and %s, so this shows nothing", offers[0].Pool, offers[1].Pool)
	}
	for i, h := range hs {
		err := h.Driver.CreateNetwork(t.Context(), dockerapi.CreateNetworkRequest{
			ID: carrick.DockerNetworkID(strings.Repeat(string(rune('a'+i)), 64)), EnableIPv4: true, IPv4: offers[i : i+1],
		})
		if i == 0 && err != nil || i == 1 && (!errors.Is(err, cluster.ErrMismatch) || !strings.Contains(err.Error(), "try again")) {
			t.Errorf("h%d: %v", i+1, err)
		}
	}
	if n := hs[1].MustCreate("again", sim.Create{}); n.Subnet == offers[0].Pool {
		t.Errorf("the second try got %s again", n.Subnet)
	}
}
