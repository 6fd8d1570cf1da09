package lab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
)

// What containers really have is compared with what is told of them, on their host
// and across hosts.
func TestCompareContainers(t *testing.T) {
	t.Parallel()
	const id = carrick.NetworkID("00000000000000aa")
	addr := netip.MustParseAddr
	type world struct {
		facts   check.Facts
		running []Attachment
	}
	// Two hosts with a container each, one of them with a way out besides.
	fine := func() *world {
		w := &world{facts: check.Facts{Hosts: map[carrick.HostID]check.Host{}}}
		for _, h := range []struct{ host, ip, mac string }{{"h1", "10.42.0.1", "02:00:00:00:00:01"}, {"h2", "10.42.0.2", "02:00:00:00:00:02"}} {
			mac, err := carrick.ParseMAC(h.mac)
			if err != nil {
				t.Fatal(err)
			}
			ep, docker := carrick.EndpointID("ep-"+h.host), carrick.DockerNetworkID("net-"+h.host)
			w.facts.Hosts[carrick.HostID("id-"+h.host)] = check.Host{
				Name: h.host,
				Journal: &check.Journal{Networks: map[carrick.NetworkID]check.JournalNetwork{id: {
					Aliases:   []carrick.DockerNetworkID{docker},
					Endpoints: []check.Endpoint{{Endpoint: carrick.Endpoint{ID: ep}}},
				}}},
				Engine: &check.Engine{
					Networks:   map[carrick.DockerNetworkID]string{docker: "app"},
					Containers: []check.Container{{Endpoint: ep, Network: docker, Name: "box", Addrs: []netip.Addr{addr(h.ip)}, MAC: mac}},
				},
			}
			w.running = append(w.running, Attachment{
				Host: h.host, Container: "box", Endpoint: ep, Network: docker, Addrs: []netip.Addr{addr(h.ip)}, MAC: h.mac,
				Links: []Link{{Name: "lo"}, {Name: "eth0", MAC: h.mac, Addrs: []netip.Addr{addr(h.ip)}}, {Name: "eth1", MAC: "02:42:ac:12:00:02", Addrs: []netip.Addr{addr("172.18.0.2")}}},
			})
		}
		// Of other drivers' networks nothing is said.
		w.running = append(w.running, Attachment{Host: "h1", Container: "plain", Endpoint: "x", Network: "bridge", Addrs: []netip.Addr{addr("172.17.0.2")}})
		return w
	}
	for _, c := range []struct {
		name string
		do   func(*world)
		want string // "" = nothing is wrong
	}{
		{"all is well", func(*world) {}, ""},
		{"the agent does not hear of a container", func(w *world) { w.facts.Hosts["id-h1"].Engine.Containers[0].Endpoint = "other" }, "does not hear of it"},
		{"the agent hears of one that does not run", func(w *world) { w.running = w.running[1:] }, "the agent says that it runs"},
		{"the agent hears another address", func(w *world) { w.facts.Hosts["id-h1"].Engine.Containers[0].Addrs = []netip.Addr{addr("10.42.0.9")} }, "and the agent hears [10.42.0.9]"},
		{"the engine has another MAC", func(w *world) { w.running[0].MAC = "02:00:00:00:00:09" }, "and the agent hears"},
		{"the interface has another address", func(w *world) { w.running[0].Links[1].Addrs = []netip.Addr{addr("10.42.0.9")} }, "and its own namespace"},
		{"the interface has one address more", func(w *world) {
			w.running[0].Links[1].Addrs = append(w.running[0].Links[1].Addrs, addr("10.42.0.9"))
		}, "and its eth0 [10.42.0.1 10.42.0.9]"},
		{"the interface has another MAC", func(w *world) { w.running[0].Links[1].MAC = "02:00:00:00:00:09" }, "and its eth0"},
		{"two hosts, one address", func(w *world) {
			w.running[1].Addrs[0], w.running[1].Links[1].Addrs[0] = addr("10.42.0.1"), addr("10.42.0.1")
			w.facts.Hosts["id-h2"].Engine.Containers[0].Addrs[0] = addr("10.42.0.1")
		}, "10.42.0.1 of network 00000000000000aa is held by container box on h1 and by container box on h2"},
		{"two hosts, one address, and one of them is cut off", func(w *world) {
			w.running[1].Addrs[0], w.running[1].Links[1].Addrs[0] = addr("10.42.0.1"), addr("10.42.0.1")
			w.facts.Hosts["id-h2"].Engine.Containers[0].Addrs[0] = addr("10.42.0.1")
			w.facts.Hosts["id-h2"].Journal.Networks[id].Endpoints[0].Fenced = true
		}, ""},
	} {
		w := fine()
		c.do(w)
		got := strings.Join(compareContainers(w.facts, w.running), "\n")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A crash is found in a log whatever is around it.
func TestBugInLog(t *testing.T) {
	t.Parallel()
	for log, want := range map[string]string{
		"":                                    "",
		"a\nb: panic: is a word\n":            "",
		"a\npanic: nil\ngoroutine 1:\n":       "panic: nil\ngoroutine 1:",
		"a\nfatal error: all asleep":          "fatal error: all asleep",
		"==\nWARNING: DATA RACE\nRead at 0\n": "WARNING: DATA RACE\nRead at 0",
		"\npanic: x" + strings.Repeat("\n", 99) + "y": "panic: x" + strings.Repeat("\n", 39),
	} {
		if got := bug(log); got != want {
			t.Errorf("in %q: %q, want %q", log, got, want)
		}
	}
}
