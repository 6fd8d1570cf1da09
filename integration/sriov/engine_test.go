package sriov_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/datapath/underlay/undertest"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/vmtest"
)

// They tell the guest which programs were made for it.
const (
	envAgent  = "CARRICK_SRIOV_AGENT"
	envEngine = "CARRICK_SRIOV_ENGINE" // its command line
)

// A real engine and a real agent on a card with two virtual functions: the engine that
// Debian 12 has, and a current one, which take devices in and out in other moments.
func TestEngineOfDebian(t *testing.T) {
	engine(t, func() string { return "dockerd" })
}

func TestCurrentEngine(t *testing.T) {
	engine(t, func() string {
		out, err := exec.CommandContext(t.Context(), "../../tools/install.sh", "dockerd", "runc").Output()
		paths := strings.Fields(string(out))
		if err != nil || len(paths) != 3 {
			t.Fatalf("tools/install.sh dockerd runc: %v: %q", err, out)
		}
		return fmt.Sprintf("%s --userland-proxy-path %s --add-runtime tools-runc=%s --default-runtime tools-runc", paths[0], paths[1], paths[2])
	})
}

func engine(t *testing.T, command func() string) {
	t.Helper()
	nstest.RequireRoot(t)
	if os.Getenv(envAgent) == "" {
		agent := filepath.Join(t.TempDir(), "carrick")
		build := exec.CommandContext(t.Context(), "go", "build", "-o", agent, "../../cmd/carrick")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Setenv(envAgent, agent)
		t.Setenv(envEngine, command())
	}
	vmtest.Run(t, vmtest.Needs{Cards: 2, Memory: 2048}, func(t *testing.T) {
		w := newWorld(t)
		w.run("ip addr add 192.0.2.1/24 dev pf0")
		m := &machine{world: w}
		m.startAgent()
		m.startEngine()
		m.image()
		m.networks()
		before := w.state()
		m.containers()
		m.must("docker", "network", "rm", "lan")
		if !m.soon(func() bool { return w.state() == before }) {
			t.Errorf("the host has\n%s\nhad\n%s", w.state(), before)
		}
	})
}

// machine is a guest with an engine and an agent.
type machine struct {
	*world
	agent, engine *exec.Cmd
}

// try runs a program of the guest's and returns what it says.
func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 4*slow)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) must(args ...string) string {
	m.t.Helper()
	began := time.Now()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	m.t.Logf("%s %q", time.Since(began).Round(time.Millisecond), args)
	return out
}

// daemon starts a program that runs until the test ends; if that failed, the end of what
// the program said is logged.
func (m *machine) daemon(args ...string) *exec.Cmd {
	m.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if m.t.Failed() {
			m.t.Logf("%s said:\n%s", args[0], log.String()[max(0, log.Len()-20000):])
		}
	})
	return cmd
}

func (m *machine) startAgent() {
	m.t.Helper()
	m.agent = m.daemon(os.Getenv(envAgent), "agent", "--node", "h1", "--advertise", "192.0.2.1", "--state-dir", "/run/carrick-state", "--log-level", "debug")
	m.eventually("the agent answers", func() bool {
		_, err := m.try(os.Getenv(envAgent), "version")
		return err == nil && exists("/run/docker/plugins/carrick.sock")
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (m *machine) startEngine() {
	m.t.Helper()
	began := time.Now()
	m.engine = m.daemon(append(strings.Fields(os.Getenv(envEngine)), "--data-root", "/run/docker-data", "--storage-driver", "overlay2", "--bridge", "none", "--iptables=false", "--log-level", "warn")...)
	for range 6 { // of what an emulated machine needs, minutes at worst
		if m.soon(func() bool { _, err := m.try("docker", "version"); return err == nil }) {
			m.t.Logf("the engine answers after %s", time.Since(began).Round(time.Millisecond))
			return
		}
	}
	m.t.Fatal("the engine does not answer")
}

// soon waits for something, and says whether it came.
func (m *machine) soon(ok func() bool) bool {
	limit, again := time.After(slow), time.NewTicker(200*time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-limit:
			return false
		}
	}
	return true
}

// image is busybox and nothing else.
func (m *machine) image() {
	m.t.Helper()
	m.must("sh", "-c", "mkdir -p /run/box/bin /run/box/etc && cp /bin/busybox /run/box/bin && for a in sh ping sleep ip; do ln -s busybox /run/box/bin/$a; done && tar -C /run/box -c . | docker import - box")
}

func (m *machine) create(parent string) (string, error) {
	return m.try("docker", "network", "create", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", "10.42.0.0/16", "--gateway", "10.42.0.1", "-o", "mode=sriov", "-o", "parent="+parent, "lan")
}

// networks is refused without functions, in words on the user's terminal.
func (m *machine) networks() {
	m.t.Helper()
	for parent, want := range map[string]string{"pf0": "echo 7 >/sys/class/net/pf0/device/sriov_numvfs", "pf0.50": "ip link set pf0 vf N vlan 50"} {
		if out, err := m.create(parent); err == nil || !strings.Contains(out, want) {
			m.t.Errorf("a network on %s: %v, %s", parent, err, out)
		}
	}
	m.functions(2)
	if out, err := m.create("pf0"); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
}

func (m *machine) container(name string) {
	m.t.Helper()
	m.must("docker", "run", "-d", "--name", name, "--network", "lan", "box", "sleep", "1000000")
}

// pings has a container reach others, of which some are known by name.
func (m *machine) pings(from string, to ...string) {
	m.t.Helper()
	for _, x := range to {
		if !m.soon(func() bool { _, err := m.try("docker", "exec", from, "ping", "-c1", "-W2", x); return err == nil }) {
			out, _ := m.try("docker", "exec", from, "ip", "addr")
			m.t.Errorf("%s does not reach %s; it has\n%s", from, x, out)
		}
	}
}

// containers start, end and are ended, while an agent comes and goes.
func (m *machine) containers() {
	m.t.Helper()
	m.container("ann")
	m.container("bob")
	far := undertest.Addr(200).String()
	m.pings("ann", "bob", far)
	m.pings("bob", "ann", far)
	out, err := m.try("docker", "run", "--rm", "--network", "lan", "box", "sleep", "1")
	if err == nil || !strings.Contains(out, "no virtual function is free") || !strings.Contains(out, "virtfn1: endpoint") {
		m.t.Errorf("a third container: %v, %s", err, out)
	}
	// An agent that was killed, while a container ends.
	if err := m.agent.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	m.startAgent()
	m.pings("ann", "bob")
	m.must("docker", "restart", "-t", "0", "ann")
	m.pings("ann", "bob", far)
	// An engine that is killed, and its containers with it when it is back.
	if err := m.engine.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	_ = m.engine.Wait()
	m.startEngine()
	m.must("docker", "start", "ann", "bob")
	m.pings("ann", "bob", far)
	// A container that is killed, and one whose device dies with its namespace.
	m.must("docker", "rm", "-f", "ann")
	m.container("cyd")
	m.pings("cyd", "bob", far)
	m.must("sh", "-c", "kill -9 $(docker inspect -f '{{.State.Pid}}' bob)")
	m.eventually("bob has ended", func() bool { out, _ := m.try("docker", "ps", "-q"); return strings.Count(out, "\n") == 0 })
	m.container("dan")
	m.pings("dan", "cyd", far)
	if out, err := m.try(os.Getenv(envAgent), "doctor", "--audit"); err != nil {
		m.t.Errorf("doctor: %v\n%s", err, out)
	}
	m.must("docker", "rm", "-f", "bob", "cyd", "dan")
}
