package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// longest is how long anything may take that must happen.
const longest = 30 * time.Second

// sandboxes is a directory like Docker's, with namespaces of containers.
type sandboxes struct {
	t    testing.TB
	dir  string
	dirs *netns.Dir
}

func newSandboxes(t testing.TB) *sandboxes {
	t.Helper()
	nstest.RequireRoot(t)
	dir := nstest.Dir(t)
	return &sandboxes{t: t, dir: dir, dirs: netns.NewDir(netns.Config{Dir: dir})}
}

func (s *sandboxes) key(name string) string { return filepath.Join(s.dir, name) }

// create makes a container's namespace.
func (s *sandboxes) create(name string) netns.Namespace {
	s.t.Helper()
	ns, err := s.dirs.Create(s.t.Context(), name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ns.Close() })
	nstest.Run(s.t, ns, "ip link set lo up")
	return ns
}

// backends are the ways in which engines redirect port 53 to their resolver.
func backends() []string { return []string{"iptables-nft", "iptables-legacy", "nft"} }

// docker stands in for Docker's resolver in a namespace: on random ports of
// 127.0.0.11, with the rules that lead port 53 there. It knows names below "docker".
type docker struct {
	udp, tcp *dns.Server
	asked    atomic.Int64 // how often, over UDP
	askedTCP atomic.Int64
	deaf     atomic.Bool // it takes questions and does not answer
}

func newDocker(t testing.TB, ns netns.Namespace, backend string) *docker {
	t.Helper()
	d := d0(t, ns)
	uport, tport := d.ports()
	if backend == "nft" {
		for _, line := range []string{
			"nft add table ip docker-dns",
			"nft add chain ip docker-dns out { type nat hook output priority -100 ; }",
			"nft add chain ip docker-dns post { type nat hook postrouting priority 100 ; }",
			fmt.Sprintf("nft add rule ip docker-dns out ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:%d", uport),
			fmt.Sprintf("nft add rule ip docker-dns out ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:%d", tport),
			fmt.Sprintf("nft add rule ip docker-dns post ip saddr 127.0.0.11 udp sport %d snat to :53", uport),
			fmt.Sprintf("nft add rule ip docker-dns post ip saddr 127.0.0.11 tcp sport %d snat to :53", tport),
		} {
			nstest.Run(t, ns, line)
		}
		return d
	}
	if _, err := exec.LookPath(backend); err != nil {
		t.Fatalf("needs %s: %v", backend, err)
	}
	// As libnetwork does (sandbox.rebuildDNS, resolver_unix.go).
	for _, line := range []string{
		"-N DOCKER_OUTPUT",
		"-N DOCKER_POSTROUTING",
		"-I OUTPUT -d 127.0.0.11 -j DOCKER_OUTPUT",
		"-I DOCKER_OUTPUT -d 127.0.0.11 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:%d",
		"-I POSTROUTING -d 127.0.0.11 -j DOCKER_POSTROUTING",
		"-I DOCKER_POSTROUTING -s 127.0.0.11 -p udp --sport %d -j SNAT --to-source :53",
	} {
		udp := line
		if strings.Contains(line, "%d") {
			udp = fmt.Sprintf(line, uport)
			tcp := strings.Replace(fmt.Sprintf(line, tport), "udp", "tcp", 1)
			nstest.Run(t, ns, backend+" -w -t nat "+tcp)
		}
		nstest.Run(t, ns, backend+" -w -t nat "+udp)
	}
	return d
}

// d0 is one without rules.
func d0(t testing.TB, ns netns.Namespace) *docker {
	t.Helper()
	d := &docker{}
	err := netns.Do(ns, func() error {
		pc, err := net.ListenPacket("udp4", "127.0.0.11:0")
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp4", "127.0.0.11:0")
		if err != nil {
			return err
		}
		d.udp = &dns.Server{PacketConn: pc, Handler: d}
		d.tcp = &dns.Server{Listener: l, Handler: d}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{}, 2)
	for _, s := range []*dns.Server{d.udp, d.tcp} {
		s.NotifyStartedFunc = func() { started <- struct{}{} }
		go func() { _ = s.ActivateAndServe() }()
	}
	<-started
	<-started
	t.Cleanup(d.die)
	return d
}

func (d *docker) ports() (udp, tcp int) {
	return d.udp.PacketConn.LocalAddr().(*net.UDPAddr).Port, d.tcp.Listener.Addr().(*net.TCPAddr).Port
}

// die leaves its rules, as a daemon that is killed does.
func (d *docker) die() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // what waits for an answer is not waited for
	_ = d.udp.ShutdownContext(ctx)
	_ = d.tcp.ShutdownContext(ctx)
}

// ServeDNS implements [dns.Handler].
func (d *docker) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	if tcp {
		d.askedTCP.Add(1)
	} else {
		d.asked.Add(1)
	}
	if d.deaf.Load() {
		return
	}
	a := new(dns.Msg).SetReply(q)
	a.RecursionAvailable = true
	name := q.Question[0].Name
	h := dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 600}
	switch {
	case name == "large.docker.":
		for i := range 100 {
			a.Answer = append(a.Answer, &dns.TXT{Hdr: h, Txt: []string{fmt.Sprintf("%0100d", i)}})
		}
	case dns.IsSubDomain("docker.", name):
		a.Answer = append(a.Answer, &dns.TXT{Hdr: h, Txt: []string{"docker"}})
	default:
		a.Rcode = dns.RcodeNameError
	}
	if !tcp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		a.Truncate(size)
	}
	_ = w.WriteMsg(a)
}

// client is a process in a container that asks by one socket.
type client struct {
	conn *dns.Conn
}

func newClient(t testing.TB, ns netns.Namespace, network string) *client {
	t.Helper()
	c, err := tryClient(ns, network)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

func tryClient(ns netns.Namespace, network string) (*client, error) {
	var c net.Conn
	err := netns.Do(ns, func() (err error) {
		c, err = net.DialTimeout(network+"4", "127.0.0.11:53", time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &client{&dns.Conn{Conn: c, UDPSize: 65535}}, nil
}

// ask asks once and waits for the answer to that.
func (c *client) ask(q *dns.Msg, within time.Duration) (*dns.Msg, error) {
	q.Id = dns.Id()
	_ = c.conn.SetDeadline(time.Now().Add(within))
	if err := c.conn.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		a, err := c.conn.ReadMsg()
		if err != nil {
			return nil, err
		}
		if a.Id == q.Id {
			return a, nil
		}
	}
}

// says is what a question is answered with, and must be.
func (c *client) says(t testing.TB, name string, qtype uint16) string {
	t.Helper()
	a, err := c.ask(asking(name, qtype), longest)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return say(a)
}

// askOnce asks by a fresh socket.
func askOnce(t testing.TB, ns netns.Namespace, network, name string, qtype uint16) string {
	t.Helper()
	c, err := tryClient(ns, network)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	return c.says(t, name, qtype)
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never within %v: %s", longest, what)
		case <-tick.C:
		}
	}
}

// agent is a running service that knows testView and a network "other".
func agent(t testing.TB) (*Service, func()) {
	t.Helper()
	s := New(Config{Host: "me"})
	s.SetView(testView())
	s.SetView(carrick.View{Network: carrick.Network{ID: "n2", Name: "other"}, Endpoints: map[carrick.HostID][]carrick.Endpoint{
		"far": {{ID: "o", Addrs: testView().Endpoints["me"][0].Addrs, Names: []string{"there"}}}}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

func ensure(t testing.TB, s *Service, key string, networks ...carrick.NetworkID) {
	t.Helper()
	if err := s.Ensure(t.Context(), Sandbox{key, networks}); err != nil {
		t.Fatal(err)
	}
}

// health of a sandbox.
func health(t testing.TB, s *Service, key string) Health {
	t.Helper()
	for _, h := range s.Health() {
		if h.Key == key {
			return h
		}
	}
	return Health{Err: errors.New("not there")}
}
