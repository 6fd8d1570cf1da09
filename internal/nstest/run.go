package nstest

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/netns"
)

// Run runs a command inside ns and returns its output, both streams. The
// command line is split at spaces. A command that fails, or is missing, fails
// the test.
func Run(t testing.TB, ns netns.Namespace, line string) string {
	t.Helper()
	out, err := Try(ns, line)
	if err != nil {
		t.Fatalf("in %s: %s: %v\n%s", ns.Name(), line, err, out)
	}
	return out
}

// Try is Run for commands that may fail.
func Try(ns netns.Namespace, line string) (string, error) {
	args := strings.Fields(line)
	var out []byte
	// A child inherits the namespace of the thread that forks it.
	err := netns.Do(ns, func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	return string(out), err
}

// Shell is Run for a line of sh, with its quotes.
func Shell(t testing.TB, ns netns.Namespace, script string) string {
	t.Helper()
	var out []byte
	err := netns.Do(ns, func() (err error) {
		out, err = exec.Command("sh", "-ec", script).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("in %s: %s: %v\n%s", ns.Name(), script, err, out)
	}
	return string(out)
}

// Batch runs lines that begin with ip by one process, in which each is far cheaper,
// up to the first that fails; that fails the test.
func Batch(t testing.TB, ns netns.Namespace, lines ...string) {
	t.Helper()
	var in strings.Builder
	for _, line := range lines {
		args, ok := strings.CutPrefix(line, "ip ")
		if !ok {
			t.Fatalf("batch of ip: %q does not begin with ip", line)
		}
		in.WriteString(args + "\n")
	}
	var out []byte
	err := netns.Do(ns, func() (err error) {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(in.String())
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("in %s: ip -batch: %v\n%s\nof\n%s", ns.Name(), err, out, in.String())
	}
}
