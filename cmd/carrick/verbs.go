package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrick-net/carrick/status"
)

// ask adds the flags every asking verb has, and makes its Run: ask the agent,
// then print JSON or text.
func ask[T any](cmd *cobra.Command, question func(context.Context, *status.Client, []string) (T, error), text func(io.Writer, T) error) *cobra.Command {
	socket := os.Getenv(envPrefix + "API_SOCKET")
	if socket == "" {
		socket = defaultAPISocket
	}
	cmd.Flags().StringVar(&socket, "api-socket", socket, "where the agent listens")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = doing(func(cmd *cobra.Command, args []string) error {
		v, err := question(cmd.Context(), status.NewClient(socket), args)
		if err != nil {
			return err
		}
		if *asJSON {
			if err := printJSON(cmd.OutOrStdout(), v); err != nil {
				return err
			}
			text = func(io.Writer, T) error { return nil }
		}
		if err := text(cmd.OutOrStdout(), v); err != nil {
			return err
		}
		if s, ok := any(v).(status.Status); ok && !s.Healthy() {
			return problemError{}
		}
		return nil
	})
	return cmd
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table prints rows under a header, as docker does.
func table(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// lines prints "key: value" pairs, aligned; pairs with an empty value are left
// out.
func lines(w io.Writer, pairs ...[2]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range pairs {
		if p[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(tw, "%s:\t%s\n", p[0], p[1]); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func statusCommand() *cobra.Command {
	return ask(&cobra.Command{
		Use: "status", Short: "What this host's agent does, and what needs attention (exit code 1 if anything)", Args: cobra.NoArgs,
	}, func(ctx context.Context, c *status.Client, _ []string) (status.Status, error) { return c.Status(ctx) },
		func(w io.Writer, s status.Status) error {
			err := lines(w,
				[2]string{"node", fmt.Sprintf("%s (id %s)", s.Node, s.Host)},
				[2]string{"VTEP", fmt.Sprintf("%s on %s, MTU %d", s.VTEP, s.Device, s.MTU)},
				[2]string{"store", link(s.Store)},
				[2]string{"engine", link(s.Engine)},
				[2]string{"here", fmt.Sprintf("%d networks, %d endpoints, %d not published", s.Networks, s.Local, s.Pending)},
				[2]string{"drift", fmt.Sprintf("%d kernel objects repaired since %s", s.Drift, s.Started.Format(time.DateTime))},
				[2]string{"version", s.Version},
			)
			if err != nil {
				return err
			}
			if s.Healthy() {
				_, err = fmt.Fprintln(w, "\nNothing needs attention.")
				return err
			}
			_, err = fmt.Fprintf(w, "\nNeeds attention:\n  %s\n", strings.Join(s.Problems, "\n  "))
			return err
		})
}

func link(l status.Link) string {
	switch {
	case l.URL == "":
		return "not used"
	case l.OK:
		return l.URL + ", answers"
	case l.Contact.IsZero():
		return fmt.Sprintf("%s, never answered: %s", l.URL, l.Error)
	}
	return fmt.Sprintf("%s, last answered %s ago: %s", l.URL, time.Since(l.Contact).Round(time.Second), l.Error)
}

func networkCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "The cluster's networks"}
	cmd.AddCommand(
		ask(&cobra.Command{Use: "ls", Short: "List the cluster's networks", Args: cobra.NoArgs},
			func(ctx context.Context, c *status.Client, _ []string) ([]status.Network, error) {
				return c.Networks(ctx)
			},
			func(w io.Writer, list []status.Network) error {
				rows := make([][]string, 0, len(list))
				for _, n := range list {
					here := "no"
					if n.Here {
						here = "yes"
					}
					rows = append(rows, []string{string(n.ID), n.Name, n.Subnet.String(), strconv.FormatUint(uint64(n.VNI), 10), string(n.Mode), n.Tenant, here})
				}
				return table(w, []string{"ID", "NAME", "SUBNET", "VNI", "MODE", "TENANT", "HERE"}, rows)
			}),
		ask(&cobra.Command{Use: "inspect NETWORK", Short: "Show one network: by name, id, Docker's id or subnet", Args: cobra.ExactArgs(1)},
			func(ctx context.Context, c *status.Client, args []string) (status.Network, error) {
				return c.Network(ctx, args[0])
			}, printNetwork))
	return cmd
}

func printNetwork(w io.Writer, n status.Network) error {
	mark := map[bool]string{true: "yes", false: "no"}
	aux := make([]string, 0, len(n.Aux))
	for name, a := range n.Aux {
		aux = append(aux, name+"="+a.String())
	}
	ipRange := ""
	if n.Range.IsValid() {
		ipRange = n.Range.String()
	}
	gateway := ""
	if n.Gateway.IsValid() {
		gateway = n.Gateway.String()
	}
	err := lines(w,
		[2]string{"id", string(n.ID)}, [2]string{"name", n.Name}, [2]string{"tenant", n.Tenant},
		[2]string{"subnet", n.Subnet.String()}, [2]string{"ip-range", ipRange}, [2]string{"gateway", gateway}, [2]string{"aux-address", strings.Join(aux, " ")},
		[2]string{"mode", string(n.Mode)}, [2]string{"VNI", strconv.FormatUint(uint64(n.VNI), 10)}, [2]string{"port", strconv.Itoa(int(n.Port))},
		[2]string{"MTU", fmt.Sprintf("%d on this host", n.MTU)}, [2]string{"internal", mark[n.Internal]}, [2]string{"flood", mark[n.Flood]},
		[2]string{"drift", fmt.Sprintf("%d kernel objects repaired on this host", n.Drift)},
	)
	if err != nil {
		return err
	}
	section := func(title string, header []string, rows [][]string) {
		if err == nil && len(rows) > 0 {
			if _, err = fmt.Fprintf(w, "\n%s\n", title); err == nil {
				err = table(w, header, rows)
			}
		}
	}
	var rows [][]string
	for _, a := range n.Aliases {
		rows = append(rows, []string{a.Host, a.Docker.Short(), a.Name})
	}
	section("Docker networks:", []string{"HOST", "ID", "NAME"}, rows)
	rows = nil
	for _, b := range n.Blocks {
		rows = append(rows, []string{b.Prefix.String(), b.Host})
	}
	section("Blocks:", []string{"BLOCK", "HOST"}, rows)
	section("Endpoints:", endpointHeader, endpointRows(n.Endpoints))
	if err == nil && len(n.Problems) > 0 {
		_, err = fmt.Fprintf(w, "\nNeeds attention:\n  %s\n", strings.Join(n.Problems, "\n  "))
	}
	return err
}

var endpointHeader = []string{"ID", "NETWORK", "ADDRESS", "MAC", "HOST", "CONTAINER", "STATE"}

func endpointRows(eps []status.Endpoint) [][]string {
	rows := make([][]string, 0, len(eps))
	for _, e := range eps {
		state := "remote"
		switch {
		case e.Error != "":
			state = "failing: " + e.Error
		case e.Local:
			state = "local"
		}
		rows = append(rows, []string{e.ID.Short(), e.NetName, joinAddrs(e.Addrs), e.MAC.String(), e.Host, e.Container, state})
	}
	return rows
}

func joinAddrs(as []netip.Addr) string {
	out := make([]string, 0, len(as))
	for _, a := range as {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}

func endpointCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "endpoint", Short: "Containers' attachments"}
	cmd.AddCommand(ask(&cobra.Command{Use: "ls", Short: "List every endpoint of the cluster", Args: cobra.NoArgs},
		func(ctx context.Context, c *status.Client, _ []string) ([]status.Endpoint, error) {
			return c.Endpoints(ctx)
		},
		func(w io.Writer, eps []status.Endpoint) error { return table(w, endpointHeader, endpointRows(eps)) }))
	return cmd
}

func nodeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "The cluster's hosts"}
	cmd.AddCommand(ask(&cobra.Command{Use: "ls", Short: "List the cluster's hosts", Args: cobra.NoArgs},
		func(ctx context.Context, c *status.Client, _ []string) ([]status.Node, error) { return c.Nodes(ctx) },
		func(w io.Writer, nodes []status.Node) error {
			rows := make([][]string, 0, len(nodes))
			for _, n := range nodes {
				alive, self := "yes", ""
				if !n.Alive {
					alive = "no"
				}
				if n.Self {
					self = "*"
				}
				rows = append(rows, []string{string(n.ID), n.Name + self, n.VTEP.String(), strconv.Itoa(n.MTU), alive, n.Version})
			}
			return table(w, []string{"ID", "NAME", "VTEP", "MTU", "ALIVE", "VERSION"}, rows)
		}))
	return cmd
}

func versionCommand() *cobra.Command {
	type info struct {
		Version string `json:"version"`
		Go      string `json:"go"`
		OS      string `json:"os"`
		Arch    string `json:"arch"`
	}
	cmd := &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs}
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = doing(func(cmd *cobra.Command, _ []string) error {
		v := info{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), v)
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "carrick %s, %s, %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
		return err
	})
	return cmd
}
