package daemon

import (
	"strings"
	"testing"
	"time"
)

// sound is a configuration that nothing is wrong with.
func sound() Config {
	return Config{
		StateDir: "/var/lib/carrick", PluginSocket: "/run/docker/plugins/carrick.sock", APISocket: "/run/carrick/carrick.sock", NetnsDir: "/run/netns",
		Node: "h1.example", DefaultPools: []string{"base=10.128.0.0/9,size=16", "base=fd00::/40,size=64"}, Audit: time.Minute,
	}
}

// What cannot work is refused with the option's name, before anything is touched.
func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	pools, err := sound().check()
	if err != nil || len(pools) != 2 {
		t.Fatalf("%v, %v", pools, err)
	}
	for want, spoil := range map[string]func(*Config){
		`--state-dir "relative"`: func(c *Config) { c.StateDir = "relative" },
		`--plugin-socket ""`:     func(c *Config) { c.PluginSocket = "" },
		`--node "a b"`:           func(c *Config) { c.Node = "a b" },
		`--node ""`:              func(c *Config) { c.Node = "" },
		"--audit-interval 1ms":   func(c *Config) { c.Audit = time.Millisecond },
		"--default-pool":         func(c *Config) { c.DefaultPools = append(c.DefaultPools, "10.0.0.0/8") },
		"--host-grace 1m29s":     func(c *Config) { c.HostGrace = minGrace - time.Second },
		"--host-grace -1s":       func(c *Config) { c.HostGrace = -time.Second },
		"at least 1m30s":         func(c *Config) { c.HostGrace = time.Nanosecond },
	} {
		c := sound()
		spoil(&c)
		if _, err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %s", err, want)
		}
	}
	for _, grace := range []time.Duration{0, minGrace, 24 * time.Hour} {
		c := sound()
		c.HostGrace = grace
		if _, err := c.check(); err != nil {
			t.Errorf("grace %s: %v", grace, err)
		}
	}
}

// A --store is one of a few kinds, and what is wrong with it does not repeat what
// may be a password.
func TestStoreURLs(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"etcd://10.0.0.1:2379":           "etcd is not supported",
		"zk://10.0.0.1":                  "zk is not supported",
		"redis://user:hunter2@10.0.0.1":  "unknown kind of store",
		"consul://":                      "--store",
		"consul://token@10.0.0.1/prefix": "--store",
		"bolt://relative":                "--store",
		"nonsense":                       "consul://HOST:PORT/PREFIX",
	} {
		c := sound()
		c.Store = url
		s, err := openStore(c, nil)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("--store %s: %v, want one with %q", url, err, want)
		}
	}
	c := sound()
	c.StateDir = t.TempDir()
	s, err := openStore(c, nil)
	if err != nil {
		t.Fatalf("the embedded store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
