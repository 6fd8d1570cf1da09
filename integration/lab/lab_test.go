package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A generous limit for waits that should be short.
const soon = 30 * time.Second

// The whole lab with plain Docker and no Carrick: whatever fails here is not
// Carrick's fault. The steps build on each other, as on one afternoon at one
// rack.
func TestThreeHostsWithPlainDocker(t *testing.T) {
	t.Parallel()
	l := New(t, Options{})
	ctx := t.Context()
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)

	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, f) {
			t.FailNow()
		}
	}

	step("each host is a machine of its own with the engine it should have", func(t *testing.T) {
		ids := map[string]bool{}
		for _, h := range l.Hosts() {
			version := h.MustDocker(t, "version", "--format", "{{.Server.Version}}")
			if old := strings.HasPrefix(version, "20.10."); old != (h.Engine() == Debian20) {
				t.Errorf("%s runs engine %s, want %s", h.Name(), version, h.Engine())
			}
			if got := strings.TrimSpace(h.MustExec(t, "hostname")); got != h.Name() {
				t.Errorf("%s calls itself %q", h.Name(), got)
			}
			ids[h.MustExec(t, "cat", "/etc/machine-id")] = true
			if got := strings.TrimSpace(h.MustExec(t, "cat", "/proc/1/comm")); got != "labinit" {
				t.Errorf("pid 1 of %s is %q", h.Name(), got)
			}
		}
		if len(ids) != 3 {
			t.Errorf("%d different machine ids on three hosts", len(ids))
		}
	})

	step("the test image has one id everywhere", func(t *testing.T) {
		ids := map[string]bool{}
		for _, h := range l.Hosts() {
			ids[h.MustDocker(t, "image", "inspect", "--format", "{{.Id}}", Image)] = true
		}
		if len(ids) != 1 {
			t.Errorf("image ids: %v", ids)
		}
	})

	step("a container on each default bridge gets out, and -p gets in from another host", func(t *testing.T) {
		for i, h := range l.Hosts() {
			h.MustDocker(t, "run", "-d", "--name", "web", "-p", "8080:80", Image)
			if from := h.MustInContainer(t, "web", "wget", "-qO-", l.OutsideURL()); strings.TrimSpace(from) != h.Addr().String() {
				t.Errorf("outside saw %s's container as %q, want the host's address %s", h.Name(), from, h.Addr())
			}
			other := l.Hosts()[(i+1)%3]
			Eventually(t, soon, h.Name()+"'s published port", func() error {
				_, err := other.Exec(t.Context(), l.bin("probe"), "get", "http://"+h.Addr().String()+":8080/")
				return err
			})
		}
	})

	step("the probe measures a path", func(t *testing.T) {
		ip := h1.MustDocker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
		peer := []string{"run", "--rm", Image, "probe"}
		h1.MustDocker(t, append(peer, "send", "-mb", "20", ip)...)
		for size, want := range map[string]string{"1500": "reply", "1501": "EMSGSIZE"} {
			if got := h1.MustDocker(t, append(peer, "dfping", "-size", size, ip)...); got != want {
				t.Errorf("a packet of %s bytes over a link of 1500: %s, want %s", size, got, want)
			}
		}
		for _, proto := range []string{"-tcp=true", "-tcp=false"} {
			out := h1.MustDocker(t, append(peer, "flow", proto, "-count", "50", "-every", "1ms", ip)...)
			if !strings.Contains(out, `"sent":50,"received":50,"duplicates":0,"lost":0`) {
				t.Errorf("a flow with nothing in its way: %s", out)
			}
		}
	})

	reach := func(from *Host, to *Host) error {
		_, err := from.Exec(ctx, busybox, "ping", "-c1", "-W1", to.Addr().String())
		return err
	}
	asks := func(h *Host) error {
		_, err := h.Exec(ctx, l.bin("probe"), "get", "-wait", "1s", "http://"+l.Consul(1).Addr().String()+":8500/v1/status/leader")
		return err
	}
	// want compares who reaches whom with what a fault should leave.
	want := func(t *testing.T, what string, err error, up bool) {
		t.Helper()
		if (err == nil) != up {
			t.Errorf("%s: reachable = %v, want %v (%v)", what, err == nil, up, err)
		}
	}

	step("partitions cut what they say and nothing else", func(t *testing.T) {
		for _, f := range []struct {
			name                   string
			make                   func() error
			h12, h21, h13, h1store bool
		}{
			{"no fault", func() error { return nil }, true, true, true, true},
			{"split h1 h2", func() error { return l.Split(ctx, h1, h2) }, false, false, true, true},
			{"oneway h1 to h2", func() error { return l.Oneway(ctx, h1, h2) }, false, false, true, true}, // an echo needs both ways
			{"h1 off Consul", func() error { return l.CutFromConsul(ctx, h1) }, true, true, true, false},
			{"h1 off the hosts", func() error { return l.CutFromHosts(ctx, h1) }, false, false, false, true},
			{"h1's cable", func() error { return l.Cut(ctx, h1) }, false, false, false, false},
			{"all frames lost", func() error { return l.Loss(ctx, h1, 100) }, false, false, false, false},
			{"slow", func() error { return l.Rate(ctx, h1, "10mbit") }, true, true, true, true},
			{"VXLAN dropped", func() error { return l.DropUDP(ctx, h1, 4789) }, true, true, true, true},
		} {
			if err := f.make(); err != nil {
				t.Fatalf("%s: %v", f.name, err)
			}
			var checks sync.WaitGroup
			check := func(what string, reach func() error, up bool) {
				checks.Go(func() { want(t, f.name+": "+what, reach(), up) })
			}
			check("h1 to h2", func() error { return reach(h1, h2) }, f.h12)
			check("h2 to h1", func() error { return reach(h2, h1) }, f.h21)
			check("h1 to h3", func() error { return reach(h1, h3) }, f.h13)
			check("h1 to Consul", func() error { return asks(h1) }, f.h1store)
			check("h2 to h3", func() error { return reach(h2, h3) }, true)
			checks.Wait()
			if err := l.Clear(ctx); err != nil {
				t.Fatal(err)
			}
			// A fault leaves failed neighbour entries, of each pair its own, for a while.
			Eventually(t, soon, "h1 after the fault", func() error {
				return errors.Join(reach(h1, h2), reach(h2, h1), reach(h1, h3), asks(h1))
			})
		}
	})

	step("UDP to one port is dropped, to another not", func(t *testing.T) {
		if err := l.DropUDP(ctx, h1, 7001); err != nil {
			t.Fatal(err)
		}
		h2.MustDocker(t, "run", "-d", "--name", "echo", "--network", "host", "--entrypoint", "/bin/probe", Image, "serve")
		ask := func(h *Host) string {
			return strings.TrimSpace(h.MustExec(t, l.bin("probe"), "dfping", "-wait", "300ms", "-size", "100", h2.Addr().String()))
		}
		Eventually(t, soon, "the echo server on h2", func() error {
			if got := ask(h3); got != "reply" {
				return fmt.Errorf("h3 got %s", got)
			}
			return nil
		})
		if got := ask(h1); got != "timeout" {
			t.Errorf("h1's packets to the dropped port: %s, want timeout", got)
		}
		if err := asks(h1); err != nil {
			t.Errorf("everything else of h1's should pass: %v", err)
		}
		if err := l.Clear(ctx); err != nil {
			t.Fatal(err)
		}
		if got := ask(h1); got != "reply" {
			t.Errorf("after the fault: %s", got)
		}
		h2.MustDocker(t, "rm", "-f", "echo")
	})

	step("a power cut and a boot keep the disk and bring restart=always back", func(t *testing.T) {
		for _, h := range []*Host{h2, h3} {
			h.MustDocker(t, "run", "-d", "--restart", "always", "--name", "back", Image)
			id := h.MustExec(t, "cat", "/etc/machine-id")
			if err := h.PowerCut(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Exec(ctx, "true"); !errors.Is(err, errOff) {
				t.Errorf("a command on a host without power: %v", err)
			}
			if err := h.Boot(ctx); err != nil {
				t.Fatal(err)
			}
			if again := h.MustExec(t, "cat", "/etc/machine-id"); again != id {
				t.Errorf("%s is another machine after the boot: %q, was %q", h.Name(), again, id)
			}
			Eventually(t, soon, "the container to be back", func() error {
				out, err := h.InContainer(ctx, "back", "wget", "-qO-", l.OutsideURL())
				if err == nil && strings.TrimSpace(out) != h.Addr().String() {
					err = fmt.Errorf("seen as %q", out)
				}
				return err
			})
			if err := reach(h1, h); err != nil {
				t.Errorf("h1 after %s came back: %v", h.Name(), err)
			}
		}
	})

	step("an engine stops gracefully, dies, and starts", func(t *testing.T) {
		for _, h := range []*Host{h1, h3} {
			if err := h.StopEngine(ctx); err != nil {
				t.Fatal(err)
			}
			h.SetEngineFlags("--live-restore")
			if err := h.StartEngine(ctx); err != nil {
				t.Fatal(err)
			}
			h.MustDocker(t, "start", "web")
			if err := h.KillEngine(ctx); err != nil {
				t.Fatal(err)
			}
			if err := h.StartEngine(ctx); err != nil {
				t.Fatal(err)
			}
			if up := h.MustDocker(t, "inspect", "-f", "{{.State.Running}}", "web"); up != "true" {
				t.Errorf("%s: with --live-restore the container outlives its engine; running = %s", h.Name(), up)
			}
		}
	})

	step("the store keeps what it was told until it is wiped", func(t *testing.T) {
		put := func(key, value string) {
			t.Helper()
			if err := l.StorePut(ctx, key, []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		keys := func() string {
			t.Helper()
			k, err := l.StoreKeys(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(k, " ")
		}
		c := l.Consul(1)
		if got := keys(); got != "" {
			t.Errorf("keys in a new store: %s", got)
		}
		put("carrick/b", "2")
		put("carrick/a", "1")
		backup, err := l.StoreSave(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for name, end := range map[string]func(context.Context) error{"stop": c.Stop, "kill": c.Kill} {
			if err := end(ctx); err != nil {
				t.Fatal(err)
			}
			if err := asks(h1); err == nil {
				t.Errorf("%s: the store answers all the same", name)
			}
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if got := keys(); got != "carrick/a carrick/b" {
				t.Errorf("keys after %s and start: %s", name, got)
			}
		}
		if err := c.Wipe(ctx); err != nil {
			t.Fatal(err)
		}
		if got := keys(); got != "" {
			t.Errorf("keys after a wipe: %s", got)
		}
		if err := l.StoreRestore(ctx, backup); err != nil {
			t.Fatal(err)
		}
		Eventually(t, soon, "the restored keys", func() error {
			if got := keys(); got != "carrick/a carrick/b" {
				return fmt.Errorf("keys: %s", got)
			}
			return nil
		})
	})

	step("an inventory sees what comes and goes", func(t *testing.T) {
		for _, h := range l.Hosts() {
			inv := func() Inventory {
				t.Helper()
				i, err := h.Inventory(ctx)
				if err != nil {
					t.Fatal(err)
				}
				return i
			}
			before := inv()
			h.MustDocker(t, "network", "create", "--subnet", "10.99.0.0/24", "n1")
			h.MustDocker(t, "run", "-d", "--name", "leak", "--network", "n1", "-p", "9999:80", Image)
			h.MustExec(t, "ip", "netns", "add", "carrick-x")
			h.MustExec(t, "ip", "-n", "carrick-x", "link", "add", "br0", "type", "bridge")
			diff := before.Diff(inv())
			for _, want := range []string{
				"+ docker container leak\n", "+ docker network n1 (bridge)\n",
				"+ netns carrick-x\n", "+ [carrick-x] link br0 bridge",
				"+ route unicast 10.99.0.0/24", "+ nft ",
			} {
				if !strings.Contains(diff, want) {
					t.Errorf("%s: the difference lacks %q:\n%s", h.Name(), want, diff)
				}
			}
			h.MustExec(t, "ip", "netns", "del", "carrick-x")
			h.MustDocker(t, "rm", "-f", "leak")
			h.MustDocker(t, "network", "rm", "n1")
			Eventually(t, soon, h.Name()+" to be as before", func() error {
				if diff := before.Diff(inv()); diff != "" {
					return errors.New(diff)
				}
				return nil
			})
		}
	})
}

// Several labs run at once: they have the same addresses and do not meet.
func TestTwoLabsDoNotMeet(t *testing.T) {
	t.Parallel()
	o := Options{Hosts: 1, Consuls: -1, NoEngines: true}
	a, b := New(t, o), New(t, o)
	a.Host(1).MustExec(t, "ip", "link", "set", "eth0", "down")
	if _, err := b.Host(1).Exec(t.Context(), busybox, "ping", "-c1", "-W1", OutsideAddr); err != nil {
		t.Error(err)
	}
	if a.Dir() == b.Dir() {
		t.Error("both labs are in", a.Dir())
	}
}

// Three Consul servers elect a leader, and two of them go on without the third.
func TestThreeConsulServers(t *testing.T) {
	t.Parallel()
	l := New(t, Options{Hosts: 1, Consuls: 3, NoEngines: true})
	ctx := t.Context()
	if err := l.StorePut(ctx, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := l.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	Eventually(t, time.Minute, "two servers of three to take a write", func() error {
		return l.StorePut(ctx, "k2", []byte("v"))
	})
	if err := l.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	Eventually(t, time.Minute, "the server that was away to know", func() error {
		_, err := l.Consul(1).call(ctx, "GET", "/v1/kv/k2?stale", nil)
		return err
	})
}

// deadLabVariable makes the test binary a process that makes a lab and waits to be
// killed.
const deadLabVariable = "CARRICK_LAB_TEST_WAIT_TO_BE_KILLED"

// A process that dies with SIGKILL leaves no process behind, and the next lab
// removes its directory and cgroup.
func TestNothingOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	if why := Unable(); why != "" {
		t.Skip(why)
	}
	if os.Getenv(deadLabVariable) != "" {
		l, err := Start(t.Context(), Options{Hosts: 1, Consuls: -1, BareEngines: true})
		if err != nil {
			t.Fatal(err)
		}
		pid, err := l.Host(1).initPID()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nlab %s %d\n", l.Dir(), pid)
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingOutlivesAKilledProcess$", "-test.v")
	// Labs of other tests would sweep it, too.
	base := t.TempDir()
	cmd.Env = append(os.Environ(), deadLabVariable+"=1", "TMPDIR="+base)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	var pid int
	var said strings.Builder
	for s := bufio.NewScanner(out); s.Scan(); {
		said.WriteString(s.Text() + "\n")
		if n, _ := fmt.Sscanf(s.Text(), "lab %s %d", &dir, &pid); n == 2 {
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if dir == "" {
		t.Fatalf("the process made no lab:\n%s", said.String())
	}
	Eventually(t, soon, "the host's first process to be gone", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && string(b) == "labinit\n" {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the directory should be there to be swept: %v", err)
	}
	if err := sweep(base); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead lab's directory after a sweep: %v", err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(dir)); len(left) > 0 {
		t.Errorf("the dead lab's cgroups: %v", left)
	}
}
