package routed_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// Whatever somebody does to a host's part of a network, the next audit finds it, says so,
// and puts it right; the one after that finds nothing.
func TestVandalism(t *testing.T) {
	t.Parallel()
	end, tunnel := endpoint(2).HostName(), plan.TunnelName(network)
	peer := carrick.MACFor(7, netip.MustParseAddr("192.0.2.2")).String()
	for name, c := range map[string]struct {
		does string // END, TUNNEL, PEER and TABLE stand for names
		want datapath.Counts
	}{
		"a route is gone":                 {"ip route del 10.42.0.4", datapath.Counts{Routes: 1}},
		"a route by another host":         {"ip route replace 10.42.0.4 via 192.0.2.3 proto 67", datapath.Counts{Routes: 1}},
		"a container's route is gone":     {"ip route del 10.42.0.2", datapath.Counts{Routes: 1}},
		"a route to nobody":               {"ip route add 10.42.0.9 via 192.0.2.2 proto 67", datapath.Counts{Routes: 1}},
		"the rest is not unreachable":     {"ip route del unreachable 10.42.0.0/16 metric 1073741824", datapath.Counts{Routes: 1}},
		"a route of IPv6 is gone":         {"ip -6 route del fd00:42::4", datapath.Counts{Routes: 1}},
		"the host's end is down":          {"ip link set END down", datapath.Counts{Links: 1, Routes: 2, Neigh: 1}},
		"it is small":                     {"ip link set END mtu 1400", datapath.Counts{Links: 1}},
		"it has no alias":                 {`ip link set END alias ""`, datapath.Counts{Links: 1}},
		"it is called something else":     {"ip link set END down; ip link set END name mine up", datapath.Counts{Links: 1, Routes: 2, Neigh: 1}},
		"it is a bridge's port":           {"ip link add br9 type bridge; ip link set END master br9", datapath.Counts{Links: 1}},
		"it does not answer ARP":          {"sysctl -qw net.ipv4.conf.END.proxy_arp=0", datapath.Counts{Sysctls: 1}},
		"it answers late":                 {"sysctl -qw net.ipv4.neigh.END.proxy_delay=80", datapath.Counts{Sysctls: 1}},
		"it forwards nothing":             {"sysctl -qw net.ipv4.conf.END.forwarding=0", datapath.Counts{Sysctls: 1}},
		"it takes every source":           {"sysctl -qw net.ipv4.conf.END.rp_filter=0", datapath.Counts{Sysctls: 1}},
		"it answers no solicitations":     {"sysctl -qw net.ipv6.conf.END.proxy_ndp=0", datapath.Counts{Sysctls: 1}},
		"it forwards no IPv6":             {"sysctl -qw net.ipv6.conf.END.forwarding=0", datapath.Counts{Sysctls: 1}},
		"it hears router advertisements":  {"sysctl -qw net.ipv6.conf.END.accept_ra=2", datapath.Counts{Sysctls: 1}},
		"the router is not there":         {"ip -6 neigh del proxy fd00:42::1 dev END", datapath.Counts{Neigh: 1}},
		"somebody else is":                {"ip -6 neigh add proxy fd00:42::9 dev END", datapath.Counts{Neigh: 1}},
		"the tunnel is gone":              {"ip link del TUNNEL", datapath.Counts{Links: 1}},
		"the tunnel is another":           {"ip link del TUNNEL; ip link add TUNNEL type vxlan id 9 dstport 4789", datapath.Counts{Links: 2}},
		"it is down":                      {"ip link set TUNNEL down", datapath.Counts{Links: 1, Routes: 1, Neigh: 2}},
		"its MAC is another":              {"ip link set TUNNEL address 02:00:00:00:00:99", datapath.Counts{Links: 1, Neigh: 2}},
		"its other end is elsewhere":      {"bridge fdb replace PEER dev TUNNEL dst 192.0.2.9 self permanent", datapath.Counts{FDB: 1}},
		"its other end is not known":      {"ip neigh del 192.0.2.2 dev TUNNEL", datapath.Counts{Neigh: 1}},
		"it forwards nothing (tunnel)":    {"sysctl -qw net.ipv4.conf.TUNNEL.forwarding=0", datapath.Counts{Sysctls: 1}},
		"Docker drops the packets":        {"iptables-nft -F DOCKER-USER", datapath.Counts{Rules: 1}},
		"Docker drops the packets of one": {"ip6tables-nft -F DOCKER-USER", datapath.Counts{Rules: 1}},
		"the rules are there twice":       {"iptables-nft -A DOCKER-USER -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment carrick\\ " + string(network) + " -j ACCEPT", datapath.Counts{Rules: 1}},
		"nobody is asked who he is":       {"nft delete table ip6 TABLE", datapath.Counts{Rules: 1}},
		"one is not asked":                {"nft delete element ip6 TABLE pairs { END }", datapath.Counts{Rules: 1}},
		"nobody is dropped":               {"nft flush chain ip6 TABLE sources", datapath.Counts{Rules: 1}},
		"everybody is dropped":            {"nft add rule ip6 TABLE sources drop", datapath.Counts{Rules: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := dual()
			conf.Fallback = carrick.ModeVXLAN
			w := newWorld(t, conf, 2, false)
			a, b, far := w.run(0, 2), w.run(0, 3), w.run(1, 4)
			w.all()
			w.audit(0)
			line := strings.NewReplacer("END", end, "TUNNEL", tunnel, "PEER", peer, "TABLE", "carrick-"+string(network)).Replace(c.does)
			nstest.Shell(t, w.hosts[0].NS, line)
			rep := w.audit(0)
			if rep.Drift != c.want {
				t.Errorf("drift %v, not %v: %v", rep.Drift, c.want, rep.Found)
			}
			w.reach(a, b, far)
			if rep := w.audit(0); rep.Drift.Total() != 0 || rep.Changes.Total() != 0 {
				t.Errorf("the next audit: drift %v, changes %v", rep.Drift, rep.Changes)
			}
		})
	}
}

// Damage to a link is seen at once, not by the next audit; what we do ourselves is not
// taken for that.
func TestEventsAlone(t *testing.T) {
	t.Parallel()
	conf := dual()
	conf.Fallback = carrick.ModeVXLAN
	w := newWorld(t, conf, 2, false)
	a, far := w.run(0, 2), w.run(1, 4)
	w.all()
	changed := w.on[0].Network(network).Changed()
	for _, does := range []string{"ip link set END down", "ip link set TUNNEL down", "ip link del TUNNEL", "ip link set END mtu 1300"} {
		for len(changed) > 0 { // of our own links, while they were made
			<-changed
			w.mustApply(0)
		}
		nstest.Run(t, w.hosts[0].NS, strings.NewReplacer("END", endpoint(2).HostName(), "TUNNEL", plan.TunnelName(network)).Replace(does))
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("nothing is heard of %s", does)
		}
		w.mustApply(0)
		w.reach(a, far)
	}
	// The device that the routes are by goes down and up, and the kernel has none left.
	for len(changed) > 0 {
		<-changed
		w.mustApply(0)
	}
	nstest.Run(t, w.hosts[0].NS, "ip link set eth0 down")
	nstest.Run(t, w.hosts[0].NS, "ip link set eth0 up")
	<-changed
	w.mustApply(0)
	eventually(t, func() bool {
		select {
		case <-changed:
			w.mustApply(0)
		default:
		}
		return strings.Contains(w.routes(0), "10.42.0.4 via 192.0.2.2 dev eth0")
	})
	w.reach(a, far)
	// A pair that is gone is a container's loss: it is told, and not made again.
	nstest.Run(t, w.hosts[0].NS, "ip link del "+endpoint(2).HostName())
	<-changed
	rep, err := w.apply(0)
	if err != nil || rep.Endpoints[endpoint(2)] == nil || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "docker restart") {
		t.Errorf("a pair that is gone: %v, %v, problems %q", rep.Endpoints, err, rep.Problems)
	}
}

// A host that does not forward is told of, with what to do, in the network's families.
func TestAHostThatDoesNotForward(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 1, false)
	w.run(0, 2)
	nstest.Run(t, w.hosts[0].NS, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	rep := w.audit(0)
	if len(rep.Problems) != 2 || !strings.Contains(rep.Problems[0], "net.ipv4.ip_forward=1") || !strings.Contains(rep.Problems[1], "accept_ra is 2") {
		t.Errorf("problems %q", rep.Problems)
	}
	nstest.Run(t, w.hosts[0].NS, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	if rep := w.audit(0); len(rep.Problems) != 0 {
		t.Errorf("problems %q", rep.Problems)
	}
}
