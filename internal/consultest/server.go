// Package consultest runs real Consul servers for tests: on loopback, with data
// on disk, so that they can be killed and started again, frozen and wiped.
//
// It must not import Consul's client, which only kvstore/consul does; what it
// asks a server, it asks over HTTP.
package consultest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// nodeName is a server's name in its catalog; those of a [Cluster] have a number
// after it.
const nodeName = "consultest"

// startGuard bounds the wait for a server that does not come up. It usually
// takes a second or two.
const startGuard = 90 * time.Second

// Server is one Consul server. Its methods are for one goroutine at a time, but
// for Addr, URL and Token.
type Server struct {
	binary string
	dir    string
	acl    bool
	conns  int
	ports  ports
	node   string   // its name
	peers  []string // where the other servers of its cluster are
	proc   *process
}

// Option changes a server.
type Option func(*Server)

// WithACL turns access control on: without a token nothing is allowed, and
// [Server.Token] may do everything.
func WithACL() Option { return func(s *Server) { s.acl = true } }

// DefaultConns is Consul's own limit of connections from one client address.
const DefaultConns = 200

// WithConns limits the connections from one client address to n. A server of
// tests has many clients on one address, so without this the limit is far above
// [DefaultConns].
func WithConns(n int) Option { return func(s *Server) { s.conns = n } }

// Start starts a server of the test's own, which ends with the test.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s, err := launch(t.TempDir(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// launch starts a server with its data below dir.
func launch(dir string, opts ...Option) (*Server, error) {
	binary, err := find()
	if err != nil {
		return nil, err
	}
	s := newServer(binary, dir, opts...)
	// Between our finding a port free and Consul's taking it, somebody else may;
	// then the server ends at once, and other ports are tried.
	for range 5 {
		if s.ports, err = freePorts(); err != nil {
			return nil, err
		}
		if err = s.run(); err == nil || !errors.Is(err, errEnded) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func newServer(binary, dir string, opts ...Option) *Server {
	s := &Server{binary: binary, dir: dir, conns: 10 * DefaultConns, node: nodeName}
	for _, o := range opts {
		o(s)
	}
	return s
}

// Addr is the host:port of the HTTP API. It stays the same over restarts.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.ports.HTTP) }

// URL is the store URL of a prefix on this server.
func (s *Server) URL(prefix string) string { return "consul://" + s.Addr() + "/" + prefix }

// Token may do everything on a server with [WithACL]; otherwise it is empty.
func (s *Server) Token() string {
	if s.acl {
		return "c0ffee00-0000-4000-8000-000000000001"
	}
	return ""
}

// Stop kills the server (SIGKILL) and leaves its data.
func (s *Server) Stop() {
	if s.proc != nil {
		s.proc.kill()
		s.proc = nil
	}
}

// Start starts a stopped server on its data and ports, and returns when it
// answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
}

// Wipe kills the server, removes its data and starts it empty.
func (s *Server) Wipe(t testing.TB) {
	t.Helper()
	s.Stop()
	if err := os.RemoveAll(s.data()); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

// Freeze makes the server a black hole (SIGSTOP): the kernel still accepts
// connections, and nothing ever answers.
func (s *Server) Freeze(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGSTOP)
	if err := s.proc.stopped(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Thaw ends Freeze.
func (s *Server) Thaw(t testing.TB) { t.Helper(); s.signal(t, syscall.SIGCONT) }

func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if s.proc == nil {
		t.Fatal("consultest: the server is stopped")
	}
	if err := s.proc.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("consultest: signal %v: %v", sig, err)
	}
}

func (s *Server) data() string   { return filepath.Join(s.dir, "data") }
func (s *Server) log() string    { return filepath.Join(s.dir, "consul.log") }
func (s *Server) config() string { return filepath.Join(s.dir, "consul.json") }

// run starts the process and waits until it serves.
func (s *Server) run() error {
	conf, err := json.MarshalIndent(s.settings(), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.config(), conf, 0o600); err != nil {
		return err
	}
	if s.proc, err = spawn(s.log(), s.binary, "agent", "-config-file", s.config()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startGuard)
	defer cancel()
	if err := s.ready(ctx); err != nil {
		s.Stop()
		return fmt.Errorf("consultest: %w; the end of its log:\n%s", err, tail(s.log()))
	}
	return nil
}

// settings are what a server is told.
func (s *Server) settings() map[string]any {
	m := map[string]any{
		"server":                  true,
		"bootstrap_expect":        1 + len(s.peers),
		"retry_join":              append([]string{}, s.peers...),
		"retry_interval":          "1s",
		"node_name":               s.node,
		"data_dir":                s.data(),
		"bind_addr":               "127.0.0.1",
		"client_addr":             "127.0.0.1",
		"ports":                   s.ports.settings(),
		"performance":             map[string]any{"raft_multiplier": s.raft()},
		"limits":                  map[string]any{"http_max_conns_per_client": s.conns},
		"connect":                 map[string]any{"enabled": false},
		"disable_update_check":    true,
		"disable_host_node_id":    true, // two servers on one machine are two nodes
		"skip_leave_on_interrupt": true,
		"log_level":               "info",
	}
	if s.acl {
		m["acl"] = map[string]any{
			"enabled":        true,
			"default_policy": "deny",
			"tokens":         map[string]any{"initial_management": s.Token(), "agent": s.Token()},
		}
	}
	return m
}

// raft is Consul's raft_multiplier. A server alone elects itself as fast as it can;
// several of them on a machine that has other things to do need patience with each
// other, or they elect leaders all the time.
func (s *Server) raft() int {
	if len(s.peers) > 0 {
		return 4
	}
	return 1
}

// ports are the ones a server listens on; the others are off.
type ports struct{ HTTP, Serf, Server int }

func (p ports) settings() map[string]int {
	return map[string]int{
		"http": p.HTTP, "serf_lan": p.Serf, "server": p.Server,
		"https": -1, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1,
	}
}

// freePorts finds ports that nobody has at present. They lie below the range from
// which the kernel gives ports to outgoing connections (32768 and up, see
// ip_local_port_range), or one of those could take a stopped server's port.
func freePorts() (ports, error) {
	var p ports
	var open []io.Closer
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for _, port := range []*int{&p.HTTP, &p.Serf, &p.Server} {
		for tries := 0; *port == 0; tries++ {
			addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
			l, err := net.Listen("tcp", addr)
			if err != nil {
				if tries > 1000 {
					return ports{}, fmt.Errorf("consultest: find a free port: %w", err)
				}
				continue
			}
			open = append(open, l)
			u, err := net.ListenPacket("udp", addr) // serf uses both
			if err != nil {
				continue
			}
			open = append(open, u)
			*port = l.Addr().(*net.TCPAddr).Port
		}
	}
	return p, nil
}
