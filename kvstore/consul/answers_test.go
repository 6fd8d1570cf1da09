package consul_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
)

// fake answers as a test says, for what no real server can be made to do.
func fake(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func to(t *testing.T, addrs ...string) *consul.Store {
	t.Helper()
	return client(t, consul.Config{Addresses: addrs})
}

// Servers are not made to compress for each of a thousand hosts.
func TestNothingIsCompressed(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	s := to(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Accept-Encoding")
		w.Header().Set("X-Consul-Index", "5")
		w.WriteHeader(http.StatusNotFound)
	}))
	if _, err := s.List(t.Context(), kvstore.Under("a/")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, kvstore.ErrNotFound) {
		t.Fatal(err)
	}
	for range 2 {
		if got := <-asked; got != "" && got != "identity" {
			t.Errorf("asked for %q", got)
		}
	}
}

// An answer that is not Consul's is never taken for a fact.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		status int
		body   string
		header bool // X-Consul-Index
		want   error
	}{
		{"no leader", 500, "No cluster leader", false, kvstore.ErrUnavailable},
		{"a proxy without a server", 502, "<html>", false, kvstore.ErrUnavailable},
		{"too many connections", 429, "Your IP is issuing too many concurrent connections", false, kvstore.ErrUnavailable},
		{"no permission", 403, "Permission denied", true, kvstore.ErrDenied},
		{"no token", 401, "", false, kvstore.ErrDenied},
		{"too large", 413, "Request body too large", false, kvstore.ErrTooLarge},
		{"a bad request", 400, "Bad request", false, kvstore.ErrUnavailable},
		{"the wrong port: not found", 404, "404 page not found", false, kvstore.ErrUnavailable},
		{"the wrong port: found", 200, "[]", false, kvstore.ErrUnavailable},
		{"a redirect", 301, "", true, kvstore.ErrUnavailable},
		{"nonsense", 200, "<html>welcome</html>", true, kvstore.ErrUnavailable},
		{"half an answer", 200, `[{"Key":"carrick/a","Modi`, true, kvstore.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := to(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
				if c.header {
					w.Header().Set("X-Consul-Index", "7")
				}
				w.Header().Set("Location", "/v1/kv/elsewhere")
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			errs := everyCall(within(t), s)
			if c.status == 200 && !c.header {
				// A transaction or a session has no such header to tell by; its
				// answer is no object.
				allAre(t, errs, kvstore.ErrUnavailable)
				return
			}
			allAre(t, errs, c.want)
		})
	}
}

// A list that has what was not asked for is refused as well.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`[{"Key":"other/a","ModifyIndex":3}]`,
		`[{"Key":"carrick/net/1","ModifyIndex":0}]`,
		`[{"Key":"carrick/node/1","ModifyIndex":3}]`,
	} {
		s := to(t, fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Index", "7")
			fmt.Fprint(w, body)
		}))
		if v, err := s.List(within(t), kvstore.Under("net/")); !errors.Is(err, kvstore.ErrUnavailable) {
			t.Errorf("%s: %+v, %v", body, v, err)
		}
	}
}

// What a refused transaction means, and what an answer that we do not know.
func TestTransactionAnswers(t *testing.T) {
	t.Parallel()
	txn := new(kvstore.Txn).Absent("c1").Version("c2", 4).Put("p", nil).PutLeased("l", nil, "some-lease")
	// The operations sent: 0 c1, 1 c2, 2 put p, 3 delete l, 4 lock l.
	for _, c := range []struct {
		name, body string
		status     int
		want       error
		keys       string
	}{
		{"a condition", `{"Errors":[{"OpIndex":1,"What":"x"}]}`, 409, kvstore.ErrConflict, "c2"},
		{"two conditions", `{"Errors":[{"OpIndex":0,"What":"x"},{"OpIndex":1,"What":"x"}]}`, 409, kvstore.ErrConflict, "c1 c2"},
		{"a condition and the lease", `{"Errors":[{"OpIndex":0,"What":"x"},{"OpIndex":4,"What":"invalid session \"x\""}]}`, 409, kvstore.ErrConflict, "c1"},
		{"the lease", `{"Errors":[{"OpIndex":4,"What":"invalid session \"x\""}]}`, 409, kvstore.ErrLeaseLost, ""},
		{"a lock-delay", `{"Errors":[{"OpIndex":4,"What":"failed to lock key \"l\" due to lock delay"}]}`, 409, kvstore.ErrUnavailable, ""},
		{"no permission to read", `{"Errors":[{"OpIndex":1,"What":"Permission denied: token lacks"}]}`, 409, kvstore.ErrDenied, ""},
		{"no reason", `{"Errors":[]}`, 409, kvstore.ErrUnavailable, ""},
		{"an operation we did not send", `{"Errors":[{"OpIndex":17,"What":"x"}]}`, 409, kvstore.ErrUnavailable, ""},
		{"no results", `{"Results":[]}`, 200, kvstore.ErrUnavailable, ""},
		{"null results", `{"Results":[null,null,null]}`, 200, kvstore.ErrUnavailable, ""},
		{"another key's result", `{"Results":[{"KV":{"Key":"carrick/p","ModifyIndex":9}},{"KV":{"Key":"carrick/q","ModifyIndex":9}}]}`, 200, kvstore.ErrUnavailable, ""},
		{"two versions", `{"Results":[{"KV":{"Key":"carrick/p","ModifyIndex":9}},{"KV":{"Key":"carrick/l","ModifyIndex":8}}]}`, 200, kvstore.ErrUnavailable, ""},
		{"success", `{"Results":[{"KV":{"Key":"carrick/c2","ModifyIndex":4}},{"KV":{"Key":"carrick/p","ModifyIndex":9}},{"KV":{"Key":"carrick/l","ModifyIndex":9}}]}`, 200, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := to(t, fake(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			rev, err := s.Txn(within(t), txn)
			if !errors.Is(err, c.want) || (c.want == nil && rev != 9) {
				t.Fatalf("got %d, %v; want %v", rev, err, c.want)
			}
			var ce *kvstore.ConflictError
			if errors.As(err, &ce) && strings.Join(ce.Keys, " ") != c.keys {
				t.Errorf("conflict on %q, want %q", ce.Keys, c.keys)
			}
		})
	}
}

// A write that reached a server is not repeated by itself, neither there nor at
// the next address: the answer may be lost, not the write.
func TestWriteIsSentOnce(t *testing.T) {
	t.Parallel()
	var first, second atomic.Int64
	dying := fake(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // leaves an idle connection to send the write on
			w.Header().Set("X-Consul-Index", "7")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		first.Add(1)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	})
	other := fake(t, func(w http.ResponseWriter, _ *http.Request) { second.Add(1); w.WriteHeader(http.StatusNotFound) })
	s := to(t, dying, other)
	if _, err := s.Get(within(t), "a"); !errors.Is(err, kvstore.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := s.Txn(within(t), new(kvstore.Txn).Put("a", nil)); !errors.Is(err, kvstore.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if first.Load() != 1 || second.Load() != 0 {
		t.Errorf("the write was sent %d times to the first address and %d times to the second", first.Load(), second.Load())
	}
}

// The first address is dead: calls go to the next, and stay there.
func TestFailover(t *testing.T) {
	t.Parallel()
	srv := pool.Get(t)
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	deadAddr := strings.TrimPrefix(dead.URL, "http://")
	leaderless := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, "No cluster leader")
	})
	s := client(t, consul.Config{Addresses: []string{deadAddr, srv.Addr()}, Prefix: "failover"})
	rev := put(t, s, "a", "1") // a write too: it was certainly not sent
	if e, err := s.Get(within(t), "a"); err != nil || e.Version != rev {
		t.Errorf("got %+v, %v", e, err)
	}
	s = client(t, consul.Config{Addresses: []string{leaderless, srv.Addr()}, Prefix: "failover"})
	if e, err := s.Get(within(t), "a"); err != nil || e.Version != rev {
		t.Errorf("got %+v, %v", e, err)
	}
	put(t, s, "a", "2")

	s = client(t, consul.Config{Addresses: []string{deadAddr, leaderless}})
	allAre(t, everyCall(within(t), s), kvstore.ErrUnavailable)
}

// index is a server with one entry and an index that the test moves.
type index struct {
	mu                  sync.Mutex
	sel, whole, entries int
	waits               []string
}

func (x *index) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if strings.Contains(r.URL.Path, "~") {
		w.Header().Set("X-Consul-Index", fmt.Sprint(x.whole))
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if i := r.URL.Query().Get("index"); i != "" {
		x.waits = append(x.waits, i)
	}
	w.Header().Set("X-Consul-Index", fmt.Sprint(x.sel))
	fmt.Fprintf(w, `[{"Key":"carrick/net/a","ModifyIndex":%d,"Value":null}]`, x.entries)
}

func (x *index) set(sel, whole int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sel, x.whole, x.entries = sel, whole, min(sel, whole)
}

// Consul's index of a prefix goes back when the tombstones of deleted keys are
// collected. That is no loss; an index of the whole store that goes back is.
func TestIndexGoesBack(t *testing.T) {
	t.Parallel()
	x := new(index)
	s := to(t, fake(t, x.ServeHTTP))
	ctx, sel := within(t), kvstore.Under("net/")
	x.set(60, 60)
	v, err := s.Watch(ctx, sel, 0)
	if err != nil || v.Revision != 60 {
		t.Fatalf("%+v, %v", v, err)
	}
	x.set(50, 90) // the tombstone of revision 60 is gone; others wrote up to 90
	if v, err = s.Watch(ctx, sel, 60); err != nil || v.Revision != 90 {
		t.Errorf("after the collection: %+v, %v; want revision 90", v, err)
	}
	if v, err = s.Watch(ctx, sel, 90); err != nil || v.Revision != 90 {
		t.Errorf("without a change: %+v, %v; want revision 90", v, err)
	}
	x.set(20, 25)
	if v, err = s.Watch(ctx, sel, 90); err != nil || v.Revision != 25 {
		t.Errorf("after a loss: %+v, %v; want revision 25", v, err)
	}
	x.set(0, 0)
	x.mu.Lock()
	x.entries = 1
	x.mu.Unlock()
	if v, err = s.Watch(ctx, sel, 25); err != nil || v.Revision != 1 {
		t.Errorf("with index 0: %+v, %v; want revision 1", v, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, w := range x.waits {
		if w == "0" {
			t.Errorf("a wait from index 0 does not wait: %q", x.waits)
		}
	}
}

// A loss that one watch finds out is told to all, also to those that wait where
// nothing wakes them.
func TestLossIsToldToAll(t *testing.T) {
	t.Parallel()
	x := new(index)
	waiting := make(chan struct{})
	s := to(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("index") && strings.HasSuffix(r.URL.Path, "/net/a") {
			close(waiting)
			<-r.Context().Done()
			return
		}
		x.ServeHTTP(w, r)
	}))
	ctx := within(t)
	x.set(60, 60)
	for _, sel := range []kvstore.Selector{kvstore.OneKey("net/a"), kvstore.Under("net/")} {
		if v, err := s.Watch(ctx, sel, 0); err != nil || v.Revision != 60 {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	stuck := watch(ctx, s, kvstore.OneKey("net/a"), 60)
	<-waiting
	x.set(20, 25)
	if v, err := s.Watch(ctx, kvstore.Under("net/"), 60); err != nil || v.Revision != 25 {
		t.Fatalf("who finds out: %+v, %v", v, err)
	}
	if w := <-stuck; w.err != nil || w.v.Revision != 25 {
		t.Errorf("who waits: %+v, %v", w.v, w.err)
	}
}

// A silent server is left after the time limit, and the caller's own limit is
// told apart from it.
func TestTimeLimits(t *testing.T) {
	t.Parallel()
	silent := fake(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server would not notice that the client has gone
		<-r.Context().Done()
	})
	s := client(t, consul.Config{Addresses: []string{silent}, Timeout: 50 * time.Millisecond, Wait: 50 * time.Millisecond})
	allAre(t, everyCall(within(t), s), kvstore.ErrUnavailable)
}

// Over TLS, the server proves who it is.
func TestTLS(t *testing.T) {
	t.Parallel()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		fmt.Fprint(w, `[{"Key":"carrick/a","ModifyIndex":7}]`)
	}))
	t.Cleanup(srv.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(srv.URL, "https://")
	for _, c := range []struct {
		name string
		tls  consul.TLS
		env  map[string]string
		want error
	}{
		{"a known authority", consul.TLS{Enable: true, CAFile: ca}, nil, nil},
		{"all from the environment", consul.TLS{}, map[string]string{"CONSUL_HTTP_SSL": "true", "CONSUL_CACERT": ca}, nil},
		{"no proof wanted", consul.TLS{}, map[string]string{"CONSUL_HTTP_SSL": "1", "CONSUL_HTTP_SSL_VERIFY": "false"}, nil},
		{"another name", consul.TLS{Enable: true, CAFile: ca, ServerName: "elsewhere.test"}, nil, kvstore.ErrUnavailable},
		{"an unknown authority", consul.TLS{Enable: true}, nil, kvstore.ErrUnavailable},
		{"without TLS", consul.TLS{}, nil, kvstore.ErrUnavailable},
	} {
		s := client(t, consul.Config{Addresses: []string{addr}, TLS: c.tls, Getenv: func(k string) string { return c.env[k] }})
		if _, err := s.Get(within(t), "a"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
