package vmtest

import (
	"fmt"
	"strings"
	"testing"
)

// How long a panic's trace is depends on where the kernel was: its first line is shown
// all the same, and what came before.
func TestTheEndOfAKernelsLog(t *testing.T) {
	t.Parallel()
	lines := func(name string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "[    1.0] %s %d\n", name, i)
		}
		return b.String()
	}
	const panicLine = "[    2.0] Kernel panic - not syncing: for a test\n"
	for _, c := range []struct {
		name, log       string
		wants, wantsNot []string
	}{
		{"no panic", lines("boot", 500), []string{"boot 499", "boot 460"}, []string{"boot 459\n"}},
		{"a short log", lines("boot", 3), []string{"boot 0", "boot 2"}, nil},
		{"a short trace", lines("boot", 500) + panicLine + lines("trace", 2), []string{"boot 480", "boot 499", "for a test", "trace 1"}, []string{"boot 479\n"}},
		{"a long trace", lines("boot", 500) + panicLine + lines("trace", 200), []string{"boot 499", "for a test", "trace 18"}, []string{"trace 19\n"}},
		{"a panic at once", panicLine + lines("trace", 200), []string{"for a test", "trace 38"}, []string{"trace 39\n"}},
	} {
		got := end(c.log) + "\n"
		for _, w := range c.wants {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %q in\n%s", c.name, w, got)
			}
		}
		for _, w := range c.wantsNot {
			if strings.Contains(got, w) {
				t.Errorf("%s: %q in\n%s", c.name, w, got)
			}
		}
		if n := strings.Count(got, "\n"); n > logLines {
			t.Errorf("%s: %d lines", c.name, n)
		}
	}
}
