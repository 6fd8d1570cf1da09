package journal_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick/cluster/journal"
)

// harmless requires a damaged file to be refused or to be the same to its reader.
func harmless(t *testing.T, what string, image []byte, want string) (refused bool) {
	t.Helper()
	got, err := reopened(t, image)
	switch {
	case errors.Is(err, journal.ErrCorrupt):
		for _, says := range []string{"state.db", "move the file aside", "start the agent again"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %q does not say %q", what, err, says)
			}
		}
		return true
	case err != nil:
		t.Fatalf("%s: %v, want ErrCorrupt", what, err)
	case got != want:
		t.Fatalf("%s: taken as\n%s\nwant\n%s", what, got, want)
	}
	return false
}

// A file that ends too early.
func TestCutOff(t *testing.T) {
	t.Parallel()
	h := live(t, 16)
	image, want := h.images[len(h.images)-1], h.dumps[len(h.dumps)-1]
	page := os.Getpagesize()
	refused := 0
	for size := 0; size < len(image); size += page {
		for _, n := range []int{size - 1, size, size + 1, size + page/2} {
			if n >= 0 && n < len(image) && harmless(t, "cut off", image[:n], want) {
				refused++
			}
		}
	}
	if refused < 20 {
		t.Errorf("only %d cuts were noticed", refused)
	}
	if !harmless(t, "empty", nil, want) {
		t.Error("an empty file is a journal")
	}
}

// Bits that flip, bytes that change, pages that are swapped, zeroed or filled with
// anything.
func TestRot(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	h := live(t, 16)
	image, want := h.images[len(h.images)-1], h.dumps[len(h.dumps)-1]
	page := os.Getpagesize()
	at := func() int { return r.IntN(len(image)/page) * page }
	refused := 0
	for name, spoil := range map[string]func(b []byte){
		"bit":    func(b []byte) { b[r.IntN(len(b))] ^= 1 << r.IntN(8) },
		"byte":   func(b []byte) { b[r.IntN(len(b))] = byte(r.Uint32()) },
		"zeroes": func(b []byte) { clear(b[at():][:page]) },
		"noise": func(b []byte) {
			for i := range b[at():][:page] {
				b[i] = byte(r.Uint32())
			}
		},
		"swap": func(b []byte) {
			x, y := at(), at()
			tmp := slices.Clone(b[x : x+page])
			copy(b[x:], b[y:y+page])
			copy(b[y:], tmp)
		},
		"copy": func(b []byte) { x := at(); copy(b[at():][:page], b[x:]) },
		// The fields that lead from page to page and from entry to value.
		"field": func(b []byte) {
			off := at()
			off += []int{0, 8, 10, 12, 16, 20, 24, 28, 32, 36, 40, 44, 64, 72}[r.IntN(14)]
			v := []uint64{0, 1, 2, 3, 4, 0xff, 0xffff, 1 << 31, 1<<32 - 1, 1 << 63, 1<<64 - 1, r.Uint64N(40)}[r.IntN(12)]
			switch r.IntN(3) {
			case 0:
				binary.NativeEndian.PutUint16(b[off:], uint16(v))
			case 1:
				binary.NativeEndian.PutUint32(b[off:], uint32(v))
			default:
				binary.NativeEndian.PutUint64(b[off:], v)
			}
		},
	} {
		for range 100 {
			b := slices.Clone(image)
			spoil(b)
			if harmless(t, name, b, want) {
				refused++
			}
		}
	}
	if refused < 50 {
		t.Errorf("only %d of all were noticed", refused)
	}
}

// One header of two is damaged. The other one is that of the state before the
// last write: taking that would forget what a caller was told.
func TestOneHeaderDamaged(t *testing.T) {
	t.Parallel()
	h := live(t, 5)
	for i, image := range h.images {
		for p := range 2 {
			b := slices.Clone(image)
			b[p*os.Getpagesize()+40] ^= 1
			if !harmless(t, "header", b, h.dumps[i]) {
				t.Errorf("image %d: header %d is damaged and nobody says so", i, p)
			}
		}
	}
}

// edit changes a journal's file behind its back.
func edit(t *testing.T, dir string, change func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// A sound database, with a sum that is right, that holds what no journal does.
func TestForeignContent(t *testing.T) {
	t.Parallel()
	put := func(bucket, key, value string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(value)) }
	}
	id := string(netID)
	for name, change := range map[string]func(tx *bbolt.Tx) error{
		"another bucket":    func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("libnetwork")); return err },
		"a bucket within":   func(tx *bbolt.Tx) error { _, err := tx.Bucket([]byte("leases")).CreateBucket([]byte("x")); return err },
		"a bucket missing":  func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("leases")) },
		"no identity":       func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("identity")) },
		"no schema":         put("meta", "identity", `{"host":"0123456789abcdef","machine":"machine-1"}`),
		"a host that is no": put("meta", "identity", `{"schema":2,"host":"../../etc","machine":"machine-1"}`),
		"meta":              put("meta", "meta", `{"clock":-1}`),
		"meta of a list":    put("meta", "meta", `[]`),
		"strangers":         put("meta", "strangers", `{"a":1}`),

		"network that is another": put("networks", id, `{"conf":{"id":"00000000000000ff","pools":[{"prefix":"10.42.0.0/16","block":26}]}}`),
		"network without pools":   put("networks", id, `{"conf":{"id":"00000000000000aa"}}`),
		"network of null":         put("networks", id, `null`),
		"pool that is no prefix":  put("networks", id, `{"conf":{"id":"00000000000000aa","pools":[{"prefix":"10.42.0.1/16","block":26}]}}`),
		"block of everything":     put("networks", id, `{"conf":{"id":"00000000000000aa","pools":[{"prefix":"10.42.0.0/16","block":26}]},"blocks":["0.0.0.0/0"]}`),
		"block below zero":        put("networks", id, `{"conf":{"id":"00000000000000aa","pools":[{"prefix":"10.42.0.0/16","block":-5}]}}`),
		"freed of nothing":        put("networks", id, `{"conf":{"id":"00000000000000aa","pools":[{"prefix":"10.42.0.0/16","block":26}]},"freeing":[{}]}`),

		"endpoint of null":           put("endpoints", "x", `null`),
		"endpoint without addresses": put("endpoints", "x", `{"id":"x","network":"00000000000000aa"}`),
		"endpoint of no network":     put("endpoints", "x", `{"id":"x","addrs":["10.42.0.2"]}`),
		"endpoint that is another":   put("endpoints", "x", `{"id":"y","addrs":["10.42.0.2"],"network":"00000000000000aa"}`),
		"endpoint with half a MAC":   put("endpoints", "x", `{"id":"x","addrs":["10.42.0.2"],"mac":"02:00","network":"00000000000000aa"}`),

		"lease that is another": put("leases", id+"/10.42.0.9", `{"network":"00000000000000aa","addr":"10.42.0.8"}`),
		"lease of no network":   put("leases", "/10.42.0.9", `{"addr":"10.42.0.9"}`),
		"lease with a zone":     put("leases", id+"/fe80::1%eth0", `{"network":"00000000000000aa","addr":"fe80::1%eth0"}`),
		"lease below zero":      put("leases", id+"/10.42.0.9", `{"network":"00000000000000aa","addr":"10.42.0.9","released":-1}`),
		"lease of half a time":  put("leases", id+"/10.42.0.9", `{"network":"00000000000000aa","addr":"10.42.0.9","at":"2026"}`),
		"lease of nothing":      put("leases", id+"/10.42.0.9", ``),
		"lease nested too deep": put("leases", id+"/10.42.0.9", strings.Repeat("[", 20000)),

		"host without VTEP":    put("hosts", "00000000000000b1", `{"id":"00000000000000b1"}`),
		"host that is another": put("hosts", "00000000000000b1", `{"id":"00000000000000b2","vtep":"192.0.2.1"}`),
	} {
		dir := t.TempDir()
		j := open(t, dir)
		fill(t, j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		edit(t, dir, change)
		if name != "a bucket within" { // which has no value to sum up
			edit(t, dir, journal.Seal)
		}
		if _, err := journal.Open(dir, "machine-1"); !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// What a record says was changed into something that makes as much sense.
func TestAChangeThatMakesSense(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(tx *bbolt.Tx) error{
		"an address": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("leases")).Put([]byte(string(netID)+"/10.42.0.3"), []byte(`{"network":"00000000000000aa","addr":"10.42.0.3"}`))
		},
		"one less": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("leases")).Delete([]byte(string(netID) + "/10.42.0.2"))
		},
		"the clock": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("meta"), []byte(`{"epoch":{},"clock":1}`))
		},
		"the sum":    func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("sum"), make([]byte, 8)) },
		"no sum":     func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("sum")) },
		"half a sum": func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("sum"), make([]byte, 4)) },
	} {
		dir := t.TempDir()
		j := open(t, dir)
		fill(t, j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		edit(t, dir, change)
		if _, err := journal.Open(dir, "machine-1"); !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// Something else of the same kind lies where the journal should be.
func TestAnothersDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	edit(t, dir, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("libnetwork"))
		if err != nil {
			return err
		}
		return b.Put([]byte("k"), []byte("v"))
	})
	if _, err := journal.Open(dir, "machine-1"); !errors.Is(err, journal.ErrCorrupt) || !strings.Contains(err.Error(), "no journal") {
		t.Errorf("another's database: %v", err)
	}
	// And it was left alone.
	edit(t, dir, func(tx *bbolt.Tx) error {
		if string(tx.Bucket([]byte("libnetwork")).Get([]byte("k"))) != "v" {
			t.Error("it was changed")
		}
		return nil
	})
	empty := t.TempDir()
	edit(t, empty, func(*bbolt.Tx) error { return nil })
	if _, err := journal.Open(empty, "machine-1"); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("an empty database: %v", err)
	}
}

// A file of an older agent, which had no sum, is taken up and written anew.
func TestOlderSchema(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	want := journal.Dump(j)
	id := j.Identity()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, dir, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("meta"))
		return errors.Join(b.Delete([]byte("sum")), tx.DeleteBucket([]byte("hosts")),
			b.Put([]byte("identity"), []byte(`{"schema":1,"host":"`+string(id.Host)+`","machine":"machine-1"}`)))
	})
	for range 2 {
		j = open(t, dir)
		if got := journal.Dump(j); got != want || j.Fresh() {
			t.Errorf("taken up as\n%s\nwant\n%s", got, want)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("sum")) })
	if _, err := journal.Open(dir, "machine-1"); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("it was written anew and needs no sum: %v", err)
	}
}

// Nothing that a journal ever writes is taken for damage: it grows to thousands of
// records, shrinks to nothing and grows again.
func TestSoundFilesAreSound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 3 {
		for range 12 {
			must(t, j, func(tx *journal.Tx) {
				for range 200 {
					tx.PutLease(journal.Lease{Network: netID, Addr: nth16(r.Uint32N(5000)), Gen: tx.Stamp()})
				}
			})
		}
		for share := range 4 { // a quarter of what is there, each time
			j = again(t, j, dir)
			must(t, j, func(tx *journal.Tx) {
				for a := range tx.Leases(netID) {
					if r.IntN(4-share) == 0 {
						tx.DeleteLease(netID, a)
					}
				}
			})
		}
		if j = again(t, j, dir); len(j.Leases(netID)) != 0 {
			t.Fatalf("round %d: %d leases are left", round, len(j.Leases(netID)))
		}
	}
}
