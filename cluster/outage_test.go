package cluster_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/snapshot"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// addresses are the addresses of a host's endpoints in a view, in order.
func addresses(cs ...*sim.Container) []string {
	var out []string
	for _, c := range cs {
		out = append(out, c.Addr.Addr().String())
	}
	slices.Sort(out)
	return out
}

// sees waits until h knows exactly these containers of another host, from the
// store.
func sees(t *testing.T, h *sim.Host, n *sim.Network, of *sim.Host, cs ...*sim.Container) {
	t.Helper()
	id := of.Cluster.Self()
	sim.Eventually(t, h.Name+" sees what runs on "+of.Name, func() bool {
		v, complete := h.View(n)
		got := endpoints(v, id)
		slices.Sort(got)
		return complete && slices.Equal(got, addresses(cs...))
	})
}

// settled waits until the store has all of a host's facts.
func settled(t *testing.T, h *sim.Host) {
	t.Helper()
	sim.Eventually(t, h.Name+"'s facts are in the store", func() bool {
		x := h.Cluster.Health()
		return x.Err == nil && x.Pending == 0 && x.Unpublished == 0 && x.Since.IsZero()
	})
}

// pair is two hosts in one network with a container each, who know one another.
func pair(t *testing.T) (a, b *sim.Host, na, nb *sim.Network, ca, cb *sim.Container) {
	t.Helper()
	s := memory.NewServer()
	a, b = sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb = a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	ca, cb = a.MustRun(na, sim.Run{}), b.MustRun(nb, sim.Run{})
	sees(t, a, na, b, cb)
	sees(t, b, nb, a, ca)
	settled(t, a)
	return a, b, na, nb, ca, cb
}

// With the store away containers start, stop and start again, with the address
// they ask for, and what the others missed they learn when it is back.
func TestNobodyNoticesTheOutage(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, cb := pair(t)
	a.Store.Cut()
	more := a.MustRun(na, sim.Run{})
	named := a.MustRun(na, sim.Run{IP: "10.42.0.40"})
	a.Stop(ca)
	ca = a.MustRun(na, sim.Run{IP: ca.Addr.Addr().String()})
	gone := a.MustRun(na, sim.Run{})
	a.Stop(gone)
	// The endpoint that stopped, and three that run.
	if h := a.Cluster.Health(); h.Pending != 1 || h.Unpublished != 4 || h.Since.IsZero() || h.Contact.IsZero() {
		t.Errorf("health without the store: %+v", h)
	}
	if v, complete := a.View(na); !complete || v.Partial || len(v.Endpoints[b.Cluster.Self()]) != 1 {
		t.Errorf("a forgot what it knew: complete %v, %+v", complete, v)
	}
	a.Store.Heal()
	sees(t, b, nb, a, ca, more, named)
	sees(t, a, na, b, cb)
	settled(t, a)
}

// Nor does anybody wait for a store that takes questions and answers none.
func TestNobodyWaitsForASilentStore(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, _ := pair(t)
	a.Store.Stall()
	more := a.MustRun(na, sim.Run{})
	named := a.MustRun(na, sim.Run{IP: "10.42.0.40"})
	a.Stop(ca)
	a.Stop(named)
	named = a.MustRun(na, sim.Run{IP: "10.42.0.40"})
	if h := a.Cluster.Health(); h.Err != nil || h.Unpublished == 0 {
		t.Errorf("the store is not silent: %+v", h)
	}
	a.Store.Heal()
	sees(t, b, nb, a, more, named)
	settled(t, a)
}

// told is somebody below a host's facts who notes what changed.
type told struct {
	mu       sync.Mutex
	networks map[carrick.NetworkID]bool
}

func (*told) Realize(context.Context, carrick.NetworkID, carrick.EndpointID) error { return nil }

func (b *told) Changed(id carrick.NetworkID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.networks[id] = true
}

func (b *told) has(id carrick.NetworkID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.networks[id]
}

// Whoever looks at a network before somebody else has it followed sees nothing of the
// others: he is told once what was heard of them before is there.
func TestWhatIsRecalledIsTold(t *testing.T) {
	t.Parallel()
	a, b, na, _, _, cb := pair(t)
	v, _ := a.View(na)
	id := v.Network.ID
	a.Crash()
	a.Store.Cut()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	below := &told{networks: map[carrick.NetworkID]bool{}}
	a.Attach(below)
	if v, _ := a.View(na); len(v.Endpoints[b.Cluster.Self()]) != 0 {
		t.Fatal("it is known before anybody has it followed: this test shows nothing")
	}
	a.Cluster.Follow(id)
	if v, _ := a.View(na); !slices.Equal(endpoints(v, b.Cluster.Self()), addresses(cb)) || !below.has(id) {
		t.Errorf("of b %v is known, and told: %v", endpoints(v, b.Cluster.Self()), below.has(id))
	}
}

// An agent that starts while its store is away serves its networks, knows the
// others from what it heard before, and says so.
func TestRestartDuringTheOutage(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, cb := pair(t)
	heard := a.Cluster.Health().Contact
	a.Crash()
	a.Store.Cut()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	sim.Eventually(t, "it does not know what the store has", func() bool {
		h := a.Cluster.Health()
		return h.Pending == 1 && h.Unpublished == 1
	})
	more := a.MustRun(na, sim.Run{})
	named := a.MustRun(na, sim.Run{IP: "10.42.0.40"})
	a.Stop(ca)
	v, complete := a.View(na)
	if complete || !v.Partial {
		t.Error("what was heard before the start is taken for complete")
	}
	other := b.Cluster.Self()
	if got := endpoints(v, other); !slices.Equal(got, addresses(cb)) || v.Hosts[other].VTEP != b.VTEP || v.Hosts[other].Name != b.Name {
		t.Errorf("b is %+v with %v, want what was known before the restart", v.Hosts[other], got)
	}
	if h := a.Cluster.Health(); h.Pending != 1 || h.Unpublished != 2 || h.Since.IsZero() || h.Answered || h.Contact.Before(heard) {
		t.Errorf("health without the store, last heard at %s: %+v", heard, h)
	}
	// Whoever waits for the store is told, long before an engine loses patience.
	ctx, cancel := context.WithTimeout(t.Context(), sim.Patience)
	defer cancel()
	if err := a.Cluster.WaitReady(ctx); !errors.Is(err, cluster.ErrNotReady) || !cluster.IsUnavailable(err) || ctx.Err() != nil {
		t.Errorf("waiting for the store: %v", err)
	}
	late := b.MustRun(nb, sim.Run{})
	b.Stop(cb)
	a.Store.Heal()
	sim.Eventually(t, "the store is back", func() bool { return a.Cluster.WaitReady(ctx) == nil })
	sees(t, b, nb, a, more, named)
	sees(t, a, na, b, late)
	settled(t, a)
	if v, _ := a.View(na); v.Partial {
		t.Error("the view is still partial")
	}
}

// A host that loses power and boots without the store starts what ran: its engine
// gives up the old endpoints and asks for new ones, with the addresses of old where
// the user named them.
func TestColdBootWithoutTheStore(t *testing.T) {
	t.Parallel()
	a, b, na, nb, _, cb := pair(t)
	for name, r := range map[string]sim.Run{"web": {}, "db": {IP: "10.42.0.40"}} {
		if _, err := a.RunBox(name, true, na, r); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, a)
	a.PowerOff()
	a.CutStore()
	a.PowerOn()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	if err := a.EngineStart(); err != nil {
		t.Errorf("not everything came back: %v", err)
	}
	var up []*sim.Container
	for _, box := range a.Boxes() {
		up = append(up, box.Parts()...)
	}
	v, _ := a.View(na)
	if got := endpoints(v, a.Cluster.Self()); len(got) != 2 || len(up) != 2 || !slices.Contains(got, "10.42.0.40") {
		t.Errorf("here run %v", got)
	}
	if got := endpoints(v, b.Cluster.Self()); !v.Partial || !slices.Equal(got, addresses(cb)) {
		t.Errorf("b's containers are %v, want %v (partial %v)", got, addresses(cb), v.Partial)
	}
	a.HealStore()
	sees(t, b, nb, a, up...)
	sees(t, a, na, b, cb)
	settled(t, a)
}

// What a host read when it came, and not as it happened, is remembered as well.
func TestALateComerRemembers(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := sim.NewHost(t, s, 1), sim.NewHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})
	cb := b.MustRun(nb, sim.Run{})
	settled(t, b)
	a.MustRun(na, sim.Run{})
	sees(t, a, na, b, cb)
	a.Crash()
	a.CutStore()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	a.MustRun(na, sim.Run{})
	if v, _ := a.View(na); !slices.Equal(endpoints(v, b.Cluster.Self()), addresses(cb)) {
		t.Errorf("b's containers are %v, want %v", endpoints(v, b.Cluster.Self()), addresses(cb))
	}
}

// What is remembered of the others may be lost or damaged: then less is known, and
// nothing fails.
func TestRestartWithoutStoreAndCache(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"lost":    os.Remove,
		"torn":    func(path string) error { return os.Truncate(path, 100) },
		"garbage": func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, na, nb, ca, cb := pair(t)
			a.Crash()
			if err := damage(filepath.Join(a.Dir, "cache.db")); err != nil {
				t.Fatal(err)
			}
			a.CutStore()
			if err := a.StartCut(); err != nil {
				t.Fatal(err)
			}
			more := a.MustRun(na, sim.Run{})
			if v, complete := a.View(na); complete || len(endpoints(v, b.Cluster.Self())) != 0 {
				t.Errorf("complete %v, b's containers %v", complete, endpoints(v, b.Cluster.Self()))
			}
			a.HealStore()
			sees(t, a, na, b, cb)
			sees(t, b, nb, a, ca, more)
		})
	}
}

// A network that was left is not remembered, and one that nobody uses at the
// moment is.
func TestWhatIsRemembered(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, cb := pair(t)
	id := networkID(t, a, na)
	remembered := func() map[carrick.HostID]snapshot.Record {
		cache := snapshot.Open(a.Dir, slog.New(slog.DiscardHandler))
		defer func() { _ = cache.Close() }()
		return cache.Load(id)
	}
	a.Stop(ca)
	a.Cluster.Unfollow(id)
	a.Crash()
	if got := remembered(); len(got) != 1 || got[b.Cluster.Self()].Endpoints[0].ID != cb.Endpoint {
		t.Errorf("of a network without containers here it remembers %+v", got)
	}
	a.CutStore()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	ca = a.MustRun(na, sim.Run{})
	if v, _ := a.View(na); len(endpoints(v, b.Cluster.Self())) != 1 {
		t.Errorf("the first container finds %v", v.Endpoints)
	}
	a.HealStore()
	sees(t, a, na, b, cb)
	b.Stop(cb)
	sees(t, a, na, b)
	a.Crash()
	if got := remembered(); len(got) != 0 {
		t.Errorf("of a host without containers it remembers %+v", got)
	}
	a.Start()
	cb = b.MustRun(nb, sim.Run{})
	a.Stop(a.MustRun(na, sim.Run{}))
	sees(t, a, na, b, cb)
	a.Stop(ca)
	if err := a.NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	a.Crash()
	if got := remembered(); len(got) != 0 {
		t.Errorf("of a network that was left it remembers %+v", got)
	}
	// Nor does it if the agent died before it could forget.
	cache := snapshot.Open(a.Dir, slog.New(slog.DiscardHandler))
	cache.Put(id, b.Cluster.Self(), snapshot.Record{Num: 1, Seq: 9, Endpoints: []carrick.Endpoint{{ID: cb.Endpoint, Addrs: []netip.Addr{cb.Addr.Addr()}, MAC: cb.MAC}}})
	if err := cache.Close(); err != nil || len(remembered()) != 1 {
		t.Fatal("nothing to forget", err)
	}
	a.Start()
	a.Crash()
	if got := remembered(); len(got) != 0 {
		t.Errorf("of a network that it does not have it remembers %+v", got)
	}
}

// A Join waits for a network's first snapshot once, and while the store does not
// answer not at all.
func TestOneWaitForTheFirstSnapshot(t *testing.T) {
	t.Parallel()
	a, _, na, _, _, _ := pair(t)
	id := networkID(t, a, na)
	// loaded asks with patience, and must not need it.
	loaded := func() bool {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), sim.Patience)
		defer cancel()
		ok := a.Cluster.Loaded(ctx, id)
		if ctx.Err() != nil {
			t.Fatal("it waited")
		}
		return ok
	}
	if !loaded() {
		t.Error("what is loaded is not")
	}
	a.Crash()
	a.CutStore()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	if loaded() {
		t.Error("what is remembered passes for loaded")
	}
	a.Crash()
	a.HealStore()
	a.Store.Stall()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	a.Cluster.Follow(id)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if a.Cluster.Loaded(over, id) || loaded() {
		t.Error("nothing is loaded from a store that does not answer")
	}
	a.Store.Heal()
	sim.Eventually(t, "it is loaded", loaded)
}

func networkID(t *testing.T, h *sim.Host, n *sim.Network) carrick.NetworkID {
	t.Helper()
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Conf.ID
}

// A container that is created again and again, while the store is away, leaves
// no more than its last state to be told.
func TestTheLastStateIsTold(t *testing.T) {
	t.Parallel()
	a, b, na, nb, ca, _ := pair(t)
	a.Store.Cut()
	for range 20 {
		a.Stop(ca)
		ca = a.MustRun(na, sim.Run{})
	}
	if h := a.Cluster.Health(); h.Unpublished != 2 { // the first went, the last came
		t.Errorf("unpublished: %+v", h)
	}
	a.Store.Heal()
	sees(t, b, nb, a, ca)
}
