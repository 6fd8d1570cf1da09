package snapshot_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/snapshot"
	"github.com/carrick-net/carrick/internal/sim"
)

const (
	net1 = carrick.NetworkID("00000000000000aa")
	net2 = carrick.NetworkID("00000000000000bb")
	h1   = carrick.HostID("1111111111111111")
	h2   = carrick.HostID("2222222222222222")
)

// rec is a record of n endpoints.
func rec(seq uint64, n int) snapshot.Record {
	r := snapshot.Record{Num: 1, Seq: seq}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)})
		r.Endpoints = append(r.Endpoints, carrick.Endpoint{
			ID: carrick.EndpointID(fmt.Sprintf("%064x", i)), Addrs: []netip.Addr{a}, MAC: carrick.MACFor(7, a), Gen: carrick.MakeGen(1, seq),
		})
	}
	return r
}

// opened opens the cache of a directory and keeps its log.
func opened(t testing.TB, dir string) (*snapshot.Cache, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	c := snapshot.Open(dir, slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(func() { _ = c.Close() })
	return c, log
}

func closed(t testing.TB, c *snapshot.Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func holds(t testing.TB, c *snapshot.Cache, id carrick.NetworkID, want map[carrick.HostID]snapshot.Record) {
	t.Helper()
	if got := c.Load(id); !reflect.DeepEqual(got, want) {
		t.Errorf("network %s: %+v\nwant %+v", id, got, want)
	}
}

// What was put is there at once, and at the next start.
func TestRemembers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, log := opened(t, dir)
	c.Put(net1, h1, rec(1, 3))
	c.Put(net1, h2, rec(2, 1))
	c.Put(net2, h1, rec(3, 1))
	c.Flush()
	c.Put(net1, h1, rec(4, 2)) // replaced
	c.Put(net2, h1, rec(5, 0)) // emptied
	c.Put(net2, h2, rec(6, 1)) // and a network
	c.Drop(net2)               // that is forgotten,
	c.Put(net2, h2, rec(7, 2)) // and comes back
	one := map[carrick.HostID]snapshot.Record{h1: rec(4, 2), h2: rec(2, 1)}
	two := map[carrick.HostID]snapshot.Record{h2: rec(7, 2)}
	holds(t, c, net1, one)
	holds(t, c, net2, two)
	closed(t, c)
	c, log2 := opened(t, dir)
	holds(t, c, net1, one)
	holds(t, c, net2, two)
	c.Keep(func(id carrick.NetworkID) bool { return id == net1 })
	holds(t, c, net2, map[carrick.HostID]snapshot.Record{})
	closed(t, c)
	c, log3 := opened(t, dir)
	holds(t, c, net1, one)
	holds(t, c, net2, map[carrick.HostID]snapshot.Record{})
	if said := log.String() + log2.String() + log3.String(); said != "" {
		t.Errorf("something to complain about: %s", said)
	}
}

// A clean end writes what was not written yet.
func TestTheEndOfRunWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := opened(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	c.Put(net1, h1, rec(1, 1))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	other, _ := opened(t, copyOf(t, dir))
	holds(t, other, net1, map[carrick.HostID]snapshot.Record{h1: rec(1, 1)})
}

// While it runs changes reach the disk by themselves, and many of them at once.
func TestChangesAreCollected(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := opened(t, dir)
	go func() { _ = c.Run(t.Context()) }()
	for i := range uint64(1000) {
		c.Put(net1, h1, rec(i, 1))
	}
	path := filepath.Join(dir, "cache.db")
	written := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	empty := written()
	sim.Eventually(t, "something was written", func() bool { return written() != empty })
	if n := written(); n > 1000 {
		t.Errorf("1000 changes of one record take %d bytes", n)
	}
}

// copyOf is the directory as a crash would leave it now.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// The log does not grow with the number of changes, whatever is in it.
func TestTheFileStaysSmall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, log := opened(t, dir)
	for i := range uint64(400) {
		c.Put(net1, h1, rec(i, 100))
		c.Put(net1, h2, rec(i, 1))
		if i%100 == 99 {
			c.Drop(net1)
		}
		if i%50 == 0 {
			c.Put(net2, h2, rec(i, 1))
		}
		c.Flush()
	}
	info, err := os.Stat(filepath.Join(dir, "cache.db"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2<<20 {
		t.Errorf("the file has %d bytes", info.Size())
	}
	c.Put(net1, h1, rec(9, 1))
	closed(t, c)
	c, _ = opened(t, dir)
	holds(t, c, net1, map[carrick.HostID]snapshot.Record{h1: rec(9, 1)})
	holds(t, c, net2, map[carrick.HostID]snapshot.Record{h2: rec(350, 1)})
	if log.Len() > 0 {
		t.Error(log)
	}
}

// A record costs what is in it, however large the network.
func TestAChangeCostsItsHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := opened(t, dir)
	size := func() int64 {
		c.Flush()
		info, err := os.Stat(filepath.Join(dir, "cache.db"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	c.Put(net1, h2, rec(1, 1))
	alone := size() - before
	for i := range 200 {
		c.Put(net1, carrick.HostID(fmt.Sprintf("%016x", i)), rec(1, 10))
	}
	before = size()
	c.Put(net1, h2, rec(2, 1))
	if n := size() - before; n != alone {
		t.Errorf("a change costs %d bytes alone and %d among many", alone, n)
	}
}

// Whatever happened to the file, the agent starts, says so once, and remembers
// from then on.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	good := t.TempDir()
	c, _ := opened(t, good)
	c.Put(net1, h1, rec(1, 2))
	c.Flush()
	c.Put(net1, h2, rec(2, 2))
	closed(t, c)
	raw, err := os.ReadFile(filepath.Join(good, "cache.db"))
	if err != nil {
		t.Fatal(err)
	}
	both, first, none := []carrick.HostID{h1, h2}, []carrick.HostID{h1}, []carrick.HostID(nil)
	for name, tt := range map[string]struct {
		damage func(path string) error
		left   []carrick.HostID
		quiet  bool
	}{
		"untouched":      {func(string) error { return nil }, both, true},
		"lost":           {os.Remove, none, true},
		"empty":          {func(p string) error { return os.Truncate(p, 0) }, none, true},
		"torn":           {func(p string) error { return os.Truncate(p, int64(len(raw)-5)) }, first, false},
		"cut short":      {func(p string) error { return os.Truncate(p, 5) }, none, false},
		"grown by zeros": {func(p string) error { return os.Truncate(p, int64(len(raw)+4096)) }, both, false},
		"a bit flipped in the last record": {func(p string) error {
			return os.WriteFile(p, append(bytes.Clone(raw[:len(raw)-9]), append([]byte{raw[len(raw)-9] ^ 4}, raw[len(raw)-8:]...)...), 0o600)
		}, first, false},
		"garbage": {func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("not a cache ", 4000)), 0o600) }, none, false},
		"a newer agent's": {func(p string) error {
			return os.WriteFile(p, append([]byte("carrick cache 2\n"), raw[16:]...), 0o600)
		}, none, false},
		"a directory": {func(p string) error { return os.Rename(p, p+"x") }, none, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := copyOf(t, good)
			path := filepath.Join(dir, "cache.db")
			if err := tt.damage(path); err != nil {
				t.Fatal(err)
			}
			if name == "a directory" {
				tt.quiet = false
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			c, log := opened(t, dir)
			want := map[carrick.HostID]snapshot.Record{}
			for i, h := range tt.left {
				want[h] = rec(uint64(i+1), 2)
			}
			holds(t, c, net1, want)
			if lines := strings.Count(log.String(), "\n"); lines != 1 && !tt.quiet || lines != 0 && tt.quiet {
				t.Errorf("it said %q", log)
			}
			c.Put(net1, h2, rec(3, 1))
			want[h2] = rec(3, 1)
			closed(t, c)
			c, log = opened(t, dir)
			holds(t, c, net1, want)
			if log.Len() > 0 {
				t.Errorf("still something to say: %s", log)
			}
		})
	}
}

// Without a place for the file it is a memory like any other, and says so.
func TestNowhereToWrite(t *testing.T) {
	t.Parallel()
	c, log := opened(t, filepath.Join(t.TempDir(), "missing"))
	if strings.Count(log.String(), "\n") != 1 {
		t.Errorf("it said %q", log)
	}
	c.Put(net1, h1, rec(1, 1))
	holds(t, c, net1, map[carrick.HostID]snapshot.Record{h1: rec(1, 1)})
	var missing *snapshot.Cache
	missing.Put(net1, h1, rec(1, 1))
	holds(t, missing, net1, map[carrick.HostID]snapshot.Record{})
	closed(t, missing)
}

// A random history, with restarts in between, is remembered as a map would.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	c, log := opened(t, dir)
	nets := []carrick.NetworkID{net1, net2}
	want := map[carrick.NetworkID]map[carrick.HostID]snapshot.Record{net1: {}, net2: {}}
	for step := range uint64(800) {
		id, host := nets[r.IntN(2)], carrick.HostID(fmt.Sprintf("%016x", r.IntN(4)))
		switch k := r.IntN(100); {
		case k < 70:
			x := rec(step, r.IntN(8))
			c.Put(id, host, x)
			want[id][host] = x
			maps.DeleteFunc(want[id], func(_ carrick.HostID, x snapshot.Record) bool { return len(x.Endpoints) == 0 })
		case k < 75:
			c.Drop(id)
			want[id] = map[carrick.HostID]snapshot.Record{}
		case k < 90:
			c.Flush()
		default:
			closed(t, c)
			c, _ = opened(t, dir)
		}
		for _, id := range nets {
			holds(t, c, id, want[id])
		}
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
	if log.Len() > 0 {
		t.Error(log)
	}
}

// How old the cache is outlives the agent, whatever is written while nobody is
// heard; a cache that is new, or was damaged, has no age.
func TestAge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := opened(t, dir)
	if got := c.AsOf(); !got.IsZero() {
		t.Errorf("a new cache is of %s", got)
	}
	c.Put(net1, h1, rec(1, 1))
	closed(t, c)
	c, _ = opened(t, dir)
	if got := c.AsOf(); !got.IsZero() {
		t.Errorf("nobody was heard, and the cache is of %s", got)
	}
	heard := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	c.Heard(heard)
	c.Heard(heard.Add(-time.Minute)) // told late
	c.Flush()
	for range 2 {
		again, _ := opened(t, dir) // as after a kill
		if got := again.AsOf(); !got.Equal(heard) {
			t.Errorf("the cache is of %s, want %s", got, heard)
		}
		again.Drop(net1) // a network is removed, and nobody is heard
		closed(t, again)
	}
	if err := os.WriteFile(filepath.Join(dir, "cache.db"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ = opened(t, dir)
	if got := c.AsOf(); !got.IsZero() {
		t.Errorf("nothing is known, as of %s", got)
	}
	var none *snapshot.Cache
	none.Heard(heard)
	if !none.AsOf().IsZero() {
		t.Error("no cache has an age")
	}
}
