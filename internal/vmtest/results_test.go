package vmtest

import (
	"strings"
	"testing"
)

func TestResultsOfAGuest(t *testing.T) {
	t.Parallel()
	out := `=== RUN   TestX
    x_test.go:1: before
=== RUN   TestX/a
=== PAUSE TestX/a
=== RUN   TestX/b/c
    x_test.go:2: in c
=== CONT  TestX/a
    x_test.go:3: in a
--- FAIL: TestX (0.10s)
    --- FAIL: TestX/a (0.00s)
    --- PASS: TestX/b/c (0.00s)
FAIL
`
	top, err := parse("TestX", out, 1)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range append([]*outcome{top}, top.subs...) {
		got = append(got, o.leaf+" "+o.verdict+" "+strings.TrimSpace(o.log.String()))
	}
	want := "TestX FAIL x_test.go:1: before\na FAIL x_test.go:3: in a\nb/c PASS x_test.go:2: in c"
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
}

// A binary that dies, runs nothing, or has a bad end in spite of its tests is never
// taken for one that passed.
func TestResultsThatAreNone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, out string
		code      int
		want      string
	}{
		{"nothing ran", "testing: warning: no tests to run\nPASS\n", 0, "did not run"},
		{"a panic", "=== RUN   TestX\npanic: no\n\ngoroutine 7 [running]:\n", 2, "did not end"},
		{"a race at the end", "=== RUN   TestX\n--- PASS: TestX (0.00s)\nPASS\n", 66, "exit code is 66"},
		{"no output", "", 0, "did not run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if _, err := parse("TestX", c.out, c.code); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
}

func TestPatternOfAGuest(t *testing.T) {
	t.Parallel()
	for asked, want := range map[string]string{
		"":              "^TestX$",
		"TestX":         "^TestX$",
		"X/^a$/b":       "^TestX$/^a$/b",
		"TestX/a|TestY": "^TestX$",
	} {
		if p := pattern("TestX", asked); p != want {
			t.Errorf("-run %q: %q, not %q", asked, p, want)
		}
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	if got, want := quote(`a'b "$c"`), `'a'\''b "$c"'`; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}
