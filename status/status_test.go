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
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
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
	return []status.Node{{Name: "h1", Alive: true, Self: true, State: status.NodeAlive}}, f.err
}

func (f fake) IPAM(_ context.Context, ref string) ([]status.IPAM, error) {
	if ref == "none" {
		return nil, status.ErrNotFound
	}
	return []status.IPAM{{Name: "app", Pools: []status.PoolUse{{Usable: 1<<64 - 1}}}}, f.err
}

func (f fake) Check(_ context.Context, ref string) (status.Check, error) {
	return status.Check{Node: "h1", Network: carrick.NetworkID(ref), Findings: []status.Finding{{
		Finding: check.Finding{Severity: check.Wrong, Rule: check.Leak, Object: "10.42.0.9"}, NetworkName: "app",
	}}}, f.err
}

func (f fake) Audit(_ context.Context, ref string) (status.Audit, error) {
	return status.Audit{Node: "h1", Took: time.Millisecond, Networks: []status.AuditedNetwork{{
		Name: ref, Here: true, Kinds: map[string]int{"fdb": 1}, Objects: []status.Object{{Kind: "fdb", Text: "fdb row x was missing"}},
	}}}, f.err
}

func (f fake) Doctor(context.Context) ([]status.Checked, error) {
	return []status.Checked{status.OK("store", "answers"), status.Bad("engine", "start it", "gone")}, f.err
}

func (f fake) Facts(context.Context) (status.Facts, error) {
	return status.Facts{Node: "h1", Sides: []status.Side{{Name: "store"}}, Facts: allFacts()}, f.err
}

func (f fake) Release(_ context.Context, ref string, a netip.Addr, force bool) (status.Released, error) {
	if !force {
		return status.Released{}, fmt.Errorf("%s: %w: container web has it", a, status.ErrRefused)
	}
	return status.Released{Name: ref, Addr: a, Done: true}, f.err
}

func (f fake) CreateNetwork(_ context.Context, w status.NetworkWanted) (status.Network, error) {
	if w.Name == "taken" {
		return status.Network{}, fmt.Errorf("%w: name taken", status.ErrRefused)
	}
	return status.Network{Name: w.Name, Subnet: w.Subnets[0], Gateway: w.Gateways[0], Aux: w.Aux, Internal: w.Internal}, f.err
}

func (f fake) RemoveNetwork(ctx context.Context, ref string) (status.Network, error) {
	return f.Network(ctx, ref)
}

func (f fake) RemoveNode(_ context.Context, ref string, force bool) (status.Removed, error) {
	if ref == "none" {
		return status.Removed{}, status.ErrNotFound
	}
	return status.Removed{Name: ref, WasAlive: force, Blocks: 2}, f.err
}

// allFacts has something in every field that is a map or has a text form of its
// own, so that nothing of it can be lost on the way.
func allFacts() check.Facts {
	const (
		host   = carrick.HostID("00000000000000b1")
		net    = carrick.NetworkID("00000000000000aa")
		docker = carrick.DockerNetworkID("d0")
		ep     = carrick.EndpointID("e0")
	)
	addr, block := netip.MustParseAddr("10.42.0.9"), netip.MustParsePrefix("10.42.0.0/26")
	mac := carrick.MAC{2, 0, 0, 0, 0, 9}
	conf := carrick.Network{ID: net, Tenant: "default", VNI: 7, Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}}}
	e := carrick.Endpoint{ID: ep, Addrs: []netip.Addr{addr, netip.MustParseAddr("fd00::9")}, MAC: mac, Gen: 5}
	return check.Facts{
		Store: &check.Store{
			Epoch: check.Epoch{Inc: "i", Num: 2, Seq: 3, Nonce: "n", Recovering: true, Waiting: []carrick.HostID{host}},
			Hosts: map[carrick.HostID]carrick.Host{host: {ID: host, Name: "h1", VTEP: addr}}, Alive: map[carrick.HostID]bool{host: true},
			Removed: map[carrick.HostID]bool{host: true}, Names: map[string]carrick.HostID{"h1": host}, VTEPs: map[netip.Addr]carrick.HostID{addr: host},
			Tenants: map[string][]check.Prefix{"default": {{Prefix: block, Network: net}}}, VNIs: map[carrick.VNI]carrick.NetworkID{7: net},
			Networks: map[carrick.NetworkID]check.StoreNetwork{net: {
				Conf: &conf, Aliases: map[carrick.HostID][]carrick.DockerNetworkID{host: {docker}},
				Blocks: map[netip.Prefix]check.Block{block: {Host: host, Freed: true}}, Endpoints: map[carrick.HostID][]carrick.Endpoint{host: {e}},
			}},
			Asks: []check.Ask{{Owner: host, Requester: host, Network: net, Addr: addr}}, Damaged: []check.Damage{{Key: "k", Why: "w"}},
		},
		Hosts: map[carrick.HostID]check.Host{host: {
			Name: "h1", Gone: true,
			Journal: &check.Journal{Networks: map[carrick.NetworkID]check.JournalNetwork{net: {
				Conf: conf, Blocks: []netip.Prefix{block}, Leases: map[netip.Addr]check.Lease{addr: {Endpoint: ep, Lent: host}},
				Endpoints: []check.Endpoint{{Endpoint: e, Docker: docker, Joined: true}}, Pending: true,
			}}},
			Engine: &check.Engine{Networks: map[carrick.DockerNetworkID]string{docker: "app"}, Containers: []check.Container{{Endpoint: ep, Network: docker, Name: "web", Addrs: []netip.Addr{addr}, MAC: mac}}},
			Kernel: &check.Kernel{Networks: map[carrick.NetworkID]check.KernelNetwork{net: {
				Ports: map[carrick.EndpointID]check.Port{ep: {Up: true}}, FDB: map[carrick.MAC]netip.Addr{mac: addr}, Neigh: map[netip.Addr]carrick.MAC{addr: mac},
			}}},
		}},
	}
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

// What changes something goes over the socket as well, and refusals come back as
// refusals.
func TestVerbsOverTheSocket(t *testing.T) {
	t.Parallel()
	path, c := serve(t, fake{})
	ctx := t.Context()
	if use, err := c.IPAM(ctx, "a/b &c"); err != nil || len(use) != 1 || use[0].Pools[0].Usable != 1<<64-1 {
		t.Errorf("ipam %+v %v", use, err)
	}
	if _, err := c.IPAM(ctx, "none"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("ipam of no network: %v", err)
	}
	got, err := c.Check(ctx, "app")
	if err != nil || got.Network != "app" || got.Fine() || got.Findings[0].Severity != check.Wrong || got.Findings[0].NetworkName != "app" {
		t.Errorf("check %+v %v", got, err)
	}
	if a, err := c.Audit(ctx, "app"); err != nil || a.Fine() || a.Took != time.Millisecond || a.Networks[0].Name != "app" || a.Networks[0].Total() != 1 {
		t.Errorf("audit %+v %v", a, err)
	}
	if d, err := c.Doctor(ctx); err != nil || len(d) != 2 || d[0].State != status.CheckOK || d[1].State != status.CheckBad || d[1].Remedy != "start it" {
		t.Errorf("doctor %+v %v", d, err)
	}
	if f, err := c.Facts(ctx); err != nil || f.Node != "h1" || len(f.Sides) != 1 || !reflect.DeepEqual(f.Facts, allFacts()) {
		t.Errorf("facts %+v %v", f, err)
	}
	addr := netip.MustParseAddr("10.42.0.9")
	if _, err := c.Release(ctx, "app", addr, false); !errors.Is(err, status.ErrRefused) || !strings.Contains(err.Error(), "container web") {
		t.Errorf("release: %v", err)
	}
	if r, err := c.Release(ctx, "app", addr, true); err != nil || !r.Done || r.Addr != addr || r.Name != "app" {
		t.Errorf("forced release: %+v %v", r, err)
	}
	if r, err := c.RemoveNode(ctx, "h2", true); err != nil || r.Name != "h2" || !r.WasAlive || r.Blocks != 2 {
		t.Errorf("node rm: %+v %v", r, err)
	}
	if _, err := c.RemoveNode(ctx, "none", false); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("node rm of no node: %v", err)
	}

	printer := netip.MustParseAddr("10.42.0.9")
	w := status.NetworkWanted{
		Name: "app", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.42.0.1")},
		Aux: map[string]netip.Addr{"printer": printer}, Internal: true,
	}
	if n, err := c.CreateNetwork(ctx, w); err != nil || n.Name != "app" || n.Subnet != w.Subnets[0] || n.Gateway != w.Gateways[0] || n.Aux["printer"] != printer || !n.Internal {
		t.Errorf("network create: %+v %v", n, err)
	}
	if _, err := c.CreateNetwork(ctx, status.NetworkWanted{Name: "taken"}); !errors.Is(err, status.ErrRefused) {
		t.Errorf("network create of a name that is taken: %v", err)
	}
	if n, err := c.RemoveNetwork(ctx, "app net/1?x=&"); err != nil || n.Name != "app net/1?x=&" {
		t.Errorf("network rm: %+v %v", n, err)
	}
	if _, err := c.RemoveNetwork(ctx, "none"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("network rm of no network: %v", err)
	}

	// Looking at a verb does not do it, and neither does nonsense.
	web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	for _, r := range []struct {
		method, path, body string
		code               int
	}{
		{http.MethodGet, "/v1/release", "", http.StatusMethodNotAllowed},
		{http.MethodPost, "/v1/release", `{"network": 3`, http.StatusBadRequest},
		{http.MethodPost, "/v1/node/rm", "", http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(ctx, r.method, "http://carrick"+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != r.code {
			t.Errorf("%s %s %q: %s, want %d", r.method, r.path, r.body, resp.Status, r.code)
		}
	}
}

// A check is fine if all sides were seen and what was found needs nobody.
func TestCheckIsFine(t *testing.T) {
	t.Parallel()
	note := status.Finding{Finding: check.Finding{Severity: check.Note}}
	late := status.Finding{Finding: check.Finding{Severity: check.Transient}}
	for _, tt := range []struct {
		what string
		c    status.Check
		want bool
	}{
		{"all seen, nothing found", status.Check{Sides: []status.Side{{Name: "store"}, {Name: "engine", Off: true}}}, true},
		{"a note", status.Check{Findings: []status.Finding{note}}, true},
		{"what two looks found", status.Check{Findings: []status.Finding{note, late}}, false},
		{"a side that does not answer", status.Check{Sides: []status.Side{{Name: "store", Error: "away"}}}, false},
	} {
		if got := tt.c.Fine(); got != tt.want {
			t.Errorf("%s: fine %v", tt.what, got)
		}
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
	one := func() float64 { return 1 }
	m := status.NewMetrics("v1", status.Gauges{
		StoreUp: zero, StoreAge: zero, Networks: zero, Endpoints: zero, Unpublished: zero,
		UnpublishedAge: zero, Recovery: one, Fenced: zero, Cut: one, Conflicts: zero, ReadingAge: one,
		Pools: func() []status.PoolRatio {
			return []status.PoolRatio{{Network: "00000000000000aa", Name: "app", Pool: "10.42.0.0/16", Ratio: .5}}
		},
	})
	m.Call("NetworkDriver.Join", time.Millisecond, errors.New("x"))
	m.Pass(map[string]int{"fdb": 3}, map[string]int{"fdb": 1}, nil)
	m.Audited(250*time.Millisecond, true, nil)
	m.Audited(500*time.Millisecond, false, errors.New("x"))
	for _, tt := range []struct {
		src  fake
		path string
		code int
		want []string
	}{
		{fake{}, "/healthz", 200, []string{`"ok":true`}},
		{fake{problems: []string{"store away"}}, "/healthz", 503, []string{"store away"}},
		{fake{err: errors.New("boom")}, "/healthz", 503, []string{"boom"}},
		{fake{problems: []string{"<script>"}}, "/", 200, []string{"carrick on h1", "&lt;app&gt;", "&lt;script&gt;", "10.42.0.0/16", `<span class="ok">alive</span>`}},
		{fake{err: errors.New("boom")}, "/", 200, []string{"boom"}},
		{fake{}, "/metrics", 200, []string{`carrick_plugin_call_seconds_count{method="NetworkDriver.Join",result="error"} 1`, `carrick_drift_total{kind="fdb"} 1`, "carrick_store_up 0", `carrick_info{version="v1"} 1`,
			"carrick_recovery 1", "carrick_fenced 0", "carrick_cut_endpoints 1", "carrick_conflicts 0",
			`carrick_audits_total{result="drift"} 1`, `carrick_audits_total{result="error"} 1`, `carrick_audits_total{result="clean"} 0`,
			"carrick_audit_seconds 0.5", "carrick_reading_age_seconds 1",
			`carrick_pool_used_ratio{name="app",network="00000000000000aa",pool="10.42.0.0/16"} 0.5`}},
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
