package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/status"
)

func TestAuditPrints(t *testing.T) {
	t.Parallel()
	now := time.Now()
	clean := status.Audit{Node: "h1", Took: 12 * time.Millisecond, Networks: []status.AuditedNetwork{{Name: "app", Here: true}, {Name: "db", Here: true}}}
	at := agent{audit: clean}.serve(t)
	prints(t, exitFine, "2 networks read back in 12ms: all is as planned.\n", "doctor", "--audit", at)

	found := clean
	found.Networks = []status.AuditedNetwork{
		{Name: "app", Here: true, Kinds: map[string]int{"fdb": 2, "link": 1}, Objects: []status.Object{
			{Text: "link vxlan0 was mtu 1400, wants mtu 1450"}, {Text: "fdb row 02:28:0a:2a:00:02 dst 10.0.0.2 was missing"},
		}},
		{Name: "db", Here: true, Problems: []string{"endpoint 1: its veth pair is gone: docker restart CONTAINER"}, Error: "no such device"},
	}
	at = agent{audit: found}.serve(t)
	prints(t, exitProblem, `repaired   app   link vxlan0 was mtu 1400, wants mtu 1450
repaired   app   fdb row 02:28:0a:2a:00:02 dst 10.0.0.2 was missing
repaired   app   and 1 more
PROBLEM    db    endpoint 1: its veth pair is gone: docker restart CONTAINER
PROBLEM    db    no such device (the agent goes on trying)

2 networks read back in 12ms: 3 objects had been changed by somebody else (2 fdb, 1 link). 2 problems are left.
`, "doctor", "--audit", at)
	if d := decodes[doctored](t, exitProblem, "doctor", "--audit", "app", at); d.Audit == nil || d.Audit.Networks[0].Total() != 3 {
		t.Errorf("decoded %+v", d)
	}

	before := clean
	before.Before = []status.Drift{
		{At: now.Add(-90 * time.Second), Network: "00000000000000aa", Name: "app", Kinds: map[string]int{"link": 2}, Objects: []status.Object{{Text: "link br0 was down, wants up"}}},
		{At: now.Add(-2 * time.Hour), Kinds: map[string]int{"sysctl": 1}, Objects: []status.Object{{Text: "sysctl x was 1, wants 2"}}},
	}
	at = agent{audit: before}.serve(t)
	_, out, _ := carrick(t, "doctor", "--audit", at)
	for _, want := range []string{"all is as planned.\n\nFound and repaired before that:\n", "1m30s ago   app      link br0 was down, wants up, and 1 more\n", "2h0m ago    (host)   sysctl x"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed %q without %q", out, want)
		}
	}

	none := status.Audit{Networks: []status.AuditedNetwork{{Name: "app"}}}
	at = agent{audit: none}.serve(t)
	prints(t, exitFine, "network app has no container on this host: nothing to read.\n", "doctor", "--audit", "app", at)
	prints(t, exitProblem, "carrick: network \"none\" not found\n", "doctor", "--audit", "none", at)
	for _, args := range [][]string{{"doctor", "app"}, {"doctor", "--audit", "a", "b"}, {"doctor", "--nonsense"}} {
		if code, _, stderr := carrick(t, append(args, at)...); code != exitUsage || stderr == "" {
			t.Errorf("carrick %v: code %d, %q", args, code, stderr)
		}
	}
}

func TestDoctorPrints(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := printChecks(&out, []status.Checked{status.OK("store", "consul://x answers"), status.Note("limits", "are low"), status.Bad("engine", "start it", "does not answer")})
	const want = `ok     store    consul://x answers
note   limits   are low
BAD    engine   does not answer: start it

3 things looked at: 1 problem.
`
	if err != nil || out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	// Without an agent there is something to say all the same.
	code, stdout, _ := carrick(t, "doctor", "--api-socket", filepath.Join(t.TempDir(), "none"))
	if code != exitProblem || !strings.Contains(stdout, "no agent answers") || !strings.Contains(stdout, "journalctl -u carrick") || !strings.Contains(stdout, "kernel") {
		t.Errorf("without an agent: code %d, %s", code, stdout)
	}
	at := agent{doctor: []status.Checked{status.OK("store", "answers")}}.serve(t)
	if d := decodes[doctored](t, exitFine, "doctor", at); len(d.Checks) < 4 || d.Checks[0].What != "store" {
		t.Errorf("decoded %+v", d)
	}
}

func TestExamine(t *testing.T) {
	t.Parallel()
	const release = "6.1.0-9-amd64\n"
	const mounted = "36 35 0:4 / /run/netns rw,nosuid shared:5 - tmpfs tmpfs rw\n"
	const apart = "36 35 0:4 / /run/netns rw,nosuid - tmpfs tmpfs rw\n"
	low := map[string]string{"proc/sys/net/ipv4/neigh/default/gc_thresh3": "1024\n"}
	high := map[string]string{"proc/sys/net/ipv4/neigh/default/gc_thresh3": "100000\n"}
	for name, tt := range map[string]struct {
		files map[string]string
		what  string
		state string
		text  string
	}{
		"on the disk":            {map[string]string{"lib/modules/6.1.0-9-amd64/modules.dep": "kernel/net/bridge/bridge.ko.xz:\nkernel/drivers/net/vxlan/vxlan.ko.xz:\nkernel/drivers/net/veth.ko.xz:\n"}, "kernel", status.CheckOK, "6.1.0-9-amd64"},
		"built in and loaded":    {map[string]string{"lib/modules/6.1.0-9-amd64/modules.builtin": "kernel/net/bridge/bridge.ko\n", "proc/modules": "veth 1 0 -\nvxlan 2 0 -\n"}, "kernel", status.CheckOK, ""},
		"not there":              {map[string]string{"lib/modules/6.1.0-9-amd64/modules.dep": "kernel/net/bridge/bridge.ko.xz:\n"}, "kernel", status.CheckBad, "vxlan, veth"},
		"nobody knows":           {nil, "kernel", status.CheckNote, "cannot tell"},
		"shared":                 {map[string]string{"proc/self/mountinfo": mounted}, "namespaces", status.CheckOK, "shared"},
		"not shared":             {map[string]string{"proc/self/mountinfo": apart}, "namespaces", status.CheckBad, "mount --make-shared"},
		"no namespaces yet":      {nil, "namespaces", status.CheckOK, "not there yet"},
		"low limits":             {low, "limits", status.CheckNote, "gc_thresh3=65536"},
		"high limits":            {high, "limits", status.CheckOK, "high enough"},
		"limits of another host": {nil, "limits", status.CheckOK, "nothing to look at"},
	} {
		root := t.TempDir()
		write := func(file, text string) {
			t.Helper()
			path := filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("proc/sys/kernel/osrelease", release)
		for file, text := range tt.files {
			write(file, text)
		}
		checks := examine(root)
		i := slices.IndexFunc(checks, func(c status.Checked) bool { return c.What == tt.what })
		if c := checks[i]; c.State != tt.state || !strings.Contains(c.Text+c.Remedy, tt.text) {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
