// Command testreport turns `go test -json` into what a person wants to read, and
// several runs of it into one summary.
//
//	go test -json ./... | testreport run TIER FILE   print as it goes, append results to FILE
//	testreport skip TIER REASON FILE                 note that a whole tier did not run
//	testreport pass|fail TIER FILE                   note a tier that is not go test
//	testreport summary FILE                          what ran, what was skipped and why
//
// run and summary exit with 1 if anything failed, and so does a run without a
// single test: a tier that tests nothing is a mistake in its list of packages.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"sort"
	"strings"
)

// event is one line of test2json (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output
	Test       string
	Output     string
	Elapsed    float64
}

// result is one line of the results file.
type result struct {
	Tier   string
	Kind   string // "package", "test" or "tier"
	Name   string
	Action string // pass, fail or skip
	Detail string // why it was skipped; a package's line
}

var errFailed = errors.New("failed")

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout)
	if err != nil && !errors.Is(err, errFailed) {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
	if err != nil {
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 3 && args[0] == "run":
		results, err := read(in, out, args[1])
		return errors.Join(appendTo(args[2], results), err)
	case len(args) == 4 && args[0] == "skip":
		return appendTo(args[3], []result{{args[1], "tier", args[1], "skip", args[2]}})
	case len(args) == 3 && (args[0] == "pass" || args[0] == "fail"):
		return appendTo(args[2], []result{{args[1], "tier", args[1], args[0], ""}})
	case len(args) == 2 && args[0] == "summary":
		b, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		return summary(b, out)
	}
	return errors.New("usage: run TIER FILE | skip TIER REASON FILE | pass|fail TIER FILE | summary FILE")
}

func appendTo(name string, results []result) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			_ = f.Close()
			return err
		}
	}
	return f.Close()
}

// read follows one `go test -json`. Output of tests is shown when they fail.
func read(in io.Reader, out io.Writer, tier string) ([]result, error) {
	var results []result
	type key struct{ pkg, test string }
	buffered := make(map[key][]string)
	tests, failed := 0, false

	s := bufio.NewScanner(in)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			fmt.Fprintln(out, s.Text()) // go's own words, as of a module that is missing
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "output":
			buffered[k] = append(buffered[k], e.Output)
		case "pass", "fail", "skip":
			lines := buffered[k]
			delete(buffered, k)
			if e.Test != "" {
				tests++
				results = append(results, result{tier, "test", e.Package + " " + e.Test, e.Action, reason(lines)})
				if e.Action == "fail" {
					fmt.Fprint(out, strings.Join(lines, ""))
				}
				continue
			}
			line := packageLine(e, lines)
			fmt.Fprintln(out, line)
			if e.Action == "fail" {
				failed = true
				// What did not belong to a test: a panic, a data race at exit.
				for _, l := range lines {
					if !verdict.MatchString(l) {
						fmt.Fprint(out, l)
					}
				}
				// Tests that a crash or the timeout left without an end.
				for other, l := range buffered {
					if other.pkg == e.Package {
						fmt.Fprint(out, strings.Join(l, ""))
						delete(buffered, other)
					}
				}
			}
			results = append(results, result{tier, "package", e.Package, e.Action, line})
		}
	}
	if err := s.Err(); err != nil {
		return results, err
	}
	if tests == 0 && !failed {
		fmt.Fprintf(out, "tier %s ran no test\n", tier)
		results = append(results, result{tier, "tier", tier, "fail", "no test ran"})
		failed = true
	}
	if failed {
		return results, errFailed
	}
	return results, nil
}

var (
	// verdict matches the lines with which go test ends a package.
	verdict = regexp.MustCompile(`^(ok|FAIL|---|\?|PASS|coverage:|exit status)\b?`)
	// frame matches what go test prints around a test's own words.
	frame = regexp.MustCompile(`^\s*(=== |--- )`)
	// place matches the file and line before a test's own words.
	place = regexp.MustCompile(`^\s*\S+_test\.go:\d+: |^\s*\S+\.go:\d+: `)
)

// packageLine is the line go test prints for a package, or one like it.
func packageLine(e event, lines []string) string {
	for i := len(lines) - 1; i >= 0; i-- {
		l := strings.TrimRight(lines[i], "\n")
		if strings.HasPrefix(l, "ok ") || strings.HasPrefix(l, "FAIL\t") || strings.HasPrefix(l, "?") {
			return l
		}
	}
	word := map[string]string{"pass": "ok  ", "fail": "FAIL", "skip": "?   "}[e.Action]
	return fmt.Sprintf("%s\t%s\t%.3fs", word, e.Package, e.Elapsed)
}

// reason is what a test said, in one line.
func reason(lines []string) string {
	var words []string
	for _, l := range lines {
		if !frame.MatchString(l) {
			words = append(words, strings.TrimSpace(place.ReplaceAllString(l, "")))
		}
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

// summary prints all tiers. The packages' lines come last, as go test has them.
func summary(file []byte, out io.Writer) error {
	type counts struct{ pass, fail, skip int }
	var tiers []string
	byTier := make(map[string]*counts)
	whole := make(map[string]result)
	skipped := make(map[string][]string) // by reason
	var failures, lines []string
	failed := false

	dec := json.NewDecoder(strings.NewReader(string(file)))
	for dec.More() {
		var r result
		if err := dec.Decode(&r); err != nil {
			return fmt.Errorf("results: %w", err)
		}
		c := byTier[r.Tier]
		if c == nil {
			c = new(counts)
			byTier[r.Tier] = c
			tiers = append(tiers, r.Tier)
		}
		failed = failed || r.Action == "fail"
		switch r.Kind {
		case "tier":
			whole[r.Tier] = r
		case "package":
			lines = append(lines, r.Detail)
		case "test":
			switch r.Action {
			case "pass":
				c.pass++
			case "fail":
				c.fail++
				failures = append(failures, r.Name)
			case "skip":
				c.skip++
				skipped[r.Detail] = append(skipped[r.Detail], r.Name)
			}
		}
	}
	if len(tiers) == 0 {
		return errors.New("nothing ran")
	}

	fmt.Fprintln(out, "\nWhat ran:")
	for _, t := range tiers {
		c := byTier[t]
		switch w, ok := whole[t]; {
		case ok && w.Action == "skip":
			fmt.Fprintf(out, "  %-12s SKIPPED: %s\n", t, w.Detail)
		case ok && w.Action == "fail":
			fmt.Fprintf(out, "  %-12s FAILED %s\n", t, w.Detail)
		case ok:
			fmt.Fprintf(out, "  %-12s passed\n", t)
		default:
			fmt.Fprintf(out, "  %-12s %d passed, %d failed, %d skipped\n", t, c.pass, c.fail, c.skip)
		}
	}
	if len(skipped) > 0 {
		fmt.Fprintln(out, "\nWhat was skipped, and why:")
		var reasons []string
		for r := range skipped {
			reasons = append(reasons, r)
		}
		sort.Strings(reasons)
		for _, r := range reasons {
			why := r
			if why == "" {
				why = "(no reason given)"
			}
			fmt.Fprintf(out, "  %s\n", why)
			for _, n := range skipped[r] {
				fmt.Fprintf(out, "    %s\n", short(n))
			}
		}
	}
	if len(failures) > 0 {
		fmt.Fprintln(out, "\nWhat failed:")
		for _, n := range failures {
			fmt.Fprintf(out, "  %s\n", short(n))
		}
	}
	fmt.Fprintln(out)
	for _, l := range lines {
		fmt.Fprintln(out, l)
	}
	if failed {
		return errFailed
	}
	return nil
}

// short leaves the last word of an import path before a test's name.
func short(name string) string {
	pkg, test, ok := strings.Cut(name, " ")
	if !ok {
		return name
	}
	return path.Base(pkg) + " " + test
}
