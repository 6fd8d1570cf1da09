package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/carrick-net/carrick/gossip"
	"github.com/carrick-net/carrick/internal/daemon"
	"github.com/carrick-net/carrick/ipam"
)

// envPrefix begins the environment's name of every flag: CARRICK_LOG_LEVEL is
// --log-level.
const envPrefix = "CARRICK_"

const defaultAPISocket = "/run/carrick/carrick.sock"

func agentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent: Docker's network and IPAM driver on this host",
		Long: `Run the agent: Docker's network and IPAM driver on this host.

Every flag can also be given in the environment (--log-level is CARRICK_LOG_LEVEL)
and in a YAML file (log-level: debug) named by --config. A flag beats the
environment, which beats the file. A Consul token comes from CONSUL_HTTP_TOKEN or
--consul-token-file.`,
		Args: cobra.NoArgs,
	}
	agentFlags(cmd.Flags())
	cmd.RunE = doing(func(cmd *cobra.Command, _ []string) error {
		cfg, log, err := agentConfig(cmd.Flags(), cmd.ErrOrStderr())
		if err != nil {
			return usageError{err}
		}
		return daemon.Run(cmd.Context(), cfg, log)
	})
	return cmd
}

func agentFlags(f *pflag.FlagSet) {
	f.String("store", "", "where the cluster's state is: consul://HOST:PORT/PREFIX or bolt:///PATH\n(default a bolt file in the state directory: one host, no server)")
	f.String("state-dir", "/var/lib/carrick", "this host's own memory")
	f.String("plugin-socket", "/run/docker/plugins/carrick.sock", "where Docker finds the driver")
	f.String("api-socket", defaultAPISocket, "where the other verbs find the agent")
	f.String("docker", "unix:///var/run/docker.sock", "the engine's API: with it, a network made on one host is made on all, and names are known;\n\"\" = do not use it")
	f.Bool("mirror", true, "a network made on any host is made on this one, and removed with it; needs --docker")
	f.Uint16("gossip-port", gossip.DefaultPort, "UDP and TCP port on which agents find out within seconds that a host is gone, for names alone; the same on all hosts, 0 = off")
	f.Bool("managed", false, "this agent is a managed plugin, which the engine knows by the plugin's name and tag")
	f.String("node", "", "this host's name in the cluster (default the hostname)")
	f.String("advertise", "", "address or interface of the VTEP (default the source of the default route)")
	f.String("http", "", "address for /metrics, /healthz and the status page (default off)")
	f.String("netns-dir", "/run/netns", "where the networks' namespaces are mounted")
	f.StringArray("default-pool", []string{ipam.Default4, ipam.Default6}, "where subnets come from when none is given (repeatable; a family\nof which none is given keeps its default)")
	f.String("consul-token-file", "", "file with the Consul token")
	f.Duration("audit-interval", time.Minute, "how often each network's part of the kernel is read back in full and repaired, at least 1s;\nnetworks take turns")
	f.Duration("host-grace", 0, "after how long without the store this host gives its addresses up and cuts its containers\noff, so that the others may have them; below 10m a restart or a short outage may do it (default 0 = never)")
	f.String("config", "", "YAML file with any of these flags")
	f.String("log-level", "info", "debug, info, warn or error")
	f.String("log-format", "text", "text or json")
}

// agentConfig merges file, environment and flags, and makes the logger.
func agentConfig(flags *pflag.FlagSet, stderr io.Writer) (daemon.Config, *slog.Logger, error) {
	var none daemon.Config
	k := koanf.New(".")
	known := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) { known[f.Name] = true })

	path, err := flags.GetString("config")
	if err != nil {
		return none, nil, err
	}
	if path == "" {
		path = os.Getenv(envPrefix + "CONFIG")
	}
	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return none, nil, fmt.Errorf("--config %s: %w", path, err)
		}
		for _, key := range k.Keys() {
			if !known[key] || key == "config" || key == "help" {
				return none, nil, fmt.Errorf("--config %s: unknown key %q: the keys are the flags of carrick agent", path, key)
			}
		}
	}
	fromEnv := env.Provider(".", env.Opt{Prefix: envPrefix, TransformFunc: func(key, v string) (string, any) {
		name := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, envPrefix)), "_", "-")
		if !known[name] {
			return "", nil // somebody else's variable
		}
		if name == "default-pool" {
			return name, strings.Fields(v)
		}
		return name, v
	}})
	if err := k.Load(fromEnv, nil); err != nil {
		return none, nil, fmt.Errorf("environment: %w", err)
	}
	if err := k.Load(posflag.Provider(flags, ".", k), nil); err != nil {
		return none, nil, fmt.Errorf("flags: %w", err)
	}

	log, err := newLogger(stderr, k.String("log-level"), k.String("log-format"))
	if err != nil {
		return none, nil, err
	}
	node := k.String("node")
	if node == "" {
		if node, err = os.Hostname(); err != nil {
			return none, nil, fmt.Errorf("--node is not given and the host has no name: %w", err)
		}
	}
	pools := k.Strings("default-pool")
	if s, ok := k.Get("default-pool").(string); ok { // one, in a file
		pools = strings.Fields(s)
	}
	audit, err := time.ParseDuration(k.String("audit-interval"))
	if err != nil {
		return none, nil, fmt.Errorf("--audit-interval %q: want a duration like 30s or 1m", k.String("audit-interval"))
	}
	grace, err := time.ParseDuration(k.String("host-grace"))
	if err != nil {
		return none, nil, fmt.Errorf("--host-grace %q: want a duration like 30m, or 0", k.String("host-grace"))
	}
	gossipPort, err := strconv.ParseUint(k.String("gossip-port"), 10, 16)
	if err != nil {
		return none, nil, fmt.Errorf("--gossip-port %q: want a port from 1 to 65535, or 0", k.String("gossip-port"))
	}
	return daemon.Config{
		Store: k.String("store"), StateDir: k.String("state-dir"), PluginSocket: k.String("plugin-socket"), APISocket: k.String("api-socket"),
		Docker: k.String("docker"), Managed: k.Bool("managed"), GossipPort: uint16(gossipPort), Mirror: k.Bool("mirror"), Node: node, Advertise: k.String("advertise"), HTTP: k.String("http"), NetnsDir: k.String("netns-dir"),
		DefaultPools: pools, TokenFile: k.String("consul-token-file"), Audit: audit, HostGrace: grace, Version: version,
	}, log, nil
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: %w", level, err)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
