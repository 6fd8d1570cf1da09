package routed_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// Containers of two hosts and of one reach each other over both families, without an
// address of theirs on any host, although the hosts forward nothing else.
func TestContainersReachEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, true) // IPv6 VTEPs: IPv4 cannot be routed by them
	w.view.Network.Pools = w.view.Network.Pools[1:]
	a, b, far := w.run(0, 2), w.run(0, 3), w.run(1, 4)
	w.all()
	w.reach(a, b, far)

	w = newWorld(t, dual(), 2, false)
	w.view.Network.Pools = w.view.Network.Pools[:1]
	a, b, far = w.run(0, 2), w.run(0, 3), w.run(1, 4)
	w.all()
	w.reach(a, b, far)
	if got, want := w.routes(0), "10.42.0.2 dev "+endpoint(2).HostName()+"\n10.42.0.3 dev "+endpoint(3).HostName()+"\n10.42.0.4 via 192.0.2.2 dev eth0\nunreachable 10.42.0.0/16"; got != want {
		t.Errorf("routes\n%s\nnot\n%s", got, want)
	}
	if n := w.accepts(0); n != 1 {
		t.Errorf("%d rules", n)
	}
}

// What a family lacks a next hop for is said, and the other one works.
func TestBothFamiliesOverHostsOfOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	a, b := w.run(0, 2), w.run(1, 4)
	w.all()
	if rep := w.audit(0); len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "fd00:42::4") || !strings.Contains(rep.Problems[0], "routed_fallback=vxlan") {
		t.Errorf("problems %q", rep.Problems)
	}
	if err := nstest.TryExchange(a.NS, netip.AddrPortFrom(b.Addrs[0], 7), 100, patience); err != nil {
		t.Error(err)
	}
	// With the tunnel both work.
	w = newWorld(t, dual(), 2, false)
	w.view.Network.Fallback = carrick.ModeVXLAN
	a, b = w.run(0, 2), w.run(1, 4)
	w.all()
	w.reach(a, b)
	// What fits the containers' devices and not the tunnel is not lost: the host says so.
	told(t, a, b.Addrs[1])
	if rep := w.audit(0); len(rep.Problems) != 0 || rep.Changes.Total() != 0 || rep.Ways[w.hosts[1].VTEP] != datapath.WayBoth {
		t.Errorf("an audit: problems %q, changes %v, ways %v", rep.Problems, rep.Changes, rep.Ways)
	}
	if got := w.routes(0); !strings.Contains(got, "10.42.0.4 via 192.0.2.2 dev eth0\n") || !strings.Contains(got, "fd00:42::4 via fe80::") {
		t.Errorf("routes\n%s", got)
	}
}

// told fails the test unless a packet of the tunnel's size passes, and the sender of one
// of its own device's size learns that it does not.
func told(t *testing.T, from *nstest.Container, to netip.Addr) {
	t.Helper()
	if err := nstest.TryExchange(from.NS, netip.AddrPortFrom(to, 7), 1450, patience); err != nil {
		t.Errorf("a packet that fits the tunnel: %v", err)
	}
	if err := nstest.TryExchange(from.NS, netip.AddrPortFrom(to, 7), 1500, patience); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet that does not: %v", err)
	}
}

// A host beyond a router: without a fallback it is told of and the rest is reached, with
// one it is reached by the tunnel, and once it is on the segment directly again.
func TestAHostBeyondARouter(t *testing.T) {
	t.Parallel()
	for _, fallback := range []carrick.Mode{"", carrick.ModeVXLAN} {
		t.Run("fallback "+string(fallback), func(t *testing.T) {
			t.Parallel()
			conf := dual()
			conf.Pools, conf.Fallback = conf.Pools[:1], fallback
			w := newWorld(t, conf, 3, false)
			// h2 routes between h1 and h3, who do not see each other.
			for _, i := range []int{0, 2} {
				h := w.hosts[i]
				nstest.Batch(t, h.NS,
					"ip addr del "+h.VTEP.String()+"/24 dev eth0", "ip addr add "+h.VTEP.String()+"/32 dev eth0",
					"ip route add 192.0.2.2/32 dev eth0", "ip route add 192.0.2.0/24 via 192.0.2.2")
			}
			nstest.Run(t, w.hosts[1].NS, "iptables-nft -I FORWARD -s 192.0.2.0/24 -d 192.0.2.0/24 -j ACCEPT")
			a, b, c := w.run(0, 2), w.run(1, 3), w.run(2, 4)
			w.all()
			w.reach(a, b)
			w.reach(b, c)
			rep := w.audit(0)
			if fallback == "" {
				w.misses(a, c)
				if rep.Ways[w.hosts[2].VTEP] != datapath.WayNone || rep.Ways[w.hosts[1].VTEP] != datapath.WayRoute {
					t.Errorf("ways %v", rep.Ways)
				}
				if len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "host 192.0.2.3") || !strings.Contains(rep.Problems[0], "segment") {
					t.Errorf("problems %q", rep.Problems)
				}
				return
			}
			w.reach(a, b, c)
			told(t, a, c.Addrs[0])
			if rep.Ways[w.hosts[2].VTEP] != datapath.WayTunnel || rep.Ways[w.hosts[1].VTEP] != datapath.WayRoute || rep.Changes.Total() != 0 || len(rep.Problems) != 0 {
				t.Errorf("ways %v, changes %v, problems %q", rep.Ways, rep.Changes, rep.Problems)
			}
			for _, i := range []int{0, 2} {
				h := w.hosts[i]
				nstest.Batch(t, h.NS, "ip addr add "+h.VTEP.String()+"/24 dev eth0", "ip route del 192.0.2.0/24 via 192.0.2.2")
				if rep := w.audit(i); rep.Ways[w.hosts[2-i].VTEP] != datapath.WayRoute {
					t.Errorf("h%d has the ways %v", i+1, rep.Ways)
				}
				w.reach(a, b, c) // also while one goes by the tunnel and the other does not
			}
			w.reach(a, b, c)
			if got := w.routes(0); !strings.Contains(got, "10.42.0.4 via 192.0.2.3 dev eth0\n") {
				t.Errorf("routes\n%s", got)
			}
			// The last container takes the tunnel with it.
			w.hosts[0].Remove("c2")
			w.gone(0, 2)
			w.mustApply(0)
			if left := w.ours(0); len(left) != 0 {
				t.Errorf("left are %v", left)
			}
		})
	}
}

// An agent that ends and starts anew finds everything, changes nothing, and takes away
// what is of endpoints that are no more, and what a crash left half made.
func TestARestartAdopts(t *testing.T) {
	t.Parallel()
	conf := dual()
	conf.Fallback = carrick.ModeVXLAN
	w := newWorld(t, conf, 2, false)
	a, b := w.run(0, 2), w.run(1, 4)
	w.all()
	w.add(0, 3) // its container is about to start
	w.mustApply(0)
	w.add(0, 5) // and this one's start fails
	w.mustApply(0)
	w.gone(0, 5)
	nstest.Run(t, w.hosts[0].NS, "ip link add "+endpoint(6).HostName()+" type veth peer name "+endpoint(6).OuterName())
	w.restart(0)
	rep := w.mustApply(0)
	want := datapath.Counts{Links: 1, Rules: 1, Routes: 2}
	if rep.Changes != want || rep.Drift.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("after a restart: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	wanted := routed.Wanted{
		Known: prefixes(conf), Prefixes: prefixes(conf), Networks: map[carrick.NetworkID]bool{network: true},
		Pairs: map[string]bool{endpoint(2).HostName(): true, endpoint(3).HostName(): true},
	}
	if err := w.on[0].Collect(t.Context(), func() routed.Wanted { return wanted }); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{5, 6} {
		if links := nstest.Links(t, w.hosts[0].NS); links[endpoint(n).HostName()] || links[endpoint(n).OuterName()] {
			t.Errorf("what is of endpoint %d is still there: %v", n, w.ours(0))
		}
	}
	c := w.take(0, 3)
	w.view.Joined[endpoint(3)] = true
	w.all()
	w.reach(a, b, c)
	if rep := w.audit(0); rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
		t.Errorf("an audit changed %v, drift %v", rep.Changes, rep.Drift)
	}
	held, err := w.on[0].Inspect(t.Context(), network)
	if err != nil || len(held) != 2 || held[endpoint(2)] != (routed.Held{Up: true}) {
		t.Errorf("inspect: %v, %v", held, err)
	}
	// What a partial view does not know is left alone.
	w.add(0, 7)
	w.mustApply(0)
	w.gone(0, 7)
	w.view.Partial = true
	w.audit(0)
	if !nstest.Links(t, w.hosts[0].NS)[endpoint(7).HostName()] {
		t.Error("a pair was removed because of a view that is not whole")
	}
	w.view.Partial = false
	w.audit(0)
	if nstest.Links(t, w.hosts[0].NS)[endpoint(7).HostName()] {
		t.Error("a pair of no endpoint stays")
	}
}

func prefixes(n carrick.Network) (out []netip.Prefix) {
	for _, p := range n.Pools {
		out = append(out, p.Prefix)
	}
	return out
}

// The last container ends: nothing of the network is left, and a crash in between makes no
// difference: what the next start finds goes as well.
func TestTheEndOfANetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	ns := w.hosts[0].NS
	w.run(0, 2)
	w.run(1, 4)
	w.all()
	nstest.Run(t, ns, "ip route add 10.99.0.1/32 via 192.0.2.2 proto 67") // another network's
	nstest.Run(t, ns, "ip route add 10.42.9.0/24 via 192.0.2.2")          // a user's
	w.hosts[0].Remove("c2")
	w.gone(0, 2)
	w.mustApply(0)
	if got := w.routes(0); got != "10.99.0.1 via 192.0.2.2 dev eth0" || w.accepts(0) != 0 || len(w.ours(0)) != 0 {
		t.Errorf("left are routes %q, %d rules, links %v", got, w.accepts(0), w.ours(0))
	}
	if out := nstest.Run(t, ns, "ip route show 10.42.9.0/24"); out == "" {
		t.Error("a user's route is gone")
	}
	// The agent dies after the container's end took the pair, before anything else.
	w.run(0, 3)
	w.mustApply(0)
	w.hosts[0].Remove("c3")
	w.gone(0, 3)
	w.restart(0)
	none := func() routed.Wanted { return routed.Wanted{Known: prefixes(w.view.Network)} }
	if list, err := w.on[0].List(t.Context()); err != nil || len(list) != 1 || list[0] != network {
		t.Errorf("found networks %v, %v", list, err)
	}
	if err := w.on[0].Collect(t.Context(), none); err != nil {
		t.Fatal(err)
	}
	if got := w.routes(0); got != "10.99.0.1 via 192.0.2.2 dev eth0" || w.accepts(0) != 0 || len(w.ours(0)) != 0 {
		t.Errorf("left are routes %q, %d rules, links %v", got, w.accepts(0), w.ours(0))
	}
}

// Whoever must not be heard is not, as long as that is so; and a container that would be
// one does not start.
func TestFenced(t *testing.T) {
	t.Parallel()
	conf := dual()
	conf.Pools = conf.Pools[:1]
	w := newWorld(t, conf, 2, false)
	a, b := w.run(0, 2), w.run(1, 4)
	w.all()
	w.view.Fenced[endpoint(2)] = true
	w.all()
	w.misses(a, b)
	w.misses(b, a)
	nstest.Run(t, w.hosts[0].NS, "ip link set "+endpoint(2).HostName()+" up")
	if rep := w.audit(0); rep.Drift.Links != 1 {
		t.Errorf("drift %v", rep.Drift)
	}
	w.misses(a, b)
	delete(w.view.Fenced, endpoint(2))
	w.all()
	w.reach(a, b)
	w.add(0, 3)
	w.view.Fenced[endpoint(3)] = true
	if rep, err := w.apply(0); err != nil || rep.Endpoints[endpoint(3)] == nil || !strings.Contains(rep.Endpoints[endpoint(3)].Error(), "cut off") {
		t.Errorf("a fenced container: %v, %v", rep.Endpoints, err)
	}
	w.reach(a, b)
}

// A container speaks with its own addresses only: what it sends as somebody else goes
// nowhere. (With what sees to that taken away it does, so that this could fail.)
func TestNobodySpeaksForOthers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		six             bool
		iptables, route string
		without         string
	}{
		"IPv4": {false, "iptables-nft", "ip route replace 10.42.0.4/32 dev eth0 src 10.42.0.3", "sysctl -qw net.ipv4.conf." + endpoint(2).HostName() + ".rp_filter=0"},
		"IPv6": {true, "ip6tables-nft", "ip -6 route replace fd00:42::4/128 via fd00:42::1 dev eth0 onlink src fd00:42::3", "nft delete table ip6 carrick-" + string(network)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := dual()
			if conf.Pools = conf.Pools[:1]; c.six {
				conf.Pools = dual().Pools[1:]
			}
			w := newWorld(t, conf, 2, c.six)
			a, other, b := w.run(0, 2), w.run(0, 3), w.run(1, 4)
			w.all()
			w.reach(a, other, b) // and it knows its neighbour: no answer to another's question would be its own
			mine := netip.PrefixFrom(other.Addrs[0], other.Addrs[0].BitLen()).String()
			spoof := func() string {
				t.Helper()
				nstest.Shell(t, w.hosts[1].NS, c.iptables+" -I FORWARD -s "+mine+" -j ACCEPT")
				add := "ip addr add " + mine + " dev eth0"
				if c.six {
					add += " nodad"
				}
				nstest.Shell(t, a.NS, add+"; "+c.route)
				w.misses(a, b)
				route, _, _ := strings.Cut(strings.Replace(c.route, "replace", "del", 1), " src ")
				nstest.Shell(t, a.NS, route+"; ip addr del "+mine+" dev eth0")
				out := nstest.Shell(t, w.hosts[1].NS, c.iptables+" -nvxL FORWARD 1")
				nstest.Shell(t, w.hosts[1].NS, c.iptables+" -D FORWARD 1")
				return strings.Fields(out)[0]
			}
			if n := spoof(); n != "0" {
				t.Errorf("%s packets in another's name came to the other host", n)
			}
			nstest.Shell(t, w.hosts[0].NS, c.without)
			if n := spoof(); n == "0" {
				t.Error("without the setting none came either: this test shows nothing")
			}
			w.audit(0)
			w.reach(a, other, b)
		})
	}
}

// lacking is a kernel without what asks its routes for a source, until somebody loads it.
type lacking struct {
	nft.Sources
	loaded bool
}

func (l *lacking) Set(ctx context.Context, ns netns.Namespace, name string, devices []string) (bool, error) {
	if !l.loaded && len(devices) > 0 {
		return false, nft.ErrNoSources
	}
	return l.Sources.Set(ctx, ns, name, devices)
}

// Where the kernel cannot tell whose addresses containers send with, that is said with what
// to do, and everything else is there; once it can, it does, and nobody is blamed.
func TestAKernelThatAsksNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 1, false)
	kernel := &lacking{}
	on, err := routed.Open(t.Context(), routed.Config{Kernel: nl.Linux{}, Namespaces: w.hosts[0].Namespaces, Accepts: nft.User{}, Sources: kernel})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.on[0].Close()
	w.on[0] = on
	a, b := w.run(0, 2), w.run(0, 3)
	w.reach(a, b)
	for range 2 {
		if rep := w.audit(0); rep.Drift.Total() != 0 || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "modprobe nft_fib_ipv6") {
			t.Errorf("drift %v, problems %q", rep.Drift, rep.Problems)
		}
	}
	kernel.loaded = true
	if rep := w.audit(0); rep.Drift.Total() != 0 || rep.Changes.Rules != 1 || len(rep.Problems) != 0 {
		t.Errorf("once it can: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	nstest.Run(t, w.hosts[0].NS, "nft delete table ip6 carrick-"+string(network))
	if rep := w.audit(0); rep.Drift.Rules != 1 {
		t.Errorf("somebody took it away: drift %v", rep.Drift)
	}
}

// A host whose device takes less than this one's: senders are told, and nothing vanishes.
func TestAHostThatTakesLess(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	w.view.Network.Pools = w.view.Network.Pools[:1]
	h := w.view.Hosts[hostID(1)]
	h.MTU = 1400
	w.view.Hosts[hostID(1)] = h
	a, b := w.run(0, 2), w.run(1, 4)
	w.all()
	if err := nstest.TryExchange(a.NS, netip.AddrPortFrom(b.Addrs[0], 7), 1500, patience); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet that the other host does not take: %v", err)
	}
	if err := nstest.TryExchange(a.NS, netip.AddrPortFrom(b.Addrs[0], 7), 1400, patience); err != nil {
		t.Errorf("one that it does: %v", err)
	}
	if rep := w.audit(0); rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
		t.Errorf("an audit changed %v, drift %v", rep.Changes, rep.Drift)
	}
}

// A user's own route to a container's address stays, and is told of.
func TestSomebodyElsesRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	w.view.Network.Pools = w.view.Network.Pools[:1]
	nstest.Run(t, w.hosts[0].NS, "ip route add 10.42.0.4/32 via 192.0.2.9")
	w.run(0, 2)
	w.run(1, 4)
	w.all()
	for range 2 {
		if rep := w.audit(0); len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "ip route del 10.42.0.4/32") {
			t.Errorf("problems %q", rep.Problems)
		}
	}
	w.gone(1, 4)
	w.all()
	if out := nstest.Run(t, w.hosts[0].NS, "ip route show 10.42.0.4/32"); !strings.Contains(out, "192.0.2.9") {
		t.Errorf("the route is %q", out)
	}
}

// Docker's chain comes late, after a reboot say: whoever starts then is let through.
func TestDockersChainComesLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	w.view.Network.Pools = w.view.Network.Pools[:1]
	nstest.Shell(t, w.hosts[0].NS, "iptables-nft -F FORWARD && iptables-nft -X DOCKER-USER")
	a, b := w.run(0, 2), w.run(1, 4)
	w.all()
	w.misses(a, b)
	nstest.Shell(t, w.hosts[0].NS, "iptables-nft -N DOCKER-USER && iptables-nft -A FORWARD -j DOCKER-USER")
	w.mustApply(0) // for whatever reason
	w.reach(a, b)
	// Somebody flushes it, and the next container does not wait for the audit.
	nstest.Shell(t, w.hosts[0].NS, "iptables-nft -F DOCKER-USER")
	c := w.run(0, 3)
	w.all()
	w.reach(c, b)
}

// The segment is another device's by now: what has been right so far is looked at anew.
func TestTheSegmentMovesToAnotherDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	w.view.Network.Pools = w.view.Network.Pools[:1]
	a, b := w.run(0, 2), w.run(1, 4)
	w.all()
	w.reach(a, b)
	ns := w.hosts[0].NS
	nstest.Batch(t, ns, "ip link add other type veth peer name far", "ip link set other up", "ip link set far up", "ip route add 192.0.2.2/32 dev other")
	rep := w.audit(0)
	if got := w.routes(0); !strings.Contains(got, "10.42.0.4 via 192.0.2.2 dev other") || rep.Drift.Total() != 0 {
		t.Errorf("routes\n%s\ndrift %v", got, rep.Drift)
	}
	nstest.Batch(t, ns, "ip route del 192.0.2.2/32 dev other")
	w.audit(0)
	w.reach(a, b)
	// And now only a router leads there.
	nstest.Batch(t, ns, "ip addr add 192.0.2.1/32 dev eth0", "ip addr del 192.0.2.1/24 dev eth0", "ip route add 192.0.2.77/32 dev eth0", "ip route add 192.0.2.0/24 via 192.0.2.77")
	if rep := w.audit(0); len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "segment") {
		t.Errorf("problems %q", rep.Problems)
	}
}

// readOnly is a kernel whose settings this process may not change, as of a managed plugin.
type readOnly struct{ nl.Kernel }

func (k readOnly) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	h, err := k.Kernel.Open(ctx, ns)
	return readOnlyHandle{h}, err
}

type readOnlyHandle struct{ nl.Handle }

func (h readOnlyHandle) Send(ctx context.Context, changes ...nl.Change) []error {
	for i, c := range changes {
		if s, ok := c.(nl.SetSysctl); ok {
			errs := make([]error, len(changes))
			errs[i] = nl.NewOpError(s.Command(""), unix.EROFS, "", "")
			return errs
		}
	}
	return h.Handle.Send(ctx, changes...)
}

// What a host cannot do is said when the network is made there.
func TestCheckRouted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 1, false)
	conf, ns := w.view.Network, w.hosts[0].NS
	check := func(o *routed.Host, n carrick.Network, want error, says ...string) {
		t.Helper()
		err := o.CheckRouted(t.Context(), n)
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
		for _, s := range says {
			if err != nil && !strings.Contains(err.Error(), s) {
				t.Errorf("%v does not say %q", err, s)
			}
		}
	}
	check(w.on[0], conf, nil)
	lan := conf
	lan.Pools = []carrick.Pool{{Prefix: netip.MustParsePrefix("192.0.2.128/25"), Block: 29}}
	check(w.on[0], lan, routed.ErrOverlap, "192.0.2.0/24 by eth0", "--subnet")
	plugin, err := routed.Open(t.Context(), routed.Config{Kernel: readOnly{nl.Linux{}}, Namespaces: w.hosts[0].Namespaces, Accepts: nft.User{}, Sources: nft.Sources{}})
	if err != nil {
		t.Fatal(err)
	}
	defer plugin.Close()
	check(plugin, conf, routed.ErrReadOnly, "run it as a service")
	nstest.Run(t, ns, "sysctl -qw net.ipv6.conf.all.forwarding=0")
	check(w.on[0], conf, routed.ErrNotForwarding, "net.ipv6.conf.all.forwarding=1", "accept_ra")
	four := conf
	four.Pools = four.Pools[:1]
	check(w.on[0], four, nil)
	// What this host has of the network itself is no overlap.
	w.view.Network = four
	w.run(0, 2)
	check(w.on[0], four, nil)
}
