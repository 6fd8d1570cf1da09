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

func (l legacy) set(ctx context.Context, ns netns.Namespace, name string, prefixes []netip.Prefix) (changed int, err error) {
	err = netns.Do(ns, func() error {
		run, rules, there, err := l.rules(ctx)
		if err != nil || !there {
			return err
		}
		missing := slices.Clone(prefixes)
		end := slices.Index(rules, "-j RETURN") // what ends the chain for everything
		var stray []int
		for i, r := range rules {
			if n, ours := nameIn(r); !ours || n != name {
				continue
			}
			k := slices.IndexFunc(missing, func(p netip.Prefix) bool { return r == spec(name, p) })
			if k >= 0 && (end < 0 || i < end) {
				missing = slices.Delete(missing, k, k+1)
				continue
			}
			stray = append(stray, i)
		}
		for _, i := range slices.Backward(stray) { // numbers of those before stay
			if _, err := run("-D", UserChain, strconv.Itoa(i+1)); err != nil {
				return err
			}
			changed++
			if i < end {
				end--
			}
		}
		for _, p := range missing {
			args := []string{"-A", UserChain}
			if end >= 0 {
				args = []string{"-I", UserChain, strconv.Itoa(end + 1)}
				end++
			}
			if _, err := run(append(args, "-s", p.String(), "-d", p.String(), "-m", "comment", "--comment", acceptComment+name, "-j", "ACCEPT")...); err != nil {
				return err
			}
			changed++
		}
		return nil
	})
	return changed, err
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
