package consultest

import (
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
