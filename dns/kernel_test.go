package dns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
)

// A container asks for names of its network, of its engine and of the world, with every
// kind of rules of the engine's.
func TestContainerAsks(t *testing.T) {
	t.Parallel()
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			all := newSandboxes(t)
			ns := all.create("c")
			d := newDocker(t, ns, backend)
			s, _ := agent(t)
			ensure(t, s, all.key("c"), "n1")
			for _, network := range []string{"udp", "tcp"} {
				kept := newClient(t, ns, network)
				for _, x := range []struct {
					name  string
					qtype uint16
					want  string
				}{
					{"web", dns.TypeA, "10.9.0.1"},
					{"DB.app", dns.TypeAAAA, "fd09::2"},
					{"sick", dns.TypeA, "NODATA"},
					{"web", dns.TypeMX, "NODATA"},
					{"1.0.9.10.in-addr.arpa", dns.TypePTR, "web.app."},
					{"name.docker", dns.TypeTXT, "docker"},
					{"nobody", dns.TypeA, "NXDOMAIN"},
					{"there", dns.TypeA, "NXDOMAIN"}, // of a network it is not in
					{"there.other", dns.TypeA, "NXDOMAIN"},
				} {
					if got := kept.says(t, x.name, x.qtype); got != x.want {
						t.Errorf("%s over %s by a kept socket: %s, want %s", x.name, network, got, x.want)
					}
					if got := askOnce(t, ns, network, x.name, x.qtype); got != x.want {
						t.Errorf("%s over %s: %s, want %s", x.name, network, got, x.want)
					}
				}
			}
			if u, c := d.asked.Load(), d.askedTCP.Load(); u != 8 || c != 8 {
				t.Errorf("Docker's resolver was asked %d times over UDP and %d over TCP, want 8 and 8", u, c)
			}
			// What is too large for UDP says so, and is had over TCP.
			for _, x := range []struct {
				name  string
				qtype uint16
				many  int
			}{{"many", dns.TypeA, maxAnswers}, {"large.docker", dns.TypeTXT, 100}} {
				c := newClient(t, ns, "udp")
				if a, err := c.ask(asking(x.name, x.qtype), longest); err != nil || !a.Truncated || len(a.Answer) >= x.many {
					t.Errorf("%s over UDP: %v", x.name, err)
				}
				c = newClient(t, ns, "tcp")
				if a, err := c.ask(asking(x.name, x.qtype), longest); err != nil || a.Truncated || len(a.Answer) != x.many {
					t.Errorf("%s over TCP: %v", x.name, err)
				}
			}
			if err := s.Check(t.Context(), all.key("c")); err != nil {
				t.Error(err)
			}
			h := health(t, s, all.key("c"))
			if h.State != Attached || h.Err != nil || h.Answered == 0 || h.Forwarded == 0 || h.Failed != 0 {
				t.Errorf("%+v", h)
			}
			// It joins the other network as well, and leaves the first.
			ensure(t, s, all.key("c"), "n1", "n2")
			if got := askOnce(t, ns, "udp", "there.other", dns.TypeA); got != "10.9.0.1" {
				t.Errorf("in both: %s", got)
			}
			if err := s.Apply(t.Context(), []Sandbox{{all.key("c"), []carrick.NetworkID{"n2"}}}); err != nil {
				t.Fatal(err)
			}
			if got := askOnce(t, ns, "udp", "web", dns.TypeA); got != "NXDOMAIN" {
				t.Errorf("after it left: %s", got)
			}
			s.SetLost(map[carrick.HostID]bool{"far": true})
			if got := askOnce(t, ns, "udp", "there", dns.TypeA); got != "NODATA" {
				t.Errorf("of a lost host: %s", got)
			}
			s.SetLost(nil)
			if got := askOnce(t, ns, "udp", "there", dns.TypeA); got != "10.9.0.1" {
				t.Errorf("of a host that is back: %s", got)
			}
			s.Forget("n2")
			if got := askOnce(t, ns, "udp", "there", dns.TypeA); got != "NXDOMAIN" {
				t.Errorf("forgotten: %s", got)
			}
			// It is taken away: nothing of it is left, and Docker's resolver answers.
			if err := s.Apply(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if got := nstest.Run(t, ns, "nft list tables"); strings.Contains(got, "carrick") {
				t.Errorf("left: %s", got)
			}
			if got := askOnce(t, ns, "tcp", "web", dns.TypeA) + askOnce(t, ns, "udp", "web", dns.TypeA); got != "NXDOMAINNXDOMAIN" {
				t.Errorf("afterwards: %s", got)
			}
		})
	}
}

// Docker's resolver is gone, or does not answer: a question is answered all the same,
// and the next one that can be answered is.
func TestUpstreamIsDead(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	ns := all.create("c")
	d := newDocker(t, ns, "iptables-nft")
	s, _ := agent(t)
	key := all.key("c")
	ensure(t, s, key, "n1")
	d.deaf.Store(true)
	var wg sync.WaitGroup
	for _, network := range []string{"udp", "tcp"} {
		for range 20 {
			c := newClient(t, ns, network)
			wg.Go(func() {
				if a, err := c.ask(asking("name.docker", dns.TypeTXT), longest); err != nil || a.Rcode != dns.RcodeServerFailure {
					t.Errorf("deaf, over %s: %v %v", network, a, err)
				}
			})
		}
	}
	// Meanwhile what is ours is answered.
	for range 10 {
		if got := askOnce(t, ns, "udp", "web", dns.TypeA); got != "10.9.0.1" {
			t.Errorf("meanwhile: %s", got)
		}
	}
	wg.Wait()
	if h := health(t, s, key); h.Failed != 40 {
		t.Errorf("%+v", h)
	}
	d.deaf.Store(false)
	for _, network := range []string{"udp", "tcp"} {
		if got := askOnce(t, ns, network, "name.docker", dns.TypeTXT); got != "docker" {
			t.Errorf("it hears again, over %s: %s", network, got)
		}
	}
	d.die()
	for _, network := range []string{"udp", "tcp"} {
		if got := askOnce(t, ns, network, "name.docker", dns.TypeTXT); got != "SERVFAIL" {
			t.Errorf("gone, over %s: %s", network, got)
		}
	}
	// A daemon that was restarted has other ports and other rules. A flow that conntrack
	// remembers must not lead to the old ones.
	nstest.Run(t, ns, "iptables-nft -w -t nat -F")
	nstest.Run(t, ns, "iptables-nft -w -t nat -X")
	newDocker(t, ns, "iptables-nft")
	for _, network := range []string{"udp", "tcp"} {
		if got := askOnce(t, ns, network, "name.docker", dns.TypeTXT); got != "docker" {
			t.Errorf("restarted, over %s: %s", network, got)
		}
	}
	// All sockets but the last are closed again.
	b := s.sandboxes[key]
	b.srv.up.mu.Lock()
	defer b.srv.up.mu.Unlock()
	if n := len(b.srv.up.flows); n > 1 || b.srv.up.slots != 0 {
		t.Errorf("%d flows, %d questions under way", n, b.srv.up.slots)
	}
}

// More questions wait than may: the rest is answered at once.
func TestUpstreamIsFull(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	ns := all.create("c")
	d := newDocker(t, ns, "nft")
	s, _ := agent(t)
	ensure(t, s, all.key("c"), "n1")
	d.deaf.Store(true)
	c := newClient(t, ns, "udp")
	const more = 100
	for i := range maxForwarded + more {
		if err := c.conn.WriteMsg(asking("name.docker", dns.TypeTXT)); err != nil {
			t.Fatal(err)
		}
		// Else they would be lost in a socket's buffer.
		eventually(t, "it is forwarded", func() bool { return health(t, s, all.key("c")).Forwarded > uint64(i) })
	}
	for range more { // those that were too many
		_ = c.conn.SetReadDeadline(time.Now().Add(longest))
		if a, err := c.conn.ReadMsg(); err != nil || a.Rcode != dns.RcodeServerFailure {
			t.Fatalf("%v %v", a, err)
		}
	}
	eventually(t, "all are answered", func() bool { return health(t, s, all.key("c")).Failed == maxForwarded+more })
}

// The namespace comes up as on engines before 28: no file at Join, then an empty one,
// then the mount. Nobody has to call again.
func TestNamespaceComesLater(t *testing.T) {
	t.Parallel()
	for _, missing := range []bool{false, true} {
		t.Run(fmt.Sprintf("directory missing %v", missing), func(t *testing.T) {
			t.Parallel()
			all := newSandboxes(t)
			source := all.create("source") // runc's, which Docker mounts
			newDocker(t, source, "iptables-nft")
			s, _ := agent(t)
			// Docker's directory is another one, which may have to be made yet.
			dir := nstest.Dir(t)
			s.cfg.Root = func(key string) string {
				return dir + "/docker/netns" + strings.TrimPrefix(key, "/var/run/docker/netns")
			}
			path := dir + "/docker/netns"
			if !missing {
				if err := os.MkdirAll(path, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			const key = "/var/run/docker/netns/late"
			err := s.Ensure(t.Context(), Sandbox{key, []carrick.NetworkID{"n1"}})
			if !errors.Is(err, ErrNoNamespace) {
				t.Fatalf("Ensure without a namespace: %v", err)
			}
			if err := s.Check(t.Context(), key); !errors.Is(err, ErrNoNamespace) {
				t.Errorf("Check without a namespace: %v", err)
			}
			if h := health(t, s, key); h.State != Waiting || h.Err != nil {
				t.Errorf("%+v", h)
			}
			if err := s.Apply(t.Context(), []Sandbox{{key, []carrick.NetworkID{"n1"}}}); err != nil {
				t.Errorf("Apply without a namespace: %v", err)
			}
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+"/late", nil, 0o444); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount(all.key("source"), path+"/late", "none", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(path+"/late", unix.MNT_DETACH) })
			mounted := time.Now()
			eventually(t, "it is attached", func() bool { return health(t, s, key).State == Attached })
			t.Logf("attached %v after the mount", health(t, s, key).Since.Sub(mounted))
			if got := askOnce(t, source, "udp", "web", dns.TypeA); got != "10.9.0.1" {
				t.Errorf("%s", got)
			}
			// And goes as Docker makes it go: unmounted, the file left behind.
			if err := unix.Unmount(path+"/late", unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is noticed", func() bool { return health(t, s, key).State == Waiting })
			if got := nstest.Run(t, source, "nft list tables"); strings.Contains(got, "carrick") {
				t.Errorf("left: %s", got)
			}
			// Another namespace of that name is another one.
			if err := unix.Mount(all.key("source"), path+"/late", "none", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is attached again", func() bool { return health(t, s, key).State == Attached })
		})
	}
}

// Somebody in the container, who may, damages the table.
func TestDamageIsHealed(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	ns := all.create("c")
	newDocker(t, ns, "iptables-legacy")
	s, _ := agent(t)
	ensure(t, s, all.key("c"), "n1")
	whole := nstest.Run(t, ns, "nft -s list table ip carrickdns")
	for _, hand := range []string{
		"nft flush ruleset",
		"nft flush chain ip carrickdns out",
		"nft insert rule ip carrickdns out udp dport 53 drop",
		"nft flush set ip carrickdns alive",
		"nft add chain ip carrickdns out { policy drop ; }",
	} {
		nstest.Run(t, ns, hand)
		eventually(t, "healed after "+hand, func() bool {
			now, _ := nstest.Try(ns, "nft -s list table ip carrickdns")
			return now == whole
		})
		if err := s.Check(t.Context(), all.key("c")); err != nil {
			t.Errorf("after %s: %v", hand, err)
		}
	}
	// Rules of the container's own stay, and so does ours beside them.
	nstest.Run(t, ns, "nft add table inet theirs")
	before := health(t, s, all.key("c")).Refreshed
	eventually(t, "refreshed twice", func() bool { return health(t, s, all.key("c")).Refreshed.Sub(before) > 2*refreshEvery })
	if got := nstest.Run(t, ns, "nft list tables"); !strings.Contains(got, "inet theirs") || !strings.Contains(got, "carrickdns") {
		t.Errorf("tables: %s", got)
	}
	// Sockets that do not work any more are opened anew.
	b := s.sandboxes[all.key("c")]
	b.op.Lock()
	old := b.srv
	_ = old.udp.Close()
	b.op.Unlock()
	eventually(t, "answered by new sockets", func() bool { return s.Check(t.Context(), all.key("c")) == nil })
}

// The host's own namespace is nobody's sandbox.
func TestNotTheHostsOwn(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	host, err := all.dirs.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	all.create("x") // prepares the directory
	if err := all.dirs.Pin(t.Context(), host, "default"); err != nil {
		t.Fatal(err)
	}
	s, _ := agent(t)
	if err := s.Ensure(t.Context(), Sandbox{Key: all.key("default")}); err == nil || errors.Is(err, ErrNoNamespace) {
		t.Errorf("%v", err)
	}
	if h := health(t, s, all.key("default")); h.State != Failed || h.Err == nil {
		t.Errorf("%+v", h)
	}
	if err := s.Check(t.Context(), "nowhere"); !errors.Is(err, ErrUnknownSandbox) {
		t.Errorf("%v", err)
	}
}

// When the service ends, Docker's resolver answers at once.
func TestServiceEnds(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	ns := all.create("c")
	newDocker(t, ns, "nft")
	s, stop := agent(t)
	ensure(t, s, all.key("c"), "n1")
	c := newClient(t, ns, "udp")
	if got := c.says(t, "web", dns.TypeA); got != "10.9.0.1" {
		t.Fatal(got)
	}
	stop()
	if got := c.says(t, "web", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("kept socket: %s", got)
	}
	if got := askOnce(t, ns, "tcp", "web", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("fresh socket: %s", got)
	}
	if got := nstest.Run(t, ns, "nft list tables"); strings.Contains(got, "carrick") {
		t.Errorf("left: %s", got)
	}
	if err := s.Ensure(t.Context(), Sandbox{Key: all.key("c")}); !errors.Is(err, ErrStopped) {
		t.Errorf("%v", err)
	}
}

// On engines from 28 on Join may come before the namespace's loopback device is up.
func TestLoopbackComesUpLater(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	ns, err := all.dirs.Create(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s, _ := agent(t)
	ensure(t, s, all.key("c"), "n1")
	nstest.Run(t, ns, "ip link set lo up")
	for _, network := range []string{"udp", "tcp"} {
		if got := askOnce(t, ns, network, "web", dns.TypeA); got != "10.9.0.1" {
			t.Errorf("over %s: %s", network, got)
		}
	}
}

// What Ensure attached is not taken away by who collected his list before.
func TestApplyWithAnOldList(t *testing.T) {
	t.Parallel()
	all := newSandboxes(t)
	ns := all.create("c")
	newDocker(t, ns, "nft")
	s, _ := agent(t)
	key := all.key("c")
	ensure(t, s, key, "n1")
	if err := s.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := askOnce(t, ns, "udp", "web", dns.TypeA); got != "10.9.0.1" {
		t.Errorf("after an old list: %s", got)
	}
	// Once it was listed, a list without it means it.
	for _, list := range [][]Sandbox{{{key, []carrick.NetworkID{"n1"}}}, nil} {
		if err := s.Apply(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	if got := askOnce(t, ns, "udp", "web", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("after it left: %s", got)
	}
	// It comes and goes from all sides, and comes out as the last one said.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				if err := s.Ensure(t.Context(), Sandbox{key, []carrick.NetworkID{"n1"}}); err != nil && !errors.Is(err, ErrStopped) {
					t.Error(err)
				}
				if err := s.Apply(t.Context(), []Sandbox{{key, []carrick.NetworkID{"n1"}}}); err != nil {
					t.Error(err)
				}
				if err := s.Apply(t.Context(), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	ensure(t, s, key, "n1")
	if err := s.Check(t.Context(), key); err != nil {
		t.Error(err)
	}
}
