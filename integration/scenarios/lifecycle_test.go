package scenarios

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// Stopped, started, restarted, killed, removed: whoever runs is reached, and
// nobody else.
func TestContainerLifecycle(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	peers := []box{start(t, s.h2, "app", "peer"), {}}
	for _, h := range []*lab.Host{s.h1, s.h3} {
		b := start(t, h, "app", "life")
		peers[1] = start(t, h, "app", "neighbour")
		reached := func(after string) {
			t.Helper()
			b.ip = address(t, h, "app", "life")
			for _, p := range peers {
				if got, err := p.nameAt(t, b.ip); err != nil || got != "life" {
					t.Errorf("%s after %s on %s: answered by %q (%v)", p.name, after, h.Name(), got, err)
				}
			}
		}
		reached("start")
		h.MustDocker(t, "stop", "-t", "2", "life")
		b.gone(t, peers...)
		h.MustDocker(t, "start", "life")
		reached("stop and start")
		h.MustDocker(t, "restart", "-t", "2", "life")
		reached("restart")
		h.MustDocker(t, "kill", "life")
		h.MustDocker(t, "start", "life")
		reached("kill and start")
		h.MustDocker(t, "pause", "life")
		h.MustDocker(t, "unpause", "life")
		reached("pause and unpause")
		h.MustDocker(t, "rm", "-f", "life")
		b.gone(t, peers...)
		// Its neighbour was none the worse for it.
		peers[0].reaches(t, peers[1])
	}
}

// Thirty containers start at once on each of three hosts: all start, none shares
// an address, all are reached, and when they are gone nothing of them is left.
func TestParallelRuns(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	// What a host keeps as long as the network is there (its block, its record)
	// is not a leak: the baseline is taken after one container on each.
	for _, h := range s.Hosts() {
		h.MustDocker(t, "run", "--rm", "--network", "app", lab.Image, "true")
	}
	before := idle(t, s.Lab)

	const each = 30
	var jobs []*lab.Host // each host, each times
	for range each {
		jobs = append(jobs, s.Hosts()...)
	}
	count := 0
	names := make(map[*lab.Host][]string)
	type job struct {
		host *lab.Host
		name string
	}
	var list []job
	for _, h := range jobs {
		count++
		name := fmt.Sprintf("p%d", count)
		names[h] = append(names[h], name)
		list = append(list, job{h, name})
	}
	err := atOnce(list, func(j job) error {
		_, err := j.host.Docker(t.Context(), "run", "-d", "--name", j.name, "--hostname", j.name, "--network", "app", lab.Image)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	holder := map[string]string{}
	for _, h := range s.Hosts() {
		out := h.MustDocker(t, append([]string{"inspect", "-f", "{{.Name}} {{.NetworkSettings.Networks.app.IPAddress}}"}, names[h]...)...)
		for _, line := range strings.Split(out, "\n") {
			name, ip, _ := strings.Cut(strings.TrimPrefix(line, "/"), " ")
			if other, taken := holder[ip]; taken || ip == "" {
				t.Errorf("%s on %s has the address %q, as has %q", name, h.Name(), ip, other)
			}
			holder[ip] = name
		}
	}
	if len(holder) != each*3 {
		t.Errorf("%d different addresses for %d containers", len(holder), each*3)
	}
	var all strings.Builder
	for ip, name := range holder {
		fmt.Fprintf(&all, "[ \"$(timeout 5 wget -qO- http://%s/name)\" = %s ] || echo %s at %s;", ip, name, name, ip)
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error {
		missed, err := h.InContainer(t.Context(), names[h][0], "sh", "-c", all.String())
		if err == nil && missed != "" {
			err = errors.New("not reached:\n" + missed)
		}
		return err
	}); err != nil {
		t.Error(err)
	}

	if err := onEach(s.Hosts(), func(h *lab.Host) error {
		_, err := h.Docker(t.Context(), append([]string{"rm", "-f"}, names[h]...)...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.unchanged(t, before)
}

// `docker network rm` on the hosts in turn removes the network where it was
// given, leaves it whole elsewhere, and with the last host the last trace in the
// kernel and in the store is gone.
func TestNetworkRemoval(t *testing.T) {
	s := begin(t).apart(t)
	empty := s.MustInventory(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	for _, h := range s.Hosts() {
		start(t, h, "app", "web"+h.Name())
	}
	id := inspect(t, s.h1, "app").ID

	// An engine refuses while containers are attached, and nothing happens.
	if _, err := s.h1.Docker(t.Context(), "network", "rm", "app"); err == nil {
		t.Error("h1's engine removed a network in use")
	}
	b2 := box{host: s.h2, name: "webh2", network: "app"}
	b3 := box{host: s.h3, name: "webh3", network: "app", ip: address(t, s.h3, "app", "webh3")}

	s.h1.MustDocker(t, "rm", "-f", "webh1")
	s.h1.MustDocker(t, "network", "rm", "app")
	b2.reaches(t, b3)
	lab.Eventually(t, soon, "h1 to have let go of the namespace", func() error {
		names, err := s.h1.Namespaces(t.Context())
		if err == nil && strings.Contains(strings.Join(names, " "), id) {
			err = fmt.Errorf("namespaces %v", names)
		}
		return err
	})
	if n := inspect(t, s.h2, "app"); n.ID != id {
		t.Errorf("h2 sees network %s, was %s", n.ID, id)
	}

	s.h2.MustDocker(t, "rm", "-f", "webh2")
	s.h2.MustDocker(t, "network", "rm", "app")
	s.h3.MustDocker(t, "rm", "-f", "webh3")
	s.h3.MustDocker(t, "network", "rm", "app")
	s.unchanged(t, empty)
	for _, h := range s.Hosts() {
		if _, err := h.Carrick(t.Context(), "network", "inspect", id); err == nil {
			t.Errorf("%s still knows network %s", h.Name(), id)
		}
	}

	// The name, the subnet and a number are free for another network.
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	if again := inspect(t, s.h1, "app").ID; again == id {
		t.Error("the new network has the old one's id")
	}
	start(t, s.h1, "app", "client").reaches(t, start(t, s.h3, "app", "server"))
}
