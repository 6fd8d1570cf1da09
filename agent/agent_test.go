package agent_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/plan"
)

// host is a simulated host with a fake kernel kept by a real Reconciler.
type host struct {
	*sim.Host
	t      *testing.T
	kernel *nltest.Kernel
	rec    *agent.Reconciler
	stop   func()
}

func newHost(t *testing.T, s *memory.Server, n int) *host {
	t.Helper()
	h := &host{Host: sim.NewHost(t, s, n), t: t, kernel: nltest.New()}
	h.startRec()
	t.Cleanup(func() { h.stop() })
	return h
}

// startRec starts a new Reconciler on the kernel as it is.
func (h *host) startRec() {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	overlay, err := datapath.Open(h.t.Context(), datapath.Config{Kernel: h.kernel, Filter: h.kernel.Filter(), Namespaces: h.kernel.Namespaces(), Log: log})
	if err != nil {
		h.t.Fatal(err)
	}
	h.rec = agent.New(agent.Config{Facts: h.Cluster, Overlay: overlay, Log: log, Audit: time.Hour, Linger: time.Millisecond})
	h.Attach(h.rec)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	rec := h.rec
	go func() { done <- rec.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("reconciler: %v", err)
		}
		_ = overlay.Close()
		h.stop = func() {}
	}
}

// holds waits until the kernel has all of some pieces of its dump, and none of
// others (those with a leading "!").
func (h *host) holds(what string, pieces ...string) {
	h.t.Helper()
	sim.Eventually(h.t, h.Name+": "+what+": "+strings.Join(pieces, " | "), func() bool {
		dump := h.kernel.Dump()
		for _, p := range pieces {
			want, not := strings.CutPrefix(p, "!")
			if strings.Contains(dump, want) == not {
				return false
			}
		}
		return true
	})
}

// A container's Join returns when the kernel holds it; the other host's kernel
// follows; the last container's end leaves nothing.
func TestFromJoinToNothing(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	empty := a.kernel.Dump()
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	if a.kernel.Dump() != empty {
		t.Errorf("a network without containers is in the kernel:\n%s", a.kernel.Dump())
	}
	ca := a.MustRun(na, sim.Run{})
	if !strings.Contains(a.kernel.Dump(), ca.Endpoint.PortName()) {
		t.Errorf("Join returned and the port is not there:\n%s", a.kernel.Dump())
	}
	cb := b.MustRun(nb, sim.Run{})
	a.holds("b's container", cb.MAC.String(), cb.Addr.Addr().String(), "192.0.2.2")
	b.holds("a's container", ca.MAC.String(), ca.Addr.Addr().String(), "192.0.2.1")
	b.Stop(cb)
	a.holds("b's container is gone", "!"+cb.MAC.String(), "!192.0.2.2", ca.MAC.String())
	a.Stop(ca)
	for _, h := range []*host{a, b} {
		sim.Eventually(t, h.Name+" holds nothing", func() bool { return h.kernel.Dump() == empty })
	}
}

// The kernel's reason reaches the user, the endpoint is withdrawn, and the next
// container starts.
func TestTheKernelsReasonReachesJoin(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	n := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	empty := a.kernel.Dump()
	a.kernel.Without("vxlan")
	_, err := a.Run(n, sim.Run{})
	if err == nil || !strings.Contains(err.Error(), "vxlan") {
		t.Errorf("run without the vxlan module: %v", err)
	}
	sim.Eventually(t, "nothing is left", func() bool { return a.kernel.Dump() == empty })
}

// A message that fails once is a race lost, not a failed start.
func TestOneFailureIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	n := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	a.kernel.FailMessage(3, unix.EBUSY)
	a.MustRun(n, sim.Run{})
}

// A restarted agent adopts what is there without sending anything, and what
// happened meanwhile is caught up with.
func TestRestartAdopts(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	ca, cb := a.MustRun(na, sim.Run{}), b.MustRun(nb, sim.Run{})
	a.holds("b's container", cb.MAC.String())
	before := a.kernel.Dump()
	a.stop()
	a.kernel.TakeLog()
	a.startRec()
	sim.Eventually(t, "a pass was made", func() bool {
		st := a.rec.Networks()
		return len(st) == 1 && !st[0].At.IsZero() && st[0].Err == nil
	})
	if log := a.kernel.TakeLog(); len(log) != 0 || a.kernel.Dump() != before {
		t.Errorf("adoption sent\n%s", strings.Join(log, "\n"))
	}
	a.stop()
	b.Stop(cb)
	cb2 := b.MustRun(nb, sim.Run{})
	a.startRec()
	a.holds("the new container and not the old", cb2.MAC.String(), "!"+cb.Endpoint.PortName(), ca.MAC.String())
}

// A network that was left while the agent was down is swept at its start.
func TestLeftoversAreSwept(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	empty := a.kernel.Dump()
	n := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	c := a.MustRun(n, sim.Run{})
	a.stop()
	a.Attach(nil)
	a.Host.Stop(c)
	if err := a.NetworkRm("app"); err != nil {
		t.Fatal(err)
	}
	a.Crash()
	a.Start()
	a.startRec()
	sim.Eventually(t, "nothing is left", func() bool { return a.kernel.Dump() == empty })
}

// A host whose state directory is new leaves networks alone that it does not
// know: it may have lost its memory, not its containers.
func TestLostMemorySweepsNothing(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	a.stop()
	ns, err := a.kernel.Namespaces().Create(t.Context(), plan.Namespace("00000000000000aa"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	before := a.kernel.Dump()
	a.startRec()
	sim.Eventually(t, "the problem is told", func() bool { return len(a.rec.Problems()) == 1 })
	// Nor does any later start.
	for range 2 {
		a.stop()
		a.Crash()
		a.Start()
		a.startRec()
		sim.Eventually(t, "the problem is told again", func() bool { return len(a.rec.Problems()) == 1 })
	}
	if a.kernel.Dump() != before {
		t.Errorf("swept:\n%s", a.kernel.Dump())
	}
}

// One port that cannot be removed is nobody else's problem.
func TestAnotherPortsFailureFailsNoJoin(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	n := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	old := a.MustRun(n, sim.Run{})
	a.MustRun(n, sim.Run{})
	a.stop() // so that the removal and the next Join fall into one pass
	a.Attach(nil)
	a.Host.Stop(old)
	a.startRec()
	for range 3 {
		a.kernel.FailNext("DelLink", unix.EBUSY)
		a.MustRun(n, sim.Run{})
	}
}

// A host that is missing from the store, or whose record a newer agent wrote,
// keeps its containers' rows.
func TestMissingHostRecordCutsNobodyOff(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	a.MustRun(na, sim.Run{})
	cb := b.MustRun(nb, sim.Run{})
	a.holds("b's container", cb.MAC.String())
	key := "v1/host/" + string(b.Cluster.Self())
	for _, t2 := range []*kvstore.Txn{
		(&kvstore.Txn{}).Put(key, []byte(`{"v":99}`)),
		(&kvstore.Txn{}).Delete(key),
	} {
		if _, err := a.Store.Txn(t.Context(), t2); err != nil {
			t.Fatal(err)
		}
		// A change that is seen after it.
		cb2 := b.MustRun(nb, sim.Run{})
		a.holds("both of b's containers", cb.MAC.String(), cb2.MAC.String(), "192.0.2.2")
	}
}

// With the store away a restarted agent takes nothing away that it cannot know,
// puts what it remembers of the others, and serves its containers.
func TestRestartWithoutTheStore(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	ca, cb := a.MustRun(na, sim.Run{}), b.MustRun(nb, sim.Run{})
	a.holds("b's container", cb.MAC.String())
	a.stop()
	a.Crash()
	a.CutStore()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	// What nobody remembers, and what somebody took away meanwhile.
	ns := plan.Namespace(networkOf(t, a, na))
	vx := a.kernel.Ref(ns, plan.VXLANName)
	unknown := carrick.MAC{2, 0, 0, 0, 0, 99}
	if err := a.kernel.As(ns, nl.SetFDB{Link: vx, MAC: unknown, VTEP: b.VTEP}, nl.DelFDB{Link: vx, MAC: cb.MAC, VTEP: b.VTEP}); err != nil {
		t.Fatal(err)
	}
	a.startRec()
	a.holds("b's container again, and what was there", cb.MAC.String()+" dev vxlan0 dst 192.0.2.2", unknown.String(), ca.Endpoint.PortName())
	more := a.MustRun(na, sim.Run{})
	a.Stop(ca)
	a.holds("the container that came and not the one that went", more.Endpoint.PortName(), "!"+ca.Endpoint.PortName(), unknown.String())
	if st := a.rec.Networks(); len(st) != 1 || !st[0].Plan.Partial || st[0].Err != nil {
		t.Errorf("state %+v", st)
	}
	b.Stop(cb)
	late := b.MustRun(nb, sim.Run{})
	a.HealStore()
	a.holds("the store's news and nothing else", late.MAC.String(), "!"+unknown.String(), more.MAC.String())
	b.holds("the container that started meanwhile", more.MAC.String(), "!"+ca.Endpoint.PortName())
	if n := a.rec.Networks()[0].Drift.Total(); n != 0 {
		t.Errorf("%d objects count as somebody's damage", n)
	}
}

// A host that boots without the store makes its network from what it remembers.
func TestColdBootWithoutTheStore(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	na, nb := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	if _, err := a.RunBox("web", true, na, sim.Run{}); err != nil {
		t.Fatal(err)
	}
	cb := b.MustRun(nb, sim.Run{})
	a.holds("b's container", cb.MAC.String())
	a.stop()
	a.PowerOff()
	a.kernel = nltest.New()
	a.CutStore()
	a.PowerOn()
	if err := a.StartCut(); err != nil {
		t.Fatal(err)
	}
	a.startRec()
	if err := a.EngineStart(); err != nil {
		t.Fatal(err)
	}
	web := a.Boxes()[0].Parts()[0]
	a.holds("its container and the way to b's", web.MAC.String(), cb.MAC.String()+" dev vxlan0 dst 192.0.2.2")
	a.HealStore()
	b.holds("the way to it", web.MAC.String()+" dev vxlan0 dst 192.0.2.1")
}

// The port of a container whose host was cut off goes down, and comes back with
// its address.
func TestAFenceTakesThePortDown(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	na := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	ca := a.MustRun(na, sim.Run{})
	row := ca.MAC.String() + " dev " + ca.Endpoint.PortName() + " master"
	fence := func(on bool) {
		t.Helper()
		err := a.Cluster.Journal().Update(func(tx *journal.Tx) error {
			e, _ := tx.Endpoint(ca.Endpoint)
			e.Fenced = on
			tx.PutEndpoint(e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		a.rec.Changed(networkOf(t, a, na))
	}
	up := ca.Endpoint.PortName() + " master br0 mtu 1450 up"
	a.holds("the port", up, row)
	// Nobody disputes its address, so the cluster ends the fence when it next compares:
	// which may be before the kernel heard of it.
	sim.Eventually(t, "the port is down", func() bool {
		fence(true)
		return !strings.Contains(a.kernel.Dump(), row) && strings.Contains(a.kernel.Dump(), ca.Endpoint.PortName()+" master br0 mtu 1450 down")
	})
	fence(false)
	a.holds("the port", up, row)
}

func networkOf(t *testing.T, h *host, n *sim.Network) carrick.NetworkID {
	t.Helper()
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Conf.ID
}

// Damage by hand is repaired as soon as the kernel tells of it, and counted.
func TestDamageIsRepairedAndCounted(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	a := newHost(t, s, 1)
	n := a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	a.MustRun(n, sim.Run{})
	before := a.kernel.Dump()
	ns := plan.Namespace(networkOf(t, a, n))
	a.kernel.Alter(ns, plan.BridgeName, func(l *nl.Link) { l.MTU = 1280 })
	sim.Eventually(t, "repaired and counted", func() bool {
		st := a.rec.Networks()
		return a.kernel.Dump() == before && len(st) == 1 && st[0].Drift.Total() > 0
	})
}

// Tasks end together, and the failing one is named.
func TestTasks(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	other := make(chan struct{})
	err := agent.Run(t.Context(),
		agent.Func("good", func(ctx context.Context) error { <-ctx.Done(); close(other); return nil }),
		agent.Func("bad", func(context.Context) error { return boom }))
	<-other
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "bad: ") {
		t.Errorf("run: %v", err)
	}
}
