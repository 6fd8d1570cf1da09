package journal_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// again closes a journal and opens it anew.
func again(t *testing.T, j *journal.Journal, dir string) *journal.Journal {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir)
}

func must(t *testing.T, j *journal.Journal, fn func(*journal.Tx)) {
	t.Helper()
	if err := j.Update(func(tx *journal.Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// Every kind of record, with all that is in it, is there after a restart.
func TestEverythingIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	other := carrick.Host{ID: "00000000000000b1", Name: "h2", VTEP: netip.MustParseAddr("192.0.2.2"), MTU: 1500, Version: "1"}
	gone := carrick.Host{ID: "00000000000000b2", Name: "h3", VTEP: netip.MustParseAddr("192.0.2.3")}
	lent := netip.MustParseAddr("10.42.0.7")
	released := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	must(t, j, func(tx *journal.Tx) {
		n, _ := tx.Network(netID)
		n.Freeing = []journal.Freed{{Block: netip.MustParsePrefix("10.42.4.0/26"), Gen: carrick.MakeGen(3, 9)}}
		n.Left = []carrick.DockerNetworkID{carrick.DockerNetworkID(strings.Repeat("1", 64))}
		n.Leaving = true
		tx.PutNetwork(n)
		e, _ := tx.Endpoint(epID)
		e.Gen, e.Joined, e.Fenced = carrick.MakeGen(3, 8), true, true
		tx.PutEndpoint(e)
		tx.PutHost(journal.Host{Host: other})
		tx.PutHost(journal.Host{Host: gone})
		tx.PutLease(journal.Lease{Network: netID, Addr: lent, Lent: other.ID, Gen: carrick.MakeGen(3, 7)})
		tx.PutLease(journal.Lease{Network: netID, Addr: netip.MustParseAddr("10.42.0.8"), Gen: carrick.MakeGen(3, 6)})
		tx.Release(netID, netip.MustParseAddr("10.42.0.8"), released)
		m := tx.Meta()
		m.Epoch = journal.Epoch{Inc: "0123456789abcdef", Num: 3, Seq: 40, Nonce: "n"}
		m.Fenced, m.Registered, m.Boot, m.Leased = true, true, "boot", 5*time.Second
		tx.SetMeta(m)
		tx.Stamp()
	})
	must(t, j, func(tx *journal.Tx) { tx.PutHost(journal.Host{Host: gone, Removed: true}) })
	if err := j.SetStrangers([]carrick.NetworkID{"00000000000000cc"}); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		n, err := j.Network(netID)
		if err != nil || !n.Leaving || len(n.Left) != 1 || len(n.Freeing) != 1 || n.Freeing[0].Gen != carrick.MakeGen(3, 9) {
			t.Errorf("%s: network %+v, %v", when, n, err)
		}
		e, err := j.Endpoint(epID)
		if err != nil || e.Gen != carrick.MakeGen(3, 8) || !e.Joined || !e.Fenced {
			t.Errorf("%s: endpoint %+v, %v", when, e, err)
		}
		ls := j.Leases(netID)
		if l := ls[lent]; l.Lent != other.ID || l.Gen != carrick.MakeGen(3, 7) || l.Released != 0 {
			t.Errorf("%s: the lent address: %+v", when, l)
		}
		if l := ls[netip.MustParseAddr("10.42.0.8")]; !l.At.Equal(released) || l.Gen != carrick.MakeGen(3, 6) || l.Released == 0 {
			t.Errorf("%s: the released address: %+v", when, l)
		}
		if hosts := j.Hosts(); len(hosts) != 1 || hosts[other.ID] != other {
			t.Errorf("%s: hosts %v", when, hosts)
		}
		if hosts := j.Removed(); len(hosts) != 1 || hosts[gone.ID] != gone {
			t.Errorf("%s: removed hosts %v", when, hosts)
		}
		m := j.Meta()
		if m.Epoch.Num != 3 || m.Epoch.Seq != 40 || !m.Fenced || !m.Registered || m.Boot != "boot" || m.Leased != 5*time.Second || m.Clock != 9 {
			t.Errorf("%s: meta %+v", when, m)
		}
		if s := j.Strangers(); !slices.Equal(s, []carrick.NetworkID{"00000000000000cc"}) {
			t.Errorf("%s: strangers %v", when, s)
		}
	}
	check("before")
	want := journal.Dump(j)
	j = again(t, j, dir)
	check("after a restart")
	if got := journal.Dump(j); got != want {
		t.Errorf("after a restart:\n%s\nwant\n%s", got, want)
	}
	if !j.Registered() || j.Fresh() {
		t.Errorf("registered %t, fresh %t", j.Registered(), j.Fresh())
	}
}

// The clock never goes back: not over a restart, not by what others say, not by a
// transaction that failed, not by who sets what it read a while ago.
func TestTheClockGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	var last carrick.Gen
	stamp := func() {
		t.Helper()
		must(t, j, func(tx *journal.Tx) {
			g := tx.Stamp()
			if g <= last || g.Clock() <= last.Clock() {
				t.Errorf("stamp %d:%d after %d:%d", g.Num(), g.Clock(), last.Num(), last.Clock())
			}
			last = g
			tx.PutLease(journal.Lease{Network: netID, Addr: addr1, Gen: g})
		})
	}
	stamp()
	stamp()
	j = again(t, j, dir)
	stamp()
	// Another host is ahead, another one behind.
	must(t, j, func(tx *journal.Tx) { tx.Witness(carrick.MakeGen(1, 500)); tx.Witness(carrick.MakeGen(9, 3)) })
	last = carrick.MakeGen(0, 500)
	j = again(t, j, dir)
	stamp()
	// A transaction that fails takes back its stamps, which nobody has seen.
	_ = j.Update(func(tx *journal.Tx) error { tx.Stamp(); return journal.ErrNotFound })
	stamp()
	before := j.Meta()
	stamp()
	must(t, j, func(tx *journal.Tx) { before.Epoch.Num = 2; tx.SetMeta(before) })
	stamp()
	if last.Num() != 2 {
		t.Errorf("the stamp is of incarnation %d, want 2", last.Num())
	}
	j = again(t, j, dir)
	stamp()
	// A stamp at the end of all stamps does not bring them to it.
	must(t, j, func(tx *journal.Tx) { tx.Witness(carrick.MakeGen(2, 1<<40-1)) })
	stamp()
	stamp()
}

// What a transaction sees is the journal with its changes, of its network only.
func TestLeasesInATransaction(t *testing.T) {
	t.Parallel()
	j := open(t, t.TempDir())
	fill(t, j)
	const net2 = carrick.NetworkID("00000000000000bb")
	a, b, c := netip.MustParseAddr("10.42.0.3"), netip.MustParseAddr("10.42.0.4"), netip.MustParseAddr("10.42.0.5")
	must(t, j, func(tx *journal.Tx) {
		n, _ := tx.Network(netID)
		n.Conf.ID, n.Aliases = net2, nil
		tx.PutNetwork(n)
		tx.PutLease(journal.Lease{Network: netID, Addr: a})
		tx.PutLease(journal.Lease{Network: net2, Addr: b})
	})
	must(t, j, func(tx *journal.Tx) {
		tx.DeleteLease(netID, a)
		tx.PutLease(journal.Lease{Network: netID, Addr: c})
		tx.PutLease(journal.Lease{Network: net2, Addr: c})
		tx.Release(net2, b, time.Now())
		want := map[carrick.NetworkID][]netip.Addr{netID: {addr1, c}, net2: {b, c}, "00000000000000ff": nil}
		for id, addrs := range want {
			if got := slices.SortedFunc(maps.Keys(tx.Leases(id)), netip.Addr.Compare); !slices.Equal(got, addrs) {
				t.Errorf("network %s: %v, want %v", id, got, addrs)
			}
		}
		if l := tx.Leases(net2)[b]; l.Released == 0 {
			t.Error("a release in the transaction is not seen in it")
		}
		// A caller's map is its own.
		clear(tx.Leases(netID))
		if len(tx.Leases(netID)) != 2 {
			t.Error("a caller changed the journal's map")
		}
	})
	clear(j.Leases(netID))
	if len(j.Leases(netID)) != 2 || len(j.Leases(net2)) != 2 {
		t.Errorf("after it: %v and %v", j.Leases(netID), j.Leases(net2))
	}
}

// Slices that go in and come out are the caller's.
func TestRecordsAreCopies(t *testing.T) {
	t.Parallel()
	j := open(t, t.TempDir())
	fill(t, j)
	addrs := []netip.Addr{addr1}
	blocks := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/26")}
	must(t, j, func(tx *journal.Tx) {
		e, _ := tx.Endpoint(epID)
		e.Addrs = addrs
		tx.PutEndpoint(e)
		n, _ := tx.Network(netID)
		n.Blocks = blocks
		tx.PutNetwork(n)
	})
	want := journal.Dump(j)
	spoil := func(e journal.Endpoint, n journal.Network) {
		e.Addrs[0] = netip.Addr{}
		n.Blocks[0], n.Aliases[0].Name = netip.Prefix{}, "spoilt"
	}
	addrs[0], blocks[0] = netip.Addr{}, netip.Prefix{}
	e, err := j.Endpoint(epID)
	if err != nil {
		t.Fatal(err)
	}
	n, err := j.ByAlias(docker)
	if err != nil {
		t.Fatal(err)
	}
	spoil(e, n)
	spoil(j.Endpoints(netID)[0], j.Networks()[0])
	must(t, j, func(tx *journal.Tx) {
		e, _ := tx.Endpoint(epID)
		n, _ := tx.Network(netID)
		spoil(e, n)
		spoil(tx.Endpoints(netID)[0], n)
	})
	if journal.Dump(j) != want {
		t.Error("a caller's slice is the journal's")
	}
}

// An alias stands for the network that has it now.
func TestAliasesMove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	const net2 = carrick.NetworkID("00000000000000bb")
	byAlias := func(want carrick.NetworkID) {
		t.Helper()
		if n, err := j.ByAlias(docker); n.Conf.ID != want {
			t.Errorf("the alias is of %q, %v; want %q", n.Conf.ID, err, want)
		}
		if d := journal.Drift(j); d != "" {
			t.Error(d)
		}
	}
	byAlias(netID)
	must(t, j, func(tx *journal.Tx) {
		n, _ := tx.Network(netID)
		moved := n
		moved.Conf.ID = net2
		n.Aliases = nil
		tx.PutNetwork(moved)
		tx.PutNetwork(n)
	})
	byAlias(net2)
	j = again(t, j, dir)
	byAlias(net2)
	must(t, j, func(tx *journal.Tx) { tx.DeleteNetwork(netID) })
	byAlias(net2)
	must(t, j, func(tx *journal.Tx) { tx.DeleteNetwork(net2) })
	byAlias("")
}

// A host whose journal was lost takes up who it was.
func TestAdopt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	if j.Registered() {
		t.Error("a new journal is a registered host's")
	}
	const was = carrick.HostID("00000000000000b7")
	if err := j.Adopt("nonsense"); err == nil {
		t.Error("adopted nonsense")
	}
	if err := j.Adopt(was); err != nil {
		t.Fatal(err)
	}
	if j.Identity().Host != was || !j.Registered() {
		t.Errorf("identity %+v, registered %t", j.Identity(), j.Registered())
	}
	must(t, j, func(tx *journal.Tx) { m := tx.Meta(); m.Registered = true; tx.SetMeta(m) })
	j = again(t, j, dir)
	if j.Identity().Host != was || j.Identity().Machine != "machine-1" || !j.Registered() {
		t.Errorf("after a restart: identity %+v, registered %t", j.Identity(), j.Registered())
	}
}

// A network whose pools change is counted anew, and so is one that comes after
// its leases.
func TestPoolsChange(t *testing.T) {
	t.Parallel()
	j := open(t, t.TempDir())
	pool := netip.MustParsePrefix("10.42.0.0/16")
	must(t, j, func(tx *journal.Tx) { tx.PutLease(journal.Lease{Network: netID, Addr: addr1}) })
	fill(t, j)
	if n := j.Taken(netID, pool); n != 1 {
		t.Errorf("%d taken, want 1", n)
	}
	must(t, j, func(tx *journal.Tx) {
		n, _ := tx.Network(netID)
		n.Conf.Pools = []carrick.Pool{{Prefix: pool, Block: 26, Gateway: addr1}}
		tx.PutNetwork(n)
	})
	if n := j.Taken(netID, pool); n != 0 {
		t.Errorf("%d taken besides the gateway, want 0", n)
	}
	must(t, j, func(tx *journal.Tx) { tx.DeleteLease(netID, addr1) })
	if d := journal.Drift(j); d != "" {
		t.Error(d)
	}
}
