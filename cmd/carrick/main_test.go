package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func carrick(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, tt := range []struct {
		args []string
		code int
		want string // in stdout or stderr
	}{
		{[]string{"version"}, exitFine, "carrick dev"},
		{[]string{"--help"}, exitFine, "agent"},
		{[]string{"agent", "--help"}, exitFine, "--advertise"},
		{[]string{"status", "--api-socket", none}, exitProblem, "no agent answers"},
		{[]string{"network", "ls", "--json", "--api-socket", none}, exitProblem, none},
		{[]string{"network", "inspect"}, exitUsage, "accepts 1 arg"},
		{[]string{"status", "extra"}, exitUsage, "extra"},
		{[]string{"nonsense"}, exitUsage, "nonsense"},
		{[]string{"status", "--nonsense"}, exitUsage, "--nonsense"},
		{[]string{"agent", "--log-level", "loud"}, exitUsage, `--log-level "loud"`},
		{[]string{"agent", "--config", none}, exitUsage, none},
		{[]string{"agent", "--state-dir", "relative"}, exitProblem, `--state-dir "relative"`},
		{[]string{"agent", "--node", "a b"}, exitProblem, `--node "a b"`},
		{[]string{"agent", "--default-pool", "10.0.0.0/8"}, exitProblem, "base=10.128.0.0/9,size=16"},
		{[]string{"agent", "--audit-interval", "1ms"}, exitProblem, "--audit-interval 1ms"},
		{[]string{"agent", "--host-grace", "1m"}, exitProblem, "--host-grace 1m0s: want 0 (off) or at least 1m30s"},
		{[]string{"agent", "--host-grace", "-1h"}, exitProblem, "--host-grace -1h0m0s"},
		{[]string{"agent", "--host-grace", "long"}, exitUsage, "--host-grace"},
	} {
		code, stdout, stderr := carrick(t, tt.args...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("carrick %s: code %d, %q %q; want %d and %q", strings.Join(tt.args, " "), code, stdout, stderr, tt.code, tt.want)
		}
	}
}

func TestVersionJSON(t *testing.T) {
	t.Parallel()
	_, stdout, _ := carrick(t, "version", "--json")
	var v map[string]string
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || v["version"] != version {
		t.Errorf("%q: %v", stdout, err)
	}
}

// The documented flags exist, with the documented defaults.
func TestAgentFlags(t *testing.T) {
	t.Parallel()
	f := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	agentFlags(f)
	for name, def := range map[string]string{
		"store": "", "state-dir": "/var/lib/carrick", "plugin-socket": "/run/docker/plugins/carrick.sock",
		"api-socket": "/run/carrick/carrick.sock", "docker": "unix:///var/run/docker.sock", "node": "", "advertise": "",
		"http": "", "host-grace": "0s", "config": "", "log-level": "info", "log-format": "text", "netns-dir": "/run/netns",
	} {
		fl := f.Lookup(name)
		if fl == nil || fl.DefValue != def {
			t.Errorf("--%s: %+v, want default %q", name, fl, def)
		}
	}
}

// A flag beats the environment, which beats the file. Not parallel: the
// environment belongs to the process.
func TestPrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "carrick.yaml")
	if err := os.WriteFile(path, []byte("node: from-file\nlog-level: error\nhttp: 127.0.0.1:1\nhost-grace: 1h\ndocker: \"\"\ndefault-pool:\n  - base=10.0.0.0/8,size=24\n  - base=172.16.0.0/12,size=24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CARRICK_NODE", "from-env")
	t.Setenv("CARRICK_LOG_LEVEL", "warn")
	t.Setenv("CARRICK_BIN", "somebody else's")
	parse := func(args ...string) *pflag.FlagSet {
		t.Helper()
		f := pflag.NewFlagSet("agent", pflag.ContinueOnError)
		agentFlags(f)
		if err := f.Parse(args); err != nil {
			t.Fatal(err)
		}
		return f
	}
	cfg, _, err := agentConfig(parse("--config", path, "--node", "from-flag"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node != "from-flag" || cfg.HTTP != "127.0.0.1:1" || cfg.Docker != "" || cfg.StateDir != "/var/lib/carrick" || cfg.HostGrace != time.Hour || len(cfg.DefaultPools) != 2 {
		t.Errorf("merged into %+v", cfg)
	}
	cfg, _, err = agentConfig(parse("--config", path), io.Discard)
	if err != nil || cfg.Node != "from-env" {
		t.Errorf("environment over file gave node %q, %v", cfg.Node, err)
	}
	t.Setenv("CARRICK_CONFIG", path)
	t.Setenv("CARRICK_DEFAULT_POOL", "base=10.64.0.0/10,size=20")
	cfg, _, err = agentConfig(parse(), io.Discard)
	if err != nil || cfg.HTTP != "127.0.0.1:1" || len(cfg.DefaultPools) != 1 {
		t.Errorf("CARRICK_CONFIG was not read: %+v, %v", cfg, err)
	}
	t.Setenv("CARRICK_DEFAULT_POOL", "")
	if err := os.Unsetenv("CARRICK_DEFAULT_POOL"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("default-pool: base=10.0.0.0/8,size=24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err = agentConfig(parse(), io.Discard)
	if err != nil || len(cfg.DefaultPools) != 1 || cfg.DefaultPools[0] != "base=10.0.0.0/8,size=24" {
		t.Errorf("one pool in a file became %q, %v", cfg.DefaultPools, err)
	}
	if err := os.WriteFile(path, []byte("nod: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := agentConfig(parse("--config", path), io.Discard); err == nil || !strings.Contains(err.Error(), `"nod"`) {
		t.Errorf("unknown key: %v", err)
	}
}

// Every command says what it is for.
func TestEveryCommandHasHelp(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no help", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(rootCommand(io.Discard, io.Discard))
}
