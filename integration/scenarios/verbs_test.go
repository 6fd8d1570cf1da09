package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// createArgs is the documented command for a network.
func createArgs(name, subnet string, extra ...string) []string {
	args := []string{"network", "create", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", subnet}
	return append(append(args, extra...), name)
}

// create makes a network on several hosts, as a person would: on the first, which is
// enough.
func create(t testing.TB, hosts []*lab.Host, name, subnet string, extra ...string) {
	t.Helper()
	args := createArgs(name, subnet, extra...)
	if err := lab.CreateNetwork(t.Context(), hosts, name, args[2:len(args)-1]...); err != nil {
		t.Fatal(err)
	}
}

// alone is the flag of agents that do not make other hosts' networks on theirs.
const alone = "--mirror=false"

// apart has each host of the shared lab mind its own networks, in this test: one is on
// the hosts where somebody made it.
func (s scenario) apart(t *testing.T) scenario {
	t.Helper()
	again := func(ctx context.Context, flags ...string) error {
		return onEach(s.Hosts(), func(h *lab.Host) error {
			return errors.Join(h.StopAgent(ctx), h.StartAgent(ctx, flags...))
		})
	}
	if err := again(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The networks go as they came, before the agents are as they were.
		ctx := context.WithoutCancel(t.Context())
		err := repair(ctx, s.Lab)
		if err == nil && !t.Failed() {
			err = s.Agree(ctx)
		}
		if err == nil {
			err = tidy(ctx, s.Lab)
		}
		if err := errors.Join(err, again(ctx)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// box is a running container that serves (see the probe) on one network.
type box struct {
	host    *lab.Host
	name    string
	network string
	ip      string
}

// start runs a container in the background; extra are flags of docker run. Its
// page /name says its name.
func start(t testing.TB, h *lab.Host, network, name string, extra ...string) box {
	t.Helper()
	args := append([]string{"run", "-d", "--name", name, "--hostname", name, "--network", network}, extra...)
	h.MustDocker(t, append(args, lab.Image)...)
	return box{host: h, name: name, network: network, ip: address(t, h, network, name)}
}

// address is the container's address on a network, as Docker knows it.
func address(t testing.TB, h *lab.Host, network, name string) string {
	t.Helper()
	return h.MustDocker(t, "inspect", "-f", fmt.Sprintf("{{with index .NetworkSettings.Networks %q}}{{.IPAddress}}{{end}}", network), name)
}

// nameAt asks, from inside a container, who answers at an address.
func (b box) nameAt(t testing.TB, ip string) (string, error) {
	out, err := b.host.InContainer(t.Context(), b.name, "probe", "get", "http://"+ip+"/name")
	return strings.TrimSpace(out), err
}

// reaches fails the test unless the other container answers at once.
func (b box) reaches(t testing.TB, other box) {
	t.Helper()
	got, err := b.nameAt(t, other.ip)
	if err != nil {
		t.Errorf("%s on %s asks %s on %s: %v", b.name, b.host.Name(), other.name, other.host.Name(), err)
	} else if got != other.name {
		t.Errorf("%s on %s asks for %s at %s and is answered by %q", b.name, b.host.Name(), other.name, other.ip, got)
	}
}

// misses fails the test if anybody answers at the others' addresses.
func (b box) misses(t testing.TB, others ...box) {
	t.Helper()
	err := atOnce(others, func(other box) error {
		out, err := b.host.InContainer(t.Context(), b.name, "probe", "get", "-wait", "1s", "http://"+other.ip+"/name")
		if err == nil {
			return fmt.Errorf("%s of %s on %s reaches %s of %s on %s, answered by %q",
				b.name, b.network, b.host.Name(), other.name, other.network, other.host.Name(), out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// gone fails the test if any of the others still gets an answer from the box.
func (b box) gone(t testing.TB, others ...box) {
	t.Helper()
	var all sync.WaitGroup
	for _, o := range others {
		all.Go(func() { o.misses(t, b) })
	}
	all.Wait()
}

// clusterNetwork is what `carrick network ls --json` and inspect print of a
// network, as far as the scenarios look at it.
type clusterNetwork struct {
	ID        string `json:"id"`
	Tenant    string `json:"tenant"`
	VNI       int    `json:"vni"`
	MTU       int    `json:"mtu"`
	Subnet    string `json:"subnet"`
	Gateway   string `json:"gateway"`
	Here      bool   `json:"here"`
	Endpoints []struct {
		ID    string   `json:"id"`
		Addrs []string `json:"addrs"`
		MAC   string   `json:"mac"`
		Host  string   `json:"host"`
	} `json:"endpoints"`
	Problems []string `json:"problems"`
}

// ask runs a carrick command with --json on a host and decodes what it prints.
func ask[T any](t testing.TB, h *lab.Host, args ...string) (T, error) {
	var v T
	out, err := h.Carrick(t.Context(), append(args, "--json")...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("%s: carrick %s --json printed %q: %w", h.Name(), strings.Join(args, " "), out, err)
	}
	return v, nil
}

// inspect is `carrick network inspect REF --json`.
func inspect(t testing.TB, h *lab.Host, ref string) clusterNetwork {
	t.Helper()
	n, err := ask[clusterNetwork](t, h, "network", "inspect", ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// list is `carrick network ls --json`.
func list(t testing.TB, h *lab.Host) []clusterNetwork {
	t.Helper()
	n, err := ask[[]clusterNetwork](t, h, "network", "ls")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// healthy waits until a host's agent says that nothing needs attention.
func healthy(t testing.TB, h *lab.Host) {
	t.Helper()
	lab.Eventually(t, soon, h.Name()+"'s agent to be well", func() error {
		type state struct {
			Pending  int      `json:"pending"`
			Problems []string `json:"problems"`
			Store    struct {
				OK    bool   `json:"ok"`
				Error string `json:"error"`
			} `json:"store"`
		}
		s, err := ask[state](t, h, "status")
		switch {
		case err != nil:
			return err
		case !s.Store.OK || s.Pending > 0 || len(s.Problems) > 0:
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// traffic is a container that sends numbered packets to another and counts what
// comes back.
type traffic struct {
	host *lab.Host
	name string
}

// flow starts traffic and returns once it flows; kind is "udp" or "tcp".
func flow(t testing.TB, h *lab.Host, network, name, kind string, to box) traffic {
	t.Helper()
	h.MustDocker(t, "run", "-d", "--name", name, "--network", network, lab.Image, "probe", "flow", fmt.Sprintf("-tcp=%v", kind == "tcp"), to.ip)
	f := traffic{h, name}
	lab.Eventually(t, soon, name+" to flow", func() error {
		out, err := h.Docker(t.Context(), "logs", name)
		if err == nil && !strings.Contains(out, "flowing") {
			err = fmt.Errorf("%s printed %q", name, out)
		}
		return err
	})
	return f
}

// intact stops the traffic and fails the test if one packet was lost.
func (f traffic) intact(t testing.TB) {
	t.Helper()
	f.host.MustDocker(t, "kill", "--signal", "TERM", f.name)
	f.host.MustDocker(t, "wait", f.name)
	out := f.host.MustDocker(t, "logs", f.name)
	lines := strings.Split(out, "\n")
	var s struct {
		Sent   int    `json:"sent"`
		Lost   int    `json:"lost"`
		Broken string `json:"broken"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Errorf("%s on %s printed %q: %v", f.name, f.host.Name(), out, err)
		return
	}
	t.Logf("%s on %s: %d packets, %d lost", f.name, f.host.Name(), s.Sent, s.Lost)
	if s.Sent == 0 || s.Lost > 0 || s.Broken != "" {
		t.Errorf("%s on %s: %d of %d packets lost; connection broken: %q", f.name, f.host.Name(), s.Lost, s.Sent, s.Broken)
	}
}
