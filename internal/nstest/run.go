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
