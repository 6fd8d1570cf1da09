package scenarios

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// The front page of the documentation: a network made on each host, a server
// here, a client there, and the first request is answered.
func TestFrontPage(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	web := start(t, s.h1, "app", "web")

	// h3 has never seen a container of this network, nor h1 a packet from it.
	for _, h := range []*lab.Host{s.h3, s.h2} {
		out := h.MustDocker(t, "run", "--rm", "--network", "app", lab.Image, "timeout", "5", "wget", "-qO-", "http://"+web.ip+"/name")
		if out != "web" {
			t.Errorf("%s: the page of web is %q", h.Name(), out)
		}
	}
	// Not even the first packet of a container's life may be lost.
	for _, h := range s.Hosts() {
		out := h.MustDocker(t, "run", "--rm", "--network", "app", lab.Image, "probe", "flow", "-count", "20", web.ip)
		if !strings.Contains(out, `"lost":0`) {
			t.Errorf("%s: a new container's first 20 packets to web: %s", h.Name(), out)
		}
	}
}

// A container that has just started is known everywhere: the server is the new
// one this time.
func TestNewServerIsReachedByOldClient(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	old := start(t, s.h1, "app", "old")
	for i, h := range []*lab.Host{s.h1, s.h2, s.h3} {
		old.reaches(t, start(t, h, "app", fmt.Sprintf("new%d", i+1)))
	}
}

// The same command on each host is one network, with one VNI and one pool, and
// no two containers of it share an address.
func TestSameCreateIsOneNetwork(t *testing.T) {
	s := begin(t).apart(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	first := inspect(t, s.h1, "app")
	if first.VNI == 0 || first.Subnet != "10.42.0.0/16" || first.Tenant != "default" {
		t.Errorf("h1 sees %+v", first)
	}
	addresses := map[string]string{}
	for _, h := range s.Hosts() {
		n := inspect(t, h, "app")
		if n.ID != first.ID || n.VNI != first.VNI || n.Subnet != first.Subnet || n.Gateway != first.Gateway {
			t.Errorf("%s sees %+v, h1 sees %+v", h.Name(), n, first)
		}
		count := 0
		for _, n := range list(t, h) {
			if n.Subnet == "10.42.0.0/16" {
				count++
			}
		}
		if count != 1 {
			t.Errorf("%s lists %d networks of that subnet", h.Name(), count)
		}
		for i := range 2 {
			b := start(t, h, "app", fmt.Sprintf("c%d", i))
			if other, taken := addresses[b.ip]; taken {
				t.Errorf("%s of %s has the address %s of %s", b.name, h.Name(), b.ip, other)
			}
			addresses[b.ip] = b.name + " of " + h.Name()
		}
	}
	// Every host comes to know every endpoint.
	for _, h := range s.Hosts() {
		lab.Eventually(t, soon, h.Name()+" to list every endpoint", func() error {
			n, err := ask[clusterNetwork](t, h, "network", "inspect", "app")
			if err == nil && len(n.Endpoints) != len(addresses) {
				err = fmt.Errorf("it lists %d", len(n.Endpoints))
			}
			return err
		})
	}
}

// Everybody reaches everybody, on the same host and across.
func TestAllPairs(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	var boxes []box
	for _, h := range s.Hosts() {
		boxes = append(boxes, start(t, h, "app", "a-"+h.Name()), start(t, h, "app", "b-"+h.Name()))
	}
	var asked strings.Builder
	for _, b := range boxes {
		fmt.Fprintf(&asked, "[ \"$(timeout 5 wget -qO- http://%s/name)\" = %s ] || echo %s at %s;", b.ip, b.name, b.name, b.ip)
	}
	for _, b := range boxes {
		if missed := b.host.MustInContainer(t, b.name, "sh", "-c", asked.String()); missed != "" {
			t.Errorf("%s misses:\n%s", b.name, missed)
		}
	}
}

// A large transfer arrives as it was sent, between old and current engines in
// both directions and on one host.
func TestLargeTransfer(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sinks := []box{start(t, s.h1, "app", "sink1"), start(t, s.h3, "app", "sink3")}
	for _, h := range s.Hosts() {
		for _, sink := range sinks {
			out, err := h.Docker(t.Context(), "run", "--rm", "--network", "app", lab.Image, "probe", "send", "-mb", "100", sink.ip)
			if err != nil {
				t.Errorf("100 MB from %s to %s: %v", h.Name(), sink.host.Name(), err)
			} else if !strings.HasSuffix(out, " "+strconv.Itoa(100<<20)) {
				t.Errorf("100 MB from %s to %s: %s", h.Name(), sink.host.Name(), out)
			}
		}
	}
}

var mtuOfLink = regexp.MustCompile(`mtu (\d+)`)

// A packet of exactly the network's MTU passes whole; one byte more is refused
// by the sender's own kernel, so that nothing is ever silently swallowed.
func TestFullSizePackets(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	create(t, s.Hosts(), "small", "10.43.0.0/16", "-o", "mtu=1300")
	for network, want := range map[string]int{"app": 1450, "small": 1300} { // of an underlay of 1500
		target := start(t, s.h1, network, "target-"+network)
		for _, h := range s.Hosts() {
			if n := inspect(t, h, network); n.MTU != want {
				t.Errorf("%s says the MTU of %s is %d, want %d", h.Name(), network, n.MTU, want)
			}
			b := start(t, h, network, "from-"+network)
			link := h.MustInContainer(t, b.name, "ip", "link", "show", "eth0")
			if m := mtuOfLink.FindStringSubmatch(link); m == nil || m[1] != strconv.Itoa(want) {
				t.Errorf("eth0 of a container of %s on %s: %s", network, h.Name(), link)
			}
			for size, verdict := range map[int]string{want: "reply", want + 1: "EMSGSIZE"} {
				if got := h.MustInContainer(t, b.name, "probe", "dfping", "-size", strconv.Itoa(size), target.ip); got != verdict {
					t.Errorf("%d bytes from %s to h1 on %s: %s, want %s", size, h.Name(), network, got, verdict)
				}
			}
		}
	}
}

// Containers of different networks cannot reach each other, on the same host or
// across.
func TestNetworksAreApart(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "red", "10.42.0.0/16")
	create(t, s.Hosts(), "blue", "10.43.0.0/16")
	red := start(t, s.h1, "red", "red")
	red2 := start(t, s.h3, "red", "red2")
	blue := start(t, s.h1, "blue", "blue")
	blue2 := start(t, s.h2, "blue", "blue2")
	red.reaches(t, red2)
	blue.reaches(t, blue2)
	for _, r := range []box{red, red2} {
		r.misses(t, blue, blue2)
		r.gone(t, blue, blue2)
	}
}

// Two tenants may have the same subnet, and even the same address, at once on
// the same hosts.
func TestTenantsWithOneSubnet(t *testing.T) {
	s := begin(t)
	const subnet = "10.42.0.0/16"
	create(t, s.Hosts(), "red", subnet, "--ipam-opt", "tenant=red")
	create(t, s.Hosts(), "blue", subnet, "--ipam-opt", "tenant=blue")
	if r, b := inspect(t, s.h1, "red"), inspect(t, s.h1, "blue"); r.ID == b.ID || r.VNI == b.VNI {
		t.Errorf("red is %+v, blue is %+v", r, b)
	}
	servers := map[string]box{
		"red":  start(t, s.h1, "red", "red-web", "--ip", "10.42.9.9"),
		"blue": start(t, s.h2, "blue", "blue-web", "--ip", "10.42.9.9"),
	}
	for tenant, server := range servers {
		for _, h := range s.Hosts() {
			start(t, h, tenant, "client-"+tenant).reaches(t, server)
		}
	}
}

// A broadcast reaches the network's containers on every host, and those of no
// other network.
func TestBroadcastReachesAllHosts(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	create(t, s.Hosts(), "other", "10.43.0.0/16")
	var ears []box
	for _, h := range s.Hosts() {
		ears = append(ears, start(t, h, "app", "ear"))
	}
	deaf := start(t, s.h2, "other", "deaf")
	mouth := start(t, s.h1, "app", "mouth")
	heard := func(b box) (string, error) {
		return b.host.InContainer(t.Context(), b.name, "wget", "-qO-", "http://127.0.0.1/heard")
	}
	s.h1.MustInContainer(t, mouth.name, "probe", "say", "hello", "10.42.255.255")
	for _, b := range ears {
		lab.Eventually(t, soon, "the broadcast", func() error {
			out, err := heard(b)
			if err == nil && out != "hello" {
				err = fmt.Errorf("%s on %s heard %q", b.name, b.host.Name(), out)
			}
			return err
		})
	}
	if out, err := heard(deaf); err != nil || out != "" {
		t.Errorf("a container of another network heard %q (%v)", out, err)
	}

	// -o flood=off keeps it on the host.
	create(t, s.Hosts(), "quiet", "10.44.0.0/16", "-o", "flood=off")
	near, far := start(t, s.h1, "quiet", "near"), start(t, s.h2, "quiet", "far")
	s.h1.MustDocker(t, "run", "--rm", "--network", "quiet", lab.Image, "probe", "say", "psst", "10.44.255.255")
	near.reaches(t, far)
	lab.Eventually(t, soon, "the broadcast on its own host", func() error {
		out, err := heard(near)
		if err == nil && out != "psst" {
			err = fmt.Errorf("near heard %q", out)
		}
		return err
	})
	if out, err := heard(far); err != nil || out != "" {
		t.Errorf("with flood=off the other host heard %q (%v)", out, err)
	}
}
