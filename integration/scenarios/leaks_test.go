package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// fine waits until a host's `carrick ipam check` exits with 0.
func fine(t testing.TB, h *lab.Host) {
	t.Helper()
	lab.Eventually(t, 2*soon, h.Name()+"'s check to be fine", func() error {
		_, err := h.Carrick(t.Context(), "ipam", "check")
		return err
	})
}

// said is what a failed command printed, on both its outputs.
func said(err error) string {
	var c *lab.CommandError
	if errors.As(err, &c) {
		return c.Stdout + c.Stderr
	}
	return fmt.Sprint(err)
}

// used is how many addresses of a network `carrick ipam show` counts as given out.
func used(t testing.TB, h *lab.Host, network string) int {
	t.Helper()
	out, err := h.Carrick(t.Context(), "ipam", "show", network, "--json")
	if err != nil {
		t.Fatal(err)
	}
	var nets []struct {
		Pools []struct {
			Given int `json:"given"`
		} `json:"pools"`
	}
	if err := json.Unmarshal([]byte(out), &nets); err != nil || len(nets) != 1 || len(nets[0].Pools) != 1 {
		t.Fatalf("%s: carrick ipam show %s --json printed %q: %v", h.Name(), network, out, err)
	}
	return nets[0].Pools[0].Given
}

// While the agents are away a container is removed together with its network, and
// another container alone. Nobody tells the agents, ever. They find out by
// themselves: the network is gone from the cluster and its subnet can be had
// again; the lost container's address is given back at once when asked for. What
// runs does not notice.
//
// The engines take 45 s to give up for each removal, so this one has hosts of its
// own.
func TestLeaksOfAnAbsentAgent(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Engines: []lab.Engine{lab.Debian20, lab.Current}, Agents: true, AgentFlags: []string{alone}})
	h1, h2 := l.Host(1), l.Host(2)
	ctx := t.Context()
	if err := warmUp(ctx, l); err != nil {
		t.Fatal(err)
	}
	create(t, l.Hosts(), "stays", "10.42.0.0/16")
	for _, h := range l.Hosts() {
		h.MustDocker(t, "run", "--rm", "--network", "stays", lab.Image, "true") // takes the host's block
	}
	before := idle(t, l)

	create(t, l.Hosts(), "gone", "10.43.0.0/16")
	stay := map[*lab.Host]box{}
	lost := map[*lab.Host]box{}
	for _, h := range l.Hosts() {
		start(t, h, "gone", "gone")
		stay[h], lost[h] = start(t, h, "stays", "stay"), start(t, h, "stays", "lost")
	}
	f := flow(t, h1, "stays", "flow", "tcp", stay[h2])
	for _, h := range l.Hosts() {
		fine(t, h)
	}
	err := onEach(l.Hosts(), func(h *lab.Host) error {
		if err := h.KillAgent(ctx); err != nil {
			return err
		}
		for _, args := range [][]string{{"rm", "-f", "gone"}, {"network", "rm", "gone"}, {"rm", "-f", "lost"}} {
			if _, err := h.Docker(ctx, args...); err != nil {
				return err
			}
		}
		return h.RestartAgent(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}

	// The operator does not wait for what will be collected, and is kept from what
	// would do harm.
	for _, h := range l.Hosts() {
		out, err := h.Carrick(ctx, "ipam", "release", "stays", lost[h].ip)
		if err != nil || !strings.Contains(out, "released "+lost[h].ip+" of network stays") {
			t.Errorf("%s: release of a lost address: %q, %v", h.Name(), out, err)
		}
		_, err = h.Carrick(ctx, "ipam", "release", "stays", stay[h].ip)
		refused(t, err, "container stay has it")
	}
	_, err = h1.Carrick(ctx, "ipam", "release", "stays", stay[h2].ip)
	refused(t, err, "on h2")

	for _, h := range l.Hosts() {
		lab.Eventually(t, 2*soon, "the lost network's alias to be gone", func() error {
			for _, n := range list(t, h) {
				if n.Subnet == "10.43.0.0/16" {
					return fmt.Errorf("%s still lists it: %+v", h.Name(), n)
				}
			}
			return nil
		})
		fine(t, h)
	}
	if n := used(t, h1, "stays"); n != 3 {
		t.Errorf("%d addresses of stays are given out, want those of two containers and of the traffic", n)
	}
	f.intact(t)
	stay[h1].reaches(t, stay[h2])
	create(t, l.Hosts(), "again", "10.43.0.0/16")
	start(t, h1, "again", "one").reaches(t, start(t, h2, "again", "two"))

	for _, h := range l.Hosts() {
		out := h.MustDocker(t, "ps", "-aq")
		h.MustDocker(t, append([]string{"rm", "-f"}, strings.Fields(out)...)...)
		h.MustDocker(t, "network", "rm", "again")
	}
	if err := unchanged(ctx, l, before); err != nil {
		t.Error(err)
	}
}

// Without the store, check says that it could not look at it and finds nothing
// else wrong, and show says how old the others' part is.
func TestAddressesWithoutTheStore(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	for _, h := range s.Hosts() {
		start(t, h, "app", "box")
	}
	fine(t, s.h1)
	if n := used(t, s.h1, "app"); n != 3 {
		t.Errorf("%d addresses given out, want 3", n)
	}
	if err := s.CutFromConsul(ctx, s.h1); err != nil {
		t.Fatal(err)
	}
	_, err := s.h1.Carrick(ctx, "ipam", "check")
	if out := said(err); err == nil || !strings.Contains(out, "store not looked at") || strings.Contains(out, "wrong: ") {
		t.Errorf("check without the store: %v", err)
	}
	out, err := s.h1.Carrick(ctx, "ipam", "show", "app")
	if err != nil || !strings.Contains(out, "The store does not answer") || used(t, s.h1, "app") != 3 {
		t.Errorf("show without the store: %q, %v", out, err)
	}
	if err := s.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	fine(t, s.h1)
}
