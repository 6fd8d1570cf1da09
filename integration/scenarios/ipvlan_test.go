package scenarios

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
	"github.com/carrick-net/carrick/internal/vmtest"
)

// TestIPVLAN has ipvlan networks on three hosts, on a kernel that has ipvlan: where this
// machine's has it not, in a virtual machine, for which it takes minutes.
func TestIPVLAN(t *testing.T) {
	if os.Getenv("CARRICK_IPVLAN") == "" && lab.Unable() == "" && len(vmtest.Missing(t, vmtest.IPVLAN)) > 0 {
		t.Skip("this kernel has no ipvlan, and a virtual machine takes minutes: make test-ipvlan runs it")
	}
	lab.OnKernelWith(t, vmtest.IPVLAN, func(t *testing.T) {
		t.Run("l3", ipvlanL3)
		t.Run("l2", ipvlanL2)
		t.Run("modes", ipvlanModes)
	})
}

// Who reaches whom in the other modes, and on VLANs, for which this kernel is needed as well.
func ipvlanModes(t *testing.T) {
	s := begin(t)
	for _, r := range []reach{
		{"mode=ipvlan ipvlan_flag=private", false, true, true},
		{"mode=ipvlan ipvlan_flag=vepa", false, true, true},
		{"mode=ipvlan ipvlan_mode=l3s", true, true, false},
		{"mode=ipvlan ipvlan_mode=l3 ipvlan_flag=private", false, true, false},
	} {
		r.shows(t, s, "eth0")
	}
	for _, r := range []reach{{"mode=macvlan", true, true, true}, {"mode=ipvlan", true, true, true}} {
		r.shows(t, s, "eth0.50")
	}
	for _, h := range s.Hosts() {
		if links := h.MustExec(t, "ls", "/sys/class/net"); strings.Contains(links, "eth0.50") {
			t.Errorf("%s still has the links %s", h.Name(), links)
		}
	}
}

// The hosts route: one create, one address space, one set of names, and no MAC on the
// segment but the hosts'. Agents that die are not noticed, what somebody changes is put
// right, and a host that loses its power comes back.
func ipvlanL3(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "net", "10.42.0.0/16", "-o", "mode=ipvlan", "-o", "ipvlan_mode=l3", "-o", "parent=eth0")
	boxes := mesh(t, s, "net")
	for _, h := range s.Hosts() {
		healthy(t, h)
		if out, err := h.Carrick(ctx, "network", "inspect", "net"); err != nil || !strings.Contains(out, "ipvlan_mode") || !strings.Contains(out, "l3") {
			t.Errorf("%s: network inspect says %v: %s", h.Name(), err, out)
		}
	}
	a, far := boxes[0], boxes[5]
	// Explicit addresses are the cluster's, as ever.
	_, err := s.h2.Docker(ctx, "run", "--rm", "--network", "net", "--ip", far.ip, lab.Image, "true")
	refused(t, err, far.ip, "h3")
	_, err = s.h2.Docker(ctx, "run", "--rm", "--network", "net", "--mac-address", "02:00:00:00:00:07", lab.Image, "true")
	refused(t, err, "--mac-address", "macvlan")

	// Somebody at work on a host.
	s.h1.MustExec(t, "ip", "route", "del", far.ip)
	a.misses(t, far)
	if out := exits(t, s.h1, 1, "doctor", "--audit", "net"); !strings.Contains(out, far.ip) {
		t.Errorf("the doctor says\n%s", out)
	}
	a.reaches(t, far)
	pid := s.h1.MustDocker(t, "inspect", "-f", "{{.State.Pid}}", a.name)
	s.h1.MustExec(t, "nsenter", "-t", pid, "-n", "ip", "link", "del", "eth0")
	if out := exits(t, s.h1, 1, "doctor", "--audit", "net"); !strings.Contains(out, "docker restart") {
		t.Errorf("the doctor says of a device that is gone\n%s", out)
	}
	s.h1.MustDocker(t, "restart", "-t", "1", a.name)
	a.ip = address(t, s.h1, "net", a.name)
	a.reaches(t, far)
	far.reaches(t, a)
	exits(t, s.h1, 0, "doctor", "--audit", "net")

	agentsDie(t, s, "net", far)

	// A container ends while no agent is there to hear of it, and a host loses its power.
	if err := s.h1.KillAgent(ctx); err != nil {
		t.Fatal(err)
	}
	s.h1.MustDocker(t, "kill", boxes[1].name)
	if err := s.h1.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	start(t, s.h3, "net", "sink", "--restart", "always")
	if err := errors.Join(s.h3.PowerCut(ctx), s.h3.Boot(ctx)); err != nil {
		t.Fatal(err)
	}
	comeBack(t, s.h3, "sink", a)
	s.Check(t)
	if err := errors.Join(tidy(ctx, s.Lab), warmUp(ctx, s.Lab)); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		lab.Eventually(t, soon, h.Name()+" to hold nothing of the network", func() error { return holdsNoRoutes(ctx, h) })
	}
}

// The segment has the containers' addresses, of both families, and asks for them.
func ipvlanL2(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "lan", dual4, "-o", "mode=ipvlan", "-o", "parent=eth0", "--ipv6", "--subnet", dual6)
	boxes := mesh6(t, s, "lan")
	ctx := t.Context()
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return errors.Join(h.KillAgent(ctx), h.RestartAgent(ctx)) }); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		adopted(t, h)
	}
	allPairs(t, boxes)
}
