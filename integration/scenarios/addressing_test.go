package scenarios

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// The flags about addresses mean what they mean on a bridge network.
func TestAddressFlags(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16", "--ip-range", "10.42.8.0/22",
		"--gateway", "10.42.0.254", "--aux-address", "router=10.42.8.2", "--aux-address", "printer=10.42.40.1")
	within := netip.MustParsePrefix("10.42.8.0/22")
	reserved := map[string]string{"10.42.0.254": "gateway", "10.42.8.2": "router"}
	var boxes []box
	for _, h := range s.Hosts() {
		for i := range 2 {
			b := start(t, h, "app", fmt.Sprintf("c%d", i))
			boxes = append(boxes, b)
			if !within.Contains(netip.MustParseAddr(b.ip)) {
				t.Errorf("%s of %s got %s, outside --ip-range %s", b.name, h.Name(), b.ip, within)
			}
			if why := reserved[b.ip]; why != "" {
				t.Errorf("%s of %s got %s, the address of the %s", b.name, h.Name(), b.ip, why)
			}
		}
		if gw := h.MustDocker(t, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "app"); gw != "10.42.0.254" {
			t.Errorf("the gateway of app on %s is %q", h.Name(), gw)
		}
	}
	if n := inspect(t, s.h2, "app"); n.Gateway != "10.42.0.254" {
		t.Errorf("carrick says the gateway is %q", n.Gateway)
	}

	// --ip takes what it says, inside the subnet and outside the range, too.
	fixed := start(t, s.h2, "app", "fixed", "--ip", "10.42.77.7")
	if fixed.ip != "10.42.77.7" {
		t.Errorf("--ip 10.42.77.7 gave %s", fixed.ip)
	}
	// --mac-address is what the container has and what the others see.
	const mac = "02:aa:bb:cc:dd:01"
	painted := start(t, s.h3, "app", "painted", "--mac-address", mac)
	if link := s.h3.MustInContainer(t, "painted", "ip", "link", "show", "eth0"); !strings.Contains(link, mac) {
		t.Errorf("--mac-address %s gave:\n%s", mac, link)
	}
	for _, b := range boxes {
		b.reaches(t, fixed)
		b.reaches(t, painted)
	}
	if table := s.h1.MustInContainer(t, "c0", "ip", "neigh", "show", painted.ip); !strings.Contains(table, mac) {
		t.Errorf("h1 knows the container with --mac-address as:\n%s", table)
	}
	fixed.reaches(t, painted)

	// An address that was given back can be had again, on the same host.
	s.h2.MustDocker(t, "rm", "-f", "fixed")
	again := start(t, s.h2, "app", "again", "--ip", "10.42.77.7")
	boxes[0].reaches(t, again)
}

// A container that keeps its address keeps its MAC, so neighbours' caches stay
// right.
func TestKeptAddressKeepsMAC(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	peer := start(t, s.h1, "app", "peer")
	for _, h := range []*lab.Host{s.h2, s.h3} {
		b := start(t, h, "app", "kept", "--ip", map[*lab.Host]string{s.h2: "10.42.50.2", s.h3: "10.42.60.3"}[h])
		mac := func() string { return h.MustInContainer(t, "kept", "cat", "/sys/class/net/eth0/address") }
		before := mac()
		peer.reaches(t, b)
		h.MustDocker(t, "restart", "-t", "2", "kept")
		if after := mac(); after != before {
			t.Errorf("%s: the MAC was %s and is %s after a restart", h.Name(), before, after)
		}
		peer.reaches(t, b)
	}
}

// Two networks on one container, connected and disconnected while it runs.
func TestConnectAndDisconnect(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "red", "10.42.0.0/16")
	create(t, s.Hosts(), "blue", "10.43.0.0/16")
	redPeer := start(t, s.h2, "red", "red-peer")
	bluePeer := start(t, s.h2, "blue", "blue-peer")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		b := start(t, h, "red", "both")
		b.misses(t, bluePeer)

		h.MustDocker(t, "network", "connect", "blue", "both")
		inBlue := box{host: h, name: "both", network: "blue", ip: address(t, h, "blue", "both")}
		b.reaches(t, redPeer)
		b.reaches(t, bluePeer)
		bluePeer.reaches(t, inBlue)
		redPeer.reaches(t, b)

		// Both come back with a restart.
		h.MustDocker(t, "restart", "-t", "2", "both")
		b.ip, inBlue.ip = address(t, h, "red", "both"), address(t, h, "blue", "both")
		redPeer.reaches(t, b)
		bluePeer.reaches(t, inBlue)
		b.reaches(t, bluePeer)

		h.MustDocker(t, "network", "disconnect", "blue", "both")
		b.misses(t, bluePeer)
		redPeer.reaches(t, b)
		b.reaches(t, redPeer)

		// Connected while stopped.
		h.MustDocker(t, "stop", "-t", "2", "both")
		h.MustDocker(t, "network", "connect", "blue", "both")
		h.MustDocker(t, "start", "both")
		inBlue.ip = address(t, h, "blue", "both")
		bluePeer.reaches(t, inBlue)
	}
}
