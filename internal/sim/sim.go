// Package sim puts several hosts' facts side (cluster, ipam, driver) into one
// process, each under a stand-in for dockerd that makes the engine's calls in the
// engine's order. It is for tests: what takes three real engines minutes takes
// milliseconds here, and every fault can be placed exactly.
//
// There is no kernel below it unless one is attached.
package sim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/driver"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// Patience bounds every wait of a simulation; it is no measure of anything.
const Patience = 20 * time.Second

// Host is one simulated host. Its exported parts are the real ones.
type Host struct {
	t     testing.TB
	Name  string
	VTEP  netip.Addr
	Dir   string // the state directory, kept over Crash and Start
	Store *memory.Client

	Cluster *cluster.Cluster
	IPAM    *ipam.Driver
	Driver  *driver.Driver

	server *memory.Server
	jr     *journal.Journal
	stop   context.CancelFunc
	ended  chan error

	mu       sync.Mutex
	networks map[string]*Network // Docker's, by name; guarded by mu
	nextFail error               // of the next Realize; guarded by mu
	below    Below               // guarded by mu
}

// Below is what keeps a host's kernel, for tests that want one.
type Below interface {
	driver.Realizer
	Changed(carrick.NetworkID)
}

// Attach puts something below the host's facts. Without it Realize succeeds.
func (h *Host) Attach(b Below) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.below = b
}

// Network is a Docker network of one simulated engine.
type Network struct {
	Name    string
	ID      carrick.DockerNetworkID
	PoolID  string
	Subnet  netip.Prefix
	Gateway netip.Addr
	aux     []netip.Addr
}

// Container is a running container's endpoint.
type Container struct {
	Network  *Network
	Endpoint carrick.EndpointID
	Addr     netip.Prefix
	MAC      carrick.MAC
}

// NewHost makes and starts host number n (1 to 254), whose VTEP is 192.0.2.n.
func NewHost(t testing.TB, server *memory.Server, n int) *Host {
	t.Helper()
	h := &Host{
		t: t, Name: fmt.Sprintf("h%d", n), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
		Dir: filepath.Join(t.TempDir(), "state"), server: server,
		networks: map[string]*Network{},
	}
	h.Store = server.Client(h.Name)
	h.Start()
	t.Cleanup(h.Crash)
	return h
}

// Start starts the agent's facts side on the host's state directory and waits
// until it is registered.
func (h *Host) Start() {
	h.t.Helper()
	if err := h.TryStart(h.Name, h.VTEP); err != nil {
		h.t.Fatalf("start %s: %v", h.Name, err)
	}
}

// TryStart is Start under a name and an address, with an error instead of a
// failure.
func (h *Host) TryStart(name string, vtep netip.Addr) error {
	if err := h.launch(name, vtep); err != nil {
		return err
	}
	select {
	case <-h.Cluster.Ready():
		return nil
	case err := <-h.ended:
		h.ended <- nil
		h.Crash()
		return err
	case <-time.After(Patience):
		h.Crash()
		return fmt.Errorf("%s was not registered in time", name)
	}
}

// StartCut starts the agent's facts side while its store is away, and waits for
// nothing.
func (h *Host) StartCut() error { return h.launch(h.Name, h.VTEP) }

func (h *Host) launch(name string, vtep netip.Addr) error {
	jr, err := journal.Open(h.Dir, "machine-"+h.Name)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(testWriter{h.t}, &slog.HandlerOptions{Level: slog.LevelWarn})).With("host", name)
	h.jr = jr
	h.Cluster = cluster.New(cluster.Config{
		Store: h.Store, Journal: jr, Name: name, VTEP: vtep, MTU: 1500, Version: "sim", Machine: "machine-" + h.Name, Boot: "boot",
		Log: log, Changed: h.noteChange,
	})
	h.IPAM = ipam.New(ipam.Config{
		Cluster: h.Cluster, Defaults: []ipam.DefaultPool{{Base: netip.MustParsePrefix("10.128.0.0/9"), Size: 16}},
		HostPrefixes: func(context.Context) ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.128.0.0/24")}, nil
		}, Log: log,
	})
	h.Driver = driver.New(driver.Config{Cluster: h.Cluster, Pools: h.IPAM, Realizer: h, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	h.ended = make(chan error, 1)
	running := h.ended
	go func() {
		done := make(chan struct{})
		go func() { defer close(done); _ = h.IPAM.Run(ctx) }()
		err := h.Cluster.Run(ctx)
		cancel()
		<-done
		running <- err
	}()
	return nil
}

// Crash ends the agent; its state directory and its leases stay.
func (h *Host) Crash() {
	if h.stop == nil {
		return
	}
	h.stop()
	if err := <-h.ended; err != nil {
		h.t.Errorf("%s: %v", h.Name, err)
	}
	_ = h.jr.Close()
	h.stop = nil
}

// Realize implements [driver.Realizer].
func (h *Host) Realize(ctx context.Context, id carrick.NetworkID, ep carrick.EndpointID) error {
	h.mu.Lock()
	err, below := h.nextFail, h.below
	h.nextFail = nil
	h.mu.Unlock()
	if err != nil || below == nil {
		return err
	}
	return below.Realize(ctx, id, ep)
}

// FailRealize makes the next Realize fail.
func (h *Host) FailRealize(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextFail = err
}

func (h *Host) noteChange(id carrick.NetworkID) {
	h.mu.Lock()
	below := h.below
	h.mu.Unlock()
	if below != nil {
		below.Changed(id)
	}
}

// Create is what the user may say at docker network create.
type Create struct {
	Subnet   string // "" = the driver's choice
	Range    string
	Gateway  string
	Aux      map[string]string
	IPAMOpts map[string]string
	Opts     map[string]string
	Internal bool
	IPv6     bool
	// ForeignIPAM: somebody forgot --ipam-driver.
	ForeignIPAM bool
}

// NetworkCreate makes dockerd's calls of docker network create. Failures are
// undone as dockerd undoes them.
func (h *Host) NetworkCreate(name string, c Create) (*Network, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	n := &Network{Name: name, ID: carrick.DockerNetworkID(hexID())}
	data := dockerapi.PoolData{AddressSpace: dockerapi.AddressSpace}
	if c.ForeignIPAM {
		data.AddressSpace, data.Pool = "LocalDefault", netip.MustParsePrefix(c.Subnet)
	} else {
		req := dockerapi.RequestPoolRequest{AddressSpace: dockerapi.AddressSpace, Options: c.IPAMOpts, Pool: prefix(c.Subnet), SubPool: prefix(c.Range)}
		pool, err := h.IPAM.RequestPool(ctx, req)
		if err != nil {
			return nil, err
		}
		n.PoolID, n.Subnet, data.Pool = pool.PoolID, pool.Pool, pool.Pool
		gw, err := h.IPAM.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: n.PoolID, Addr: addr(c.Gateway), Kind: dockerapi.AddressGateway})
		if err != nil {
			h.releasePool(ctx, n)
			return nil, err
		}
		n.Gateway, data.Gateway = gw.Addr.Addr(), gw.Addr.Addr()
		for k, v := range c.Aux {
			a, err := h.IPAM.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: n.PoolID, Addr: addr(v)})
			if err != nil {
				h.releasePool(ctx, n)
				return nil, err
			}
			if data.Aux == nil {
				data.Aux = map[string]netip.Addr{}
			}
			data.Aux[k] = a.Addr.Addr()
			n.aux = append(n.aux, a.Addr.Addr())
		}
	}
	err := h.Driver.CreateNetwork(ctx, dockerapi.CreateNetworkRequest{
		ID: n.ID, Options: c.Opts, Internal: c.Internal, EnableIPv4: true, EnableIPv6: c.IPv6, IPv4: []dockerapi.PoolData{data},
	})
	if err != nil {
		if !c.ForeignIPAM {
			h.releasePool(ctx, n)
		}
		return nil, err
	}
	h.mu.Lock()
	h.networks[name] = n
	h.mu.Unlock()
	return n, nil
}

func (h *Host) releasePool(ctx context.Context, n *Network) {
	for _, a := range append([]netip.Addr{n.Gateway}, n.aux...) {
		if a.IsValid() {
			_ = h.IPAM.ReleaseAddress(ctx, n.PoolID, a)
		}
	}
	_ = h.IPAM.ReleasePool(ctx, n.PoolID)
}

// MustCreate is NetworkCreate that fails the test.
func (h *Host) MustCreate(name string, c Create) *Network {
	h.t.Helper()
	n, err := h.NetworkCreate(name, c)
	if err != nil {
		h.t.Fatalf("%s: docker network create %s: %v", h.Name, name, err)
	}
	return n
}

// NetworkRm makes dockerd's calls of docker network rm: IPAM first, errors
// ignored, but the driver's returned.
func (h *Host) NetworkRm(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	h.mu.Lock()
	n := h.networks[name]
	delete(h.networks, name)
	h.mu.Unlock()
	h.releasePool(ctx, n)
	return h.Driver.DeleteNetwork(ctx, n.ID)
}

// Run is what the user may say at docker run.
type Run struct {
	IP  string
	MAC string
}

// Run makes dockerd's calls of docker run.
func (h *Host) Run(n *Network, r Run) (*Container, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	got, err := h.IPAM.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: n.PoolID, Addr: addr(r.IP)})
	if err != nil {
		return nil, err
	}
	c := &Container{Network: n, Endpoint: carrick.EndpointID(hexID()), Addr: got.Addr}
	if r.MAC != "" {
		if c.MAC, err = carrick.ParseMAC(r.MAC); err != nil {
			return nil, err
		}
	}
	resp, err := h.Driver.CreateEndpoint(ctx, dockerapi.CreateEndpointRequest{Network: n.ID, Endpoint: c.Endpoint, Addr4: c.Addr, MAC: c.MAC})
	if err != nil {
		_ = h.IPAM.ReleaseAddress(ctx, n.PoolID, c.Addr.Addr())
		return nil, err
	}
	if c.MAC.IsZero() {
		c.MAC = resp.MAC
	}
	if _, err := h.Driver.Join(ctx, dockerapi.JoinRequest{Network: n.ID, Endpoint: c.Endpoint, SandboxKey: "/var/run/docker/netns/0123456789ab"}); err != nil {
		_ = h.Driver.DeleteEndpoint(ctx, n.ID, c.Endpoint)
		_ = h.IPAM.ReleaseAddress(ctx, n.PoolID, c.Addr.Addr())
		return nil, err
	}
	return c, nil
}

// MustRun is Run that fails the test.
func (h *Host) MustRun(n *Network, r Run) *Container {
	h.t.Helper()
	c, err := h.Run(n, r)
	if err != nil {
		h.t.Fatalf("%s: docker run --network %s %+v: %v", h.Name, n.Name, r, err)
	}
	return c
}

// Stop makes dockerd's calls of docker stop.
func (h *Host) Stop(c *Container) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for _, err := range []error{
		h.Driver.Leave(ctx, c.Network.ID, c.Endpoint),
		h.Driver.DeleteEndpoint(ctx, c.Network.ID, c.Endpoint),
		h.IPAM.ReleaseAddress(ctx, c.Network.PoolID, c.Addr.Addr()),
	} {
		if err != nil {
			h.t.Errorf("%s: docker stop: %v", h.Name, err)
		}
	}
}

// View is the host's whole snapshot of a Docker network.
func (h *Host) View(n *Network) (carrick.View, bool) {
	rec, err := h.jr.ByAlias(n.ID)
	if err != nil {
		return carrick.View{}, false
	}
	v, complete, err := h.Cluster.View(rec.Conf.ID)
	return v, err == nil && complete
}

// Eventually waits until cond holds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("never came true: %s", what)
		case <-tick.C:
		}
	}
}

func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func hexID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}
