package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrick-net/carrick/status"
)

func nodeCommand() *cobra.Command {
	cmd := group("node", "The cluster's hosts")
	cmd.AddCommand(
		verb[[]status.Node]{
			ask:  func(ctx context.Context, c *status.Client, _ []string) ([]status.Node, error) { return c.Nodes(ctx) },
			text: func(w io.Writer, nodes []status.Node) error { return printNodes(w, nodes, time.Now()) },
		}.on(&cobra.Command{
			Use: "ls", Short: "List the cluster's hosts", Args: cobra.NoArgs,
			Long: `List the cluster's hosts.

  alive     its lease is held
  lost      its lease ended: its names are gone, its addresses stay its own
  removed   by carrick node rm: its addresses become free
  fenced    removed, back, and asking for its addresses again
  waited for: the store lost its past, and this host has not yet written its part
            again; start its agent, or remove it if it is gone for good`,
		}), nodeRm())
	return cmd
}

func printNodes(w io.Writer, nodes []status.Node, now time.Time) error {
	rows := make([][]string, 0, len(nodes))
	for _, n := range nodes {
		self := ""
		if n.Self {
			self = "*"
		}
		rows = append(rows, []string{string(n.ID), n.Name + self, n.VTEP.String(), strconv.Itoa(n.MTU), nodeState(n, now), n.Version})
	}
	return table(w, []string{"ID", "NAME", "VTEP", "MTU", "STATE", "VERSION"}, rows)
}

func nodeState(n status.Node, now time.Time) string {
	s := n.State
	if !n.Since.IsZero() {
		s += " since " + n.Since.Local().Format(time.DateTime) + " (" + ago(n.Since, now) + ")"
	}
	if n.Awaited {
		s += ", waited for"
	}
	return s
}

func nodeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm HOST", Short: "Take a host that is gone for good out of the cluster, by name or id", Args: cobra.ExactArgs(1),
		Long: `Take a host that is gone for good out of the cluster, by name or id.

Its name, its VTEP address and its containers' names and rows go at once. The
addresses it owned become free for the others when they have rested (5 minutes). A
recovery of the store no longer waits for it. It is refused while the host is alive,
unless forced: then its running containers are cut off as soon as it finds out.

If the host comes back, its agent finds that it was removed: it cuts its containers
off, asks for their addresses again, and connects those that it gets back. A host
that is only switched off need not be removed: nobody takes its addresses.

Nothing is asked. Run it on any other host.`,
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if the host is alive")
	return verb[status.Removed]{
		ask: func(ctx context.Context, c *status.Client, args []string) (status.Removed, error) {
			return c.RemoveNode(ctx, args[0], force)
		},
		text: printRemoved,
	}.on(cmd)
}

func printRemoved(w io.Writer, r status.Removed) error {
	if _, err := fmt.Fprintf(w, "%s (id %s) is removed from the cluster.\n", r.Name, r.Host); err != nil {
		return err
	}
	what := fmt.Sprintf("It was in %s: %s and %s were withdrawn.\nIts addresses become free when they have rested.\n",
		plural(r.Networks, "network"), plural(r.Endpoints, "endpoint"), plural(r.Blocks, "block"))
	if r.Later {
		what = "The store is being recovered: what the host had becomes free when that is over.\n"
	}
	if r.WasAlive {
		what += "It was alive: its agent will cut its containers off and ask for their addresses again.\n"
	} else {
		what += "If it comes back it is cut off until it has its addresses again.\n"
	}
	_, err := io.WriteString(w, what)
	return err
}
