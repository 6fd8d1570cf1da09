package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrick-net/carrick/status"
)

func networkCreate() *cobra.Command {
	var w status.NetworkWanted
	var subnets, ranges, gateways, aux, labels, opts, ipam []string
	var four bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a network, on all hosts", Args: cobra.ExactArgs(1),
		Long: `Create a network, on all hosts.

The same as docker network create -d carrick --ipam-driver carrick on this host, with
the name that the engine has for this driver. Options are docker network create's;
docs/operations.md has those of -o. The other hosts have it within two seconds.`,
	}
	f := cmd.Flags()
	f.StringArrayVar(&subnets, "subnet", nil, "prefix; one of IPv4, one of IPv6 (default a free one of the default pools)")
	f.StringArrayVar(&ranges, "ip-range", nil, "part of the subnet that addresses are given out of")
	f.StringArrayVar(&gateways, "gateway", nil, "address of the subnet that is kept for a gateway")
	f.StringArrayVar(&aux, "aux-address", nil, "NAME=ADDRESS that is never given out")
	f.StringArrayVarP(&opts, "opt", "o", nil, "KEY=VALUE for the network driver")
	f.StringArrayVar(&ipam, "ipam-opt", nil, "KEY=VALUE for the IPAM driver, as tenant=NAME")
	f.StringArrayVar(&labels, "label", nil, "KEY=VALUE")
	f.BoolVar(&w.Internal, "internal", false, "no way out of the network")
	f.BoolVar(&w.Attachable, "attachable", false, "kept as docker network create keeps it; without a swarm it means nothing")
	f.BoolVar(&w.IPv6, "ipv6", false, "with an IPv6 subnet")
	f.BoolVar(&four, "ipv4", true, "with an IPv4 subnet; false needs an engine from 28 on, on every host")
	return verb[status.Network]{
		ask: func(ctx context.Context, c *status.Client, args []string) (status.Network, error) {
			var err error
			w.Name, w.NoIPv4 = args[0], !four
			if w.Subnets, err = parsed("--subnet", subnets, "a prefix like 10.42.0.0/16", netip.ParsePrefix); err != nil {
				return status.Network{}, err
			}
			if w.Ranges, err = parsed("--ip-range", ranges, "a prefix like 10.42.4.0/22", netip.ParsePrefix); err != nil {
				return status.Network{}, err
			}
			if w.Gateways, err = parsed("--gateway", gateways, "an address", netip.ParseAddr); err != nil {
				return status.Network{}, err
			}
			for _, m := range []struct {
				option string
				list   []string
				into   *map[string]string
			}{{"-o", opts, &w.Options}, {"--ipam-opt", ipam, &w.IPAM}, {"--label", labels, &w.Labels}} {
				if *m.into, err = keyValues(m.option, m.list); err != nil {
					return status.Network{}, err
				}
			}
			named, err := keyValues("--aux-address", aux)
			if err != nil {
				return status.Network{}, err
			}
			w.Aux = map[string]netip.Addr{}
			for name, v := range named {
				if w.Aux[name], err = netip.ParseAddr(v); err != nil {
					return status.Network{}, usageError{fmt.Errorf("--aux-address %s=%s: want NAME=ADDRESS", name, v)}
				}
			}
			return c.CreateNetwork(ctx, w)
		},
		text: func(out io.Writer, n status.Network) error {
			_, err := fmt.Fprintln(out, n.ID)
			return err
		},
	}.on(cmd)
}

func networkRm() *cobra.Command {
	return verb[status.Network]{
		ask: func(ctx context.Context, c *status.Client, args []string) (status.Network, error) {
			return c.RemoveNetwork(ctx, args[0])
		},
		text: func(out io.Writer, n status.Network) error {
			_, err := fmt.Fprintln(out, n.ID)
			return err
		},
	}.on(&cobra.Command{
		Use: "rm NETWORK", Short: "Remove a network, from all hosts", Args: cobra.ExactArgs(1),
		Long: `Remove a network, from all hosts: by name, id, Docker's id or subnet.

The same as docker network rm on this host. Each engine is asked to let its Docker
network go. If one refuses, because containers use the network there, it stays
everywhere and comes back where it was removed; carrick network ls says why. Its
subnet and VNI are kept until every host that had it has agreed, also those that are
off now.`,
	})
}

// parsed parses the values of an option that may be repeated.
func parsed[T any](option string, list []string, want string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range list {
		v, err := parse(s)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s %q: want %s", option, s, want)}
		}
		out = append(out, v)
	}
	return out, nil
}

// keyValues parses KEY=VALUE.
func keyValues(option string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usageError{fmt.Errorf("%s %q: want KEY=VALUE", option, s)}
		}
		if _, twice := out[k]; twice {
			return nil, usageError{fmt.Errorf("%s %s is given twice", option, k)}
		}
		out[k] = v
	}
	return out, nil
}
