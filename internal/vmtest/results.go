package vmtest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// What go test says of a test.
const (
	pass = "PASS"
	fail = "FAIL"
	skip = "SKIP"
)

// outcome is what a test in the guest came to.
type outcome struct {
	name    string // as t.Name has it
	leaf    string // as its parent called it
	verdict string
	log     strings.Builder
	subs    []*outcome // in the order in which they began
}

var (
	// started is the line before what a test logs from here on.
	started = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)$`)
	paused  = regexp.MustCompile(`^=== PAUSE +\S+$`)
	ended   = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
)

// parse reads what a test binary prints with -test.v about the one test it ran. An
// error says that there is no verdict, or that the exit code does not agree with it,
// which is how data races and leaked processes are told.
func parse(test, out string, code int) (*outcome, error) {
	var top *outcome
	known := map[string]*outcome{}
	find := func(name string) *outcome {
		if o := known[name]; o != nil {
			return o
		}
		o := &outcome{name: name, leaf: name}
		known[name] = o
		for at := strings.LastIndex(name, "/"); at >= 0; at = strings.LastIndex(name[:at], "/") {
			if parent := known[name[:at]]; parent != nil {
				o.leaf = name[at+1:]
				parent.subs = append(parent.subs, o)
				break
			}
		}
		if name == test {
			top = o
		}
		return o
	}
	var current *outcome
	for line := range strings.Lines(out) {
		text := strings.TrimRight(line, "\n")
		if m := started.FindStringSubmatch(text); m != nil {
			current = find(m[1])
		} else if m := ended.FindStringSubmatch(text); m != nil {
			find(m[2]).verdict = m[1]
		} else if current != nil && !paused.MatchString(text) && text != pass && text != fail {
			current.log.WriteString(line)
		}
	}
	switch {
	case top == nil:
		return nil, fmt.Errorf("%s did not run in the guest (exit code %d)", test, code)
	case top.verdict == "":
		return nil, fmt.Errorf("%s did not end in the guest (exit code %d)", test, code)
	case code != 0 && top.verdict != fail:
		return nil, fmt.Errorf("%s has the verdict %s in the guest, but its exit code is %d", test, top.verdict, code)
	}
	return top, nil
}

// replay makes what was found t's own results.
func (o *outcome) replay(t *testing.T) {
	t.Helper()
	if o.log.Len() > 0 {
		t.Logf("in the guest:\n%s", o.log.String())
	}
	for _, sub := range o.subs {
		t.Run(sub.leaf, sub.replay)
	}
	switch o.verdict {
	case pass:
	case skip:
		t.Skipf("skipped in the guest:\n%s", o.log.String())
	default:
		t.Errorf("failed in the guest")
	}
}
