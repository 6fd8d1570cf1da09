package scenarios

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// refused fails the test unless a command failed and its output has all of want.
func refused(t testing.TB, err error, want ...string) {
	t.Helper()
	if err := says(err, want...); err != nil {
		t.Error(err)
		return
	}
	var c *lab.CommandError
	if errors.As(err, &c) {
		t.Logf("%s", strings.TrimSpace(c.Stdout+c.Stderr))
	}
}

// says is nil if a command failed and its output has all of want.
func says(err error, want ...string) error {
	if err == nil {
		return errors.New("it was accepted")
	}
	var c *lab.CommandError
	if !errors.As(err, &c) {
		return fmt.Errorf("not a refusal: %w", err)
	}
	text := c.Stdout + c.Stderr
	for _, w := range want {
		if !strings.Contains(text, w) {
			return fmt.Errorf("the message lacks %q:\n%s", w, text)
		}
	}
	return nil
}

// A network that cannot be is refused on the terminal, in words that name the
// option and the value, and nothing is left of it.
func TestBadNetworkCreates(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "taken", "10.42.0.0/16", "-o", "vni=4242")
	before := s.MustInventory(t)
	plain := []string{"network", "create", "-d", "carrick"}
	ours := append(plain, "--ipam-driver", "carrick")
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"no --ipam-driver", append(plain, "--subnet", "10.50.0.0/16", "bad"), []string{"--ipam-driver carrick"}},
		{"no --ipam-driver, no --subnet", append(plain, "bad"), []string{"--ipam-driver carrick"}},
		{"unknown option", append(ours, "--subnet", "10.50.0.0/16", "-o", "colour=red", "bad"), []string{"colour", "unknown option", "vni"}},
		{"unknown IPAM option", append(ours, "--subnet", "10.50.0.0/16", "--ipam-opt", "colour=red", "bad"), []string{"colour", "tenant"}},
		{"VNI not a number", append(ours, "--subnet", "10.50.0.0/16", "-o", "vni=many", "bad"), []string{"vni", "many", "16777215"}},
		{"VNI zero", append(ours, "--subnet", "10.50.0.0/16", "-o", "vni=0", "bad"), []string{"vni", "16777215"}},
		{"VNI too large", append(ours, "--subnet", "10.50.0.0/16", "-o", "vni=16777216", "bad"), []string{"vni", "16777216", "16777215"}},
		{"VNI taken", append(ours, "--subnet", "10.50.0.0/16", "-o", "vni=4242", "bad"), []string{"4242", "taken"}},
		{"overlap, inside", append(ours, "--subnet", "10.42.7.0/24", "bad"), []string{"10.42.7.0/24", "overlap", "10.42.0.0/16"}},
		{"overlap, around", append(ours, "--subnet", "10.40.0.0/13", "bad"), []string{"10.40.0.0/13", "overlap", "10.42.0.0/16"}},
		{"already on this host", append(ours, "--subnet", "10.42.0.0/16", "bad"), []string{"10.42.0.0/16"}},
		{"mode unknown", append(ours, "--subnet", "10.50.0.0/16", "-o", "mode=pigeon", "bad"), []string{"mode", "pigeon", "vxlan"}},
		{"MTU not a number", append(ours, "--subnet", "10.50.0.0/16", "-o", "mtu=big", "bad"), []string{"mtu", "big"}},
		{"MTU too large", append(ours, "--subnet", "10.50.0.0/16", "-o", "mtu=70000", "bad"), []string{"mtu", "70000"}},
		{"flood neither on nor off", append(ours, "--subnet", "10.50.0.0/16", "-o", "flood=maybe", "bad"), []string{"flood", "maybe"}},
		{"port out of range", append(ours, "--subnet", "10.50.0.0/16", "-o", "port=65536", "bad"), []string{"port", "65536"}},
		{"range outside the subnet", append(ours, "--subnet", "10.50.0.0/16", "--ip-range", "10.51.0.0/24", "bad"), []string{"10.51.0.0/24"}},
		{"gateway outside the subnet", append(ours, "--subnet", "10.50.0.0/16", "--gateway", "10.51.0.1", "bad"), []string{"10.51.0.1"}},
		{"multicast subnet", append(ours, "--subnet", "224.1.0.0/16", "bad"), []string{"224.1.0.0/16"}},
		{"tenant with a slash", append(ours, "--subnet", "10.50.0.0/16", "--ipam-opt", "tenant=a/b", "bad"), []string{"tenant", "a/b"}},
		{"network id unknown", append(ours, "--subnet", "10.50.0.0/16", "-o", "carrick.network=0123456789abcdef", "--ipam-opt", "carrick.network=0123456789abcdef", "bad"), []string{"0123456789abcdef"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, h := range []*lab.Host{s.h1, s.h3} {
				_, err := h.Docker(t.Context(), c.args...)
				refused(t, err, c.want...)
			}
			s.unchanged(t, before)
		})
	}
}

// A host that joins a network cannot ask for something else than it is.
func TestJoinerMustAgree(t *testing.T) {
	s := begin(t).apart(t)
	s.h1.MustDocker(t, createArgs("app", "10.42.0.0/16", "-o", "vni=4242", "-o", "mtu=1300")...)
	before := s.MustInventory(t)
	for _, c := range []struct {
		extra, want []string
	}{
		{[]string{"-o", "vni=4243"}, []string{"4242", "4243"}},
		{[]string{"-o", "mtu=1400"}, []string{"1300", "1400"}},
		{[]string{"--gateway", "10.42.0.77"}, []string{"10.42.0.77"}},
		{[]string{"--ip-range", "10.42.1.0/24"}, []string{"10.42.1.0/24"}},
		{[]string{"--internal"}, []string{"internal"}},
	} {
		for _, h := range []*lab.Host{s.h2, s.h3} {
			_, err := h.Docker(t.Context(), createArgs("app", "10.42.0.0/16", c.extra...)...)
			refused(t, err, c.want...)
		}
		s.unchanged(t, before)
	}
	// What it leaves out it inherits.
	s.h3.MustDocker(t, createArgs("app", "10.42.0.0/16")...)
	if n := inspect(t, s.h3, "app"); n.VNI != 4242 || n.MTU != 1300 {
		t.Errorf("h3 inherited %+v", n)
	}
}

// An address that cannot be had is refused at `docker run`, and is neither taken
// nor lost by it.
func TestBadAddresses(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16", "--aux-address", "router=10.42.3.3")
	here := start(t, s.h1, "app", "here")
	there := start(t, s.h2, "app", "there")
	// A host keeps a network in its kernel while it has containers in it.
	start(t, s.h3, "app", "third")
	before := s.MustInventory(t)
	gateway := inspect(t, s.h1, "app").Gateway
	for _, c := range []struct {
		name string
		host *lab.Host
		ip   string
		want []string
	}{
		{"outside the subnet", s.h1, "10.43.0.5", []string{"10.43.0.5"}},
		{"in use on this host", s.h1, here.ip, []string{here.ip, "in use"}},
		{"in use on another host", s.h1, there.ip, []string{there.ip, "h2"}},
		{"in use on another host, current engine", s.h3, here.ip, []string{here.ip, "h1"}},
		{"the gateway's", s.h2, gateway, []string{gateway, "gateway"}},
		{"an auxiliary one", s.h2, "10.42.3.3", []string{"10.42.3.3", "router"}},
		{"the network's own", s.h2, "10.42.0.0", []string{"10.42.0.0"}},
		{"the broadcast address", s.h3, "10.42.255.255", []string{"10.42.255.255"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.host.Docker(t.Context(), "run", "--name", "bad", "--network", "app", "--ip", c.ip, lab.Image, "true")
			if c.name == "outside the subnet" {
				// Engines answer this themselves, each in its own words.
				c.want = nil
			}
			refused(t, err, c.want...)
			c.host.MustDocker(t, "rm", "-f", "bad")
			s.unchanged(t, before)
		})
	}
	here.reaches(t, there)
}

// Without the store no network can be made, the message says so, and when the
// store is back there is nothing half made.
func TestCreateWithoutTheStore(t *testing.T) {
	s := begin(t)
	before := s.MustInventory(t)
	if err := s.CutFromConsul(t.Context(), s.h1); err != nil {
		t.Fatal(err)
	}
	_, err := s.h1.Docker(t.Context(), createArgs("app", "10.42.0.0/16")...)
	refused(t, err, "store")
	if err := s.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	healthy(t, s.h1)
	s.unchanged(t, before)
	// And then it can.
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	start(t, s.h1, "app", "client").reaches(t, start(t, s.h3, "app", "server"))
}

// startAgentBadly runs an agent in the foreground on a host and returns how it
// ended; one that starts is ended.
func startAgentBadly(t *testing.T, h *lab.Host, extra ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := h.Exec(ctx, h.AgentArgs(extra...)...)
	if ctx.Err() != nil {
		t.Errorf("the agent started: %v", err)
		return nil
	}
	return err
}

// A second agent on a host says that there is one, and harms it not.
func TestSecondAgentOnAHost(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	a := start(t, s.h1, "app", "first")
	before := s.MustInventory(t)
	refused(t, startAgentBadly(t, s.h1), "another")
	s.unchanged(t, before)
	// The first one is still there for its engine.
	start(t, s.h1, "app", "second").reaches(t, a)
	healthy(t, s.h1)
}

// A host whose name or address another host has does not start, and its message
// names both.
func TestHostIdentityConflicts(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	before := s.MustInventory(t)
	if err := s.h2.StopAgent(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		extra []string
		want  []string
	}{
		// The same machine under a name that is taken.
		{"name taken", []string{"--node", "h1"}, []string{"h1", s.h1.Addr().String(), s.h2.Addr().String()}},
		// A new machine (no state) under a name that is taken.
		{"new host, name taken", []string{"--node", "h1", "--state-dir", "/run/new-host"}, []string{"h1", s.h1.Addr().String()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, startAgentBadly(t, s.h2, c.extra...), c.want...)
		})
	}
	t.Run("VTEP address taken", func(t *testing.T) {
		s.h2.MustExec(t, "ip", "addr", "add", s.h1.Addr().String()+"/32", "dev", "lo")
		refused(t, startAgentBadly(t, s.h2, "--advertise", s.h1.Addr().String()), s.h1.Addr().String(), "h1", "h2")
		s.h2.MustExec(t, "ip", "addr", "del", s.h1.Addr().String()+"/32", "dev", "lo")
	})
	if err := s.h2.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	healthy(t, s.h2)
	s.unchanged(t, before)
}
