package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrick-net/carrick/status"
)

func statusCommand() *cobra.Command {
	return verb[status.Status]{
		ask:  func(ctx context.Context, c *status.Client, _ []string) (status.Status, error) { return c.Status(ctx) },
		text: func(w io.Writer, s status.Status) error { return printStatus(w, s, time.Now()) },
		fine: status.Status.Healthy,
	}.on(&cobra.Command{
		Use: "status", Short: "What this host's agent does, and what needs attention (exit code 1 if anything)", Args: cobra.NoArgs,
		Long: `What this host's agent does, and what needs attention.

Exit code 1 means that something does: the store or the engine does not answer, a
container is not connected, facts have not reached the store for long, the store is
being recovered, this host was removed from the cluster, or two hosts hold what only
one can have. /healthz says the same to machines.`,
	})
}

func printStatus(w io.Writer, s status.Status, now time.Time) error {
	err := lines(w,
		[2]string{"node", fmt.Sprintf("%s (id %s)", s.Node, s.Host)},
		[2]string{"VTEP", fmt.Sprintf("%s on %s, MTU %d", s.VTEP, s.Device, s.MTU)},
		[2]string{"store", link(s.Store, now)},
		[2]string{"epoch", epoch(s.Epoch, now)},
		[2]string{"engine", link(s.Engine, now)},
		[2]string{"here", plural(s.Networks, "network") + ", " + plural(s.Local, "endpoint")},
		[2]string{"names", names(s.Names)},
		[2]string{"published", published(s, now)},
		[2]string{"fence", fence(s)},
		[2]string{"drift", drift(s)},
		[2]string{"audits", audits(s.Audits, now)},
		[2]string{"version", s.Version},
	)
	if err == nil && len(s.Recent) > 0 {
		if _, err = fmt.Fprintln(w, "\nRepaired lately:"); err == nil {
			err = columns(w, driftRows(s.Recent, now))
		}
	}
	if err != nil {
		return err
	}
	if s.Healthy() {
		_, err = fmt.Fprintln(w, "\nNothing needs attention.")
		return err
	}
	_, err = fmt.Fprintf(w, "\nNeeds attention:\n  %s\n", strings.Join(s.Problems, "\n  "))
	return err
}

func names(n status.Names) string {
	if n.Answering+n.Waiting+n.Failed == 0 && n.Gossip == "" && len(n.Down) == 0 {
		return ""
	}
	out := "answered in " + plural(n.Answering, "container")
	if n.Failed > 0 {
		out += fmt.Sprintf(", not in %d", n.Failed)
	}
	out += fmt.Sprintf("; %d answers, %d questions passed on", n.Answered, n.Forwarded)
	if len(n.Down) > 0 {
		out += "; down: " + strings.Join(n.Down, ", ")
	}
	if n.Gossip != "" {
		out += "; no gossip: " + n.Gossip
	}
	return out
}

func drift(s status.Status) string {
	kinds := ""
	if len(s.DriftKinds) > 0 {
		kinds = " (" + byKind(s.DriftKinds) + ")"
	}
	return fmt.Sprintf("%d kernel objects repaired since %s%s", s.Drift, s.Started.Format(time.DateTime), kinds)
}

func audits(r status.Reading, now time.Time) string {
	switch {
	case r.Networks == 0:
		return ""
	case r.Unread > 0 || r.Oldest.IsZero():
		return fmt.Sprintf("each network every %s, %d not read in full yet", r.Every, r.Unread)
	}
	return fmt.Sprintf("each network every %s, the last of them read %s", r.Every, ago(r.Oldest, now))
}

func link(l status.Link, now time.Time) string {
	switch {
	case l.URL == "":
		return "not used"
	case l.OK:
		return fmt.Sprintf("%s, answers, heard from %s", l.URL, ago(l.Contact, now))
	case l.Contact.IsZero():
		return fmt.Sprintf("%s, has not answered since the agent started: %s", l.URL, l.Error)
	}
	return fmt.Sprintf("%s, last answered %s, so what is known of other hosts is that old: %s", l.URL, ago(l.Contact, now), l.Error)
}

func epoch(e status.Epoch, now time.Time) string {
	switch e.State {
	case status.EpochNormal:
		return fmt.Sprintf("normal, incarnation %d", e.Num)
	case status.EpochRecovering:
		waiting := "nobody any more"
		if len(e.Wait) > 0 {
			waiting = strings.Join(e.Wait, ", ")
		}
		return fmt.Sprintf("recovering, began %s, waits for %s", ago(e.Since, now), waiting)
	}
	return "not heard of yet"
}

func published(s status.Status, now time.Time) string {
	if s.Pending == 0 {
		return "everything"
	}
	since := ""
	if !s.PendingSince.IsZero() {
		since = ", since " + s.PendingSince.Local().Format(time.DateTime) + " (" + ago(s.PendingSince, now) + ")"
	}
	what := plural(s.Pending, "network")
	if s.Unpublished > 0 {
		what = plural(s.Unpublished, "endpoint") + " of " + what
	}
	return "not yet: " + what + since
}

func fence(s status.Status) string {
	if !s.Fenced {
		return ""
	}
	return fmt.Sprintf("gives out no address until it has its own again; %s cut off", plural(len(s.Cut), "endpoint"))
}

// ago says how long before now something was.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "at a time unknown"
	}
	return age(now.Sub(t)) + " ago"
}

// age prints a duration as people say it, in its two largest units.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}
