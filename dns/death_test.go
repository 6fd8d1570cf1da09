package dns

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// envAgent makes this test binary an agent that answers in the sandbox it names.
const envAgent = "CARRICK_TEST_DNS_SANDBOX"

// TestAgentProcess is that agent. It says when questions are answered, and ends when
// its standard input does.
func TestAgentProcess(t *testing.T) {
	key := os.Getenv(envAgent)
	if key == "" {
		t.Skip("it is a part of other tests")
	}
	s := New(Config{Host: "me"})
	s.SetView(testView())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ensure(t, s, key, "n1")
	if _, err := os.Stdout.WriteString("\nready\n"); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// startAgent starts one and waits until it answers. It is gone when the test ends.
func startAgent(t *testing.T, key string) *os.Process {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestAgentProcess$", "-test.v")
	cmd.Env = append(os.Environ(), envAgent+"="+key)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "ready" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return cmd.Process
		}
	}
	t.Fatal("the agent did not start")
	return nil
}

// The agent is killed, or hangs: whoever asks, by a socket that asked before or by a
// fresh one, is answered by Docker's resolver when the switch has given way, and by the
// next agent again.
func TestAgentDies(t *testing.T) {
	t.Parallel()
	for _, backend := range backends() {
		for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "hung": syscall.SIGSTOP} {
			t.Run(name+" with "+backend, func(t *testing.T) {
				t.Parallel()
				all := newSandboxes(t)
				ns := all.create("c")
				newDocker(t, ns, backend)
				p := startAgent(t, all.key("c"))
				kept := newClient(t, ns, "udp")
				ask := func(who string, want string) {
					t.Helper()
					if got := kept.says(t, "web", dns.TypeA); got != want {
						t.Errorf("%s: kept socket: %s, want %s", who, got, want)
					}
					for _, network := range []string{"udp", "tcp"} {
						if got := askOnce(t, ns, network, "web", dns.TypeA); got != want {
							t.Errorf("%s: fresh %s: %s, want %s", who, network, got, want)
						}
					}
				}
				ask("agent", "10.9.0.1")
				died := time.Now()
				if err := p.Signal(signal); err != nil {
					t.Fatal(err)
				}
				// Both ask all the time, as conntrack likes it least.
				for _, c := range []func() (*client, func()){
					func() (*client, func()) { return kept, func() {} },
					func() (*client, func()) {
						c := newClient(t, ns, "udp")
						return c, func() { c.conn.Close() }
					},
				} {
					eventually(t, "Docker's resolver answers", func() bool {
						c, done := c()
						defer done()
						a, err := c.ask(asking("web", dns.TypeA), 100*time.Millisecond)
						return err == nil && say(a) == "NXDOMAIN"
					})
				}
				t.Logf("%s: Docker's resolver answers %v after", name, time.Since(died))
				ask("nobody", "NXDOMAIN")
				// Its table is still there; the next one takes it over.
				if got := nstest.Run(t, ns, "nft list tables"); !strings.Contains(got, "carrickdns") {
					t.Errorf("tables: %s", got)
				}
				startAgent(t, all.key("c"))
				ask("next agent", "10.9.0.1")
				if got := nstest.Run(t, ns, "nft list ruleset"); strings.Count(got, "table ip carrickdns") != 1 || strings.Count(got, "notrack") != 4 {
					t.Errorf("adopted: %s", got)
				}
			})
		}
	}
}

// Nothing is left of many sandboxes that came and went: no goroutine, no socket, no
// namespace. It does not run beside others, since it counts.
func TestNothingIsLeft(t *testing.T) {
	all := newSandboxes(t)
	keep := all.create("keep")
	newDocker(t, keep, "nft")
	s, stop := agent(t)
	ensure(t, s, all.key("keep"), "n1")
	if got := askOnce(t, keep, "tcp", "web", dns.TypeA); got != "10.9.0.1" {
		t.Fatal(got)
	}
	goroutines := func() int { return runtime.NumGoroutine() }
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	var g0, f0 int
	eventually(t, "all is quiet", func() bool {
		g, f := goroutines(), files()
		quiet := g == g0 && f == f0
		g0, f0 = g, f
		return quiet
	})
	for round := range 3 {
		var list []Sandbox
		var spaces []netns.Namespace
		var middle []*client
		for _, name := range []string{"a", "b", "c", "d"} {
			ns, err := all.dirs.Create(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			nstest.Run(t, ns, "ip link set lo up")
			// When the namespace ends, so does the pair.
			nstest.Run(t, keep, "ip link add v"+name+" type veth peer name eth0 netns "+all.key(name))
			spaces = append(spaces, ns)
			list = append(list, Sandbox{all.key(name), []carrick.NetworkID{"n1"}})
		}
		list = append(list, Sandbox{all.key("keep"), []carrick.NetworkID{"n1"}})
		if err := s.Apply(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		for _, ns := range spaces {
			for _, network := range []string{"udp", "tcp"} {
				if got := askOnce(t, ns, network, "web", dns.TypeA); got != "10.9.0.1" {
					t.Errorf("round %d: %s", round, got)
				}
				// There is no Docker here.
				if got := askOnce(t, ns, network, "elsewhere", dns.TypeA); got != "SERVFAIL" {
					t.Errorf("round %d: %s", round, got)
				}
			}
			// Some are in the middle of something.
			c := newClient(t, ns, "tcp")
			if got := c.says(t, "web", dns.TypeA); got != "10.9.0.1" {
				t.Errorf("round %d: %s", round, got)
			}
			middle = append(middle, c)
			if err := ns.Close(); err != nil {
				t.Fatal(err)
			}
		}
		// Two go without a word, two because nobody lists them any more.
		for _, name := range []string{"a", "b"} {
			if err := all.dirs.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "they are noticed", func() bool {
			return health(t, s, all.key("a")).State == Waiting && health(t, s, all.key("b")).State == Waiting
		})
		if err := s.Apply(t.Context(), list[4:]); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"c", "d"} {
			if err := all.dirs.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range middle {
			c.conn.Close()
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			eventually(t, "namespace "+name+" is gone", func() bool { return !nstest.Links(t, keep)["v"+name] })
		}
	}
	g1, f1 := 0, 0
	for end := time.Now().Add(longest); time.Now().Before(end); runtime.Gosched() {
		if g1, f1 = goroutines(), files(); g1 <= g0 && f1 <= f0 {
			break
		}
	}
	if g1 > g0 || f1 > f0 {
		buf := make([]byte, 1<<20)
		t.Errorf("left: %d goroutines, there were %d; %d open files, there were %d\n%s", g1, g0, f1, f0, buf[:runtime.Stack(buf, true)])
	}
	stop()
	if got := nstest.Run(t, keep, "nft list tables"); strings.Contains(got, "carrick") {
		t.Errorf("left: %s", got)
	}
}
