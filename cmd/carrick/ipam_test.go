package main

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	carricknet "github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/status"
)

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
