package underlay_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/datapath/underlay/undertest"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// legOf gives a host an endpoint of its own in the network, with the addresses of number n.
func legOf(w *undertest.World, host, n int) carrick.EndpointID {
	w.View.Network.HostAccess = true
	e := carrick.Endpoint{
		ID:  carrick.LegID(undertest.Network, undertest.HostID(host)),
		Gen: carrick.Gen(n), MAC: carrick.MACFor(w.View.Network.VNI, undertest.Addr(n)),
	}
	for _, p := range undertest.Prefixes(w.View.Network, n) {
		e.Addrs = append(e.Addrs, p.Addr())
	}
	w.View.Endpoints[undertest.HostID(host)] = append(slices.Clone(w.View.Endpoints[undertest.HostID(host)]), e)
	return e.ID
}

// With a leg a host and its own containers reach each other; the segment finds the host's
// other addresses where they were; and what somebody does to the leg is put right.
func TestHostAccess(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Macvlan("bridge"), 2)
	leg := legOf(w, 0, 100)
	a, b, far := w.Run(0, 2), w.Run(0, 3), w.Run(1, 4)
	w.MustApply(0)
	w.Answers(a, b, far)
	w.Reaches(a, b, far)
	h1, h2 := w.Hosts[0], w.Hosts[1]
	nstest.Echo(t, h1.NS, netip.AddrPortFrom(undertest.Addr(100), 7))
	nstest.Echo(t, h1.NS, netip.AddrPortFrom(h1.VTEP, 9))
	both := func() {
		t.Helper()
		for _, c := range []*nstest.Container{a, b} {
			if err := nstest.TryExchange(h1.NS, netip.AddrPortFrom(c.Addrs[0], 7), 100, 5*time.Second); err != nil {
				t.Errorf("the host does not reach %s: %v", c.Addrs[0], err)
			}
		}
		for _, c := range []*nstest.Container{a, b} {
			if err := nstest.TryExchange(c.NS, netip.AddrPortFrom(undertest.Addr(100), 7), 100, 5*time.Second); err != nil {
				t.Errorf("%s does not reach the host: %v", c.Addrs[0], err)
			}
		}
	}
	both()
	if nstest.TryExchange(h2.NS, netip.AddrPortFrom(far.Addrs[0], 7), 100, 300*time.Millisecond) == nil {
		t.Error("a host without a leg reaches its container")
	}
	mac := strings.Fields(nstest.Run(t, h1.NS, "ip -br link show eth0"))[2]
	for range 5 {
		nstest.Run(t, h2.NS, "ip neigh flush dev eth0")
		if err := nstest.TryExchange(h2.NS, netip.AddrPortFrom(h1.VTEP, 9), 100, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if out := nstest.Run(t, h2.NS, "ip neigh show "+h1.VTEP.String()); !strings.Contains(out, mac) {
			t.Errorf("the segment finds the host at %s, not at %s", out, mac)
		}
	}
	w.Restart(0)
	if rep := w.MustApply(0); rep.Changes.Total() != 0 || rep.Drift.Total() != 0 || len(rep.Problems) != 0 {
		t.Errorf("after a restart: changes %v, drift %v, problems %q", rep.Changes, rep.Drift, rep.Problems)
	}
	name := plan.LegName(undertest.Network)
	for _, does := range []string{
		"ip link del LEG", "ip link set LEG down", "ip addr flush dev LEG", "ip addr add 10.42.9.9/32 dev LEG",
		"ip link set LEG address 02:00:00:00:00:99", "ip link set LEG mtu 1300", "ip link set LEG alias x",
		"ip link set LEG type macvlan mode private", "sysctl -qw net.ipv4.conf.LEG.arp_ignore=0", "ip route del 10.42.0.2", "ip route replace 10.42.0.2/32 dev LEG proto 67",
	} {
		nstest.Shell(t, h1.NS, strings.ReplaceAll(does, "LEG", name))
		if rep := w.Audit(0); rep.Drift.Total() == 0 {
			t.Errorf("%s: an audit found nothing: %v", does, rep.Changes)
		}
		if rep := w.Audit(0); rep.Changes.Total() != 0 {
			t.Errorf("%s: the next audit changed %v", does, rep.Changes)
		}
		both()
	}
	w.View.Fenced[leg] = true
	w.MustApply(0)
	if nstest.TryExchange(a.NS, netip.AddrPortFrom(undertest.Addr(100), 7), 100, 300*time.Millisecond) == nil {
		t.Error("a fenced leg answers")
	}
	delete(w.View.Fenced, leg)
	w.MustApply(0)
	both()

	// The last container takes the leg with it, and a crash in between leaves nothing.
	h1.Remove("c2")
	h1.Remove("c3")
	w.View.Endpoints[undertest.HostID(0)] = nil
	w.MustApply(0)
	if links := nstest.Links(t, h1.NS); links[name] {
		t.Errorf("the leg is still there: %v", links)
	}
	if out := nstest.Run(t, h1.NS, "ip route show proto 67"); out != "" {
		t.Errorf("routes are left: %s", out)
	}
	nstest.Run(t, h1.NS, "ip link add "+name+" link eth0 type macvlan mode bridge")
	if err := w.On[0].Collect(t.Context(), func() underlay.Wanted { return underlay.Wanted{} }); err != nil {
		t.Fatal(err)
	}
	if nstest.Links(t, h1.NS)[name] {
		t.Error("a leg that a crash left is still there")
	}
}

// A leg has an address of each of the network's families.
func TestHostAccessOfBothFamilies(t *testing.T) {
	t.Parallel()
	w := undertest.New(t, undertest.Dual(undertest.Macvlan("bridge")), 2)
	legOf(w, 0, 100)
	a, b, far := w.Run(0, 2), w.Run(0, 3), w.Run(1, 4)
	w.MustApply(0)
	host := &nstest.Container{NS: w.Hosts[0].NS, Addrs: []netip.Addr{undertest.Addr(100), undertest.Addr6(100)}}
	w.Answers(a, b, far, host)
	w.Reaches(a, b, far, host)
	w.Reaches(host, a, b)
	name := plan.LegName(undertest.Network)
	for _, does := range []string{
		"ip -6 addr flush dev LEG scope global", "ip -6 addr add fd00:42::99/128 dev LEG",
		"ip -6 route del fd00:42::2", "ip -6 route replace fd00:42::2/128 dev eth0 proto 67", "sysctl -qw net.ipv6.conf.LEG.accept_ra=1",
	} {
		nstest.Shell(t, w.Hosts[0].NS, strings.ReplaceAll(does, "LEG", name))
		if rep := w.Audit(0); rep.Drift.Total() == 0 {
			t.Errorf("%s: an audit found nothing: %v", does, rep.Changes)
		}
		if rep := w.Audit(0); rep.Changes.Total() != 0 {
			t.Errorf("%s: the next audit changed %v", does, rep.Changes)
		}
		w.Reaches(host, a, b)
		w.Reaches(a, host)
	}
	w.Hosts[0].Remove("c2")
	w.Hosts[0].Remove("c3")
	w.View.Endpoints[undertest.HostID(0)] = nil
	w.MustApply(0)
	if out := nstest.Run(t, w.Hosts[0].NS, "ip -6 route show proto 67"); out != "" || nstest.Links(t, w.Hosts[0].NS)[name] {
		t.Errorf("left are routes %q, links %v", out, nstest.Links(t, w.Hosts[0].NS))
	}
}
