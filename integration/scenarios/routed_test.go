package scenarios

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// createRouted makes a network whose hosts route.
func createRouted(t testing.TB, s scenario, name, subnet string, extra ...string) {
	t.Helper()
	create(t, s.Hosts(), name, subnet, append([]string{"-o", "mode=routed"}, extra...)...)
}

// A routed network on three hosts: one create, one address space, one set of names, no
// encapsulation, and Docker's own rules let it pass. Agents that die are not noticed, what
// somebody changes is put right, and nothing is left of it in the end.
func TestRouted(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	createRouted(t, s, "net", "10.42.0.0/16")
	boxes := mesh(t, s, "net")
	for _, h := range s.Hosts() {
		healthy(t, h)
		out, err := h.Carrick(ctx, "network", "inspect", "net")
		if err != nil || !strings.Contains(out, "routed") || strings.Count(out, " route\n") != 2 {
			t.Errorf("%s: network inspect says %v: %s", h.Name(), err, out)
		}
	}

	// The way out, and what is published, are Docker's as of any network.
	published := start(t, s.h1, "net", "published", "-p", "8088:80")
	got := boxes[5].host.MustInContainer(t, boxes[5].name, "probe", "get", fmt.Sprintf("http://%s:8088/name", s.h1.Addr()))
	if strings.TrimSpace(got) != published.name {
		t.Errorf("at the published port %q answers", got)
	}

	// Somebody at work on a host: the audit finds it, and it is as before.
	a, far := boxes[0], boxes[5]
	s.h1.MustExec(t, "ip", "route", "del", far.ip)
	s.h1.MustExec(t, "iptables", "-D", "DOCKER-USER", "1")
	a.misses(t, far)
	if out := exits(t, s.h1, 1, "doctor", "--audit", "net"); !strings.Contains(out, far.ip) || !strings.Contains(out, "DOCKER-USER") {
		t.Errorf("the doctor says\n%s", out)
	}
	a.reaches(t, far)
	exits(t, s.h1, 0, "doctor", "--audit", "net")

	agentsDie(t, s, "net", far)

	for _, b := range append(boxes, published) {
		b.host.MustDocker(t, "rm", "-f", b.name)
	}
	for _, f := range []string{"flow1", "flow2"} {
		for _, h := range s.Hosts()[:2] {
			_, _ = h.Docker(ctx, "rm", "-f", f)
		}
	}
	for _, h := range s.Hosts() {
		lab.Eventually(t, soon, h.Name()+" to hold nothing of the network", func() error { return holdsNoRoutes(ctx, h) })
	}
}

// A container ends while no agent is there to hear of it, and a host loses its power: what
// was theirs goes, or comes back.
func TestARoutedNetworkSurvives(t *testing.T) {
	onlySoaked(t)
	s := begin(t)
	ctx := t.Context()
	createRouted(t, s, "net", "10.42.0.0/16")
	sink := start(t, s.h3, "net", "sink", "--restart", "always")
	gone := start(t, s.h1, "net", "gone")
	if err := s.h1.KillAgent(ctx); err != nil {
		t.Fatal(err)
	}
	s.h1.MustDocker(t, "kill", gone.name)
	if err := s.h1.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	s.Check(t)
	s.h1.MustDocker(t, "start", gone.name)
	gone.ip = address(t, s.h1, "net", "gone")
	gone.reaches(t, sink)
	if err := errors.Join(s.h3.PowerCut(ctx), s.h3.Boot(ctx)); err != nil {
		t.Fatal(err)
	}
	comeBack(t, s.h3, "sink", start(t, s.h1, "net", "peer"))
	s.Check(t)
	if err := errors.Join(tidy(ctx, s.Lab), warmUp(ctx, s.Lab)); err != nil {
		t.Fatal(err)
	}
}

// holdsNoRoutes says what a host still has of routed networks.
func holdsNoRoutes(ctx context.Context, h *lab.Host) error {
	routes, err := h.Exec(ctx, "ip", "route", "show", "proto", "67")
	if err != nil {
		return err
	}
	rules, err := h.Exec(ctx, "iptables", "-S", "DOCKER-USER")
	if err != nil {
		return err
	}
	links, err := h.Exec(ctx, "ls", "/sys/class/net")
	if err != nil {
		return err
	}
	ours := func(link string) bool { return strings.HasPrefix(link, "ck") || strings.HasPrefix(link, "cr") }
	if routes != "" || strings.Contains(rules, "carrick") || slices.ContainsFunc(strings.Fields(links), ours) {
		return fmt.Errorf("routes %q, rules %q, links %q", routes, rules, links)
	}
	return nil
}

// Both families, over hosts that know each other by IPv4: IPv6 goes by the tunnel.
func TestRoutedBothFamilies(t *testing.T) {
	s := begin(t)
	for _, h := range s.Hosts() {
		h.MustExec(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	}
	createRouted(t, s, "net", dual4, "--ipv6", "--subnet", dual6, "-o", "routed_fallback=vxlan")
	mesh6(t, s, "net")
	for _, h := range s.Hosts() {
		healthy(t, h)
		exits(t, h, 0, "doctor", "--audit", "net")
	}
}

// A host that cannot route a network says so, and the others have theirs.
func TestHostsThatCannotRoute(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	before := s.MustInventory(t)
	_, err := s.h1.Docker(ctx, createArgs("bad", "10.42.0.0/16", "-o", "mode=routed", "-o", "parent=eth0")...)
	refused(t, err, "parent=eth0", "routed", "mode=macvlan")
	s.unchanged(t, before)
	under := strings.Fields(s.h1.MustExec(t, "ip", "-o", "-4", "route", "show", "dev", "eth0", "scope", "link"))[0]
	_, err = s.h1.Docker(ctx, createArgs("bad", under, "-o", "mode=routed")...)
	refused(t, err, under, "eth0", "choose a --subnet")
	s.unchanged(t, before)

	s.h2.MustExec(t, "sysctl", "-qw", "net.ipv4.ip_forward=0")
	t.Cleanup(func() { _, _ = s.h2.Exec(context.WithoutCancel(ctx), "sysctl", "-qw", "net.ipv4.ip_forward=1") })
	s.h1.MustDocker(t, createArgs("net", "10.42.0.0/16", "-o", "mode=routed")...)
	appears(t, []*lab.Host{s.h1, s.h3}, "net", time.Now())
	lab.Eventually(t, soon, "h2 to say that it does not forward", func() error {
		_, err := s.h2.Carrick(ctx, "status")
		return says(err, "network net", "net.ipv4.ip_forward=1")
	})
	start(t, s.h1, "net", "one").reaches(t, start(t, s.h3, "net", "three"))
	s.h2.MustExec(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	appears(t, []*lab.Host{s.h2}, "net", time.Now())
	healthy(t, s.h2)
}
