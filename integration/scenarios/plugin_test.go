package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// pluginName is the managed plugin's name; engines want the tag with it.
const pluginName = "carrick/carrick:test"

// install makes the managed plugin in a host's engine, as `make plugin` does, and
// enables it.
func install(ctx context.Context, h *lab.Host, dir string) error {
	steps := [][]string{
		{"plugin", "create", pluginName, dir},
		{"plugin", "set", pluginName, "CARRICK_STORE=" + h.StoreURL(), "CARRICK_ADVERTISE=" + h.Addr().String(), "CARRICK_NODE=" + h.Name()},
		{"plugin", "enable", pluginName},
	}
	for _, args := range steps {
		if _, err := h.Docker(ctx, args...); err != nil {
			return fmt.Errorf("docker %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

// pluginPID is the first process of the plugin on a host, "" if there is none.
func pluginPID(ctx context.Context, h *lab.Host) string {
	out, err := h.Exec(ctx, "pgrep", "-x", "carrick")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// The managed plugin carries a network between hosts; its process may be killed
// and the plugin replaced by another version while traffic flows.
func TestManagedPlugin(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Engines: []lab.Engine{lab.Debian20, lab.Current}})
	ctx := t.Context()
	bin, err := l.CarrickBinary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(l.Dir(), "plugin")
	layout := exec.CommandContext(ctx, filepath.Join("..", "..", "hack", "plugin.sh"), dir)
	layout.Env = append(layout.Environ(), "CARRICK_BIN="+bin, "VERSION=test")
	if out, err := layout.CombinedOutput(); err != nil {
		t.Fatalf("hack/plugin.sh: %v\n%s", err, out)
	}
	if err := onEach(l.Hosts(), func(h *lab.Host) error { return install(ctx, h, dir) }); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		healthy(t, h) // the host's own carrick finds the plugin's agent
	}
	// On one host, in whose engine the driver has the plugin's name; so it has on the
	// other.
	if err := lab.CreateNetwork(ctx, l.Hosts(), "app", "-d", pluginName, "--ipam-driver", pluginName, "--subnet", "10.42.0.0/16"); err != nil {
		t.Fatal(err)
	}
	h1, h2 := l.Host(1), l.Host(2)
	sink, other := start(t, h1, "app", "sink"), start(t, h2, "app", "other")
	sink.reaches(t, other)
	other.reaches(t, sink)
	sink.resolves(t, "other", other.ip)
	other.resolves(t, "sink", sink.ip)
	flows := []traffic{flow(t, h2, "app", "udp", "udp", sink), flow(t, h2, "app", "tcp", "tcp", sink)}

	for _, h := range l.Hosts() {
		before, err := h.Inventory(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pid := pluginPID(ctx, h)
		if _, err := h.Exec(ctx, "kill", "-KILL", pid); err != nil {
			t.Fatalf("kill the plugin's process %q: %v", pid, err)
		}
		lab.Eventually(t, soon, "the engine to start the plugin again", func() error {
			if now := pluginPID(ctx, h); now == "" || now == pid {
				return fmt.Errorf("pid %q, was %q", now, pid)
			}
			return nil
		})
		healthy(t, h)
		if after, err := h.Inventory(ctx); err != nil || before.Diff(after) != "" {
			t.Errorf("the plugin's death changed something on %s (%v):\n%s", h.Name(), err, before.Diff(after))
		}
	}
	for _, h := range l.Hosts() {
		// An upgrade without a registry: the same name, made anew.
		_, derr := h.Docker(ctx, "plugin", "disable", "-f", pluginName)
		_, rerr := h.Docker(ctx, "plugin", "rm", "-f", pluginName)
		if err := errors.Join(derr, rerr, install(ctx, h, dir)); err != nil {
			t.Fatalf("upgrade on %s: %v", h.Name(), err)
		}
		healthy(t, h)
	}
	for _, f := range flows {
		f.intact(t)
	}
	late := start(t, h1, "app", "late")
	late.reaches(t, other)
	other.reaches(t, late)

	for _, h := range l.Hosts() {
		out := h.MustDocker(t, "ps", "-aq")
		h.MustDocker(t, append([]string{"rm", "-f"}, strings.Fields(out)...)...)
	}
	h2.MustDocker(t, "network", "rm", "app")
	lab.Eventually(t, soon, "the network to be gone from the other host as well", func() error {
		out, err := h1.Docker(ctx, "network", "ls", "-q", "--filter", "name=^app$")
		if err == nil && out != "" {
			err = errors.New("h1 has it")
		}
		return err
	})
	lab.Eventually(t, soon, "no network to be left", func() error {
		keys, err := l.StoreKeys(ctx)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if strings.Contains(k, "v1/net/") || strings.Contains(k, "v1/vni/") || strings.Contains(k, "v1/tenant/") {
				return fmt.Errorf("the store has %s", k)
			}
		}
		for _, h := range l.Hosts() {
			if ns, err := h.Namespaces(ctx); err != nil || len(ns) > 0 {
				return fmt.Errorf("%s has namespaces %v (%v)", h.Name(), ns, err)
			}
		}
		return nil
	})
	for _, h := range l.Hosts() {
		h.MustDocker(t, "plugin", "disable", pluginName)
	}
}
