package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	carricknet "github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/status"
)

// verb is a question to the agent, or a wish, and how its answer is printed.
type verb[T any] struct {
	ask  func(context.Context, *status.Client, []string) (T, error)
	text func(io.Writer, T) error
	// fine says whether an answer is no problem; nil: it always is.
	fine func(T) bool
}

// on makes the verb a command's work: with the flags every verb has, it asks the
// agent, then prints JSON or text.
func (v verb[T]) on(cmd *cobra.Command) *cobra.Command {
	socket := os.Getenv(envPrefix + "API_SOCKET")
	if socket == "" {
		socket = defaultAPISocket
	}
	cmd.Flags().StringVar(&socket, "api-socket", socket, "where the agent listens")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = doing(func(cmd *cobra.Command, args []string) error {
		answer, err := v.ask(cmd.Context(), status.NewClient(socket), args)
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), answer)
		} else {
			err = v.text(cmd.OutOrStdout(), answer)
		}
		if err == nil && v.fine != nil && !v.fine(answer) {
			err = problemError{}
		}
		return err
	})
	return cmd
}

// group makes a command that only has commands below it.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table prints rows under a header, as docker does.
func table(w io.Writer, header []string, rows [][]string) error {
	return columns(w, append([][]string{header}, rows...))
}

// columns prints rows in columns.
func columns(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
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

func networkCommand() *cobra.Command {
	cmd := group("network", "The cluster's networks")
	cmd.AddCommand(
		verb[[]status.Network]{
			ask: func(ctx context.Context, c *status.Client, _ []string) ([]status.Network, error) {
				return c.Networks(ctx)
			},
			text: printNetworks,
		}.on(&cobra.Command{Use: "ls", Short: "List the cluster's networks", Args: cobra.NoArgs}),
		verb[status.Network]{
			ask: func(ctx context.Context, c *status.Client, args []string) (status.Network, error) {
				return c.Network(ctx, args[0])
			},
			text: printNetwork,
		}.on(&cobra.Command{Use: "inspect NETWORK", Short: "Show one network: by name, id, Docker's id or subnet", Args: cobra.ExactArgs(1)}),
		networkCreate(), networkRm())
	return cmd
}

func printNetworks(w io.Writer, list []status.Network) error {
	rows := make([][]string, 0, len(list))
	for _, n := range list {
		here := "no"
		if n.Here {
			here = "yes"
		}
		rows = append(rows, []string{string(n.ID), n.Name, subnets(n), vniText(n), string(n.Mode), n.Tenant, here, cmp.Or(n.Fate, "fine")})
	}
	return table(w, []string{"ID", "NAME", "SUBNET", "VNI", "MODE", "TENANT", "HERE", "STATE"}, rows)
}

// subnets lists a network's prefixes.
func subnets(n status.Network) string {
	if len(n.Pools) == 0 {
		return n.Subnet.String()
	}
	out := make([]string, 0, len(n.Pools))
	for _, p := range n.Pools {
		out = append(out, p.Prefix.String())
	}
	return strings.Join(out, ",")
}

func printNetwork(w io.Writer, n status.Network) error {
	pairs := [][2]string{{"id", string(n.ID)}, {"name", n.Name}, {"tenant", n.Tenant}}
	for _, p := range n.Pools {
		aux := make([]string, 0, len(p.Aux))
		for name, a := range p.Aux {
			aux = append(aux, name+"="+a.String())
		}
		slices.Sort(aux)
		ipRange, gateway := "", ""
		if p.Range.IsValid() {
			ipRange = p.Range.String()
		}
		if p.Gateway.IsValid() {
			gateway = p.Gateway.String()
		}
		pairs = append(pairs, [][2]string{{"subnet", p.Prefix.String()}, {"ip-range", ipRange}, {"gateway", gateway}, {"aux-address", strings.Join(aux, " ")}}...)
	}
	switch {
	case n.Mode.Underlay():
		pairs = append(pairs, underlayPairs(n)...)
	case n.Mode == carricknet.ModeRouted:
		pairs = append(pairs, routedPairs(n)...)
	default:
		pairs = append(pairs, [][2]string{
			{"mode", string(n.Mode)}, {"VNI", strconv.FormatUint(uint64(n.VNI), 10)}, {"port", strconv.Itoa(int(n.Port))},
			{"MTU", fmt.Sprintf("%d on this host", n.MTU)}, {"internal", mark(n.Internal)}, {"flood", mark(n.Flood)}, {"mcast_snooping", mark(n.Snoop)}, {"storm", storm(n.Storm)},
		}...)
	}
	pairs = append(pairs, [][2]string{
		{"state", n.Fate},
		{"drift", fmt.Sprintf("%d kernel objects repaired on this host", n.Drift)},
	}...)
	err := lines(w, pairs...)
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
	for _, host := range slices.Sorted(maps.Keys(n.Ways)) {
		rows = append(rows, []string{host, n.Ways[host]})
	}
	section("Ways from this host:", []string{"HOST", "BY"}, rows)
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

// routedPairs describes a network whose hosts route.
func routedPairs(n status.Network) [][2]string {
	out := [][2]string{{"mode", string(n.Mode)}}
	if n.Fallback != "" {
		out = append(out, [][2]string{{"routed_fallback", string(n.Fallback)}, {"VNI", vniText(n)}, {"port", strconv.Itoa(int(n.Port))}}...)
	}
	return append(out, [][2]string{{"MTU", fmt.Sprintf("%d on this host", n.MTU)}, {"internal", mark(n.Internal)}}...)
}

// underlayPairs describes a network that stands on a device of each host.
func underlayPairs(n status.Network) [][2]string {
	mtu := "its parent's"
	if n.MTU != 0 {
		mtu = strconv.Itoa(n.MTU)
	}
	out := [][2]string{{"mode", string(n.Mode)}, {"parent", n.Parent}}
	switch n.Mode {
	case carricknet.ModeMacvlan:
		out = append(out, [2]string{"macvlan_mode", n.Submode}, [2]string{"host_access", mark(n.HostAccess)})
	case carricknet.ModeIPvlan:
		out = append(out, [2]string{"ipvlan_mode", n.Submode}, [2]string{"ipvlan_flag", n.Flag})
	}
	return append(out, [2]string{"MTU", mtu}, [2]string{"internal", mark(n.Internal)})
}

var endpointHeader = []string{"ID", "NETWORK", "ADDRESS", "MAC", "HOST", "CONTAINER", "STATE"}

func endpointRows(eps []status.Endpoint) [][]string {
	rows := make([][]string, 0, len(eps))
	for _, e := range eps {
		state := "remote"
		switch {
		case e.Error != "":
			state = "failing: " + e.Error
		case e.Cut:
			state = "cut off"
		case e.Local:
			state = "local"
		}
		mac := "-" // it has its parent's
		if !e.MAC.IsZero() {
			mac = e.MAC.String()
		}
		rows = append(rows, []string{e.ID.Short(), e.NetName, joinAddrs(e.Addrs), mac, e.Host, e.Container, state})
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
	cmd := group("endpoint", "Containers' attachments")
	cmd.AddCommand(verb[[]status.Endpoint]{
		ask: func(ctx context.Context, c *status.Client, _ []string) ([]status.Endpoint, error) {
			return c.Endpoints(ctx)
		},
		text: func(w io.Writer, eps []status.Endpoint) error { return table(w, endpointHeader, endpointRows(eps)) },
	}.on(&cobra.Command{Use: "ls", Short: "List every endpoint of the cluster", Args: cobra.NoArgs}))
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

func storm(rate int) string {
	if rate == 0 {
		return "off"
	}
	return fmt.Sprintf("%d frames/s from each container", rate)
}

// vniText is a network's VNI, or a dash if its mode has none.
func vniText(n status.Network) string {
	if n.VNI == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(n.VNI), 10)
}

func mark(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
