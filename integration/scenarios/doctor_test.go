package scenarios

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/integration/lab"
	"github.com/carrick-net/carrick/plan"
)

// exits runs carrick on a host, which must exit with a code, and returns what it
// printed.
func exits(t testing.TB, h *lab.Host, code int, args ...string) string {
	t.Helper()
	out, err := h.Carrick(t.Context(), args...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Errorf("%s: carrick %s: exit code %d, want %d: %v\n%s", h.Name(), strings.Join(args, " "), got, code, err, out)
	}
	return out
}

// space is the namespace of a network, and inside runs a command in it on a host.
func space(n clusterNetwork) string { return plan.Namespace(carrick.NetworkID(n.ID)) }

func inside(t testing.TB, h *lab.Host, n clusterNetwork, command string) {
	t.Helper()
	h.MustExec(t, append([]string{"ip", "netns", "exec", space(n)}, strings.Fields(command)...)...)
}

// mac is the container's address on its network's Ethernet.
func (b box) mac(t testing.TB) string {
	t.Helper()
	return b.host.MustDocker(t, "inspect", "-f", fmt.Sprintf("{{with index .NetworkSettings.Networks %q}}{{.MacAddress}}{{end}}", b.network), b.name)
}

// mislead sends a host's packets for another's container astray, by hand: nothing in
// the kernel tells of it.
func (b box) mislead(t testing.TB, h *lab.Host, n clusterNetwork) {
	t.Helper()
	inside(t, h, n, "bridge fdb replace "+b.mac(t)+" dev vxlan0 dst 172.31.0.250 self permanent")
	inside(t, h, n, "ip neigh replace "+b.ip+" lladdr 02:66:00:00:00:01 dev vxlan0 nud permanent")
}

// Somebody works on a host's kernel by hand. The doctor says what it was and mends
// it; what is Docker's it names with the remedy.
func TestTheDoctorFindsAndHeals(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	a, b, c := start(t, s.h1, "app", "web1"), start(t, s.h2, "app", "web2"), start(t, s.h3, "app", "web3")
	a.reaches(t, b)
	a.reaches(t, c)
	n := inspect(t, s.h1, "app")
	for _, h := range s.Hosts() {
		exits(t, h, 0, "doctor")
		if out := exits(t, h, 0, "doctor", "--audit"); !strings.Contains(out, "1 network read back in") || !strings.Contains(out, "all is as planned") {
			t.Errorf("%s: %s", h.Name(), out)
		}
	}

	b.mislead(t, s.h1, n)
	inside(t, s.h1, n, "nft add table bridge mine")
	a.misses(t, b)
	out := exits(t, s.h1, 1, "doctor", "--audit", "app")
	for _, want := range []string{
		"fdb row " + b.mac(t) + " was dst 172.31.0.250, wants dst " + s.h2.Addr().String(),
		"neighbour " + b.ip + " was lladdr 02:66:00:00:00:01, wants lladdr " + b.mac(t),
		"rule bridge mine", "3 objects had been changed",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the doctor does not say %q:\n%s", want, out)
		}
	}
	t.Log("\n" + out)
	a.reaches(t, b)
	exits(t, s.h1, 0, "doctor", "--audit", "app")
	if out := exits(t, s.h1, 0, "status"); !strings.Contains(out, "3 kernel objects repaired") || !strings.Contains(out, "Repaired lately:") {
		t.Errorf("status says\n%s", out)
	}

	// What the kernel tells of is mended before anybody asks, and told.
	inside(t, s.h1, n, "ip link set vxlan0 down")
	lab.Eventually(t, soon, "a to reach b again", func() error { _, err := a.nameAt(t, b.ip); return err })
	lab.Eventually(t, soon, "the repair to be told", func() error {
		out, err := s.h1.Carrick(t.Context(), "doctor", "--audit")
		if err == nil && !strings.Contains(out, "link vxlan0 was down, wants up") {
			err = errors.New(out)
		}
		return err
	})

	// The container's pair is Docker's.
	ports := s.h1.MustExec(t, "ip", "-n", space(n), "-o", "link", "show", "type", "veth")
	port, _, _ := strings.Cut(strings.Fields(ports)[1], "@")
	inside(t, s.h1, n, "ip link del "+port)
	for range 2 {
		if out := exits(t, s.h1, 1, "doctor", "--audit"); !strings.Contains(out, "its veth pair is gone") || !strings.Contains(out, "docker restart") || !strings.Contains(out, "1 problem is left") {
			t.Errorf("the doctor says of a pair that is gone\n%s", out)
		}
	}
	if out := exits(t, s.h1, 1, "doctor"); !strings.Contains(out, "docker restart") {
		t.Errorf("the doctor says\n%s", out)
	}
	s.h1.MustDocker(t, "restart", "-t", "0", a.name)
	a.ip = address(t, s.h1, "app", a.name)
	a.reaches(t, b)
	c.reaches(t, a)
	exits(t, s.h1, 0, "doctor", "--audit")
	exits(t, s.h1, 2, "doctor", "app")
}

// Nobody asks: the audit's own period heals, with traffic back and the drift
// counted.
func TestTheAuditHealsByItself(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	restart := func(extra ...string) {
		t.Helper()
		if err := errors.Join(s.h1.StopAgent(ctx), s.h1.StartAgent(ctx, extra...)); err != nil {
			t.Fatal(err)
		}
	}
	restart("--audit-interval", "1s")
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	a, b, c := start(t, s.h1, "app", "web1"), start(t, s.h2, "app", "web2"), start(t, s.h3, "app", "web3")
	a.reaches(t, b)
	a.reaches(t, c)
	n := inspect(t, s.h1, "app")
	for _, far := range []box{b, c} {
		far.mislead(t, s.h1, n)
		lab.Eventually(t, soon, "a to reach "+far.name+" again", func() error { _, err := a.nameAt(t, far.ip); return err })
	}
	lab.Eventually(t, soon, "four repairs to be counted", func() error {
		status, err := ask[struct {
			Drift int            `json:"drift"`
			Kinds map[string]int `json:"drift_kinds"`
		}](t, s.h1, "status")
		if err == nil && (status.Drift != 4 || status.Kinds["fdb"] != 2 || status.Kinds["neighbour"] != 2) {
			err = fmt.Errorf("%+v", status)
		}
		return err
	})
	for _, want := range []string{"repaired what somebody else had changed", "fdb row " + b.mac(t) + " was dst 172.31.0.250"} {
		if !strings.Contains(s.h1.AgentLog(), want) {
			t.Errorf("the agent's log does not say %q", want)
		}
	}
	exits(t, s.h1, 0, "doctor", "--audit")
	restart()
	a.reaches(t, b)
}
