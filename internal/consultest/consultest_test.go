package consultest

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

// A server keeps what it has over a kill, and not over a wipe.
func TestServer(t *testing.T) {
	t.Parallel()
	s := Start(t)
	var ok bool
	if err := s.ask(t.Context(), http.MethodPut, "/v1/kv/a", &ok); err != nil || !ok {
		t.Fatalf("put: %v, %v", ok, err)
	}
	addr := s.Addr()
	s.Stop()
	if err := s.ask(t.Context(), http.MethodGet, "/v1/kv/a", new(any)); err == nil {
		t.Fatal("a stopped server answers")
	}
	s.Start(t)
	if s.Addr() != addr {
		t.Fatalf("was at %s, is at %s", addr, s.Addr())
	}
	if err := s.ask(t.Context(), http.MethodGet, "/v1/kv/a", new(any)); err != nil {
		t.Fatalf("after a kill and a start: %v", err)
	}
	s.Wipe(t)
	if err := s.ask(t.Context(), http.MethodGet, "/v1/kv/a", new(any)); err == nil {
		t.Fatal("a wiped server has the key")
	}
}

// Three servers are one store: each answers what another was told, and two of
// them go on without the third.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3)
	put := func(s *Server, key string) {
		t.Helper()
		var ok bool
		if err := s.ask(t.Context(), http.MethodPut, "/v1/kv/"+key, &ok); err != nil || !ok {
			t.Fatalf("put %s: %v, %v", key, ok, err)
		}
	}
	has := func(s *Server, key string) {
		t.Helper()
		if err := s.ask(t.Context(), http.MethodGet, "/v1/kv/"+key+"?consistent", new(any)); err != nil {
			t.Errorf("get %s: %v", key, err)
		}
	}
	servers := c.Servers()
	put(servers[0], "a")
	for i, s := range servers {
		has(s, "a")
		if c.Addrs(i + 3)[0] != s.Addr() {
			t.Errorf("the first of %v is not server %d", c.Addrs(i+3), i)
		}
	}
	before, err := c.CPU()
	if err != nil || before == 0 {
		t.Errorf("the servers used %v of the processor: %v", before, err)
	}
	if m, err := servers[1].Memory(); err != nil || m < 10<<20 {
		t.Errorf("a server has %d bytes in memory: %v", m, err)
	}
	servers[0].Stop()
	if _, err := c.CPU(); err == nil {
		t.Error("the processor time of a stopped server is known")
	}
	ready, cancel := context.WithTimeout(t.Context(), startGuard)
	defer cancel()
	if err := servers[1].ready(ready); err != nil {
		t.Fatal(err)
	}
	put(servers[1], "b")
	has(servers[2], "b")
	servers[0].Start(t)
	has(servers[0], "b")
}

// Without the binary a test fails and says what to do.
func TestNoBinary(t *testing.T) {
	for _, env := range [][2]string{{"CARRICK_CONSUL", "/nonexistent/consul"}, {"CARRICK_CACHE", t.TempDir()}} {
		t.Run(env[0], func(t *testing.T) {
			t.Setenv(env[0], env[1])
			if env[0] == "CARRICK_CACHE" {
				t.Setenv("CARRICK_CONSUL", "")
			}
			exe, err := find()
			if err == nil {
				t.Fatalf("found %s", exe)
			}
			if env[0] == "CARRICK_CACHE" && !strings.Contains(err.Error(), "make tools") {
				t.Errorf("does not say what to do: %v", err)
			}
		})
	}
}
