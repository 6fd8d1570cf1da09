package scenarios

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// Subnets of the networks below.
const (
	dual4 = "10.42.0.0/16"
	dual6 = "fd00:42::/64"
	only6 = "fd00:46::/64"
)

// box6 is a container with an IPv6 address, and maybe an IPv4 one.
type box6 struct {
	box
	ip6 string
}

// start6 is start on a network with IPv6.
func start6(t testing.TB, h *lab.Host, network, name string, extra ...string) box6 {
	t.Helper()
	b := box6{box: start(t, h, network, name, extra...)}
	b.ip6 = address6(t, h, network, name)
	return b
}

// address6 is the container's IPv6 address on a network, as Docker knows it.
func address6(t testing.TB, h *lab.Host, network, name string) string {
	t.Helper()
	return h.MustDocker(t, "inspect", "-f", fmt.Sprintf("{{with index .NetworkSettings.Networks %q}}{{.GlobalIPv6Address}}{{end}}", network), name)
}

// over6 is the box at its IPv6 address, as the URL of its pages wants it.
func (b box6) over6() box {
	b.ip = "[" + b.ip6 + "]"
	return b.box
}

// allPairs fails the test unless everybody reaches everybody over both families,
// as far as they have them.
func allPairs(t testing.TB, boxes []box6) {
	t.Helper()
	var asked strings.Builder
	for _, b := range boxes {
		for _, ip := range []string{b.ip, "[" + b.ip6 + "]"} {
			if ip != "" && ip != "[]" {
				fmt.Fprintf(&asked, "[ \"$(probe get http://%s/name)\" = %s ] || echo %s at %s;", ip, b.name, b.name, ip)
			}
		}
	}
	for _, b := range boxes {
		if missed := b.host.MustInContainer(t, b.name, "sh", "-c", asked.String()); missed != "" {
			t.Errorf("%s misses:\n%s", b.name, missed)
		}
	}
}

// fullSize fails the test unless a packet of exactly the network's MTU passes
// whole, in both families, and one byte more is refused by the sender's kernel.
func fullSize(t testing.TB, from, to box6, mtu int) {
	t.Helper()
	for _, ip := range []string{to.ip, to.ip6} {
		for size, verdict := range map[int]string{mtu: "reply", mtu + 1: "EMSGSIZE"} {
			if ip == "" {
				continue
			}
			if got := from.host.MustInContainer(t, from.name, "probe", "dfping", "-size", fmt.Sprint(size), ip); got != verdict {
				t.Errorf("%d bytes from %s to %s at %s: %s, want %s", size, from.name, to.name, ip, got, verdict)
			}
		}
	}
}

// pools is what `carrick network inspect` says of a network's pools.
func pools(t testing.TB, h *lab.Host, ref string) []string {
	t.Helper()
	n, err := ask[struct {
		Pools []struct {
			Prefix  string `json:"prefix"`
			Gateway string `json:"gateway"`
		} `json:"pools"`
	}](t, h, "network", "inspect", ref)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range n.Pools {
		out = append(out, p.Prefix+" "+p.Gateway)
	}
	return out
}

// A network of both families on old and current engines: everybody reaches
// everybody over both, and the flags about addresses work for both.
func TestDualStack(t *testing.T) {
	s := begin(t).apart(t)
	create(t, []*lab.Host{s.h1, s.h2}, "app", dual4, "--ipv6", "--subnet", dual6)
	// What a joining host leaves out it inherits.
	create(t, []*lab.Host{s.h3}, "app", dual4, "--ipv6")
	for _, h := range s.Hosts() {
		if got, want := pools(t, h, "app"), []string{dual4 + " 10.42.0.1", dual6 + " fd00:42::1"}; !slices.Equal(got, want) {
			t.Errorf("%s says the pools are %q, want %q", h.Name(), got, want)
		}
		if n := inspect(t, h, dual6); n.Subnet != dual4 {
			t.Errorf("%s finds %+v by the IPv6 subnet", h.Name(), n)
		}
	}
	var boxes []box6
	seen := map[string]string{}
	for _, h := range s.Hosts() {
		for i := range 2 {
			b := start6(t, h, "app", fmt.Sprintf("%s-%d", h.Name(), i))
			boxes = append(boxes, b)
			for _, ip := range []string{b.ip, b.ip6} {
				if other, taken := seen[ip]; taken || ip == "" {
					t.Errorf("%s has the address %q of %s", b.name, ip, other)
				}
				seen[ip] = b.name
			}
		}
	}
	// --ip6 anywhere in the subnet, and in another host's block.
	boxes = append(boxes, start6(t, s.h2, "app", "far", "--ip", "10.42.77.7", "--ip6", "fd00:42::dead:beef"))
	if far := boxes[len(boxes)-1]; far.ip != "10.42.77.7" || far.ip6 != "fd00:42::dead:beef" {
		t.Errorf("--ip and --ip6 gave %s and %s", far.ip, far.ip6)
	}
	lent := netip.PrefixFrom(netip.MustParseAddr(boxes[0].ip6), 122).Masked().Addr().As16()
	lent[15] |= 0x3f
	boxes = append(boxes, start6(t, s.h3, "app", "borrower", "--ip6", netip.AddrFrom16(lent).String()))
	allPairs(t, boxes)
	for _, from := range []box6{boxes[2], boxes[4]} {
		fullSize(t, from, boxes[0], 1450)
		fullSize(t, boxes[0], from, 1450)
	}

	// Every host comes to know both addresses of every endpoint.
	for _, h := range s.Hosts() {
		lab.Eventually(t, soon, h.Name()+" to list every endpoint with both addresses", func() error {
			n, err := ask[clusterNetwork](t, h, "network", "inspect", "app")
			if err != nil {
				return err
			}
			whole := 0
			for _, e := range n.Endpoints {
				if len(e.Addrs) == 2 {
					whole++
				}
			}
			if whole != len(boxes) {
				return fmt.Errorf("%d of %d", whole, len(boxes))
			}
			return nil
		})
	}
	// A restart changes addresses and nothing else.
	for _, i := range []int{0, 4} {
		b := &boxes[i]
		b.host.MustDocker(t, "restart", "-t", "2", b.name)
		b.ip, b.ip6 = address(t, b.host, "app", b.name), address6(t, b.host, "app", b.name)
	}
	allPairs(t, boxes)
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
}

// A kill of the agent costs IPv6 nothing, and what it finds again is right.
func TestDualStackOutlivesTheAgent(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", dual4, "--ipv6", "--subnet", dual6)
	a, b := start6(t, s.h1, "app", "here"), start6(t, s.h3, "app", "there")
	a.reaches(t, b.over6())
	f := flow(t, s.h2, "app", "flow", "udp", box{name: b.name, ip: b.ip6})
	for _, h := range s.Hosts() {
		if err := h.KillAgent(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.StartAgent(t.Context()); err != nil {
			t.Fatal(err)
		}
		healthy(t, h)
	}
	a.reaches(t, b.over6())
	f.intact(t)
	// Nothing was amiss, so nothing was repaired.
	for _, h := range s.Hosts() {
		if n := inspect(t, h, "app"); len(n.Problems) > 0 {
			t.Errorf("%s has problems %q", h.Name(), n.Problems)
		}
	}
}

// Without an IPv6 subnet one is drawn from the default pool.
func TestChosenIPv6Subnet(t *testing.T) {
	s := begin(t)
	base := netip.MustParsePrefix("fd88:93b9:19b6::/48")
	var drawn []netip.Prefix
	for i, h := range s.Hosts() {
		name := "drawn" + h.Name()
		args := []string{"network", "create", "-d", "carrick", "--ipam-driver", "carrick", "--ipv6"}
		if i > 0 {
			args = append(args, "--subnet", fmt.Sprintf("10.%d.0.0/24", 60+i))
		}
		p := pools(t, h, h.MustDocker(t, append(args, name)...)) // by Docker's id
		six, _, _ := strings.Cut(p[len(p)-1], " ")
		prefix := netip.MustParsePrefix(six)
		if len(p) != 2 || prefix.Bits() != 64 || !base.Contains(prefix.Addr()) || slices.ContainsFunc(drawn, prefix.Overlaps) {
			t.Errorf("%s drew %q after %v", h.Name(), p, drawn)
		}
		drawn = append(drawn, prefix)
		if b := start6(t, h, name, "one-of-"+name); !prefix.Contains(netip.MustParseAddr(b.ip6)) {
			t.Errorf("%s got %s of %s", b.name, b.ip6, prefix)
		}
		// 20.10 tells of such a network in words of its own.
		healthy(t, h)
		lab.Eventually(t, soon, h.Name()+" to know the network's name", func() error {
			_, err := ask[clusterNetwork](t, h, "network", "inspect", name)
			return err
		})
	}
}

// A network of IPv6 only, on engines that can do without IPv4.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Engines: []lab.Engine{lab.Current, lab.Current, lab.Debian20}, Agents: true, AgentFlags: []string{alone}})
	current, old := []*lab.Host{l.Host(1), l.Host(2)}, l.Host(3)
	// As --ipv4=false, which this command line does not know.
	create(t, current, "six", only6, "--ipv6", "-o", "com.docker.network.enable_ipv4=false")
	var boxes []box6
	for _, h := range current {
		for i := range 2 {
			b := start6(t, h, "six", fmt.Sprintf("%s-%d", h.Name(), i))
			if b.ip != "" || b.ip6 == "" {
				t.Errorf("%s has %q and %q", b.name, b.ip, b.ip6)
			}
			boxes = append(boxes, b)
		}
	}
	boxes = append(boxes, start6(t, current[1], "six", "fixed", "--ip6", "fd00:46::77"))
	allPairs(t, boxes)
	fullSize(t, boxes[0], boxes[2], 1450)
	fullSize(t, boxes[4], boxes[1], 1450)
	mac := current[1].MustInContainer(t, "fixed", "cat", "/sys/class/net/eth0/address")
	if !strings.HasPrefix(mac, "06:") {
		t.Errorf("the MAC of %s is %s", boxes[4].ip6, mac)
	}

	// The one address that is left out is all a container with IPv6 turned off
	// would have.
	_, err := current[0].Docker(t.Context(), "run", "--rm", "--network", "six", "--sysctl", "net.ipv6.conf.all.disable_ipv6=1", lab.Image, "true")
	refused(t, err, "six", "disable_ipv6")
	// An old engine cannot be in it, and is told.
	_, err = old.Docker(t.Context(), createArgs("six", only6, "--ipv6")...)
	refused(t, err, only6, "--ipv4=false")
	_, err = old.Docker(t.Context(), createArgs("six", "10.46.0.0/16", "--ipv6", "--subnet", only6)...)
	refused(t, err, only6, "10.46.0.0/16", "--ipv4=false")
	_, err = old.Docker(t.Context(), createArgs("six", only6, "--ipv6", "-o", "com.docker.network.enable_ipv4=false")...)
	refused(t, err, "enable_ipv4=false")

	for _, h := range current {
		out := h.MustDocker(t, "ps", "-aq")
		h.MustDocker(t, append([]string{"rm", "-f"}, strings.Fields(out)...)...)
		lab.Eventually(t, soon, h.Name()+" to remove the network", func() error {
			_, err := h.Docker(t.Context(), "network", "rm", "six")
			return err
		})
	}
	lab.Eventually(t, soon, "no network to be left", func() error {
		keys, err := l.StoreKeys(t.Context())
		for _, k := range keys {
			if strings.Contains(k, "v1/net/") || strings.Contains(k, "v1/tenant/") {
				return fmt.Errorf("the store has %s", k)
			}
		}
		return err
	})
}

// Current engines leave the IPv6 address out, or give it back, if a container has
// IPv6 turned off by a sysctl; the container is reached over IPv4.
func TestContainersThatTurnIPv6Off(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", dual4, "--ipv6", "--subnet", dual6)
	peer := start6(t, s.h1, "app", "peer")
	off := []box6{
		start6(t, s.h3, "app", "all", "--sysctl", "net.ipv6.conf.all.disable_ipv6=1"),
		{box: start(t, s.h3, "name=app,driver-opt=com.docker.network.endpoint.sysctls=net.ipv6.conf.IFNAME.disable_ipv6=1", "endpoint")},
	}
	off[1].network, off[1].ip, off[1].ip6 = "app", address(t, s.h3, "app", "endpoint"), address6(t, s.h3, "app", "endpoint")
	for _, b := range off {
		if b.ip == "" || b.ip6 != "" {
			t.Errorf("%s has %q and %q", b.name, b.ip, b.ip6)
		}
		peer.reaches(t, b.box)
		b.reaches(t, peer.box)
	}
	for _, h := range s.Hosts() {
		lab.Eventually(t, soon, h.Name()+" to list IPv4 addresses of both only", func() error {
			n, err := ask[clusterNetwork](t, h, "network", "inspect", "app")
			if err != nil {
				return err
			}
			var have []string
			for _, e := range n.Endpoints {
				have = append(have, e.Addrs...)
			}
			slices.Sort(have)
			want := []string{off[0].ip, off[1].ip, peer.ip, peer.ip6}
			slices.Sort(want)
			if !slices.Equal(have, want) {
				return fmt.Errorf("addresses %q, want %q", have, want)
			}
			return nil
		})
	}
	// What was given back is nobody's.
	b := start6(t, s.h3, "app", "next")
	peer.reaches(t, b.over6())
}

// What cannot be of IPv6 is refused on the terminal, in words that say what would
// do, and leaves nothing.
func TestBadIPv6(t *testing.T) {
	s := begin(t).apart(t)
	create(t, s.Hosts()[:1], "both", dual4, "--ipv6", "--subnet", dual6)
	create(t, s.Hosts()[:1], "four", "10.44.0.0/16")
	before := s.MustInventory(t)
	for _, c := range []struct {
		name        string
		subnet      string
		extra, want []string
	}{
		{"IPv6 left out", dual4, nil, []string{dual4, "--ipv6 --subnet " + dual6}},
		{"IPv4 left out", dual6, []string{"--ipv6"}, []string{dual6, "--subnet " + dual4}},
		{"another IPv6 subnet", dual4, []string{"--ipv6", "--subnet", "fd00:43::/64"}, []string{dual6, "fd00:43::/64"}},
		{"another IPv4 subnet", "10.43.0.0/16", []string{"--ipv6", "--subnet", dual6}, []string{dual4, "10.43.0.0/16"}},
		{"IPv6 where there is none", "10.44.0.0/16", []string{"--ipv6", "--subnet", "fd00:44::/64"}, []string{"fd00:44::/64", "--ipv6"}},
		{"another IPv6 gateway", dual4, []string{"--ipv6", "--subnet", dual6, "--gateway", "fd00:42::9"}, []string{"--gateway", "fd00:42::9", "fd00:42::1"}},
		{"two IPv4 subnets", "10.50.0.0/16", []string{"--subnet", "10.51.0.0/16"}, []string{"10.50.0.0/16", "10.51.0.0/16", "IPv4"}},
		{"two IPv6 subnets", "fd00:50::/64", []string{"--ipv6", "--subnet", "fd00:51::/64"}, []string{"fd00:50::/64", "fd00:51::/64", "IPv6"}},
		{"overlap", "10.50.0.0/16", []string{"--ipv6", "--subnet", "fd00:42:0:0:8000::/65"}, []string{"fd00:42:0:0:8000::/65", dual6}},
		{"too large", "10.50.0.0/16", []string{"--ipv6", "--subnet", "fd00::/40"}, []string{"fd00::/40", "/48"}},
		{"link-local", "10.50.0.0/16", []string{"--ipv6", "--subnet", "fe80:50::/64"}, []string{"fe80:50::/64"}},
		{"MTU too small", "10.50.0.0/16", []string{"--ipv6", "--subnet", "fd00:50::/64", "-o", "mtu=1279"}, []string{"mtu=1279", "1280"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, h := range []*lab.Host{s.h2, s.h3} {
				_, err := h.Docker(t.Context(), createArgs("bad", c.subnet, c.extra...)...)
				refused(t, err, c.want...)
			}
			s.unchanged(t, before)
		})
	}
	// Addresses that cannot be had.
	create(t, []*lab.Host{s.h2, s.h3}, "both", dual4, "--ipv6", "--subnet", dual6)
	here := start6(t, s.h1, "both", "here")
	start6(t, s.h2, "both", "second")
	start6(t, s.h3, "both", "third")
	for _, c := range []struct {
		ip6  string
		want []string
	}{
		{here.ip6, []string{"--ip6 " + here.ip6, "h1"}},
		{"fd00:42::1", []string{"--ip6 fd00:42::1", "gateway"}},
		{"fd00:42::", []string{"anycast"}},
	} {
		for _, h := range []*lab.Host{s.h2, s.h3} {
			_, err := h.Docker(t.Context(), "run", "--name", "bad", "--network", "both", "--ip6", c.ip6, lab.Image, "true")
			refused(t, err, c.want...)
			h.MustDocker(t, "rm", "-f", "bad")
		}
	}
	// Nor were the IPv4 addresses lost that went with them.
	for _, h := range []*lab.Host{s.h2, s.h3} {
		if n := given(t, h, "both", dual4); n != 1 {
			t.Errorf("%s has one container and %d IPv4 addresses given out", h.Name(), n)
		}
	}
}

// given counts the addresses of a pool that a host has given out itself.
func given(t testing.TB, h *lab.Host, network, pool string) (n int) {
	t.Helper()
	show, err := ask[[]struct {
		Pools []struct {
			Prefix string `json:"prefix"`
			Hosts  []struct {
				Self  bool `json:"self"`
				Given int  `json:"given"`
			} `json:"hosts"`
		} `json:"pools"`
	}](t, h, "ipam", "show", network)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range show {
		for _, p := range s.Pools {
			for _, u := range p.Hosts {
				if p.Prefix == pool && u.Self {
					n += u.Given
				}
			}
		}
	}
	return n
}
