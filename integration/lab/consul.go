package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/integration/lab/hostinit"
)

// Consul is one Consul server on the underlay, in namespaces of its own. Its
// data survive everything but [Consul.Wipe].
type Consul struct {
	*node
	lab    *Lab
	binary string
	addr   netip.Addr
	peers  []netip.Addr // all servers, itself included
	server *daemon
}

func newConsul(l *Lab, n, of int, binary string) *Consul {
	name := "c" + strconv.Itoa(n)
	c := &Consul{
		node:   &node{name: name, dir: filepath.Join(l.dir.path, name), init: l.bin("labinit")},
		lab:    l,
		binary: binary,
		addr:   consulAddr(n),
	}
	for i := range of {
		c.peers = append(c.peers, consulAddr(i+1))
	}
	c.server = &daemon{node: c.node, name: "consul"}
	return c
}

// Name is "c1" and so on.
func (c *Consul) Name() string { return c.name }

// Addr is the server's address on the underlay; it serves HTTP on port 8500.
func (c *Consul) Addr() netip.Addr { return c.addr }

// consulConfig is the part of Consul's configuration file that is used here;
// the names are Consul's.
type consulConfig struct {
	NodeName           string            `json:"node_name"`
	NodeID             string            `json:"node_id"`
	Server             bool              `json:"server"`
	BootstrapExpect    int               `json:"bootstrap_expect"`
	DataDir            string            `json:"data_dir"`
	BindAddr           string            `json:"bind_addr"`
	Addresses          map[string]string `json:"addresses"`
	Ports              map[string]int    `json:"ports"`
	RetryJoin          []string          `json:"retry_join"`
	LeaveOnTerminate   bool              `json:"leave_on_terminate"`
	DisableUpdateCheck bool              `json:"disable_update_check"`
	LogLevel           string            `json:"log_level"`
	Performance        map[string]int    `json:"performance"`
}

func (c *Consul) socket() string { return filepath.Join(c.dir, "http.sock") }

// powerOn plugs the machine in. The server is not started.
func (c *Consul) powerOn(ctx context.Context) error {
	if err := c.node.powerOn(ctx, hostinit.Config{Hostname: c.name}); err != nil {
		return err
	}
	if err := c.lab.underlay.plug(ctx, c.node, c.addr); err != nil {
		return err
	}
	cfg := consulConfig{
		// A fixed id, so that a wiped server is not a stranger under a known name.
		NodeName: c.name, NodeID: fmt.Sprintf("00000000-0000-4000-8000-%012x", c.addr.As4()[3]), Server: true, BootstrapExpect: len(c.peers),
		DataDir: filepath.Join(c.dir, "data"), BindAddr: c.addr.String(),
		// A socket beside the port, for the lab itself, whom no fault on the
		// underlay can cut off.
		Addresses:          map[string]string{"http": "0.0.0.0 unix://" + c.socket()},
		Ports:              map[string]int{"http": 8500, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1},
		DisableUpdateCheck: true, LogLevel: "INFO",
		// The shortest election timeouts Consul has.
		Performance: map[string]int{"raft_multiplier": 1},
	}
	for _, p := range c.peers {
		if p != c.addr {
			cfg.RetryJoin = append(cfg.RetryJoin, p.String())
		}
	}
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "consul.json"), b, 0o644)
}

// spawn starts the server without waiting for it.
func (c *Consul) spawn() error {
	_, err := c.server.start(nil, c.binary, "agent", "-config-file", filepath.Join(c.dir, "consul.json"))
	return err
}

// Start starts the server and waits until it knows a leader and takes writes.
// With three servers that needs one of the others.
func (c *Consul) Start(ctx context.Context) error {
	if err := c.spawn(); err != nil {
		return err
	}
	return c.ready(ctx)
}

func (c *Consul) ready(ctx context.Context) error {
	err := Wait(ctx, time.Minute, c.name+" to take writes", func() error {
		if c.server.running() == nil {
			return errors.New("consul is not running")
		}
		ok, err := c.call(ctx, http.MethodPut, "/v1/txn", strings.NewReader("[]"))
		if err == nil && len(ok) == 0 {
			err = errors.New("empty answer")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, c.server.tail(0, 20))
	}
	return nil
}

// Stop ends the server gracefully; it does not leave the cluster.
func (c *Consul) Stop(ctx context.Context) error { return c.server.signal(ctx, unix.SIGTERM) }

// Kill ends the server with SIGKILL.
func (c *Consul) Kill(ctx context.Context) error { return c.server.signal(ctx, unix.SIGKILL) }

// Wipe ends the server, deletes all it knows, and starts it. With one server the
// store is empty then; one of three gets everything back from the others.
func (c *Consul) Wipe(ctx context.Context) error {
	if c.Running() {
		if err := c.Kill(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(c.dir, "data")); err != nil {
		return err
	}
	return c.Start(ctx)
}

// Running says whether the server's process is there.
func (c *Consul) Running() bool { return c.server.running() != nil }

// Log is everything the server logged.
func (c *Consul) Log() string { return c.server.log(0) }

// errNoKey is what Consul's 404 means for a key.
var errNoKey = errors.New("no such key in Consul")

// call makes one request to this server's HTTP API, whatever faults there are.
func (c *Consul) call(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://consul"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %s %s: %w", c.name, method, path, err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s: %s %s: %w", c.name, method, path, errNoKey)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s %s: %s: %s", c.name, method, path, resp.Status, b)
	}
	return b, nil
}

// anyConsul returns a server that runs.
func (l *Lab) anyConsul() (*Consul, error) {
	for _, c := range l.consuls {
		if c.Running() {
			return c, nil
		}
	}
	return nil, errors.New("no Consul server is running")
}

// Leader returns the server that leads the others.
func (l *Lab) Leader(ctx context.Context) (*Consul, error) {
	asked, err := l.anyConsul()
	if err != nil {
		return nil, err
	}
	b, err := asked.call(ctx, http.MethodGet, "/v1/status/leader", nil)
	if err != nil {
		return nil, err
	}
	for _, c := range l.consuls {
		if strings.Contains(string(b), c.addr.String()+":") && c.Running() {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%s says that the leader is %s", asked.name, b)
}

// Redundant returns nil if the servers would survive the loss of any one of them:
// one that has just come back gets its vote after a while.
func (l *Lab) Redundant(ctx context.Context) error {
	asked, err := l.anyConsul()
	if err != nil {
		return err
	}
	b, err := asked.call(ctx, http.MethodGet, "/v1/operator/autopilot/health", nil)
	if err != nil {
		return err
	}
	var health struct{ FailureTolerance int }
	if err := json.Unmarshal(b, &health); err != nil {
		return fmt.Errorf("read the servers' health: %w", err)
	}
	if health.FailureTolerance < 1 {
		return fmt.Errorf("the servers are not ready to lose one: %s", b)
	}
	return nil
}

// StoreKeys lists every key in Consul, sorted.
func (l *Lab) StoreKeys(ctx context.Context) ([]string, error) {
	c, err := l.anyConsul()
	if err != nil {
		return nil, err
	}
	b, err := c.call(ctx, http.MethodGet, "/v1/kv/?keys", nil)
	if errors.Is(err, errNoKey) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var keys []string
	if err := json.Unmarshal(b, &keys); err != nil {
		return nil, fmt.Errorf("list the keys of the store: %w", err)
	}
	slices.Sort(keys)
	return keys, nil
}

// StoreGet returns the value of one key in Consul.
func (l *Lab) StoreGet(ctx context.Context, key string) ([]byte, error) {
	c, err := l.anyConsul()
	if err != nil {
		return nil, err
	}
	return c.call(ctx, http.MethodGet, "/v1/kv/"+key+"?raw", nil)
}

// StorePut writes one key in Consul, as a hand that should not be there.
func (l *Lab) StorePut(ctx context.Context, key string, value []byte) error {
	c, err := l.anyConsul()
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPut, "/v1/kv/"+key, strings.NewReader(string(value)))
	return err
}

// StoreDelete deletes one key in Consul, as such a hand.
func (l *Lab) StoreDelete(ctx context.Context, key string) error {
	c, err := l.anyConsul()
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodDelete, "/v1/kv/"+key, nil)
	return err
}

// StoreSave returns a backup of Consul, as `consul snapshot save` makes it.
func (l *Lab) StoreSave(ctx context.Context) ([]byte, error) {
	c, err := l.anyConsul()
	if err != nil {
		return nil, err
	}
	return c.call(ctx, http.MethodGet, "/v1/snapshot", nil)
}

// StoreRestore puts a backup back: the store is then as it was.
func (l *Lab) StoreRestore(ctx context.Context, backup []byte) error {
	c, err := l.anyConsul()
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPut, "/v1/snapshot", strings.NewReader(string(backup)))
	return err
}
