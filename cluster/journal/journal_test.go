package journal_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

const netID = carrick.NetworkID("00000000000000aa")

var (
	addr1  = netip.MustParseAddr("10.42.0.2")
	docker = carrick.DockerNetworkID(strings.Repeat("d", 64))
	epID   = carrick.EndpointID(strings.Repeat("e", 64))
)

func open(t *testing.T, dir string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(dir, "machine-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func fill(t *testing.T, j *journal.Journal) {
	t.Helper()
	if err := j.Update(fillTx); err != nil {
		t.Fatal(err)
	}
}

// fillTx writes a network with one endpoint.
func fillTx(tx *journal.Tx) error {
	tx.PutNetwork(journal.Network{
		Conf:    carrick.Network{ID: netID, Name: "app", Pools: []carrick.Pool{{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}}},
		Aliases: []journal.Alias{{Docker: docker}},
		Blocks:  []netip.Prefix{netip.MustParsePrefix("10.42.0.0/26")},
	})
	tx.PutLease(journal.Lease{Network: netID, Addr: addr1, Endpoint: epID})
	tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: epID, Addrs: []netip.Addr{addr1}, MAC: carrick.MACFor(1, addr1)}, Network: netID, Docker: docker})
	return nil
}

// What was written is there after a crash, without Close.
func TestSurvivesACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	id := j.Identity()
	fill(t, j)
	// A crash leaves the file as it is: copy it while it is open.
	crashed := filepath.Join(t.TempDir(), "state")
	raw, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(crashed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(crashed, "state.db"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	k := open(t, crashed)
	if k.Identity() != id || k.Fresh() {
		t.Errorf("identity %+v (fresh %v), want %+v", k.Identity(), k.Fresh(), id)
	}
	n, err := k.ByAlias(docker)
	if err != nil || n.Conf.Name != "app" || len(n.Blocks) != 1 {
		t.Errorf("network %+v %v", n, err)
	}
	e, err := k.Endpoint(epID)
	if err != nil || e.Addrs[0] != addr1 || e.Network != netID {
		t.Errorf("endpoint %+v %v", e, err)
	}
	if l := k.Leases(netID)[addr1]; l.Endpoint != epID {
		t.Errorf("lease %+v", l)
	}
}

// A failed update changes nothing, in memory or on disk.
func TestFailedUpdateChangesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	boom := errors.New("boom")
	err := j.Update(func(tx *journal.Tx) error {
		tx.DeleteNetwork(netID)
		if _, ok := tx.Endpoint(epID); ok {
			t.Error("the transaction does not see its own deletion")
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if _, err := j.Endpoint(epID); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// The disk refuses: the journal is closed.
	if err := j.Update(func(tx *journal.Tx) error { tx.DeleteNetwork(netID); return nil }); err == nil {
		t.Error("update of a closed journal succeeded")
	}
	if _, err := j.Network(netID); err != nil {
		t.Errorf("a refused write changed memory: %v", err)
	}
	if _, err := open(t, dir).Network(netID); err != nil {
		t.Error(err)
	}
}

func TestDeletingANetworkTakesItsPartsAlong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	if err := j.Update(func(tx *journal.Tx) error { tx.DeleteNetwork(netID); return nil }); err != nil {
		t.Fatal(err)
	}
	check := func(j *journal.Journal) {
		t.Helper()
		_, eerr := j.Endpoint(epID)
		_, nerr := j.Network(netID)
		if !errors.Is(eerr, journal.ErrNotFound) || !errors.Is(nerr, journal.ErrNotFound) || len(j.Leases(netID)) != 0 {
			t.Errorf("left: endpoint %v network %v leases %v", eerr, nerr, j.Leases(netID))
		}
	}
	check(j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, dir))
}

// Addresses remember the order of their release over a restart.
func TestReleaseOrderSurvives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	release := func(j *journal.Journal, a string) {
		t.Helper()
		if err := j.Update(func(tx *journal.Tx) error { tx.Release(netID, netip.MustParseAddr(a), time.Now()); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	release(j, "10.42.0.9")
	release(j, "10.42.0.4")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	release(j, "10.42.0.7")
	l := j.Leases(netID)
	order := func(a string) uint64 { return l[netip.MustParseAddr(a)].Released }
	if order("10.42.0.9") >= order("10.42.0.4") || order("10.42.0.4") >= order("10.42.0.7") {
		t.Errorf("release order is lost: %v", l)
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	_, err := journal.Open(dir, "machine-1")
	if !errors.Is(err, journal.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second agent: %v, want ErrLocked naming the directory", err)
	}
}

func TestClonedDiskIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	id := j.Identity().Host
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := journal.Open(dir, "machine-2")
	if !errors.Is(err, journal.ErrForeign) {
		t.Fatalf("clone: %v, want ErrForeign", err)
	}
	for _, w := range []string{"machine-1", "machine-2", string(id)} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not name %s", err, w)
		}
	}
}

// Damage is an error that says so, never a journal that forgot.
func TestDamageIsAnError(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(tx *bbolt.Tx) error{
		"identity": func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("identity"), []byte("{")) },
		"host id": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("identity"), []byte(`{"schema":1,"host":"x","machine":"machine-1"}`))
		},
		"network":   func(tx *bbolt.Tx) error { return tx.Bucket([]byte("networks")).Put([]byte(netID), []byte("[]")) },
		"lease":     func(tx *bbolt.Tx) error { return tx.Bucket([]byte("leases")).Put([]byte("x"), []byte("\x00")) },
		"endpoints": func(tx *bbolt.Tx) error { return tx.Bucket([]byte("endpoints")).Put([]byte("x"), nil) },
	} {
		dir := t.TempDir()
		j := open(t, dir)
		fill(t, j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(damage), db.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := journal.Open(dir, "machine-1"); !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("%s damaged: %v, want ErrCorrupt", name, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "state.db"), []byte(strings.Repeat("not a database ", 4000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(dir, "machine-1"); err == nil {
		t.Error("a file that is no journal was opened")
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("identity"), []byte(`{"schema":99,"host":"0123456789abcdef","machine":"machine-1"}`))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(dir, "machine-1"); err == nil || !strings.Contains(err.Error(), "newer agent") {
		t.Errorf("newer schema: %v", err)
	}
}
