package vmtest

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/nstest"
)

// envGuest is 1 for a test binary in a guest.
const envGuest = "CARRICK_VM_GUEST"

// Times before the test's own deadline, so that whoever is late is named by the one
// around it: first the guest's test, which prints its goroutines, then the guest.
const (
	defaultTimeout = 10 * time.Minute
	guestMargin    = 40 * time.Second
	bootMargin     = 10 * time.Second

	// guestParallel is how many parallel subtests a guest runs at a time: on an emulated
	// CPU as well most of what they do is wait, and go test's default is the CPUs.
	guestParallel = "8"
)

// InGuest says whether this process is a test in a guest.
func InGuest() bool { return os.Getenv(envGuest) != "" }

// Needs says what a test needs of the kernel, and of a guest if it comes to that.
type Needs struct {
	Features []Feature
	Writable []string // directories that it writes to, relative to the working directory or absolute
	Memory   int      // of a guest, MiB; Machine's default unless given
	// Cards is how many network cards with virtual functions it needs; see [CardMAC]. A
	// test that needs any runs in a guest on every machine: it would not stop at a spare
	// one.
	Cards int
}

// Run runs body if the kernel has what it needs. If not, the calling test as a
// whole is run in a [Machine] by this very binary, where its Run then calls body;
// what it found becomes this test's results, subtest by subtest, with the logs.
//
// It is called by a test, not by a subtest, first of all: what the test does
// before is done on both kernels. Each call may cost a boot, so tests that have no
// reason to be apart are subtests of one. Without root the test is skipped, or fails,
// as [nstest.RequireRoot] says; as root it never is skipped for want of anything.
// Flags that the binary defines itself are passed on, and so are -short, -skip and
// the variables CARRICK_*; with a part of -run that names subtests only those are
// run.
func Run(t *testing.T, n Needs, body func(t *testing.T)) {
	t.Helper()
	if strings.Contains(t.Name(), "/") {
		t.Fatalf("vmtest.Run: %s is a subtest; call it in the test", t.Name())
	}
	nstest.RequireRoot(t)
	missing := Missing(t, n.Features...)
	if len(missing) == 0 && (n.Cards == 0 || InGuest()) {
		body(t)
		return
	}
	if n.Cards > 0 {
		missing = append(missing, "network cards to play with")
	}
	if InGuest() {
		t.Fatalf("the guest's kernel lacks %s", strings.Join(missing, "; "))
	}
	t.Logf("this kernel lacks %s: going on in a virtual machine", strings.Join(missing, "; "))
	out, res, err := inGuest(t, n)
	if err != nil {
		t.Fatalf("%v\nThe test said until then:\n%s", err, out)
	}
	found, err := parse(t.Name(), out, res.Code)
	if err != nil {
		t.Fatalf("%v; its output was:\n%s\nIts kernel said:\n%s", err, out, end(res.Log))
	}
	if found.verdict == fail && res.Log != "" {
		t.Logf("the guest's kernel said:\n%s", end(res.Log))
	}
	found.replay(t)
}

// inGuest runs this test's binary in a guest, for this test alone.
func inGuest(t *testing.T, n Needs) (string, Result, error) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	boots, err := bootDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	m := Machine{Dir: boots, Memory: n.Memory}
	if n.Cards > 0 {
		if m.QEMU, err = installed(t.Context(), dir, "qemu", envQEMU); err != nil {
			t.Fatal(err)
		}
		m = m.withCards(n.Cards)
	}
	for _, w := range n.Writable {
		if !filepath.IsAbs(w) {
			w = filepath.Join(dir, w)
		}
		m.Writable = append(m.Writable, w)
	}
	deadline, ok := t.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultTimeout)
	}
	ctx, cancel := context.WithDeadline(t.Context(), deadline.Add(-bootMargin))
	defer cancel()
	within := max(time.Until(deadline.Add(-guestMargin)), time.Second)
	var out bytes.Buffer
	res, err := m.Run(ctx, Command{
		Args: append([]string{
			binary, "-test.v", "-test.count=1", "-test.paniconexit0", "-test.parallel=" + guestParallel,
			"-test.timeout=" + within.Round(time.Second).String(),
			"-test.run=" + pattern(t.Name(), flag.Lookup("test.run").Value.String()),
		}, passedOn()...),
		Dir: dir, Env: environment(), Out: &out,
	})
	return out.String(), res, err
}

// pattern is a test's -test.run in the guest: the test's name, and the subtests
// that were asked for here.
func pattern(test, asked string) string {
	p := "^" + regexp.QuoteMeta(test) + "$"
	if _, sub, ok := strings.Cut(asked, "/"); ok && !strings.Contains(asked, "|") {
		p += "/" + sub
	}
	return p
}

// passedOn is the flags that mean the same in the guest.
func passedOn() []string {
	var args []string
	flag.Visit(func(f *flag.Flag) {
		switch {
		case !strings.HasPrefix(f.Name, "test."), f.Name == "test.short", f.Name == "test.skip":
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

// environment is what a test in the guest gets of this process's.
func environment() []string {
	env := []string{envGuest + "=1"}
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "PATH", "HOME", "GORACE", "GODEBUG", "GOTRACEBACK":
			env = append(env, kv)
		default:
			if strings.HasPrefix(key, "CARRICK_") {
				env = append(env, kv)
			}
		}
	}
	return env
}
