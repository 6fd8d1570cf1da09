package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	carricknet "github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
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
	release   func(ref string, a netip.Addr, force bool) (status.Released, error)
	remove    func(ref string, force bool) (status.Removed, error)
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

func (a agent) Facts(context.Context) (status.Facts, error) {
	return status.Facts{Node: a.check.Node, Sides: a.check.Sides}, nil
}

func (a agent) Release(_ context.Context, ref string, addr netip.Addr, force bool) (status.Released, error) {
	return a.release(ref, addr, force)
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

func u(n uint64) *uint64 { return &n }

// inUse is a /24 of two hosts, in IPv6 as well.
func inUse() status.IPAM {
	return status.IPAM{
		Network: "00000000000000aa", Name: "app", Tenant: "default", Whole: true,
		Pools: []status.PoolUse{{
			Prefix: netip.MustParsePrefix("10.42.0.0/24"), Range: netip.MustParsePrefix("10.42.0.0/25"), BlockBits: 29,
			Reserved: 2, Usable: 126, InBlocks: 20, Given: 101, Free: 25, Outside: 1, Lent: 1, Percent: 80.158, FreeBlocks: 13,
			Blocks: []status.BlockUse{
				{Prefix: netip.MustParsePrefix("10.42.0.0/29"), Host: "h1", Usable: 6, Given: 3, Resting: u(2), Lent: 1},
				{Prefix: netip.MustParsePrefix("10.42.0.8/29"), Host: "h2", Usable: 8, Given: 8},
				{Prefix: netip.MustParsePrefix("10.42.0.16/29"), Freed: true, Usable: 8},
			},
			Hosts: []status.HostUse{
				{Host: "h1", Self: true, Blocks: 1, Usable: 6, Given: 3, Lent: 1, Resting: u(2)},
				{Host: "h2", Blocks: 1, Usable: 8, Given: 9, Borrowed: 1},
			},
		}, {
			Prefix: netip.MustParsePrefix("fd00::/64"), BlockBits: 122, Reserved: 2, Usable: math.MaxUint64, Free: math.MaxUint64, FreeBlocks: 1 << 58,
		}},
		Warnings: []string{"pool 10.42.0.0/24: 101 of 126 addresses are given out (80 %): make room"},
	}
}

func TestIPAMShow(t *testing.T) {
	t.Parallel()
	at := agent{ipam: []status.IPAM{inUse()}}.serve(t)
	prints(t, exitFine, `network app (id 00000000000000aa, tenant default)

Pool 10.42.0.0/24:
range:      10.42.0.0/25
usable:     126, and 2 reserved
in blocks:  20, in blocks of /29; 13 blocks are nobody's
given out:  101 (80.1%), 25 free
outside:    1 given out outside of the range
lent:       1

BLOCK           HOST      USABLE   GIVEN   RESTING   LENT
10.42.0.0/29    h1        6        3       2         1
10.42.0.8/29    h2        8        8       -         0
10.42.0.16/29   (rests)   8        0       -         0

HOST   BLOCKS   USABLE   GIVEN   RESTING   LENT   BORROWED
h1*    1        6        3       2         1      0
h2     1        8        9       -         0      1

Pool fd00::/64:
usable:     2^64, and 2 reserved
in blocks:  0, in blocks of /122; 288230376151711744 blocks are nobody's
given out:  0 (0.0%), 2^64 free
lent:       0

warning: network app: pool 10.42.0.0/24: 101 of 126 addresses are given out (80 %): make room
`, "ipam", "show", "app", at)
	prints(t, exitFine, `NETWORK   POOL           USABLE   IN BLOCKS   GIVEN   FREE   LENT   USED
app       10.42.0.0/24   126      20          101     25     1      80.1%
app       fd00::/64      2^64     0           0       2^64   0      0.0%

warning: network app: pool 10.42.0.0/24: 101 of 126 addresses are given out (80 %): make room
`, "ipam", "show", at)
	all := decodes[[]status.IPAM](t, exitFine, "ipam", "show", "app", at)
	if len(all) != 1 || all[0].Pools[0].Given != 101 || *all[0].Pools[0].Blocks[0].Resting != 2 || all[0].Pools[0].Blocks[1].Resting != nil {
		t.Errorf("decoded %+v", all)
	}
	if code, _, stderr := carrick(t, "ipam", "show", "none", at); code != exitProblem || !strings.Contains(stderr, `"none" not found`) {
		t.Errorf("no network: %d %s", code, stderr)
	}
}

// With the store away it is said how old the others' part is.
func TestIPAMShowWithoutTheStore(t *testing.T) {
	t.Parallel()
	n := status.IPAM{Name: "app", AsOf: time.Now().Add(-3*time.Hour - 10*time.Second)}
	at := agent{ipam: []status.IPAM{n}}.serve(t)
	if _, stdout, _ := carrick(t, "ipam", "show", (agent{ipam: []status.IPAM{{Name: "app"}}}).serve(t)); !strings.Contains(stdout, "heard before the agent started") {
		t.Errorf("never heard: %s", stdout)
	}
	for _, args := range [][]string{{"ipam", "show"}, {"ipam", "show", "app"}} {
		code, stdout, _ := carrick(t, append(args, at)...)
		if code != exitFine || !strings.Contains(stdout, "The store does not answer") || !strings.Contains(stdout, "heard 3h0m ago") {
			t.Errorf("%v: %d %s", args, code, stdout)
		}
	}
}

func TestIPAMCheck(t *testing.T) {
	t.Parallel()
	fine := status.Check{Node: "h1", Sides: []status.Side{{Name: "kernel"}, {Name: "engine"}, {Name: "store"}, {Name: "journal"}}, Findings: []status.Finding{}}
	at := agent{check: fine}.serve(t)
	prints(t, exitFine, `compared on h1: kernel, engine, store, journal

Nothing is wrong.
`, "ipam", "check", at)
	if c := decodes[status.Check](t, exitFine, "ipam", "check", at); !c.Fine() || len(c.Sides) != 4 {
		t.Errorf("decoded %+v", c)
	}
	// For a bug report, or for whoever compares several hosts.
	prints(t, exitFine, `{
  "node": "h1",
  "sides": [
    {
      "name": "kernel"
    },
    {
      "name": "engine"
    },
    {
      "name": "store"
    },
    {
      "name": "journal"
    }
  ]
}
`, "ipam", "check", "--facts", at)

	wrong := status.Check{
		Node: "h1", Sides: []status.Side{{Name: "kernel"}, {Name: "engine", Off: true}, {Name: "store", Error: "store away"}, {Name: "journal"}},
		Findings: []status.Finding{
			{Finding: check.Finding{Severity: check.Wrong, Rule: check.HeldTwice, Network: "00000000000000aa", Object: "10.42.0.9",
				What: "held by container a on h1 and container b on h2", Mend: "restart all of these but one"}, NetworkName: "app"},
			{Finding: check.Finding{Severity: check.Transient, Rule: check.Leak, Network: "00000000000000ab", Host: "00000000000000b1", Object: "10.43.0.9",
				What: "given out, and no endpoint has it", Mend: "nothing: it is collected"}, HostName: "h1"},
			{Finding: check.Finding{Severity: check.Note, Object: "v1/epoch", What: "x", Mend: "y"}},
		},
	}
	at = agent{check: wrong}.serve(t)
	prints(t, exitProblem, `compared on h1: kernel, journal
engine not looked at: this agent does not use it
store not looked at: store away

wrong: network app, 10.42.0.9: held by container a on h1 and container b on h2
  mend: restart all of these but one

transient: network 00000000000000ab, host h1, 10.43.0.9: given out, and no endpoint has it
  mend: nothing: it is collected

note: v1/epoch: x
  mend: y

1 wrong, 1 transient, 1 note
`, "ipam", "check", "app", at)
	if c := decodes[status.Check](t, exitProblem, "ipam", "check", at); len(c.Findings) != 3 || c.Findings[0].Rule != check.HeldTwice || c.Findings[0].NetworkName != "app" {
		t.Errorf("decoded %+v", c)
	}
}

func TestIPAMRelease(t *testing.T) {
	t.Parallel()
	ep := carricknet.EndpointID(strings.Repeat("e", 64))
	at := agent{release: func(ref string, a netip.Addr, force bool) (status.Released, error) {
		r := status.Released{Network: "00000000000000aa", Name: ref, Addr: a, Done: true, What: "it rests"}
		switch {
		case a == netip.MustParseAddr("10.42.0.7"):
			r.Done, r.What = false, "it is free already"
		case a == netip.MustParseAddr("10.42.0.8"):
			return r, nil
		case !force:
			return status.Released{}, fmt.Errorf("%s of network app: %w: container web has it", a, status.ErrRefused)
		default:
			r.Endpoint, r.Container = ep, "web"
		}
		return r, nil
	}}.serve(t)
	prints(t, exitFine, "released 10.42.0.8 of network app: it rests\n", "ipam", "release", "app", "10.42.0.8", at)
	prints(t, exitFine, "10.42.0.7 of network app: nothing to do: it is free already\n", "ipam", "release", "app", "10.42.0.7", at)
	prints(t, exitProblem, "carrick: 10.42.0.9 of network app: refused: container web has it\n", "ipam", "release", "app", "10.42.0.9", at)
	prints(t, exitFine, "released 10.42.0.9 of network app, which container web had (endpoint eeeeeeeeeeee, withdrawn): it rests\n",
		"ipam", "release", "app", "10.42.0.9", "--force", at)
	if r := decodes[status.Released](t, exitFine, "ipam", "release", "app", "::ffff:10.42.0.9", "--force", at); r.Endpoint != ep || r.Addr != netip.MustParseAddr("10.42.0.9") {
		t.Errorf("decoded %+v", r)
	}
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
		}},
		endpoints: []status.Endpoint{
			ep("1", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("fd00::2")}, Host: "h1", Local: true, Container: "web"}),
			ep("2", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.3")}, Host: "h1", Local: true, Cut: true}),
			ep("3", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.4")}, Host: "h1", Local: true, Error: "no such device"}),
			ep("4", status.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.66")}, Host: "h2"}),
		},
	}.serve(t)
	prints(t, exitFine, `ID                 NAME   SUBNET                   VNI   MODE    TENANT    HERE
00000000000000aa   app    10.42.0.0/16,fd00::/64   7     vxlan   default   yes
`, "network", "ls", at)
	prints(t, exitFine, `ID             NETWORK   ADDRESS             MAC                 HOST   CONTAINER   STATE
111111111111   app       10.42.0.2,fd00::2   02:28:0a:2a:00:02   h1     web         local
222222222222   app       10.42.0.3           02:28:0a:2a:00:02   h1                 cut off
333333333333   app       10.42.0.4           02:28:0a:2a:00:02   h1                 failing: no such device
444444444444   app       10.42.0.66          02:28:0a:2a:00:02   h2                 remote
`, "endpoint", "ls", at)
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
