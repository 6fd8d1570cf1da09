package consultest

import (
	"os"
	"sync"
	"testing"
)

// Pool is a server that all tests of a binary share. Its tests keep apart by
// prefixes of their own and do nothing to the server as a whole.
type Pool struct {
	mu     sync.Mutex // guards the rest
	server *Server
	err    error
	dir    string
}

// Get returns the server, started by the first call.
func (p *Pool) Get(t testing.TB) *Server {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil && p.err == nil {
		if p.dir, p.err = os.MkdirTemp("", "consultest-"); p.err == nil {
			p.server, p.err = launch(p.dir)
		}
	}
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.server
}

// Main runs a binary's tests and then ends the shared server. It is what TestMain
// calls last:
//
//	var pool consultest.Pool
//
//	func TestMain(m *testing.M) { pool.Main(m) }
func (p *Pool) Main(m *testing.M) {
	code := m.Run()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.Stop()
	}
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
	os.Exit(code)
}
