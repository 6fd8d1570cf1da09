package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick/netns"
)

// legacy is UserChain in iptables of before nftables, which only their own program can
// change: true of IPv4, false of IPv6.
type legacy bool

// tables is the file that names the tables a namespace has.
func (l legacy) tables() string {
	if l {
		return "/proc/thread-self/net/ip_tables_names"
	}
	return "/proc/thread-self/net/ip6_tables_names"
}

// rules lists the rules of UserChain in the order of the chain, as iptables -S prints
// them, without the chain; false if there is none.
func (l legacy) rules(ctx context.Context) (run func(...string) (string, error), rules []string, there bool, err error) {
	names, err := os.ReadFile(l.tables())
	if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains(strings.Fields(string(names)), "filter") {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, err
	}
	program, err := l.program(ctx)
	if err != nil {
		return nil, nil, false, err
	}
	run = func(args ...string) (string, error) {
		args = append([]string{"-w", "5"}, args...)
		var complaints bytes.Buffer
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stderr = &complaints
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(complaints.Bytes()))
		}
		return string(out), nil
	}
	all, err := run("-S")
	if err != nil {
		return nil, nil, false, err
	}
	for line := range strings.Lines(all) {
		line = strings.TrimSpace(line)
		if line == "-N "+UserChain {
			there = true
		}
		if rule, ok := strings.CutPrefix(line, "-A "+UserChain+" "); ok {
			rules = append(rules, rule)
		}
	}
	return run, rules, there, nil
}

// program is the one that speaks with legacy tables.
func (l legacy) program(ctx context.Context) (string, error) {
	name := "ip6tables"
	if l {
		name = "iptables"
	}
	for _, n := range []string{name + "-legacy", name} {
		path, err := exec.LookPath(n)
		if err != nil {
			continue
		}
		if version, err := exec.CommandContext(ctx, path, "--version").Output(); err == nil && !bytes.Contains(version, []byte("nf_tables")) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrLegacy)
}

func (l legacy) set(ctx context.Context, ns netns.Namespace, name string, prefixes []netip.Prefix) (changed int, there bool, err error) {
	err = netns.Do(ns, func() error {
		run, rules, ok, err := l.rules(ctx)
		if there = ok; err != nil || !ok {
			return err
		}
		end := slices.Index(rules, "-j RETURN") // what ends the chain for everything
		if end < 0 {
			end = len(rules)
		}
		var ours []int
		for at, r := range rules {
			if n, is := nameIn(r); is && n == name {
				ours = append(ours, at)
			}
		}
		if right(rules, end, ours, name, prefixes) {
			return nil
		}
		// All of them anew, by what they say: numbers are others' as soon as somebody inserts
		// a rule, and of two that say the same the wrong one might go.
		place := end
		for _, at := range ours {
			if _, err := run(append([]string{"-D", UserChain}, words(rules[at])...)...); err != nil {
				return err
			}
			changed++
			if at < end {
				place--
			}
		}
		for _, p := range prefixes {
			place++
			if _, err := run(append([]string{"-I", UserChain, strconv.Itoa(place)}, words(spec(name, p))...)...); err != nil {
				return err
			}
			changed++
		}
		return nil
	})
	return changed, there, err
}

// right says whether the rules of a name, which are at some places of the chain, are those
// of some prefixes, before its end and after what others say.
func right(rules []string, end int, ours []int, name string, prefixes []netip.Prefix) bool {
	if len(ours) != len(prefixes) {
		return false
	}
	for _, p := range prefixes {
		if !slices.ContainsFunc(ours, func(at int) bool { return at < end && rules[at] == spec(name, p) }) {
			return false
		}
	}
	for _, at := range ours {
		if slices.ContainsFunc(rules[at:end], func(x string) bool { _, ours := nameIn(x); return !ours }) {
			return false
		}
	}
	return true
}

// spec is what iptables -S prints of an accept, after the chain.
func spec(name string, p netip.Prefix) string {
	return fmt.Sprintf("-s %s -d %s -m comment --comment %q -j ACCEPT", p, p, acceptComment+name)
}

// words are the arguments that a rule was printed of: those with spaces are in quotes.
func words(rule string) (out []string) {
	for i, part := range strings.Split(rule, `"`) {
		if i%2 == 1 {
			out = append(out, part)
			continue
		}
		out = append(out, strings.Fields(part)...)
	}
	return out
}

func (l legacy) names(ctx context.Context, ns netns.Namespace) (names []string, err error) {
	err = netns.Do(ns, func() error {
		_, rules, _, err := l.rules(ctx)
		for _, r := range rules {
			if n, ours := nameIn(r); ours {
				names = append(names, n)
			}
		}
		return err
	})
	return names, err
}

// nameIn is nameOf for a rule as iptables -S prints it.
func nameIn(rule string) (string, bool) {
	_, rest, ours := strings.Cut(rule, `--comment "`+acceptComment)
	name, _, _ := strings.Cut(rest, `"`)
	return name, ours
}
