package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/dns"
)

// answerer notes what it is told.
type answerer struct {
	mu        sync.Mutex
	views     map[carrick.NetworkID]int // endpoints in it
	sandboxes map[string][]carrick.NetworkID
	ensured   []dns.Sandbox
	lost      map[carrick.HostID]bool
	failure   error
}

func (a *answerer) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (a *answerer) Apply(_ context.Context, list []dns.Sandbox) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sandboxes = map[string][]carrick.NetworkID{}
	for _, s := range list {
		a.sandboxes[s.Key] = s.Networks
	}
	return nil
}

func (a *answerer) Ensure(_ context.Context, s dns.Sandbox) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ensured = append(a.ensured, s)
	return a.failure
}

func (a *answerer) SetView(v carrick.View) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.views[v.Network.ID] = 0
	for _, eps := range v.Endpoints {
		a.views[v.Network.ID] += len(eps)
	}
}

func (a *answerer) Forget(id carrick.NetworkID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.views, id)
}

func (a *answerer) SetLost(lost map[carrick.HostID]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lost = maps.Clone(lost)
}

// nameFacts are a journal's, and what hosts there are.
type nameFacts struct {
	jr *journal.Journal

	mu    sync.Mutex
	lost  map[carrick.HostID]bool
	peers map[carrick.HostID]netip.Addr
}

func (f *nameFacts) Journal() *journal.Journal { return f.jr }

func (f *nameFacts) View(id carrick.NetworkID) (carrick.View, bool, error) {
	rec, err := f.jr.Network(id)
	if err != nil {
		return carrick.View{}, false, err
	}
	v := carrick.View{Network: rec.Conf, Endpoints: map[carrick.HostID][]carrick.Endpoint{}}
	for _, e := range f.jr.Endpoints(id) {
		v.Endpoints["00000000000000b1"] = append(v.Endpoints["00000000000000b1"], e.Endpoint)
	}
	return v, true, nil
}

func (f *nameFacts) Lost() map[carrick.HostID]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.lost)
}

func (f *nameFacts) Peers() map[carrick.HostID]netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.peers)
}

// detector says what it is told to.
type detector struct {
	mu    sync.Mutex
	down  map[carrick.HostID]bool
	peers map[carrick.HostID]netip.Addr
}

func (d *detector) SetPeers(p map[carrick.HostID]netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = p
}

func (d *detector) Down() map[carrick.HostID]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.down)
}

// names is a Names that runs in a bubble.
type names struct {
	t *testing.T
	*agent.Names
	a *answerer
	f *nameFacts
	d *detector
}

func newNames(t *testing.T) names {
	t.Helper()
	jr, err := journal.Open(t.TempDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jr.Close() })
	n := names{t: t, a: &answerer{views: map[carrick.NetworkID]int{}}, f: &nameFacts{jr: jr}, d: &detector{}}
	n.Names = agent.NewNames(agent.NamesConfig{Facts: n.f, Answerer: n.a, Detector: n.d, Log: slog.New(slog.DiscardHandler), Every: 5 * time.Millisecond})
	return n
}

// run runs it until the test ends.
func (n names) run() names {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
	return n
}

// becomes waits until what the answerer was told is as it should be.
func (n names) becomes(what string, is func() (have string, ok bool)) {
	n.t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for {
		n.a.mu.Lock()
		have, ok := is()
		n.a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-limit.C:
			n.t.Fatalf("%s: %s", what, have)
		}
	}
}

const (
	netA = carrick.NetworkID("00000000000000aa")
	netB = carrick.NetworkID("00000000000000ab")
)

// put has an endpoint in a network, in a sandbox.
func (n names) put(id string, network carrick.NetworkID, sandbox string) {
	n.t.Helper()
	i := len(n.f.jr.Endpoints(netA)) + len(n.f.jr.Endpoints(netB)) + 2
	err := n.f.jr.Update(func(tx *journal.Tx) error {
		if _, ok := tx.Network(network); !ok {
			tx.PutNetwork(journal.Network{Conf: carrick.Network{ID: network, Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}}}})
		}
		tx.PutEndpoint(journal.Endpoint{
			Endpoint: carrick.Endpoint{ID: carrick.EndpointID(strings.Repeat(id, 64)), Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.42.0.%d", i))}},
			Network:  network, Sandbox: sandbox, Joined: sandbox != "",
		})
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n names) remove(id string) {
	n.t.Helper()
	if err := n.f.jr.Update(func(tx *journal.Tx) error { tx.DeleteEndpoint(carrick.EndpointID(strings.Repeat(id, 64))); return nil }); err != nil {
		n.t.Fatal(err)
	}
}

// holds waits until the answerer knows just that.
func (n names) holds(what string, sandboxes map[string][]carrick.NetworkID, views map[carrick.NetworkID]int) {
	n.t.Helper()
	n.becomes(what, func() (string, bool) {
		return fmt.Sprintf("sandboxes %v and views %v, want %v and %v", n.a.sandboxes, n.a.views, sandboxes, views),
			maps.EqualFunc(n.a.sandboxes, sandboxes, slices.Equal) && maps.Equal(n.a.views, views)
	})
}

// Sandboxes and the networks they are in follow the endpoints, from the agent's
// start on.
func TestNamesFollowEndpoints(t *testing.T) {
	t.Parallel()
	n := newNames(t).run()
	n.put("1", netA, "/ns/x")
	n.put("2", netB, "/ns/x")
	n.put("3", netB, "")
	n.Changed(netA)
	n.Changed(netB)
	n.holds("a container in two networks, and one on its way", map[string][]carrick.NetworkID{"/ns/x": {netA, netB}}, map[carrick.NetworkID]int{netA: 1, netB: 2})
	n.put("3", netB, "/ns/y")
	n.Changed(netB)
	n.holds("another has joined", map[string][]carrick.NetworkID{"/ns/x": {netA, netB}, "/ns/y": {netB}}, map[carrick.NetworkID]int{netA: 1, netB: 2})
	n.remove("1")
	n.Changed(netA)
	n.holds("the first left a network, and nobody is in it", map[string][]carrick.NetworkID{"/ns/x": {netB}, "/ns/y": {netB}}, map[carrick.NetworkID]int{netB: 2})
	n.remove("2")
	n.Changed(netB)
	n.holds("and the other", map[string][]carrick.NetworkID{"/ns/y": {netB}}, map[carrick.NetworkID]int{netB: 1})
	late := newNames(t)
	late.put("1", netA, "/ns/x")
	late.run().holds("an agent that starts", map[string][]carrick.NetworkID{"/ns/x": {netA}}, map[carrick.NetworkID]int{netA: 1})
}

// Joined answers for all networks of a sandbox; that the namespace is not there yet is
// no error, and anything else is told.
func TestNamesOfAJoin(t *testing.T) {
	t.Parallel()
	n := newNames(t)
	n.put("1", netA, "/ns/x")
	n.put("2", netB, "")
	for failure, want := range map[error]bool{nil: false, fmt.Errorf("sandbox: %w", dns.ErrNoNamespace): false, errors.ErrUnsupported: true} {
		n.a.failure = failure
		if err := n.Joined(t.Context(), netB, "/ns/x"); (err != nil) != want {
			t.Errorf("%v became %v", failure, err)
		}
		last := n.a.ensured[len(n.a.ensured)-1]
		if last.Key != "/ns/x" || !slices.Equal(last.Networks, []carrick.NetworkID{netA, netB}) || n.a.views[netB] != 1 {
			t.Errorf("ensured %+v with views %v", last, n.a.views)
		}
	}
	before := len(n.a.ensured)
	if err := n.Joined(t.Context(), netB, ""); err != nil || len(n.a.ensured) != before {
		t.Errorf("an engine that names no sandbox: %v", err)
	}
}

// A host is lost if its lease is, or if the detector says so, until neither is.
func TestWhoseNamesAreLost(t *testing.T) {
	t.Parallel()
	n := newNames(t).run()
	lost := func(what string, want ...carrick.HostID) {
		n.t.Helper()
		n.becomes(what, func() (string, bool) {
			got := slices.Sorted(maps.Keys(n.a.lost))
			return fmt.Sprintf("lost %v, want %v", got, want), n.a.lost != nil && slices.Equal(got, want)
		})
	}
	lost("nobody")
	n.f.mu.Lock()
	n.f.peers = map[carrick.HostID]netip.Addr{"b": netip.MustParseAddr("192.0.2.2"), "c": netip.MustParseAddr("192.0.2.3")}
	n.f.lost = map[carrick.HostID]bool{"b": true}
	n.f.mu.Unlock()
	lost("a lease ended", "b")
	n.d.mu.Lock()
	if len(n.d.peers) != 2 {
		n.t.Errorf("the detector knows %v", n.d.peers)
	}
	n.d.down = map[carrick.HostID]bool{"c": true}
	n.d.mu.Unlock()
	n.Look()
	lost("and a host is down", "b", "c")
	n.f.mu.Lock()
	n.f.lost = map[carrick.HostID]bool{}
	n.f.mu.Unlock()
	lost("the lease is held again", "c")
	n.d.mu.Lock()
	n.d.down = nil
	n.d.mu.Unlock()
	lost("and the host is up")
}
