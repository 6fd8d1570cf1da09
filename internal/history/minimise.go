package history

import (
	"fmt"
	"strings"
	"testing"
)

// tries is how often a shorter history is played before it passes for a good one:
// hosts work concurrently, so a failure does not happen each time.
const tries = 3

// Minimise leaves operations out of a history that failed, as long as it still
// fails in the same kind of way, and returns what is left, with the failure it
// last ended in.
func Minimise(t *testing.T, cfg Config, f *Failure) (string, *Failure) {
	t.Helper()
	ops := draw(cfg.Seed, cfg.Ops)
	left := make([]int, min(f.At+1, len(ops)))
	for i := range left {
		left[i] = i
	}
	var last *Failure
	fails := func(some []int) bool {
		keep := map[int]bool{}
		for _, i := range some {
			keep[i] = true
		}
		c := cfg
		c.Keep, c.Out = func(i int) bool { return keep[i] }, nil
		for n := range tries {
			c.Dir = fmt.Sprintf("%s/min%d", cfg.Dir, n)
			if r := Run(t, c); r.Failure != nil && kindOf(r.Failure.What) == kindOf(f.What) {
				last = r.Failure
				return true
			}
		}
		return false
	}
	for size := len(left) / 2; size > 0; {
		shorter := false
		for from := 0; from < len(left); {
			without := append(append([]int{}, left[:from]...), left[min(from+size, len(left)):]...)
			if fails(without) {
				left, shorter = without, true
				continue
			}
			from += size
		}
		if !shorter || size > len(left) {
			size /= 2
		}
	}
	var b strings.Builder
	for _, i := range left {
		fmt.Fprintf(&b, "%d: %s %d %d %d %d\n", i, ops[i], ops[i].a, ops[i].b, ops[i].c, ops[i].d)
	}
	return b.String(), last
}

// kindOf is what a failure says without whom it says it of: its words without
// digits, up to the first line's end.
func kindOf(what string) string {
	line, rest, _ := strings.Cut(what, "\n")
	if strings.HasPrefix(line, "after ") { // of a quiet moment: what its first finding is about
		line, _, _ = strings.Cut(rest, "\n")
	}
	var out []string
	for w := range strings.FieldsSeq(line) {
		if !strings.ContainsAny(w, "0123456789") {
			out = append(out, w)
		}
	}
	return strings.Join(out, " ")
}
