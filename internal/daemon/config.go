// Package daemon puts the agent's parts together: it opens what the
// configuration names, hands each part what it needs, and runs them as tasks.
// Nothing is decided here; a part that needs a decision made is the place to make
// it.
package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/bolt"
	"github.com/carrick-net/carrick/kvstore/consul"
)

// Config is the agent's configuration, as flags, environment and file gave it.
type Config struct {
	Store        string // consul://..., bolt:///path; "" = a bolt file in StateDir
	StateDir     string
	PluginSocket string
	APISocket    string
	Docker       string // URL of the engine's API; "" = not used
	Mirror       bool   // the cluster's networks are made on this host's engine
	GossipPort   uint16 // 0 = off
	Managed      bool   // the engine knows this agent as a managed plugin
	Node         string
	Advertise    string // address or interface; "" = source of the default route
	HTTP         string // "" = off
	NetnsDir     string
	DefaultPools []string // base=PREFIX,size=BITS
	TokenFile    string   // Consul token; the environment's CONSUL_HTTP_TOKEN otherwise
	Audit        time.Duration
	HostGrace    time.Duration // 0 = off
	Version      string
}

const (
	// leaseTTL is how long a host counts as alive without having said so again.
	leaseTTL = 15 * time.Second
	// minGrace leaves a host time to notice that its lease is over before it gives
	// anything up: half of the grace is three lease times.
	minGrace = 6 * leaseTTL
)

// check refuses what cannot work, naming the option.
func (c Config) check() ([]ipam.DefaultPool, error) {
	for flag, path := range map[string]string{
		"state-dir": c.StateDir, "plugin-socket": c.PluginSocket, "api-socket": c.APISocket, "netns-dir": c.NetnsDir,
	} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("--%s %q: want an absolute path", flag, path)
		}
	}
	if err := checkNode(c.Node); err != nil {
		return nil, err
	}
	if c.Audit < time.Second {
		return nil, fmt.Errorf("--audit-interval %s: want at least 1s: an agent that never looks cannot say that the kernel is right", c.Audit)
	}
	if c.HostGrace != 0 && c.HostGrace < minGrace {
		return nil, fmt.Errorf("--host-grace %s: want 0 (off) or at least %s: a host that is only restarted, or cut off from the store for a moment, must not lose its addresses", c.HostGrace, minGrace)
	}
	pools, err := ipam.ParseDefaultPools(c.DefaultPools)
	if err != nil {
		return nil, fmt.Errorf("--default-pool: %w", err)
	}
	return pools, nil
}

// checkNode keeps host names usable as keys and readable in tables.
func checkNode(name string) error {
	bad := func(r rune) bool {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_'
		return !ok
	}
	if name == "" || len(name) > 253 || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("--node %q: want a host name of letters, digits, dots, dashes and underscores", name)
	}
	return nil
}

// ErrStoreURL: a --store that is no store's.
var ErrStoreURL = errors.New("want consul://HOST:PORT/PREFIX or bolt:///PATH")

// openStore opens the store of a URL. Nothing is asked of a server yet.
func openStore(c Config, log *slog.Logger) (kvstore.Store, error) {
	raw := c.Store
	if raw == "" {
		return bolt.Open(filepath.Join(c.StateDir, "store.db"))
	}
	scheme, _, _ := strings.Cut(raw, "://")
	switch scheme {
	case "bolt":
		path, err := bolt.ParseURL(raw)
		if err != nil {
			return nil, fmt.Errorf("--store: %w", err)
		}
		return bolt.Open(path)
	case "consul":
		cfg, err := consul.ParseURL(raw)
		if err != nil {
			return nil, fmt.Errorf("--store: %w", err)
		}
		if c.TokenFile != "" {
			cfg.TokenFile = c.TokenFile
		}
		cfg.Logger = log
		return consul.Open(cfg)
	case "etcd", "zk":
		return nil, fmt.Errorf("--store: %s is not supported by this version of carrick: %w", scheme, ErrStoreURL)
	}
	// What was given is not repeated: it may hold a password.
	return nil, fmt.Errorf("--store: unknown kind of store: %w", ErrStoreURL)
}

// readID reads one line of a file of the system; "" if it is not there, as in a
// container without it.
func readID(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
