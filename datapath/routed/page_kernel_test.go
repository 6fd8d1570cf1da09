package routed_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

var update = flag.Bool("update", false, "write the page in docs/datapath again")

const page = "../../docs/datapath/routed.md"

// TestPage writes down what the kernel of a host holds of a routed network, and fails when
// it is not what docs/datapath/routed.md says:
//
//	go test -run TestPage ./datapath/routed -update        (make docs)
func TestPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual(), 2, false)
	w.view.Network.Fallback = carrick.ModeVXLAN
	near := w.run(0, 2)
	w.run(1, 4)
	w.all()
	want := plan.Make(w.view, hostID(0)).Routed.Tunnel
	var b bytes.Buffer
	b.WriteString(`<!-- made by make docs -->

# A network whose hosts route

    docker network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 --ipv6 --subnet fd00:42::/64 \
        -o mode=routed -o routed_fallback=vxlan app

| host | address | containers |
|---|---|---|
| h1 | 192.0.2.1 | 10.42.0.2, fd00:42::2 |
| h2 | 192.0.2.2 | 10.42.0.4, fd00:42::4 |

The hosts are on one segment, so IPv4 takes no tunnel. They know each other by IPv4 addresses only, which are no next hops of IPv6: that
goes by the tunnel, and would not be without ` + "`routed_fallback`" + `.

## On h1
`)
	pair, tunnel := endpoint(2).HostName(), want.Name
	says := func(ns netns.Namespace, commands ...string) {
		known := map[string]bool{want.MAC.String(): true}
		for _, p := range want.Peers {
			known[p.MAC.String()] = true
		}
		for _, eps := range w.view.Endpoints {
			for _, e := range eps {
				known[e.MAC.String()] = true
			}
		}
		for _, c := range commands {
			if text := nstest.Tidy(nstest.Run(t, ns, c), c, known); text != "" {
				fmt.Fprintf(&b, "\n    $ %s\n%s", c, text)
			}
		}
	}
	says(w.hosts[0].NS,
		"ip -d link show "+pair, "ip -d link show "+tunnel,
		"ip -4 route show proto 67", "ip -6 route show proto 67", "ip -6 neigh show proxy",
		"ip -6 neigh show nud permanent dev "+tunnel, "bridge fdb show dev "+tunnel,
		"sysctl net.ipv4.conf."+pair+".proxy_arp net.ipv4.conf."+pair+".rp_filter net.ipv6.conf."+pair+".proxy_ndp",
		"iptables-nft -S DOCKER-USER", "ip6tables-nft -S DOCKER-USER", "nft list table ip6 carrick-"+string(network))
	b.WriteString("\n## In its container\n")
	says(near.NS, "ip -4 route", "ip -6 route")
	if *update {
		if err := os.WriteFile(page, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Errorf("%s is not what the kernel holds: make docs writes it again. It would be\n%s", page, b.String())
	}
}
