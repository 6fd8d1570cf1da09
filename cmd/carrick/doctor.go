package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrick-net/carrick/status"
)

// doctored is what a doctor has to say: what was looked at, or an audit.
type doctored struct {
	Checks []status.Checked `json:"checks,omitempty"`
	Audit  *status.Audit    `json:"audit,omitempty"`
}

func (d doctored) fine() bool {
	bad := func(c status.Checked) bool { return c.State == status.CheckBad }
	return !slices.ContainsFunc(d.Checks, bad) && (d.Audit == nil || d.Audit.Fine())
}

func doctorCommand() *cobra.Command {
	var audit bool
	cmd := &cobra.Command{
		Use: "doctor [--audit [NETWORK]]", Short: "What may be wrong on this host, and how to mend it; --audit: read the kernel back now and repair it",
		Long: `What may be wrong on this host, and how to mend it.

Without --audit nothing is changed. It asks the agent about its store, its engine, its
socket, the cluster and its networks, and looks at the kernel itself: so it has something
to say when no agent answers, too. Whether this host's facts agree with the store's is
carrick ipam check.

With --audit the agent reads the kernel state of every network of this host back in
full now, or of one network, and repairs what somebody else changed: a row, a device,
its MTU, a setting. It does so by itself every --audit-interval as well, and when a link
changes. Each line says what was found and what it should have been.

A container whose pair of devices is gone is not mended: it says which container to
restart. What a container does with its own end is not looked for.

Exit code 1 means that something was found, repaired or not; ask again to see whether it
stayed so.`,
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if !audit && len(args) > 0 {
			return errors.New("a network is only for --audit: carrick doctor --audit " + args[0])
		}
		return cobra.MaximumNArgs(1)(cmd, args)
	}
	cmd.Flags().BoolVar(&audit, "audit", false, "read the kernel back in full now, and repair it")
	return verb[doctored]{
		ask: func(ctx context.Context, c *status.Client, args []string) (doctored, error) {
			if audit {
				a, err := c.Audit(ctx, optional(args))
				return doctored{Audit: &a}, err
			}
			return doctored{Checks: append(askDoctor(ctx, c), examine("/")...)}, nil
		},
		text: func(w io.Writer, d doctored) error {
			if d.Audit != nil {
				return printAudit(w, *d.Audit, time.Now())
			}
			return printChecks(w, d.Checks)
		},
		fine: doctored.fine,
	}.on(cmd)
}

// askDoctor asks the agent. That it does not answer is a finding like others.
func askDoctor(ctx context.Context, c *status.Client) []status.Checked {
	checks, err := c.Doctor(ctx)
	if err == nil {
		return checks
	}
	return []status.Checked{status.Bad("agent", "systemctl status carrick; journalctl -u carrick says why it ended; "+
		"running containers go on without it", "%v", err)}
}

func printChecks(w io.Writer, checks []status.Checked) error {
	count := map[string]int{}
	rows := make([][]string, 0, len(checks))
	for _, c := range checks {
		count[c.State]++
		mark := map[string]string{status.CheckOK: "ok", status.CheckNote: "note", status.CheckBad: "BAD"}[c.State]
		text := c.Text
		if c.Remedy != "" {
			text += ": " + c.Remedy
		}
		rows = append(rows, []string{mark, c.What, text})
	}
	if err := columns(w, rows); err != nil {
		return err
	}
	sum := fmt.Sprintf("%s looked at: nothing is wrong.", plural(len(checks), "thing"))
	if n := count[status.CheckBad]; n > 0 {
		sum = fmt.Sprintf("%s looked at: %s.", plural(len(checks), "thing"), plural(n, "problem"))
	}
	_, err := fmt.Fprintf(w, "\n%s\n", sum)
	return err
}

// printAudit prints a line for each finding and one for all.
func printAudit(w io.Writer, a status.Audit, now time.Time) error {
	var rows [][]string
	kinds := map[string]int{}
	read, here, left := 0, "", 0
	for _, n := range a.Networks {
		if !n.Here {
			here = "network " + n.Name + " has no container on this host: nothing to read.\n"
			continue
		}
		read++
		mark := "repaired"
		if n.Error != "" {
			mark = "found"
		}
		for _, o := range n.Objects {
			rows = append(rows, []string{mark, n.Name, o.Text})
		}
		if more := n.Total() - len(n.Objects); more > 0 {
			rows = append(rows, []string{mark, n.Name, fmt.Sprintf("and %d more", more)})
		}
		for _, p := range n.Problems {
			rows = append(rows, []string{"PROBLEM", n.Name, p})
			left++
		}
		if n.Error != "" {
			rows = append(rows, []string{"PROBLEM", n.Name, n.Error + " (the agent goes on trying)"})
			left++
		}
		for k, c := range n.Kinds {
			kinds[k] += c
		}
	}
	if err := columns(w, rows); err != nil {
		return err
	}
	if len(rows) > 0 {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	if here != "" {
		_, err := io.WriteString(w, here)
		return err
	}
	sum := fmt.Sprintf("%s read back in %s: ", plural(read, "network"), took(a.Took))
	switch n := (status.Drift{Kinds: kinds}).Total(); {
	case n > 0:
		sum += fmt.Sprintf("%s had been changed by somebody else (%s).", plural(n, "object"), byKind(kinds))
	case left == 0:
		sum += "all is as planned."
	default:
		sum += "nothing was changed by anybody else."
	}
	if left > 0 {
		sum += fmt.Sprintf(" %s left.", isLeft(left))
	}
	if _, err := fmt.Fprintln(w, sum); err != nil {
		return err
	}
	return printBefore(w, a.Before, now)
}

func isLeft(n int) string {
	if n == 1 {
		return "1 problem is"
	}
	return fmt.Sprintf("%d problems are", n)
}

// printBefore prints what was repaired before anybody asked.
func printBefore(w io.Writer, before []status.Drift, now time.Time) error {
	if len(before) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w, "\nFound and repaired before that:"); err != nil {
		return err
	}
	return columns(w, driftRows(before, now))
}

// driftRows tells of each pass with drift in one line.
func driftRows(ds []status.Drift, now time.Time) [][]string {
	rows := make([][]string, 0, len(ds))
	for _, d := range ds {
		name, text := d.Name, byKind(d.Kinds)
		if d.Network == "" {
			name = "(host)"
		}
		if len(d.Objects) > 0 {
			text = d.Objects[0].Text
		}
		if more := d.Total() - 1; more > 0 {
			text += fmt.Sprintf(", and %d more", more)
		}
		rows = append(rows, []string{"  " + ago(d.At, now), name, text})
	}
	return rows
}

// took rounds a duration to what people read.
func took(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(10 * time.Millisecond)
}

// byKind is "2 fdb, 1 link", the most first.
func byKind(kinds map[string]int) string {
	names := make([]string, 0, len(kinds))
	for k := range kinds {
		names = append(names, k)
	}
	slices.SortFunc(names, func(a, b string) int {
		if kinds[a] != kinds[b] {
			return kinds[b] - kinds[a]
		}
		return strings.Compare(a, b)
	})
	for i, k := range names {
		names[i] = fmt.Sprintf("%d %s", kinds[k], k)
	}
	return strings.Join(names, ", ")
}
