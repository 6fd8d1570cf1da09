package scenarios

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// onLAN makes a macvlan network on the device of every host that leads to the others.
func onLAN(t testing.TB, s scenario, name, subnet string, extra ...string) {
	t.Helper()
	create(t, s.Hosts(), name, subnet, append([]string{"-o", "mode=macvlan", "-o", "parent=eth0"}, extra...)...)
}

// mesh starts two containers of a network that does not encapsulate on every host: each
// has an address of its own and the host's MTU, reaches every other and knows it by name.
func mesh(t testing.TB, s scenario, network string) []box {
	t.Helper()
	var boxes []box
	seen := map[string]string{}
	for _, h := range s.Hosts() {
		for i := range 2 {
			b := start(t, h, network, fmt.Sprintf("%s-%d", h.Name(), i))
			if other, taken := seen[b.ip]; taken {
				t.Errorf("%s has %s, as has %s", b.name, b.ip, other)
			}
			seen[b.ip] = b.name
			boxes = append(boxes, b)
		}
	}
	for _, a := range boxes {
		want := leads{}
		for _, b := range boxes {
			if a != b {
				a.reaches(t, b)
			}
			want[b.name] = []string{b.ip}
		}
		a.resolvesAll(t, want)
		if mtu := a.host.MustInContainer(t, a.name, "cat", "/sys/class/net/eth0/mtu"); mtu != "1500" {
			t.Errorf("%s has MTU %s, its host 1500", a.name, mtu)
		}
	}
	return boxes
}

// adopted fails the test unless a host's agent, which has been started anew, has found
// everything as it would have made it.
func adopted(t testing.TB, h *lab.Host) {
	t.Helper()
	healthy(t, h)
	if out := exits(t, h, 0, "doctor", "--audit"); !strings.Contains(out, "all is as planned") {
		t.Errorf("%s: %s", h.Name(), out)
	}
}

// mesh6 starts two containers of a network with IPv6 on every host: all reach each other.
func mesh6(t testing.TB, s scenario, network string) []box6 {
	t.Helper()
	var boxes []box6
	for _, h := range s.Hosts() {
		boxes = append(boxes, start6(t, h, network, "on-"+h.Name()), start6(t, h, network, "two-on-"+h.Name()))
	}
	allPairs(t, boxes)
	return boxes
}

// agentsDie kills all agents while packets go to a container of h3's, over TCP and UDP:
// none is lost, and the agents that are started adopt what they find.
func agentsDie(t testing.TB, s scenario, network string, sink box) {
	t.Helper()
	ctx := t.Context()
	flows := []traffic{flow(t, s.h1, network, "flow1", "tcp", sink), flow(t, s.h2, network, "flow2", "udp", sink)}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return errors.Join(h.KillAgent(ctx), h.RestartAgent(ctx)) }); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		adopted(t, h)
	}
	for _, f := range flows {
		f.intact(t)
	}
}

// A macvlan network on three hosts: one create, one address space, one set of names, and
// nothing encapsulated. A container has an address and a MAC of its own on the segment.
func TestMacvlan(t *testing.T) {
	s := begin(t)
	onLAN(t, s, "lan", "10.42.0.0/16", "--gateway", "10.42.255.254")
	boxes := mesh(t, s, "lan")
	macs := map[string]string{}
	for _, b := range boxes {
		mac := b.mac(t)
		if other, taken := macs[mac]; taken || mac == "" {
			t.Errorf("%s has MAC %q, as has %q", b.name, mac, other)
		}
		macs[mac] = b.name
		if out := b.host.MustInContainer(t, b.name, "ip", "route"); !strings.Contains(out, "default via 10.42.255.254 dev eth0") {
			t.Errorf("%s has the routes %s", b.name, out)
		}
	}
	for _, h := range s.Hosts() {
		healthy(t, h)
		if out, err := h.Carrick(t.Context(), "network", "inspect", "lan"); err != nil || !strings.Contains(out, "macvlan_mode") || !strings.Contains(out, "eth0") {
			t.Errorf("%s: network inspect says %v: %s", h.Name(), err, out)
		}
	}
	// Explicit addresses are the cluster's, as ever.
	start(t, s.h2, "lan", "fixed", "--ip", "10.42.77.7").reaches(t, boxes[0])
	_, err := s.h3.Docker(t.Context(), "run", "--rm", "--network", "lan", "--ip", "10.42.77.7", lab.Image, "true")
	refused(t, err, "10.42.77.7", "h2")
}

// Both families on the segment, where each is asked for in its own way.
func TestMacvlanBothFamilies(t *testing.T) {
	s := begin(t)
	onLAN(t, s, "lan", dual4, "--ipv6", "--subnet", dual6)
	mesh6(t, s, "lan")
	for _, h := range s.Hosts() {
		healthy(t, h)
		exits(t, h, 0, "doctor", "--audit", "lan")
	}
}

// A machine on the segment that is none of Carrick's has an address of the subnet: no
// container gets it, by itself or by asking for it.
func TestAForeignMachineOnTheLAN(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	onLAN(t, s, "lan", "10.42.0.0/16")
	first := start(t, s.h1, "lan", "first")
	taken := netip.MustParseAddr(first.ip).Next()
	for _, line := range []string{
		"ip netns add foreign", "ip link add foreign0 netns foreign link eth0 type macvlan mode bridge",
		"ip -n foreign addr add " + taken.String() + "/16 dev foreign0", "ip -n foreign link set foreign0 up",
	} {
		s.h2.MustExec(t, strings.Fields(line)...)
	}
	t.Cleanup(func() { _, _ = s.h2.Exec(context.WithoutCancel(ctx), "ip", "netns", "del", "foreign") })
	second := start(t, s.h1, "lan", "second")
	if second.ip == taken.String() {
		t.Errorf("a container was given %s, which a foreign machine has", taken)
	}
	second.reaches(t, start(t, s.h3, "lan", "third"))
	_, err := s.h1.Docker(ctx, "run", "--rm", "--network", "lan", "--ip", taken.String(), lab.Image, "true")
	refused(t, err, "--ip "+taken.String(), "somebody else's on the segment", "eth0")
}

// reach is who reaches whom of a mode: two containers of a host each other, and one of
// another host.
type reach struct {
	mode      string // of the options
	near, far bool
	// host: another host, with an address of the network, reaches a container. In l3 its
	// packets come from its own address, to which an internal network has no way.
	host bool
}

// shows fails the test unless containers of a network on a device reach each other as far
// as its mode lets them. A host with an address of the network reaches none of its own.
func (r reach) shows(t *testing.T, s scenario, parent string) {
	t.Helper()
	flags := []string{}
	for _, o := range append(strings.Fields(r.mode), "parent="+parent) {
		flags = append(flags, "-o", o)
	}
	create(t, s.Hosts(), "lan", "10.42.0.0/16", append(flags, "--internal")...)
	one, two, far := start(t, s.h1, "lan", "one"), start(t, s.h1, "lan", "two"), start(t, s.h3, "lan", "far")
	for _, to := range []struct {
		box
		reached bool
	}{{two, r.near}, {far, r.far}} {
		if to.reached {
			one.reaches(t, to.box)
			to.reaches(t, one)
		} else {
			one.misses(t, to.box)
			to.misses(t, one)
		}
	}
	for i, h := range []*lab.Host{s.h1, s.h3} {
		addr := fmt.Sprintf("10.42.200.%d/16", i+1)
		h.MustExec(t, "ip", "addr", "add", addr, "dev", parent)
		t.Cleanup(func() { _, _ = h.Exec(context.WithoutCancel(t.Context()), "ip", "addr", "del", addr, "dev", parent) })
		out, err := h.Exec(t.Context(), s.Probe(), "get", "-wait", "2s", "http://"+one.ip+"/name")
		if reached := err == nil && strings.TrimSpace(out) == one.name; reached != (h != s.h1 && r.host) {
			t.Errorf("%s: %s reaches a container of h1: %v (%s, %v)", r.mode, h.Name(), reached, out, err)
		}
		h.MustExec(t, "ip", "addr", "del", addr, "dev", parent)
	}
	for _, h := range s.Hosts() {
		healthy(t, h)
		exits(t, h, 0, "doctor", "--audit", "lan")
	}
	if err := tidy(t.Context(), s.Lab); err != nil {
		t.Fatal(err)
	}
}

// Who reaches whom is the mode's to say, and that is kept: two containers of a host that
// are private to each other, or whose switch does not send back what came from there.
func TestMacvlanModes(t *testing.T) {
	s := begin(t)
	for _, r := range []reach{{"mode=macvlan macvlan_mode=private", false, true, true}, {"mode=macvlan macvlan_mode=vepa", false, true, true}} {
		r.shows(t, s, "eth0")
	}
}

// A container has a device for itself: another one is refused, and gets it when the first
// has gone.
func TestMacvlanPassthru(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	for _, line := range []string{
		"ip netns add foreign", "ip link add lan0 type veth peer name eth0 netns foreign", "ip link set lan0 up",
		"ip -n foreign addr add 10.42.0.200/16 dev eth0", "ip -n foreign link set eth0 up",
	} {
		s.h1.MustExec(t, strings.Fields(line)...)
	}
	t.Cleanup(func() { _, _ = s.h1.Exec(context.WithoutCancel(ctx), "ip", "netns", "del", "foreign") })
	s.h1.MustDocker(t, createArgs("lan", "10.42.0.0/16", "--internal", "-o", "mode=macvlan", "-o", "macvlan_mode=passthru", "-o", "parent=h1:lan0")...)
	for _, name := range []string{"one", "two"} {
		b := start(t, s.h1, "lan", name)
		if out := s.h1.MustInContainer(t, name, "ip", "link", "show", "eth0"); !strings.Contains(out, strings.TrimSpace(s.h1.MustExec(t, "cat", "/sys/class/net/lan0/address"))) {
			t.Errorf("%s has not its parent's MAC: %s", name, out)
		}
		if out := s.h1.MustExec(t, "ip", "netns", "exec", "foreign", s.Probe(), "get", "http://"+b.ip+"/name"); strings.TrimSpace(out) != name {
			t.Errorf("%q answers for %s", out, name)
		}
		_, err := s.h1.Docker(ctx, "run", "--rm", "--network", "lan", lab.Image, "true")
		refused(t, err, "lan0", "macvlan_mode=passthru")
		s.h1.MustDocker(t, "rm", "-f", name)
	}
	s.h1.MustDocker(t, "network", "rm", "lan")
}

// Agents die, engines restart, a host loses its power: containers on the segment do not
// notice the former, and come back after the latter.
func TestMacvlanSurvives(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	onLAN(t, s, "lan", "10.42.0.0/16")
	sink := start(t, s.h3, "lan", "sink", "--restart", "always")
	agentsDie(t, s, "lan", sink)
	if err := errors.Join(s.h3.PowerCut(ctx), s.h3.Boot(ctx)); err != nil {
		t.Fatal(err)
	}
	comeBack(t, s.h3, "sink", start(t, s.h1, "lan", "peer"))
	s.Check(t)
	// What the engine had made for docker_gwbridge went with the power, and nothing here
	// needs it: the comparison with before does.
	if err := errors.Join(tidy(ctx, s.Lab), warmUp(ctx, s.Lab)); err != nil {
		t.Fatal(err)
	}
}

// A container ends while no agent is there to hear of it: its device comes home, and its
// address is given back once it is certain that the engine will not say so any more.
func TestAMacvlanContainerEndsUnseen(t *testing.T) {
	onlySoaked(t)
	s := begin(t)
	ctx := t.Context()
	onLAN(t, s, "lan", "10.42.0.0/16")
	sink := start(t, s.h3, "lan", "sink")
	gone := start(t, s.h1, "lan", "gone")
	if err := s.h1.KillAgent(ctx); err != nil {
		t.Fatal(err)
	}
	s.h1.MustDocker(t, "kill", gone.name)
	if err := s.h1.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	s.Check(t)
	s.h1.MustDocker(t, "start", gone.name)
	gone.ip = address(t, s.h1, "lan", "gone")
	gone.reaches(t, sink)
}

// Somebody changes a container's device: the audit puts right what forwards, and says
// what only Docker can put right.
func TestMacvlanVandalism(t *testing.T) {
	s := begin(t)
	onLAN(t, s, "lan", "10.42.0.0/16")
	a, b := start(t, s.h1, "lan", "one"), start(t, s.h1, "lan", "two")
	far := start(t, s.h3, "lan", "far")
	a.reaches(t, b)
	pid := s.h1.MustDocker(t, "inspect", "-f", "{{.State.Pid}}", a.name)
	s.h1.MustExec(t, "nsenter", "-t", pid, "-n", "ip", "link", "set", "eth0", "type", "macvlan", "mode", "private")
	a.misses(t, b)
	out := exits(t, s.h1, 1, "doctor", "--audit", "lan")
	if !strings.Contains(out, "private") || !strings.Contains(out, "1 object had been changed") {
		t.Errorf("the doctor says\n%s", out)
	}
	a.reaches(t, b)
	s.h1.MustExec(t, "nsenter", "-t", pid, "-n", "ip", "link", "del", "eth0")
	if out := exits(t, s.h1, 1, "doctor", "--audit", "lan"); !strings.Contains(out, "docker restart") {
		t.Errorf("the doctor says of a device that is gone\n%s", out)
	}
	s.h1.MustDocker(t, "restart", "-t", "1", a.name)
	a.ip = address(t, s.h1, "lan", a.name)
	a.reaches(t, far)
	far.reaches(t, a)
	exits(t, s.h1, 0, "doctor", "--audit", "lan")
}

// What a host cannot do is said there, on the terminal or in its status, and the others
// have their network.
func TestHostsThatCannotBeOnTheLAN(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	before := s.MustInventory(t)
	for _, c := range []struct {
		name   string
		opts   []string
		refuse []string
	}{
		{"no such device", []string{"mode=macvlan", "parent=eth7"}, []string{"parent eth7", "no such device", "eth0"}},
		{"no device for this host", []string{"mode=macvlan", "parent=elsewhere:eth0"}, []string{"parent=elsewhere:eth0", "h1:DEVICE"}},
		{"no parent", []string{"mode=macvlan"}, []string{"parent=DEVICE"}},
		{"an option of another mode", []string{"mode=macvlan", "parent=eth0", "vni=7"}, []string{"vni=7", "macvlan"}},
		{"a mode that there is not", []string{"mode=macvlan", "parent=eth0", "macvlan_mode=hub"}, []string{"macvlan_mode=hub", "bridge, private, vepa or passthru"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var flags []string
			for _, o := range c.opts {
				flags = append(flags, "-o", o)
			}
			_, err := s.h1.Docker(ctx, createArgs("bad", "10.60.0.0/16", flags...)...)
			refused(t, err, c.refuse...)
			s.unchanged(t, before)
		})
	}

	s.h1.MustExec(t, "ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
	s.h1.MustExec(t, "ip", "link", "set", "lan0", "up")
	t.Cleanup(func() { _, _ = s.h1.Exec(context.WithoutCancel(ctx), "ip", "link", "del", "lan0") })
	s.h1.MustDocker(t, createArgs("lan", "10.42.0.0/16", "-o", "mode=macvlan", "-o", "parent=h1:lan0,h2:eth7,*:eth0")...)
	appears(t, []*lab.Host{s.h1, s.h3}, "lan", time.Now())
	lab.Eventually(t, soon, "h2 to say that it has no such device", func() error {
		_, err := s.h2.Carrick(ctx, "status")
		return says(err, "network lan", "eth7", "no such device")
	})
	start(t, s.h3, "lan", "three").reaches(t, start(t, s.h3, "lan", "other"))
	// It appears when there is one.
	s.h2.MustExec(t, "ip", "link", "add", "eth7", "type", "veth", "peer", "name", "far7")
	s.h2.MustExec(t, "ip", "link", "set", "eth7", "up")
	t.Cleanup(func() { _, _ = s.h2.Exec(context.WithoutCancel(ctx), "ip", "link", "del", "eth7") })
	appears(t, []*lab.Host{s.h2}, "lan", time.Now())
	healthy(t, s.h2)
}

// A container is on the segment and in an encapsulated network at once.
func TestMacvlanBesideVXLAN(t *testing.T) {
	s := begin(t)
	onLAN(t, s, "lan", "10.42.0.0/16", "--internal")
	create(t, s.Hosts(), "app", "10.43.0.0/16")
	both := start(t, s.h1, "app", "both")
	s.h1.MustDocker(t, "network", "connect", "lan", "both")
	lan, app := start(t, s.h3, "lan", "on-lan"), start(t, s.h2, "app", "on-app")
	both.reaches(t, app)
	both.reaches(t, lan)
	lan.resolves(t, "both", address(t, s.h1, "lan", "both"))
	app.resolves(t, "both", address(t, s.h1, "app", "both"))
	s.h1.MustDocker(t, "network", "disconnect", "lan", "both")
	both.misses(t, lan)
	both.reaches(t, app)
	if links := strings.Fields(s.h1.MustExec(t, "ls", "/sys/class/net")); slices.ContainsFunc(links, func(n string) bool { return strings.HasPrefix(n, "ck") }) {
		t.Errorf("h1 has the links %v", links)
	}
}

// A host has a leg in the network while it has a container there, and they reach each
// other over it, as does nobody without.
func TestHostAccess(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	onLAN(t, s, "lan", "10.42.0.0/16", "-o", "host_access=on")
	one, far := start(t, s.h1, "lan", "one"), start(t, s.h3, "lan", "far")
	one.reaches(t, far)
	out, err := s.h1.Carrick(ctx, "endpoint", "ls")
	if err != nil || strings.Count(out, "(the host)") != 2 {
		t.Errorf("endpoint ls says %v: %s", err, out)
	}
	// A container on the host's own network is the host, as far as packets go.
	for _, h := range []*lab.Host{s.h1, s.h3} {
		h.MustDocker(t, "run", "-d", "--name", "onhost", "--network", "host", lab.Image)
		t.Cleanup(func() { _, _ = h.Docker(context.WithoutCancel(ctx), "rm", "-f", "onhost") })
	}
	for _, b := range []box{one, far} {
		if got := b.host.MustInContainer(t, "onhost", "probe", "get", "http://"+b.ip+"/name"); strings.TrimSpace(got) != b.name {
			t.Errorf("%s asks its container at %s and is answered by %q", b.host.Name(), b.ip, got)
		}
	}
	leg := ""
	for _, f := range strings.Fields(s.h1.MustExec(t, "ip", "-4", "-o", "addr", "show", "dev", legOn(t, s.h1))) {
		if p, err := netip.ParsePrefix(f); err == nil {
			leg = p.Addr().String()
		}
	}
	s.h1.MustInContainer(t, one.name, "probe", "get", "http://"+leg+"/name")
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
	if err := errors.Join(s.h1.KillAgent(ctx), s.h1.RestartAgent(ctx)); err != nil {
		t.Fatal(err)
	}
	if out := exits(t, s.h1, 0, "doctor", "--audit"); !strings.Contains(out, "all is as planned") {
		t.Errorf("after a restart: %s", out)
	}
	s.h1.MustDocker(t, "rm", "-f", one.name)
	lab.Eventually(t, soon, "h1 to have no leg", func() error {
		links, err := s.h1.Exec(ctx, "ls", "/sys/class/net")
		if err == nil && strings.Contains(links, "ckl") {
			err = errors.New(links)
		}
		return err
	})
}

// legOn is the name of a host's leg.
func legOn(t *testing.T, h *lab.Host) string {
	t.Helper()
	for _, l := range strings.Fields(h.MustExec(t, "ls", "/sys/class/net")) {
		if strings.HasPrefix(l, "ckl") {
			return l
		}
	}
	t.Fatalf("%s has no leg", h.Name())
	return ""
}
