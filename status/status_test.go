package status_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/status"
)

// fake is a Source with one network and whatever is wrong.
type fake struct {
	problems []string
	err      error
}

func (f fake) Status(context.Context) (status.Status, error) {
	return status.Status{Node: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), Problems: f.problems}, f.err
}

func (f fake) Networks(context.Context) ([]status.Network, error) {
	return []status.Network{{ID: "00000000000000aa", Name: "<app>", VNI: 7, Subnet: netip.MustParsePrefix("10.42.0.0/16")}}, f.err
}

func (f fake) Network(_ context.Context, ref string) (status.Network, error) {
	switch ref {
	case "app net/1?x=&":
		return status.Network{Name: ref}, nil
	case "two":
		return status.Network{}, fmt.Errorf("network two is %w", status.ErrAmbiguous)
	}
	return status.Network{}, fmt.Errorf("network %q %w", ref, status.ErrNotFound)
}

func (f fake) Endpoints(context.Context) ([]status.Endpoint, error) { return nil, f.err }
func (f fake) Nodes(context.Context) ([]status.Node, error) {
	return []status.Node{{Name: "h1", Alive: true, Self: true}}, f.err
}

var quiet = slog.New(slog.DiscardHandler)

func serve(t *testing.T, src status.Source) (string, *status.Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "carrick.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- status.Serve(ctx, path, status.Handler(src, quiet), quiet) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	client := status.NewClient(path)
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		_, err := client.Nodes(t.Context())
		if !errors.Is(err, status.ErrNoAgent) {
			return path, client
		}
		select {
		case <-deadline.C:
			t.Fatal(err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// The client sees what the source says, errors with their sentinels included.
func TestOverTheSocket(t *testing.T) {
	t.Parallel()
	path, c := serve(t, fake{problems: []string{"broken"}})
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket %v %v, want mode 0600", fi, err)
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Node != "h1" || s.Healthy() {
		t.Errorf("status %+v %v", s, err)
	}
	nets, err := c.Networks(t.Context())
	if err != nil || len(nets) != 1 || nets[0].VNI != 7 || nets[0].Subnet.String() != "10.42.0.0/16" {
		t.Errorf("networks %+v %v", nets, err)
	}
	if n, err := c.Network(t.Context(), "app net/1?x=&"); err != nil || n.Name != "app net/1?x=&" {
		t.Errorf("network %+v %v", n, err)
	}
	if _, err := c.Network(t.Context(), "none"); !errors.Is(err, status.ErrNotFound) || !strings.Contains(err.Error(), `"none"`) {
		t.Errorf("missing network: %v", err)
	}
	if _, err := c.Network(t.Context(), "two"); !errors.Is(err, status.ErrAmbiguous) {
		t.Errorf("ambiguous network: %v", err)
	}
}

// A leftover socket of a crashed agent is no obstacle.
func TestLeftoverSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "carrick.sock")
	crashed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	crashed.SetUnlinkOnClose(false)
	if err := crashed.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- status.Serve(ctx, path, status.Handler(fake{}, quiet), quiet) }()
	c := status.NewClient(path)
	for {
		if _, err := c.Status(t.Context()); err == nil {
			break
		} else if len(done) > 0 {
			t.Fatal(<-done)
		}
	}
	// A second agent is refused, and takes nothing away.
	if err := status.Serve(ctx, path, status.Handler(fake{}, quiet), quiet); err == nil || !strings.Contains(err.Error(), "--api-socket") {
		t.Errorf("second agent: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := status.Serve(t.Context(), plain, status.Handler(fake{}, quiet), quiet); err == nil {
		t.Error("a plain file was replaced by a socket")
	}
}

func TestNoAgent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none.sock")
	_, err := status.NewClient(path).Status(t.Context())
	if !errors.Is(err, status.ErrNoAgent) || !strings.Contains(err.Error(), path) {
		t.Errorf("no agent: %v", err)
	}
}

// The web side: health for machines, a page for people, metrics for Prometheus.
func TestWeb(t *testing.T) {
	t.Parallel()
	zero := func() float64 { return 0 }
	m := status.NewMetrics("v1", status.Gauges{StoreUp: zero, StoreAge: zero, Networks: zero, Endpoints: zero, Unpublished: zero})
	m.Call("NetworkDriver.Join", time.Millisecond, errors.New("x"))
	m.Pass(map[string]int{"fdb": 3}, map[string]int{"fdb": 1}, nil)
	for _, tt := range []struct {
		src  fake
		path string
		code int
		want []string
	}{
		{fake{}, "/healthz", 200, []string{`"ok":true`}},
		{fake{problems: []string{"store away"}}, "/healthz", 503, []string{"store away"}},
		{fake{err: errors.New("boom")}, "/healthz", 503, []string{"boom"}},
		{fake{problems: []string{"<script>"}}, "/", 200, []string{"carrick on h1", "&lt;app&gt;", "&lt;script&gt;", "10.42.0.0/16"}},
		{fake{err: errors.New("boom")}, "/", 200, []string{"boom"}},
		{fake{}, "/metrics", 200, []string{`carrick_plugin_call_seconds_count{method="NetworkDriver.Join",result="error"} 1`, `carrick_drift_total{kind="fdb"} 1`, "carrick_store_up 0", `carrick_info{version="v1"} 1`}},
		{fake{}, "/else", 404, nil},
	} {
		srv := httptest.NewServer(status.Web(tt.src, m.Registry))
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		srv.Close()
		if err != nil || resp.StatusCode != tt.code {
			t.Errorf("%s: %s %v, want %d", tt.path, resp.Status, err, tt.code)
		}
		for _, w := range tt.want {
			if !strings.Contains(string(body), w) {
				t.Errorf("%s does not show %q:\n%s", tt.path, w, body)
			}
		}
	}
}
