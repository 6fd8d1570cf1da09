package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const stream = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestGood"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"    a_test.go:3: chatter\n"}
{"Action":"pass","Package":"m/a","Test":"TestGood","Elapsed":0.1}
{"Action":"run","Package":"m/a","Test":"TestSkipped"}
{"Action":"output","Package":"m/a","Test":"TestSkipped","Output":"=== RUN   TestSkipped\n"}
{"Action":"output","Package":"m/a","Test":"TestSkipped","Output":"    a_test.go:9: needs a kernel with frobnication\n"}
{"Action":"output","Package":"m/a","Test":"TestSkipped","Output":"--- SKIP: TestSkipped (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestSkipped","Elapsed":0}
{"Action":"output","Package":"m/a","Output":"PASS\n"}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.123s\n"}
{"Action":"pass","Package":"m/a","Elapsed":0.123}
`

const failing = `{"Action":"run","Package":"m/b","Test":"TestBad"}
{"Action":"output","Package":"m/b","Test":"TestBad","Output":"    b_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"m/b","Test":"TestBad","Elapsed":0.1}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\t0.2s\n"}
{"Action":"fail","Package":"m/b","Elapsed":0.2}
`

func report(t *testing.T, file, tier, in string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run([]string{"run", tier, file}, strings.NewReader(in), &out)
	return out.String(), err
}

// TestGreen: chatter is kept back, reasons for skips come out, and the last line
// is go test's.
func TestGreen(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "results")
	out, err := report(t, file, "unit", stream)
	if err != nil || out != "ok  \tm/a\t0.123s\n" {
		t.Errorf("got %q, %v", out, err)
	}
	for _, args := range [][]string{{"pass", "lint", file}, {"skip", "kernel", "not root", file}} {
		if err := run(args, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	var sum bytes.Buffer
	if err := run([]string{"summary", file}, nil, &sum); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"unit         1 passed, 0 failed, 1 skipped",
		"lint         passed",
		"kernel       SKIPPED: not root",
		"  needs a kernel with frobnication\n    a TestSkipped\n",
	} {
		if !strings.Contains(sum.String(), want) {
			t.Errorf("no %q in:\n%s", want, &sum)
		}
	}
	if !strings.HasSuffix(sum.String(), "\nok  \tm/a\t0.123s\n") {
		t.Errorf("the end is not go test's:\n%s", &sum)
	}
}

// TestRed: every way of failing is a failure.
func TestRed(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ in, want string }{
		"a test":      {failing, "b_test.go:3: got 1, want 2"},
		"nothing ran": {"", "tier unit ran no test"},
		"does not build": {`{"ImportPath":"m/c","Action":"build-output","Output":"c.go:1:1: syntax error\n"}
{"ImportPath":"m/c","Action":"build-fail"}
{"Action":"output","Package":"m/c","Output":"FAIL\tm/c [build failed]\n"}
{"Action":"fail","Package":"m/c","Elapsed":0,"FailedBuild":"m/c"}
`, "c.go:1:1: syntax error"},
		"a crash": {`{"Action":"run","Package":"m/d","Test":"TestHung"}
{"Action":"output","Package":"m/d","Test":"TestHung","Output":"panic: test timed out after 1s\n"}
{"Action":"output","Package":"m/d","Output":"FAIL\tm/d\t1.0s\n"}
{"Action":"fail","Package":"m/d","Elapsed":1}
`, "panic: test timed out"},
		"go itself": {"go: cannot find main module\n", "cannot find main module"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "results")
			out, err := report(t, file, "unit", tt.in)
			if !errors.Is(err, errFailed) || !strings.Contains(out, tt.want) {
				t.Errorf("got %q, %v", out, err)
			}
			// A green tier after it does not hide it.
			if _, err := report(t, file, "kernel", stream); err != nil {
				t.Fatal(err)
			}
			var sum bytes.Buffer
			if err := run([]string{"summary", file}, nil, &sum); !errors.Is(err, errFailed) {
				t.Errorf("summary: %v\n%s", err, &sum)
			}
		})
	}
}

// TestNothingAtAll is no success.
func TestNothingAtAll(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "results")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"summary", file}, nil, &bytes.Buffer{}); err == nil {
		t.Error("an empty run passed")
	}
	if err := run([]string{"what"}, nil, nil); err == nil || !strings.Contains(err.Error(), "usage") {
		t.Errorf("got %v", err)
	}
}
