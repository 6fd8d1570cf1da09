package mirror_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/mirror"
)

// slow is the endpoint of a container that takes long to start: the engine's
// network has it, no container lists it yet.
var slow = strings.Repeat("5", 64)

// engine is the little of a Docker engine that the mirror asks.
type engine struct {
	mu       sync.Mutex
	networks map[string]string // id -> name; guarded by mu
	events   chan string
}

func (e *engine) set(id, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		delete(e.networks, id)
	} else {
		e.networks[id] = name
	}
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	w.Header().Set("API-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case strings.HasSuffix(path, "/_ping"):
		_, _ = io.WriteString(w, "OK")
	case strings.HasSuffix(path, "/networks"):
		e.mu.Lock()
		defer e.mu.Unlock()
		list := []map[string]any{}
		for id, name := range e.networks {
			list = append(list, map[string]any{"Id": id, "Name": name, "Driver": "carrick", "IPAM": chosenPools()})
		}
		_ = json.NewEncoder(w).Encode(list)
	case strings.HasSuffix(path, "/events"):
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case ev := <-e.events:
				_, _ = io.WriteString(w, ev)
				_ = http.NewResponseController(w).Flush()
			}
		}
	case strings.HasSuffix(path, "/containers/json"):
		_ = json.NewEncoder(w).Encode([]map[string]any{{
			"Id": "c1", "Names": []string{"/web"},
			"NetworkSettings": map[string]any{"Networks": map[string]any{"app": map[string]any{
				"EndpointID": strings.Repeat("e", 64), "NetworkID": string(alias1), "IPAddress": "10.42.0.9", "GlobalIPv6Address": "fd00::9", "MacAddress": "02:28:0a:2a:00:09",
			}}},
		}})
	case strings.Contains(path, "/networks/"):
		_ = json.NewEncoder(w).Encode(map[string]any{
			"Id": "x", "Name": "app", "IPAM": chosenPools(),
			"Containers": map[string]any{"ep-1": map[string]any{"Name": "slow", "EndpointID": slow, "MacAddress": "", "IPv4Address": "10.42.0.2/16", "IPv6Address": ""}},
		})
	default:
		http.NotFound(w, r)
	}
}

// chosenPools is how engines of 20.10 write pools that nobody asked for: the
// IPv6 gateway with the length of its prefix.
func chosenPools() map[string]any {
	return map[string]any{"Driver": "carrick", "Config": []map[string]any{
		{"Subnet": "10.128.0.0/16", "Gateway": "10.128.0.1"}, {"Subnet": "fd88:93b9:19b6:1::/64", "Gateway": "fd88:93b9:19b6:1::1/64"},
	}}
}

func startEngine(t *testing.T) (*engine, *mirror.Engine) {
	t.Helper()
	fake := &engine{networks: map[string]string{}, events: make(chan string)}
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: fake, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	e, err := mirror.Connect("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return fake, e
}

// facts is a journal with a record of what the mirror asked for.
type facts struct {
	jr *journal.Journal

	mu      sync.Mutex
	named   map[carrick.DockerNetworkID]string // guarded by mu
	dropped []carrick.DockerNetworkID          // guarded by mu
}

func (f *facts) Journal() *journal.Journal { return f.jr }
func (f *facts) NameAlias(_ context.Context, id carrick.DockerNetworkID, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.named[id] = name
	return nil
}

func (f *facts) DropAlias(_ context.Context, id carrick.DockerNetworkID) error {
	f.mu.Lock()
	f.dropped = append(f.dropped, id)
	f.mu.Unlock()
	return f.jr.Update(func(tx *journal.Tx) error {
		for _, n := range []carrick.NetworkID{net1, net2} {
			rec, ok := tx.Network(n)
			if ok && rec.Aliases[0].Docker == id {
				tx.DeleteNetwork(n)
			}
		}
		return nil
	})
}

func (f *facts) RemoveEndpoint(id carrick.EndpointID) error {
	return f.jr.Update(func(tx *journal.Tx) error { tx.DeleteEndpoint(id); return nil })
}

func (f *facts) ReleaseOrphan(id carrick.NetworkID, a netip.Addr, gen carrick.Gen) error {
	return f.jr.Update(func(tx *journal.Tx) error {
		if l, ok := tx.Lease(id, a); ok && l.Gen == gen {
			tx.Release(id, a, time.Now())
		}
		return nil
	})
}

func (f *facts) SetNames(id carrick.EndpointID, names []string, unhealthy bool) error {
	return f.jr.Update(func(tx *journal.Tx) error {
		e, ok := tx.Endpoint(id)
		if ok {
			e.Names, e.Unhealthy = names, unhealthy
			tx.PutEndpoint(e)
		}
		return nil
	})
}

func (f *facts) Specs() ([]cluster.Spec, bool) { return nil, false }
func (f *facts) Spec(context.Context, carrick.NetworkID) (cluster.Spec, error) {
	return cluster.Spec{}, cluster.ErrUnknownNetwork
}
func (f *facts) Ended() []carrick.DockerNetworkID                                    { return nil }
func (f *facts) ForgetEnded(carrick.DockerNetworkID) error                           { return nil }
func (f *facts) Describe(context.Context, carrick.NetworkID, cluster.Spec) error     { return nil }
func (f *facts) DescribeAnew(context.Context, carrick.NetworkID, cluster.Spec) error { return nil }
func (f *facts) KeepNetwork(context.Context, carrick.NetworkID, string) error        { return nil }
func (f *facts) Self() carrick.HostID                                                { return "00000000000000a1" }
func (f *facts) HostName(id carrick.HostID) string                                   { return string(id) }
func (f *facts) StoreAway() bool                                                     { return false }

func (f *facts) name(id carrick.DockerNetworkID) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.named[id]
}

func (f *facts) drops() []carrick.DockerNetworkID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]carrick.DockerNetworkID(nil), f.dropped...)
}

const (
	net1 = carrick.NetworkID("0000000000000001")
	net2 = carrick.NetworkID("0000000000000002")
)

var (
	alias1 = carrick.DockerNetworkID(strings.Repeat("1", 64))
	alias2 = carrick.DockerNetworkID(strings.Repeat("2", 64))
)

// unleased is an address of endpoints whose addresses are of no interest.
var unleased = netip.MustParseAddr("10.42.0.254")

func conf(id carrick.NetworkID) carrick.Network {
	return carrick.Network{ID: id, Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}}}
}

func start(t *testing.T) (*engine, *facts) {
	t.Helper()
	return startWith(t, nil)
}

func startWith(t *testing.T, w mirror.Witness) (*engine, *facts) {
	t.Helper()
	fake, e := startEngine(t)
	jr, err := journal.Open(t.TempDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jr.Close() })
	err = jr.Update(func(tx *journal.Tx) error {
		tx.PutNetwork(journal.Network{Conf: conf(net1), Aliases: []journal.Alias{{Docker: alias1}}})
		tx.PutNetwork(journal.Network{Conf: conf(net2), Aliases: []journal.Alias{{Docker: alias2}}})
		tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: "used", Addrs: []netip.Addr{unleased}}, Network: net2})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &facts{jr: jr, named: map[carrick.DockerNetworkID]string{}}
	fake.set(string(alias1), "app")
	m := mirror.New(mirror.Config{Engine: e, Facts: f, Log: slog.New(slog.DiscardHandler), Witness: w, Every: 20 * time.Millisecond, Patience: 50 * time.Millisecond, Orphaned: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return fake, f
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
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

// The engine's names are learned at the start, and after each of its events.
func TestNamesAreLearned(t *testing.T) {
	t.Parallel()
	fake, f := start(t)
	eventually(t, "the name is known", func() bool { return f.name(alias1) == "app" })
	fake.set(string(alias2), "late")
	fake.events <- `{"Type":"network","Action":"create","Actor":{"ID":"` + string(alias2) + `"}}` + "\n"
	eventually(t, "the late name is known", func() bool { return f.name(alias2) == "late" })
}

// An alias that the engine does not know is dropped on the second look, and only
// if nothing uses it.
func TestAliasesTheEngineForgot(t *testing.T) {
	t.Parallel()
	fake, f := start(t)
	eventually(t, "the name is known", func() bool { return f.name(alias1) == "app" })
	fake.set(string(alias1), "")
	fake.events <- `{"Type":"network","Action":"destroy","Actor":{"ID":"` + string(alias1) + `"}}` + "\n"
	eventually(t, "the alias is dropped", func() bool { return len(f.drops()) > 0 })
	if got := f.drops(); len(got) != 1 || got[0] != alias1 {
		t.Errorf("dropped %v, want the unused %s alone", got, alias1)
	}
}

// An endpoint that the engine no longer has is withdrawn, and its address is
// released later; those that it has, and those still on their way, stay.
func TestEndpointsTheEngineForgot(t *testing.T) {
	t.Parallel()
	fake, f := start(t)
	there := carrick.EndpointID(strings.Repeat("e", 64)) // what the fake engine lists
	addr := netip.MustParseAddr("10.42.0.2")
	put := func(id carrick.EndpointID, joined bool, addrs ...netip.Addr) {
		t.Helper()
		err := f.jr.Update(func(tx *journal.Tx) error {
			tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: id, Addrs: append(addrs, unleased)}, Network: net1, Docker: alias1, Joined: joined})
			for _, a := range addrs {
				tx.PutLease(journal.Lease{Network: net1, Addr: a, Endpoint: id})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(there, true)
	put("coming", false)
	put(carrick.EndpointID(slow), true)
	put("gone", true, addr)
	fake.events <- `{"Type":"network","Action":"create","Actor":{"ID":"` + string(alias1) + `"}}` + "\n"
	has := func(id carrick.EndpointID) bool { _, err := f.jr.Endpoint(id); return err == nil }
	eventually(t, "the lost endpoint is withdrawn", func() bool { return !has("gone") })
	eventually(t, "its address is released", func() bool { return f.jr.Leases(net1)[addr].Released > 0 })
	if !has(there) || !has("coming") || !has(carrick.EndpointID(slow)) {
		t.Errorf("the engine's endpoint is there: %v, the coming one: %v, the slow one: %v", has(there), has("coming"), has(carrick.EndpointID(slow)))
	}
}

// An address that is given out again and again, and at every look has no endpoint yet, is
// nobody's leak: each use is another.
func TestAnAddressInQuickSuccession(t *testing.T) {
	t.Parallel()
	_, f := start(t)
	lost, busy := netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("10.42.0.3")
	give := func(a netip.Addr, gen carrick.Gen) {
		t.Helper()
		if err := f.jr.Update(func(tx *journal.Tx) error {
			tx.PutLease(journal.Lease{Network: net1, Addr: a, Gen: gen})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	give(lost, 1)
	gen := carrick.Gen(1)
	eventually(t, "the lost address is released", func() bool {
		if f.jr.Leases(net1)[busy].Released != 0 {
			t.Fatal("an address was released in the middle of a start")
		}
		gen++
		give(busy, gen)
		return f.jr.Leases(net1)[lost].Released > 0
	})
}

// Containers' names are found by endpoint.
func TestContainers(t *testing.T) {
	t.Parallel()
	_, e := startEngine(t)
	got, err := e.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := got[carrick.EndpointID(strings.Repeat("e", 64))]
	if c.Name != "web" || c.ID != "c1" || c.Network != alias1 || len(c.Addrs) != 2 || c.Addrs[0] != netip.MustParseAddr("10.42.0.9") ||
		c.MAC.String() != "02:28:0a:2a:00:09" {
		t.Errorf("containers %+v", got)
	}
}

// An engine that is away is an error that names it, never a reason to drop.
func TestEngineAway(t *testing.T) {
	t.Parallel()
	e, err := mirror.Connect("unix:///nowhere/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.HasEndpoint(t.Context(), alias1, "x"); err == nil || !strings.Contains(err.Error(), "/nowhere/docker.sock") {
		t.Errorf("a network of no engine: %v", err)
	}
	if _, err := e.Networks(t.Context()); err == nil || !strings.Contains(err.Error(), "/nowhere/docker.sock") {
		t.Errorf("networks of no engine: %v", err)
	}
}
