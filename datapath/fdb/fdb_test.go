package fdb_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

const space = "carrick-x"

// net is a network's devices on a fake kernel.
type network struct {
	k   *nltest.Kernel
	h   nl.Handle
	dev fdb.Devices
	t   *fdb.Tables
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	ctx := t.Context()
	n := &network{k: nltest.New(), t: fdb.New()}
	ns, err := n.k.Namespaces().Create(ctx, space)
	if err != nil {
		t.Fatal(err)
	}
	if n.h, err = n.k.Open(ctx, ns); err != nil {
		t.Fatal(err)
	}
	n.devices(t, ns)
	n.k.TakeLog()
	return n
}

// devices makes br0, vxlan0 and the ports p1 and p2.
func (n *network) devices(t testing.TB, ns netns.Namespace) {
	t.Helper()
	n.as(t, space, nl.AddBridge{Name: "br0"})
	br := n.k.Ref(space, "br0")
	n.as(t, "", nl.AddVXLAN{Name: "vxlan0", Target: ns, Master: br, MTU: 1450, VNI: 7, Port: 4789, Local: addr("192.0.2.1")})
	for _, p := range []string{"p1", "p2"} {
		n.as(t, "", nl.AddVeth{Name: p, Target: ns, Master: br, MTU: 1450, Outer: "ck" + p})
	}
	n.dev = fdb.Devices{VXLAN: n.k.Ref(space, "vxlan0"), Ports: map[string]nl.Ref{}}
	for _, p := range []string{"vxlan0", "p1", "p2"} {
		n.dev.Ports[p] = n.k.Ref(space, p)
	}
}

func (n *network) as(t testing.TB, space string, c nl.Change) {
	t.Helper()
	if err := n.k.As(space, c); err != nil {
		t.Fatal(err)
	}
}

func (n *network) apply(t testing.TB, want fdb.Rows) fdb.Result {
	t.Helper()
	res, err := n.t.Apply(t.Context(), n.h, n.dev, want)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// rows is what the fake kernel holds, in the operator's language.
func (n *network) rows() string {
	var out []string
	for line := range strings.Lines(n.k.Dump()) {
		if strings.Contains(line, " fdb ") || strings.Contains(line, " neigh ") {
			out = append(out, strings.ReplaceAll(line, " -n "+space, ""))
		}
	}
	return strings.Join(out, "")
}

func (n *network) log() []string {
	log := n.k.TakeLog()
	for i := range log {
		log[i] = strings.ReplaceAll(log[i], " -n "+space, "")
	}
	return log
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(i int) carrick.MAC {
	return carrick.MAC{2, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
}

func behind(m carrick.MAC, vtep string) plan.FDBRow { return plan.FDBRow{MAC: m, VTEP: addr(vtep)} }
func at(m carrick.MAC, port string) plan.BridgeRow  { return plan.BridgeRow{MAC: m, Port: port} }
func has(a string, m carrick.MAC) plan.NeighRow     { return plan.NeighRow{Addr: addr(a), MAC: m} }

// someRows is a network of two containers here and two elsewhere.
func someRows() fdb.Rows {
	return fdb.Rows{
		FDB:     []plan.FDBRow{behind(carrick.MAC{}, "192.0.2.2"), behind(carrick.MAC{}, "192.0.2.3"), behind(mac(3), "192.0.2.2"), behind(mac(4), "192.0.2.3")},
		Bridged: []plan.BridgeRow{at(mac(1), "p1"), at(mac(2), "p2"), at(mac(3), "vxlan0"), at(mac(4), "vxlan0")},
		Neigh:   []plan.NeighRow{has("10.0.0.3", mac(3)), has("10.0.0.4", mac(4)), has("fd00::4", mac(4))},
	}
}

const someText = `bridge fdb replace 02:00:00:00:00:01 dev p1 master static
bridge fdb replace 02:00:00:00:00:02 dev p2 master static
bridge fdb replace 02:00:00:00:00:03 dev vxlan0 master static
bridge fdb replace 02:00:00:00:00:04 dev vxlan0 master static
bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.2 self permanent
bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.3 self permanent
bridge fdb append 02:00:00:00:00:03 dev vxlan0 dst 192.0.2.2 self permanent
bridge fdb append 02:00:00:00:00:04 dev vxlan0 dst 192.0.2.3 self permanent
ip neigh replace 10.0.0.3 lladdr 02:00:00:00:00:03 dev vxlan0 nud permanent
ip neigh replace 10.0.0.4 lladdr 02:00:00:00:00:04 dev vxlan0 nud permanent
ip neigh replace fd00::4 lladdr 02:00:00:00:00:04 dev vxlan0 nud permanent
`

func TestRowsAreWrittenOnceAndThenLeftAlone(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	res := n.apply(t, someRows())
	if want := (fdb.Counts{FDB: 4, Bridged: 4, Neigh: 3}); res.Changes != want || !res.Read || res.Drift != (fdb.Counts{}) {
		t.Errorf("first Apply: %+v", res)
	}
	if got := n.rows(); got != someText {
		t.Errorf("kernel holds\n%s\nwant\n%s", got, someText)
	}
	n.log()
	if res := n.apply(t, someRows()); res.Changes.Total() != 0 || res.Read {
		t.Errorf("second Apply: %+v", res)
	}
	// A new agent finds all as it should be.
	n.t = fdb.New()
	if res := n.apply(t, someRows()); res.Changes.Total() != 0 || !res.Read {
		t.Errorf("Apply of a new agent: %+v", res)
	}
	if log := n.log(); len(log) != 0 {
		t.Errorf("messages were sent: %q", log)
	}
}

func TestAContainerThatMovesIsNeverWithoutARow(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(t, someRows())
	n.log()

	// The container with MAC 1 leaves p1 and comes back elsewhere; MAC 4 leaves.
	n.apply(t, fdb.Rows{
		FDB:     []plan.FDBRow{behind(carrick.MAC{}, "192.0.2.2"), behind(carrick.MAC{}, "192.0.2.9"), behind(mac(1), "192.0.2.9"), behind(mac(3), "192.0.2.9")},
		Bridged: []plan.BridgeRow{at(mac(1), "vxlan0"), at(mac(2), "p2"), at(mac(3), "vxlan0")},
		Neigh:   []plan.NeighRow{has("10.0.0.1", mac(1)), has("10.0.0.3", mac(3))},
	})
	want := []string{
		"bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.9 self permanent",
		"bridge fdb replace 02:00:00:00:00:01 dev vxlan0 dst 192.0.2.9 self permanent",
		"bridge fdb replace 02:00:00:00:00:03 dev vxlan0 dst 192.0.2.9 self permanent",
		"bridge fdb replace 02:00:00:00:00:01 dev vxlan0 master static",
		"ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev vxlan0 nud permanent",
		"ip neigh del 10.0.0.4 dev vxlan0",
		"ip neigh del fd00::4 dev vxlan0",
		"bridge fdb del 02:00:00:00:00:04 dev vxlan0 master",
		"bridge fdb del 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.3 self",
		"bridge fdb del 02:00:00:00:00:04 dev vxlan0 dst 192.0.2.3 self",
	}
	if got := n.log(); !slices.Equal(got, want) {
		t.Errorf("sent\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDamageIsRepairedAndCountedAtAResync(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(t, someRows())
	vx, p1 := n.dev.VXLAN, n.dev.Ports["p1"]
	damage := map[string]struct {
		do    func()
		drift fdb.Counts
	}{
		"VTEP row deleted":        {func() { n.as(t, space, nl.DelFDB{Link: vx, MAC: mac(3), VTEP: addr("192.0.2.2")}) }, fdb.Counts{FDB: 1}},
		"VTEP row redirected":     {func() { n.as(t, space, nl.SetFDB{Link: vx, MAC: mac(3), VTEP: addr("192.0.2.66")}) }, fdb.Counts{FDB: 1}},
		"VTEP row added":          {func() { n.as(t, space, nl.SetFDB{Link: vx, MAC: mac(66), VTEP: addr("192.0.2.66")}) }, fdb.Counts{FDB: 1}},
		"broadcast row added":     {func() { n.as(t, space, nl.SetFDB{Link: vx, VTEP: addr("192.0.2.66")}) }, fdb.Counts{FDB: 1}},
		"all broadcast rows lost": {func() { n.as(t, space, nl.DelFDB{Link: vx}) }, fdb.Counts{FDB: 2}},
		"port row moved":          {func() { n.as(t, space, nl.SetBridged{Link: vx, MAC: mac(1)}) }, fdb.Counts{Bridged: 1}},
		"port row deleted":        {func() { n.as(t, space, nl.DelBridged{Link: p1, MAC: mac(1)}) }, fdb.Counts{Bridged: 1}},
		"neighbour altered":       {func() { n.as(t, space, nl.SetNeigh{Link: vx, Addr: addr("10.0.0.3"), MAC: mac(66)}) }, fdb.Counts{Neigh: 1}},
		"neighbour added":         {func() { n.as(t, space, nl.SetNeigh{Link: vx, Addr: addr("10.0.0.66"), MAC: mac(66)}) }, fdb.Counts{Neigh: 1}},
		"broadcast row with a VNI of its own": {func() {
			n.k.AddFDB(space, nl.FDBEntry{Link: vx.Index, VTEP: addr("192.0.2.66"), Self: true, State: nl.StatePermanent, Odd: true})
		}, fdb.Counts{FDB: 2}},
		"a sticky row": {func() {
			n.k.AddFDB(space, nl.FDBEntry{Link: p1.Index, MAC: mac(66), Of: n.k.Ref(space, "br0").Index, State: nl.StateNoARP, Odd: true})
		}, fdb.Counts{Bridged: 1}},
		"a neighbour that answers without being permanent": {func() {
			n.k.AddNeigh(space, nl.Neighbour{Link: vx.Index, Addr: addr("10.0.0.66"), MAC: mac(66), State: nl.StateNoARP})
		}, fdb.Counts{Neigh: 1}},
		"a row of ours replaced by a learned one": {func() {
			n.k.AddFDB(space, nl.FDBEntry{Link: vx.Index, MAC: mac(1), Of: n.k.Ref(space, "br0").Index, State: nl.StateReachable})
		}, fdb.Counts{Bridged: 1}},
		"everything lost with a flap of the device": {func() {
			n.as(t, space, nl.SetLink{Link: vx, Up: nl.On})
			n.as(t, space, nl.SetLink{Link: vx, Up: nl.Off})
			n.as(t, space, nl.SetLink{Link: vx, Master: &nl.Ref{}})
			n.as(t, space, nl.SetLink{Link: vx, Master: ptr(n.k.Ref(space, "br0")), Up: nl.On})
		}, fdb.Counts{Bridged: 2, Neigh: 3}},
	}
	for name, d := range damage { // any order must do
		d.do()
		if n.rows() == someText {
			t.Fatalf("%s: no damage done", name)
		}
		if res := n.apply(t, someRows()); res.Changes.Total() != 0 {
			t.Errorf("%s: sent %+v without having read", name, res.Changes)
		}
		n.t.QueueResync()
		if res := n.apply(t, someRows()); !res.Read || res.Drift != d.drift || res.Changes.Total() == 0 {
			t.Errorf("%s: %+v, want drift %+v", name, res, d.drift)
		}
		if got := n.rows(); got != someText {
			t.Errorf("%s: not repaired:\n%s", name, got)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// Of rows that are not whole nothing is removed that they do not name, however
// odd, and what they name is put right.
func TestPartialRowsAreOnlyAdded(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(t, someRows())
	vx, p1, br := n.dev.VXLAN.Index, n.dev.Ports["p1"].Index, n.k.Ref(space, "br0").Index
	odd := func(i int) {
		n.k.AddNeigh(space, nl.Neighbour{Link: vx, Addr: addr(fmt.Sprintf("10.0.0.%d", i)), MAC: mac(i), State: nl.StateNoARP})
		n.k.AddFDB(space,
			nl.FDBEntry{Link: p1, MAC: mac(i), Of: br, State: nl.StateNoARP, Odd: true},
			nl.FDBEntry{Link: vx, MAC: mac(i), VTEP: addr("192.0.2.66"), Self: true, State: nl.StatePermanent, Odd: true})
	}
	odd(7)
	odd(8)
	stranger := n.rows()
	n.t = fdb.New()
	few := fdb.Rows{
		FDB:     []plan.FDBRow{behind(carrick.MAC{}, "192.0.2.4"), behind(mac(3), "192.0.2.4"), behind(mac(8), "192.0.2.4")},
		Bridged: []plan.BridgeRow{at(mac(1), "p2"), at(mac(8), "vxlan0")},
		Neigh:   []plan.NeighRow{has("10.0.0.4", mac(3)), has("10.0.0.8", mac(8))},
		Partial: true,
	}
	res := n.apply(t, few)
	// One row of each table is written anew, one over another, and the odd ones of
	// what is named are removed first.
	if want := (fdb.Counts{FDB: 4, Bridged: 3, Neigh: 3}); res.Changes != want {
		t.Errorf("%+v, want %+v", res.Changes, want)
	}
	got := n.rows()
	for line := range strings.Lines(stranger) {
		named := strings.Contains(line, mac(8).String()) || strings.Contains(line, mac(3).String()+" dev vxlan0 dst") ||
			strings.Contains(line, mac(1).String()) || strings.Contains(line, " 10.0.0.4 ")
		if named == strings.Contains(got, line) {
			t.Errorf("named %v: %s", named, line)
		}
	}
	for _, want := range []string{
		mac(8).String() + " dev vxlan0 master static", mac(8).String() + " dev vxlan0 dst 192.0.2.4", "10.0.0.8 lladdr " + mac(8).String() + " dev vxlan0 nud permanent",
		mac(1).String() + " dev p2", mac(3).String() + " dev vxlan0 dst 192.0.2.4", "10.0.0.4 lladdr " + mac(3).String(), "00:00:00:00:00:00 dev vxlan0 dst 192.0.2.4",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing: %s in\n%s", want, got)
		}
	}
	if res := n.apply(t, few); res.Changes.Total() != 0 {
		t.Errorf("again: %+v", res.Changes)
	}
	n.t.QueueResync()
	if res := n.apply(t, few); res.Changes.Total() != 0 || res.Drift.Total() != 0 {
		t.Errorf("read again: %+v", res)
	}
	n.t.QueueResync()
	n.apply(t, someRows())
	if got := n.rows(); got != someText {
		t.Errorf("whole:\n%s", got)
	}
}

func TestRowsThatAreNotOursStay(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	vx, br := n.dev.VXLAN, n.k.Ref(space, "br0").Index
	n.k.AddNeigh(space,
		nl.Neighbour{Link: vx.Index, Addr: addr("224.0.0.22"), MAC: carrick.MAC{1, 0, 0x5e, 0, 0, 0x16}, State: nl.StateNoARP},
		nl.Neighbour{Link: vx.Index, Addr: addr("10.0.0.77"), MAC: mac(77), State: nl.StateReachable})
	n.k.AddFDB(space, nl.FDBEntry{Link: n.dev.Ports["p1"].Index, MAC: mac(78), Of: br, State: nl.StateReachable},
		nl.FDBEntry{Link: n.dev.Ports["p1"].Index, MAC: mac(79), Of: br, State: nl.StateNoARP, VLAN: 5})
	n.apply(t, someRows())
	for _, want := range []string{"224.0.0.22", "10.0.0.77", mac(78).String() + " dev p1 master dynamic", mac(79).String()} {
		if !strings.Contains(n.rows(), want) {
			t.Errorf("%s was removed:\n%s", want, n.rows())
		}
	}
}

func TestADeviceThatIsMissingCostsOnlyItsRows(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(t, someRows())

	p1 := n.dev.Ports["p1"]
	n.as(t, space, nl.DelLink{Link: p1})
	delete(n.dev.Ports, "p1")
	n.t.Gone("p1", false)
	n.log()
	if res := n.apply(t, someRows()); res.Changes.Total() != 0 || res.Read {
		t.Errorf("after p1 went: %+v", res)
	}

	// It comes back: one row, no reading.
	ns, err := n.k.Namespaces().Open(t.Context(), space)
	if err != nil {
		t.Fatal(err)
	}
	n.as(t, "", nl.AddVeth{Name: "p1", Target: ns, Master: n.k.Ref(space, "br0"), MTU: 1450, Outer: "ckp1"})
	n.dev.Ports["p1"] = n.k.Ref(space, "p1")
	if res := n.apply(t, someRows()); res.Changes != (fdb.Counts{Bridged: 1}) || res.Read {
		t.Errorf("after p1 came back: %+v", res)
	}

	// The vxlan device takes all it has with it.
	n.as(t, space, nl.DelLink{Link: n.dev.VXLAN})
	n.t.Gone("vxlan0", true)
	delete(n.dev.Ports, "vxlan0")
	n.dev.VXLAN = nl.Ref{}
	if res := n.apply(t, someRows()); res.Changes.Total() != 0 || res.Read {
		t.Errorf("after vxlan0 went: %+v", res)
	}
	n.as(t, "", nl.AddVXLAN{Name: "vxlan0", Target: ns, Master: n.k.Ref(space, "br0"), MTU: 1450, VNI: 7, Port: 4789, Local: addr("192.0.2.1")})
	n.dev.VXLAN = n.k.Ref(space, "vxlan0")
	n.dev.Ports["vxlan0"] = n.dev.VXLAN
	n.apply(t, someRows())
	if got := n.rows(); got != someText {
		t.Errorf("kernel holds\n%s", got)
	}
}

func TestAFailureIsReportedAndMadeGood(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.k.FailNext("SetBridged", unix.ENOSPC)
	res, err := n.t.Apply(t.Context(), n.h, n.dev, someRows())
	if err == nil || res.Changes.Total() != 10 {
		t.Errorf("one of eleven fails: %+v, %v", res, err)
	}
	if len(res.Ports) != 1 || res.Ports["p1"] == nil {
		t.Errorf("errors of ports: %v", res.Ports)
	}
	if res := n.apply(t, someRows()); !res.Read || res.Changes != (fdb.Counts{Bridged: 1}) || res.Drift.Total() != 0 {
		t.Errorf("the next: %+v; a failure of ours is no drift", res)
	}
	if got := n.rows(); got != someText {
		t.Errorf("kernel holds\n%s", got)
	}

	for _, op := range []string{"FDB", "Neighbours"} {
		n.t.QueueResync()
		n.k.FailNext(op, unix.ENOMEM)
		if _, err := n.t.Apply(t.Context(), n.h, n.dev, someRows()); err == nil {
			t.Errorf("%s failed and nobody said so", op)
		}
		if res := n.apply(t, someRows()); !res.Read {
			t.Errorf("after a failed %s: %+v", op, res)
		}
	}
}

// restless lists tables as the kernel does while somebody else writes to them:
// some rows come twice, as often as it is asked.
type restless struct {
	nl.Handle
	left int
	lie  func(rows []nl.FDBEntry) []nl.FDBEntry
}

func (h *restless) FDB(ctx context.Context) ([]nl.FDBEntry, error) {
	rows, err := h.Handle.FDB(ctx)
	if h.left > 0 {
		h.left--
		rows = append(h.lie(rows), rows...)
	}
	return rows, err
}

func (h *restless) Neighbours(ctx context.Context, l nl.Ref) ([]nl.Neighbour, error) {
	rows, err := h.Handle.Neighbours(ctx, l)
	if h.left > 0 {
		rows = append(slices.Clone(rows), rows...)
	}
	return rows, err
}

func TestARowThatIsListedTwiceIsNotRemoved(t *testing.T) {
	t.Parallel()
	for _, times := range []int{1, 2, 3, 7} {
		for name, lie := range map[string]func([]nl.FDBEntry) []nl.FDBEntry{
			"the same row": slices.Clone[[]nl.FDBEntry],
			"the row of before": func(rows []nl.FDBEntry) []nl.FDBEntry {
				out := slices.Clone(rows)
				for i := range out {
					if out[i].Self {
						out[i].VTEP = addr("192.0.2.66")
					}
				}
				return out
			},
		} {
			n := newNetwork(t)
			want := fdb.Rows{
				FDB:     []plan.FDBRow{behind(mac(1), "192.0.2.2"), behind(mac(2), "192.0.2.3"), {VTEP: addr("192.0.2.2")}, {VTEP: addr("192.0.2.3")}},
				Bridged: []plan.BridgeRow{at(mac(1), "vxlan0"), at(mac(2), "vxlan0"), at(mac(3), "p1")},
				Neigh:   []plan.NeighRow{has("10.0.0.1", mac(1)), has("10.0.0.2", mac(2))},
			}
			n.apply(t, want)
			before := n.rows()
			n.log()
			h := n.h
			n.h = &restless{Handle: h, left: times, lie: lie}
			n.t = fdb.New()
			res, err := n.t.Apply(t.Context(), n.h, n.dev, want)
			if err != nil || n.rows() != before {
				t.Errorf("%s, %d times: %v, the kernel holds\n%s\nwant\n%s", name, times, err, n.rows(), before)
			}
			if sent := n.log(); times < 3 && (len(sent) != 0 || res.Changes.Total() != 0) {
				t.Errorf("%s, %d times: sent %q", name, times, sent)
			}
			// In the end it is as it was.
			n.h = h
			n.t.QueueResync()
			n.apply(t, want)
			n.t.QueueResync()
			if res := n.apply(t, want); n.rows() != before || res.Changes.Total() != 0 {
				t.Errorf("%s, %d times, afterwards: %+v\n%s", name, times, res, n.rows())
			}
		}
	}
}

func TestARowThatIsGoneAlreadyMakesTheTablesSuspicious(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(t, someRows())
	n.as(t, space, nl.DelNeigh{Link: n.dev.VXLAN, Addr: addr("fd00::4")})
	want := someRows()
	want.Neigh = want.Neigh[:2]
	if res := n.apply(t, want); !res.Stale {
		t.Errorf("%+v", res)
	}
	if res := n.apply(t, want); !res.Read {
		t.Errorf("%+v", res)
	}
}

func TestContradictionsAreResolvedTheSameWayEveryTime(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	want := fdb.Rows{
		FDB:   []plan.FDBRow{behind(mac(9), "192.0.2.9"), behind(mac(9), "192.0.2.8"), behind(mac(9), "::ffff:192.0.2.9")},
		Neigh: []plan.NeighRow{has("10.0.0.9", mac(9)), has("10.0.0.8", mac(8)), has("10.0.0.9", mac(8))},
	}
	for range 2 {
		res := n.apply(t, want)
		problems := []string{
			"02:00:00:00:00:09 is behind both 192.0.2.9 and 192.0.2.8; using the first",
			"10.0.0.9 has both MACs 02:00:00:00:00:09 and 02:00:00:00:00:08; using the first",
		}
		if !slices.Equal(res.Problems, problems) {
			t.Errorf("problems %q", res.Problems)
		}
	}
	const text = `bridge fdb append 02:00:00:00:00:09 dev vxlan0 dst 192.0.2.9 self permanent
ip neigh replace 10.0.0.8 lladdr 02:00:00:00:00:08 dev vxlan0 nud permanent
ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev vxlan0 nud permanent
`
	if got := n.rows(); got != text {
		t.Errorf("kernel holds\n%s", got)
	}
}

// manyRows is a network of n containers elsewhere, as big ones in the field
// are: fewer rows of VTEPs than of neighbours.
func manyRows(n int) fdb.Rows {
	var r fdb.Rows
	for i := range n {
		m := mac(i + 1)
		if i*7 < n*5 {
			r.FDB = append(r.FDB, plan.FDBRow{MAC: m, VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 23)})})
			r.Bridged = append(r.Bridged, plan.BridgeRow{MAC: m, Port: "vxlan0"})
		}
		r.Neigh = append(r.Neigh, plan.NeighRow{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), MAC: m})
	}
	return r
}

func TestAChangeCostsItsDifferenceWhateverTheSize(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 42000} {
		n := newNetwork(t)
		n.apply(t, manyRows(size))
		n.log()
		before := n.k.Messages()
		// One container in the middle moves to another host, one leaves.
		want := manyRows(size)
		want.FDB[size/2].VTEP = addr("192.0.2.200")
		want.Neigh = slices.Delete(want.Neigh, size/3, size/3+1)
		res := n.apply(t, want)
		if got := n.k.Messages() - before; got != 2 || res.Changes.Total() != 2 || res.Read {
			t.Errorf("%d rows: %d messages, %+v; want 2", size, got, res)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for _, size := range []int{100, 42000} {
		b.Run(fmt.Sprintf("one-change/rows=%d", size), func(b *testing.B) {
			n := newNetwork(b)
			plans := [2]fdb.Rows{manyRows(size), manyRows(size)}
			plans[1].FDB[size/2].VTEP = addr("192.0.2.200")
			n.apply(b, plans[0])
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				n.apply(b, plans[(i+1)%2])
			}
			n.k.TakeLog()
		})
	}
	b.Run("from-nothing/rows=42000", func(b *testing.B) {
		rows := manyRows(42000)
		for b.Loop() {
			b.StopTimer()
			n := newNetwork(b)
			b.StartTimer()
			n.apply(b, rows)
		}
	})
}
