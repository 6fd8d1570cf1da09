package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	carricknet "github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/status"
)

// agent is an agent with answers to order. What it was asked to change it writes
// down.
type agent struct {
	status    status.Status
	networks  []status.Network
	endpoints []status.Endpoint
	nodes     []status.Node
	ipam      []status.IPAM
	check     status.Check
	audit     status.Audit
	doctor    []status.Checked
	release   func(ref string, a netip.Addr, force bool) (status.Released, error)
	remove    func(ref string, force bool) (status.Removed, error)
	wanted    *status.NetworkWanted // of the last network create
}

func (a agent) Status(context.Context) (status.Status, error)        { return a.status, nil }
func (a agent) Networks(context.Context) ([]status.Network, error)   { return a.networks, nil }
func (a agent) Endpoints(context.Context) ([]status.Endpoint, error) { return a.endpoints, nil }
func (a agent) Nodes(context.Context) ([]status.Node, error)         { return a.nodes, nil }

func (a agent) Network(_ context.Context, ref string) (status.Network, error) {
	return status.Network{}, fmt.Errorf("network %q %w", ref, status.ErrNotFound)
}

func (a agent) IPAM(_ context.Context, ref string) ([]status.IPAM, error) {
	if ref == "none" {
		return nil, fmt.Errorf("network %q %w", ref, status.ErrNotFound)
	}
	return a.ipam, nil
}

func (a agent) Check(_ context.Context, ref string) (status.Check, error) {
	if ref == "none" {
		return status.Check{}, fmt.Errorf("network %q %w", ref, status.ErrNotFound)
	}
	return a.check, nil
}

func (a agent) Audit(_ context.Context, ref string) (status.Audit, error) {
	if ref == "none" {
		return status.Audit{}, fmt.Errorf("network %q %w", ref, status.ErrNotFound)
	}
	return a.audit, nil
}

func (a agent) Doctor(context.Context) ([]status.Checked, error) { return a.doctor, nil }

func (a agent) Facts(context.Context) (status.Facts, error) {
	return status.Facts{Node: a.check.Node, Sides: a.check.Sides}, nil
}

func (a agent) Release(_ context.Context, ref string, addr netip.Addr, force bool) (status.Released, error) {
	return a.release(ref, addr, force)
}

func (a agent) CreateNetwork(_ context.Context, w status.NetworkWanted) (status.Network, error) {
	*a.wanted = w
	if w.Name == "taken" {
		return status.Network{}, fmt.Errorf("network create %s: %w: name taken", w.Name, status.ErrRefused)
	}
	return status.Network{ID: "00000000000000aa"}, nil
}

func (a agent) RemoveNetwork(_ context.Context, ref string) (status.Network, error) {
	if ref == "none" {
		return status.Network{}, fmt.Errorf("network %q %w", ref, status.ErrNotFound)
	}
	return status.Network{ID: "00000000000000aa", Name: ref}, nil
}

func (a agent) RemoveNode(_ context.Context, ref string, force bool) (status.Removed, error) {
	return a.remove(ref, force)
}

// serve runs the agent and returns the flag that leads to it.
func (a agent) serve(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	quiet := slog.New(slog.DiscardHandler)
	go func() { done <- status.Serve(ctx, path, status.Handler(a, quiet), quiet) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	client := status.NewClient(path)
	for {
		_, err := client.Nodes(t.Context())
		if err == nil {
			return "--api-socket=" + path
		}
		if !errors.Is(err, status.ErrNoAgent) || len(done) > 0 {
			t.Fatal(err)
		}
	}
}

// prints runs a command and compares everything it prints.
func prints(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	got, stdout, stderr := carrick(t, args...)
	if out := stdout + stderr; got != code || out != want {
		t.Errorf("carrick %s: code %d, want %d; printed\n%s\nwant\n%s", strings.Join(args, " "), got, code, out, want)
	}
}

// decodes runs a command with --json and decodes what it prints.
func decodes[T any](t *testing.T, code int, args ...string) T {
	t.Helper()
	got, stdout, stderr := carrick(t, append(args, "--json")...)
	var v T
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || got != code {
		t.Errorf("carrick %s --json: code %d, want %d, %v; printed %s %s", strings.Join(args, " "), got, code, err, stdout, stderr)
	}
	return v
}

func TestNodes(t *testing.T) {
	t.Parallel()
	since := time.Now().Add(-90 * time.Minute)
	vtep := netip.MustParseAddr("192.0.2.1")
	nodes := []status.Node{
		{ID: "00000000000000b1", Name: "h1", VTEP: vtep, MTU: 1500, Version: "v1", Alive: true, Self: true, State: status.NodeAlive},
		{ID: "00000000000000b2", Name: "h2", VTEP: vtep, MTU: 1500, Version: "v1", State: status.NodeLost, Since: since, Awaited: true},
		{ID: "00000000000000b3", Name: "h3", VTEP: vtep, MTU: 1500, Version: "v1", State: status.NodeRemoved},
	}
	at := agent{nodes: nodes, remove: func(ref string, force bool) (status.Removed, error) {
		r := status.Removed{Host: "00000000000000b2", Name: ref, WasAlive: force, Networks: 2, Blocks: 1, Endpoints: 3}
		switch {
		case ref == "none":
			return status.Removed{}, fmt.Errorf("host %q %w", ref, status.ErrNotFound)
		case ref == "h1" && !force:
			return status.Removed{}, fmt.Errorf("host h1 is alive: %w: stop its agent, or --force", status.ErrRefused)
		case ref == "h3":
			r.Later = true
		}
		return r, nil
	}}.serve(t)
	prints(t, exitFine, `ID                 NAME   VTEP        MTU    STATE                                                    VERSION
00000000000000b1   h1*    192.0.2.1   1500   alive                                                    v1
00000000000000b2   h2     192.0.2.1   1500   lost since `+since.Format(time.DateTime)+` (1h30m ago), waited for   v1
00000000000000b3   h3     192.0.2.1   1500   removed                                                  v1
`, "node", "ls", at)
	if got := decodes[[]status.Node](t, exitFine, "node", "ls", at); len(got) != 3 || got[1].State != status.NodeLost || !got[1].Awaited {
		t.Errorf("decoded %+v", got)
	}
	prints(t, exitFine, `h2 (id 00000000000000b2) is removed from the cluster.
It was in 2 networks: 3 endpoints and 1 block were withdrawn.
Its addresses become free when they have rested.
If it comes back it is cut off until it has its addresses again.
`, "node", "rm", "h2", at)
	prints(t, exitFine, `h1 (id 00000000000000b2) is removed from the cluster.
It was in 2 networks: 3 endpoints and 1 block were withdrawn.
Its addresses become free when they have rested.
It was alive: its agent will cut its containers off and ask for their addresses again.
`, "node", "rm", "--force", "h1", at)
	prints(t, exitFine, `h3 (id 00000000000000b2) is removed from the cluster.
The store is being recovered: what the host had becomes free when that is over.
If it comes back it is cut off until it has its addresses again.
`, "node", "rm", "h3", at)
	prints(t, exitProblem, "carrick: host h1 is alive: refused: stop its agent, or --force\n", "node", "rm", "h1", at)
	prints(t, exitProblem, "carrick: host \"none\" not found\n", "node", "rm", "none", at)
	if r := decodes[status.Removed](t, exitFine, "node", "rm", "h2", at); r.Blocks != 1 || r.WasAlive {
		t.Errorf("decoded %+v", r)
	}
}

func TestStatusPrints(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.Local)
	well := status.Status{
		Version: "v1", Node: "h1", Host: "00000000000000b1", VTEP: netip.MustParseAddr("192.0.2.1"), Device: "eth0", MTU: 1500, Started: now.Add(-time.Hour),
		Store:  status.Link{URL: "consul://10.0.0.10:8500/carrick", OK: true, Contact: now.Add(-2 * time.Second)},
		Engine: status.Link{}, Epoch: status.Epoch{State: status.EpochNormal, Num: 1}, Networks: 1, Local: 2,
	}
	ill := well
	ill.Store = status.Link{URL: "consul://10.0.0.10:8500/carrick", Contact: now.Add(-5 * time.Minute), Error: "no answer"}
	ill.Pending, ill.Unpublished, ill.PendingSince = 2, 3, now.Add(-4*time.Minute-3*time.Second)
	ill.Epoch = status.Epoch{State: status.EpochRecovering, Since: now.Add(-25 * time.Hour), Wait: []string{"h2", "h3"}}
	ill.Fenced, ill.Cut = true, []status.Endpoint{{}}
	ill.Problems = []string{"one", "two"}
	for _, tt := range []struct {
		s    status.Status
		want string
	}{{well, `node:       h1 (id 00000000000000b1)
VTEP:       192.0.2.1 on eth0, MTU 1500
store:      consul://10.0.0.10:8500/carrick, answers, heard from 2s ago
epoch:      normal, incarnation 1
engine:     not used
here:       1 network, 2 endpoints
published:  everything
drift:      0 kernel objects repaired since 2026-03-04 11:00:00
version:    v1

Nothing needs attention.
`}, {ill, `node:       h1 (id 00000000000000b1)
VTEP:       192.0.2.1 on eth0, MTU 1500
store:      consul://10.0.0.10:8500/carrick, last answered 5m0s ago, so what is known of other hosts is that old: no answer
epoch:      recovering, began 1d1h ago, waits for h2, h3
engine:     not used
here:       1 network, 2 endpoints
published:  not yet: 3 endpoints of 2 networks, since 2026-03-04 11:55:57 (4m3s ago)
fence:      gives out no address until it has its own again; 1 endpoint cut off
drift:      0 kernel objects repaired since 2026-03-04 11:00:00
version:    v1

Needs attention:
  one
  two
`}} {
		var out strings.Builder
		if err := printStatus(&out, tt.s, now); err != nil || out.String() != tt.want {
			t.Errorf("printed\n%s\nwant\n%s", out.String(), tt.want)
		}
	}
	at := agent{status: ill}.serve(t)
	if s := decodes[status.Status](t, exitProblem, "status", at); s.Epoch.State != status.EpochRecovering || !s.Fenced || s.Pending != 2 {
		t.Errorf("decoded %+v", s)
	}
	at = agent{status: well}.serve(t)
	decodes[status.Status](t, exitFine, "status", at)
}

// A network with two prefixes shows both, and an endpoint that is cut off is not
// merely local.
func TestListings(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00::/64")
	mac, err := carricknet.ParseMAC("02:28:0a:2a:00:02")
	if err != nil {
		t.Fatal(err)
	}
	ep := func(id string, e status.Endpoint) status.Endpoint {
		e.ID, e.NetName, e.MAC = carricknet.EndpointID(strings.Repeat(id, 64)), "app", mac
		return e
	}
	at := agent{
		networks: []status.Network{{
			ID: "00000000000000aa", Name: "app", VNI: 7, Mode: carricknet.ModeVXLAN, Tenant: "default", Here: true,
			Subnet: four, Pools: []carricknet.Pool{{Prefix: four}, {Prefix: six}},
		}, {
			ID: "00000000000000ab", Name: "old", VNI: 8, Mode: carricknet.ModeVXLAN, Tenant: "default", Subnet: netip.MustParsePrefix("10.43.0.0/16"),
			Fate: "being removed, waits for h3",
		}},
		endpoints: []status.Endpoint{
			ep("1", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("fd00::2")}, Host: "h1", Local: true, Container: "web"}),
			ep("2", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.3")}, Host: "h1", Local: true, Cut: true}),
			ep("3", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.4")}, Host: "h1", Local: true, Error: "no such device"}),
			ep("4", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.66")}, Host: "h2"}),
		},
	}.serve(t)
	prints(t, exitFine, `ID                 NAME   SUBNET                   VNI   MODE    TENANT    HERE   STATE
00000000000000aa   app    10.42.0.0/16,fd00::/64   7     vxlan   default   yes    fine
00000000000000ab   old    10.43.0.0/16             8     vxlan   default   no     being removed, waits for h3
`, "network", "ls", at)
	prints(t, exitFine, `ID             NETWORK   ADDRESS             MAC                 HOST   CONTAINER   STATE
111111111111   app       10.42.0.2,fd00::2   02:28:0a:2a:00:02   h1     web         local
222222222222   app       10.42.0.3           02:28:0a:2a:00:02   h1                 cut off
333333333333   app       10.42.0.4           02:28:0a:2a:00:02   h1                 failing: no such device
444444444444   app       10.42.0.66          02:28:0a:2a:00:02   h2                 remote
`, "endpoint", "ls", at)
}

// What is said at network create arrives as docker network create would have it.
func TestNetworkCreateAndRm(t *testing.T) {
	t.Parallel()
	var got status.NetworkWanted
	at := agent{wanted: &got}.serve(t)
	prints(t, exitFine, "00000000000000aa\n", "network", "create", "app", "--subnet", "10.42.0.0/16", "--subnet", "fd00::/64", "--ipv6", "--ip-range", "10.42.4.0/22",
		"--gateway", "10.42.0.9", "--aux-address", "printer=10.42.0.10", "-o", "flood=off", "--ipam-opt", "tenant=t", "--label", "team=a", "--internal", "--attachable", "--ipv4=false", at)
	want := status.NetworkWanted{
		Name: "app", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00::/64")}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.4.0/22")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.42.0.9")}, Aux: map[string]netip.Addr{"printer": netip.MustParseAddr("10.42.0.10")},
		Options: map[string]string{"flood": "off"}, IPAM: map[string]string{"tenant": "t"}, Labels: map[string]string{"team": "a"},
		Internal: true, Attachable: true, IPv6: true, NoIPv4: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
	prints(t, exitProblem, "carrick: network create taken: refused: name taken\n", "network", "create", "taken", at)
	prints(t, exitFine, "00000000000000aa\n", "network", "rm", "app", at)
	prints(t, exitProblem, "carrick: network \"none\" not found\n", "network", "rm", "none", at)
}

// A wrong word is an error of usage, before anybody is asked.
func TestBadUsage(t *testing.T) {
	t.Parallel()
	none := "--api-socket=" + filepath.Join(t.TempDir(), "none.sock")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ipam", "show", "a", "b"}, "at most 1 arg"},
		{[]string{"ipam", "check", "a", "b"}, "at most 1 arg"},
		{[]string{"ipam", "release", "app"}, "accepts 2 arg"},
		{[]string{"ipam", "release", "app", "10.42.0.300"}, `"10.42.0.300" is not an IP address`},
		{[]string{"ipam", "release", "app", "fe80::1%eth0"}, "is not an IP address"},
		{[]string{"ipam", "release", "app", "10.42.0.3", "--really"}, "--really"},
		{[]string{"node", "rm"}, "accepts 1 arg"},
		{[]string{"node", "ls", "h1"}, "h1"},
		{[]string{"network", "create"}, "accepts 1 arg"},
		{[]string{"network", "create", "app", "--subnet", "10.42.0.0"}, `--subnet "10.42.0.0": want a prefix`},
		{[]string{"network", "create", "app", "--gateway", "x"}, `--gateway "x": want an address`},
		{[]string{"network", "create", "app", "-o", "flood"}, `-o "flood": want KEY=VALUE`},
		{[]string{"network", "create", "app", "--label", "a=b", "--label", "a=c"}, "--label a is given twice"},
		{[]string{"network", "create", "app", "--aux-address", "printer=9"}, "--aux-address printer=9: want NAME=ADDRESS"},
		{[]string{"network", "rm"}, "accepts 1 arg"},
	} {
		code, stdout, stderr := carrick(t, append(tt.args, none)...)
		if code != exitUsage || !strings.Contains(stderr, tt.want) || stdout != "" {
			t.Errorf("carrick %s: code %d, %q %q; want %d and %q", strings.Join(tt.args, " "), code, stdout, stderr, exitUsage, tt.want)
		}
	}
	for _, group := range []string{"ipam", "node", "network", "endpoint"} {
		if code, stdout, stderr := carrick(t, group, "mend"); code != exitUsage || !strings.Contains(stderr, `"mend"`) || stdout != "" {
			t.Errorf("carrick %s mend: code %d, %q %q", group, code, stdout, stderr)
		}
		if code, stdout, _ := carrick(t, group); code != exitFine || !strings.Contains(stdout, "Usage:") {
			t.Errorf("carrick %s: code %d, %q", group, code, stdout)
		}
	}
	for _, args := range [][]string{{"ipam", "show"}, {"ipam", "check"}, {"ipam", "release", "app", "10.42.0.3"}, {"node", "rm", "h2"}} {
		if code, _, stderr := carrick(t, append(args, none)...); code != exitProblem || !strings.Contains(stderr, "no agent answers") {
			t.Errorf("carrick %v without an agent: %d %q", args, code, stderr)
		}
	}
}
