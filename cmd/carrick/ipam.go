package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/status"
)

func ipamCommand() *cobra.Command {
	cmd := group("ipam", "The cluster's addresses")
	cmd.AddCommand(ipamShow(), ipamCheck(), ipamRelease())
	return cmd
}

// optional is the one argument that may be left out.
func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func ipamShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show [NETWORK]", Short: "How full pools are: each network's, or one network's with its blocks and hosts", Args: cobra.MaximumNArgs(1),
		Long: `How full pools are: each network's, or one network's with its blocks and hosts.

  usable     addresses that endpoints can have: --ip-range, or else the subnet,
             without gateway, auxiliary, network and broadcast address
  in blocks  of these, in blocks that hosts own and give out of
  given      of these, given out
  resting    free again, and given out after those that rest longer; of other hosts'
             blocks only their own journals know
  lent       given to another host than the block's owner, which borrowed it

While the store does not answer, this host's part is of now and the others' of when
they were last heard.`,
	}
	var one bool
	return verb[[]status.IPAM]{
		ask: func(ctx context.Context, c *status.Client, args []string) ([]status.IPAM, error) {
			one = len(args) == 1
			return c.IPAM(ctx, optional(args))
		},
		text: func(w io.Writer, all []status.IPAM) error {
			if one && len(all) == 1 {
				return printUse(w, all[0], time.Now())
			}
			return printUses(w, all, time.Now())
		},
	}.on(cmd)
}

// number prints a count; what was cut is only said to be much.
func number(n uint64) string {
	if n == math.MaxUint64 {
		return "2^64"
	}
	return strconv.FormatUint(n, 10)
}

func known(n *uint64) string {
	if n == nil {
		return "-"
	}
	return number(*n)
}

func percent(p float64) string { return strconv.FormatFloat(math.Floor(p*10)/10, 'f', 1, 64) + "%" }

func printUses(w io.Writer, all []status.IPAM, now time.Time) error {
	var rows [][]string
	for _, n := range all {
		for _, p := range n.Pools {
			rows = append(rows, []string{n.Name, p.Prefix.String(), number(p.Usable), number(p.InBlocks), number(p.Given), number(p.Free), number(p.Lent), percent(p.Percent)})
		}
	}
	if err := table(w, []string{"NETWORK", "POOL", "USABLE", "IN BLOCKS", "GIVEN", "FREE", "LENT", "USED"}, rows); err != nil {
		return err
	}
	return printUseNotes(w, all, now)
}

// printUseNotes prints what the numbers do not say.
func printUseNotes(w io.Writer, all []status.IPAM, now time.Time) error {
	var notes []string
	for _, n := range all {
		for _, t := range n.Warnings {
			notes = append(notes, "warning: network "+n.Name+": "+t)
		}
	}
	for _, n := range all {
		if !n.Whole {
			heard := "before the agent started"
			if !n.AsOf.IsZero() {
				heard = ago(n.AsOf, now)
			}
			notes = append(notes, "The store does not answer: this host's part is of now, the others' was heard "+heard+", and their blocks are not shown.")
			break
		}
	}
	if len(notes) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(notes, "\n"))
	return err
}

func printUse(w io.Writer, n status.IPAM, now time.Time) error {
	if _, err := fmt.Fprintf(w, "network %s (id %s, tenant %s)\n", n.Name, n.Network, n.Tenant); err != nil {
		return err
	}
	for _, p := range n.Pools {
		if err := printPool(w, p, n.Whole); err != nil {
			return err
		}
	}
	return printUseNotes(w, []status.IPAM{n}, now)
}

func printPool(w io.Writer, p status.PoolUse, whole bool) error {
	if _, err := fmt.Fprintf(w, "\nPool %s:\n", p.Prefix); err != nil {
		return err
	}
	blocks := fmt.Sprintf("%s, in blocks of /%d; %s blocks are nobody's", number(p.InBlocks), p.BlockBits, number(p.FreeBlocks))
	if !whole {
		blocks = fmt.Sprintf("%s of this host's, in blocks of /%d", number(p.InBlocks), p.BlockBits)
	}
	ipRange, outside := "", ""
	if p.Range.IsValid() {
		ipRange = p.Range.String()
	}
	if p.Outside > 0 {
		outside = number(p.Outside) + " given out outside of the range"
	}
	err := lines(w,
		[2]string{"range", ipRange},
		[2]string{"usable", fmt.Sprintf("%s, and %s reserved", number(p.Usable), number(p.Reserved))},
		[2]string{"in blocks", blocks},
		[2]string{"given out", fmt.Sprintf("%s (%s), %s free", number(p.Given), percent(p.Percent), number(p.Free))},
		[2]string{"outside", outside},
		[2]string{"lent", number(p.Lent)},
	)
	if err != nil || len(p.Blocks)+len(p.Hosts) == 0 {
		return err
	}
	rows := make([][]string, 0, len(p.Blocks))
	for _, b := range p.Blocks {
		host := b.Host
		if b.Freed {
			host = "(rests)"
		}
		rows = append(rows, []string{b.Prefix.String(), host, number(b.Usable), number(b.Given), known(b.Resting), number(b.Lent)})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := table(w, []string{"BLOCK", "HOST", "USABLE", "GIVEN", "RESTING", "LENT"}, rows); err != nil {
		return err
	}
	rows = rows[:0]
	for _, h := range p.Hosts {
		name := h.Host
		if h.Self {
			name += "*"
		}
		rows = append(rows, []string{name, strconv.Itoa(h.Blocks), number(h.Usable), number(h.Given), known(h.Resting), number(h.Lent), number(h.Borrowed)})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return table(w, []string{"HOST", "BLOCKS", "USABLE", "GIVEN", "RESTING", "LENT", "BORROWED"}, rows)
}

func ipamCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check [NETWORK]", Short: "Compare the store, this host's journal, engine and kernel (exit code 1 if they disagree)", Args: cobra.MaximumNArgs(1),
		Long: `Compare the store, this host's journal, its engine and its kernel, and the store
with itself; print what is wrong and how to mend it.

What is found is looked at twice, some seconds apart, and only what both looks found
is printed: an address on its way to a container contradicts itself for a moment.
"transient" is what ends by itself, such as a publication or the collection of a leak.

Each host's own journal, engine and kernel are checked on that host: to check a
cluster, run it on every host. Exit codes: 0 fine, 1 something was found or could
not be looked at, 2 usage.`,
	}
	facts := false
	cmd.Flags().BoolVar(&facts, "facts", false, "compare nothing: print what all sides say, as JSON, for a bug report")
	verb[status.Check]{
		ask: func(ctx context.Context, c *status.Client, args []string) (status.Check, error) {
			return c.Check(ctx, optional(args))
		},
		text: printCheck,
		fine: status.Check.Fine,
	}.on(cmd)
	compare := cmd.RunE
	cmd.RunE = doing(func(cmd *cobra.Command, args []string) error {
		if !facts {
			return compare(cmd, args)
		}
		socket, err := cmd.Flags().GetString("api-socket")
		if err != nil {
			return err
		}
		all, err := status.NewClient(socket).Facts(cmd.Context())
		if err != nil {
			return err
		}
		return printJSON(cmd.OutOrStdout(), all)
	})
	return cmd
}

func printCheck(w io.Writer, c status.Check) error {
	var seen, unseen []string
	for _, s := range c.Sides {
		switch {
		case s.Off:
			unseen = append(unseen, s.Name+" not looked at: this agent does not use it")
		case s.Error != "":
			unseen = append(unseen, s.Name+" not looked at: "+s.Error)
		default:
			seen = append(seen, s.Name)
		}
	}
	if _, err := fmt.Fprintf(w, "compared on %s: %s\n", c.Node, strings.Join(seen, ", ")); err != nil {
		return err
	}
	for _, u := range unseen {
		if _, err := fmt.Fprintln(w, u); err != nil {
			return err
		}
	}
	if len(c.Findings) == 0 && len(unseen) == 0 {
		_, err := fmt.Fprintln(w, "\nNothing is wrong.")
		return err
	}
	if len(c.Findings) == 0 {
		_, err := fmt.Fprintln(w, "\nNothing is wrong in what was looked at.")
		return err
	}
	for _, f := range c.Findings {
		if _, err := fmt.Fprintf(w, "\n%s: %s%s: %s\n  mend: %s\n", f.Severity, about(f), f.Object, f.What, f.Mend); err != nil {
			return err
		}
	}
	counts := map[check.Severity]int{}
	for _, f := range c.Findings {
		counts[f.Severity]++
	}
	var parts []string
	for _, s := range []check.Severity{check.Wrong, check.Transient, check.Note} {
		if counts[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[s], s))
		}
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(parts, ", "))
	return err
}

// about names the network and the host of a finding.
func about(f status.Finding) string {
	var s string
	if f.Network != "" {
		name := f.NetworkName
		if name == "" {
			name = string(f.Network)
		}
		s += "network " + name + ", "
	}
	if f.Host != "" {
		name := f.HostName
		if name == "" {
			name = string(f.Host)
		}
		s += "host " + name + ", "
	}
	return s
}

func ipamRelease() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "release NETWORK ADDRESS", Short: "Give back an address of this host that nobody uses", Args: cobra.ExactArgs(2),
		Long: `Give back an address of this host that nobody uses, at once: what leaks is given
back by itself within minutes. The endpoint that had it is withdrawn with it.

It is refused while the engine has a container with the address, or the kernel has
its pair in one, and when the engine cannot be asked. --force releases it all the
same; a container that still has it then loses its network, and somebody else may be
given its address.`,
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if a container has it")
	return verb[status.Released]{
		ask: func(ctx context.Context, c *status.Client, args []string) (status.Released, error) {
			a, err := netip.ParseAddr(args[1])
			if err != nil || a.Zone() != "" {
				return status.Released{}, usageError{fmt.Errorf("%q is not an IP address", args[1])}
			}
			return c.Release(ctx, args[0], a.Unmap(), force)
		},
		text: printReleased,
	}.on(cmd)
}

func printReleased(w io.Writer, r status.Released) error {
	if !r.Done {
		_, err := fmt.Fprintf(w, "%s of network %s: nothing to do: %s\n", r.Addr, r.Name, r.What)
		return err
	}
	had := ""
	switch {
	case r.Container != "":
		had = fmt.Sprintf(", which container %s had (endpoint %s, withdrawn)", r.Container, r.Endpoint.Short())
	case r.Endpoint != "":
		had = fmt.Sprintf(", which endpoint %s had (withdrawn)", r.Endpoint.Short())
	}
	_, err := fmt.Fprintf(w, "released %s of network %s%s: %s\n", r.Addr, r.Name, had, r.What)
	return err
}
