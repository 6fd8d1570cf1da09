// Package sim puts several hosts' facts side (cluster, ipam, driver, mirror) into
// one process, each under a stand-in for dockerd that makes the engine's calls in
// the engine's order. It is for tests: what takes three real engines minutes takes
// milliseconds here, and every fault can be placed exactly: an agent that dies at
// a write of its journal, a host whose power fails, an engine whose calls nobody
// answers.
//
// There is no kernel below it unless one is attached.
package sim

import (
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
	"github.com/carrick-net/carrick/driver"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/mirror"
)

// Patience bounds every wait of a simulation; it is no measure of anything.
const Patience = 20 * time.Second

// Options are what a simulated host may have beside its number.
type Options struct {
	// Number is 1 to 254; the host's name is h and it, its VTEP 192.0.2. and it.
	Number int
	// Dir is the state directory; "" is one of the test's.
	Dir string
	// Whole: the agent looks at its engine, collects what that forgot, and follows
	// the networks it has endpoints in, as the real one does.
	Whole bool
	// Everywhere: a network that is made on any host is made on this one, and removed
	// with it; it needs Whole.
	Everywhere bool
	// Devices is what networks can stand on; nil: there is nothing.
	Devices driver.Devices
	// Routing is asked before a network is routed; nil: none is.
	Routing driver.Routing
	// Segment is asked before an address is given out; nil: nobody is.
	Segment ipam.Segment
	// Rest and Grace are the cluster's; 0: its defaults.
	Rest, Grace time.Duration
	// Log of the agent; nil: warnings go to the test's.
	Log *slog.Logger
	// Wrap makes what each life of the agent takes for its store, of the host's own
	// client or of anything else; nil: the client itself.
	Wrap func(*memory.Client) kvstore.Store
	// MTU of the underlay, in bytes; 0 = 1500.
	MTU int
}

// Host is one simulated host. Its exported parts are the real ones, of the agent
// that runs or was the last to run; they are not to be read while another
// goroutine starts the agent.
type Host struct {
	t     testing.TB
	opts  Options
	Name  string
	VTEP  netip.Addr
	Dir   string         // the state directory, kept over Crash and Start
	Store *memory.Client // another one after Kill

	Cluster *cluster.Cluster
	IPAM    *ipam.Driver
	Driver  *driver.Driver

	server *memory.Server

	mu       sync.Mutex // guards everything below
	agent    *agent     // nil: none, or reaped
	fuse     int        // writes' hooks until the agent dies; 0: it does not
	cut      bool       // from the store
	blind    bool       // watches bring nothing
	boot     int        // counts the host's boots
	booted   time.Time  // the last time
	life     int        // counts the engine's lives
	off      bool       // no power
	networks map[string]*Network
	stored   map[carrick.EndpointID]*Container // endpoints in the engine's database
	live     map[carrick.EndpointID]*Container // whose container runs
	boxes    map[string]*Box
	nextFail error // of the next Realize
	below    Below
	naming   map[string]bool // names of networks that are being made
	mirror   *mirror.Mirror  // nil: nobody looks at the engine
	keepFail int             // networks that the engine will not be able to keep
	keeping  func()          // see WhileKeeping; nil: nothing
}

// NewHost makes and starts host number n (1 to 254), whose VTEP is 192.0.2.n.
func NewHost(t testing.TB, server *memory.Server, n int) *Host {
	t.Helper()
	return NewHostWith(t, server, Options{Number: n})
}

// NewHostWith is NewHost with options.
func NewHostWith(t testing.TB, server *memory.Server, o Options) *Host {
	t.Helper()
	h := &Host{
		t: t, opts: o, Name: fmt.Sprintf("h%d", o.Number), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(o.Number)}),
		Dir: o.Dir, server: server, boot: 1, booted: time.Now(),
		networks: map[string]*Network{}, stored: map[carrick.EndpointID]*Container{}, live: map[carrick.EndpointID]*Container{},
		boxes: map[string]*Box{},
	}
	if h.Dir == "" {
		h.Dir = filepath.Join(t.TempDir(), "state")
	}
	if o.MTU == 0 {
		h.opts.MTU = 1500
	}
	h.Store = server.Client(h.Name)
	h.Start()
	t.Cleanup(h.Crash)
	return h
}

// View is the host's whole snapshot of a Docker network.
func (h *Host) View(n *Network) (carrick.View, bool) {
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
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
