package journal_test

import (
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick/cluster/journal"
)

// small is a journal's file with something in each bucket, and what it holds.
func small(f *testing.F) (image []byte, dump string) {
	f.Helper()
	dir := f.TempDir()
	j, err := journal.Open(dir, "machine-1")
	if err != nil {
		f.Fatal(err)
	}
	for i := range 40 { // beyond what fits into the root's page
		if err := j.Update(func(tx *journal.Tx) error {
			l := lease(i)
			l.Gen = tx.Stamp()
			if i == 0 {
				return fillTx(tx)
			}
			tx.PutLease(l)
			return nil
		}); err != nil {
			f.Fatal(err)
		}
	}
	dump = journal.Dump(j)
	if err := j.Close(); err != nil {
		f.Fatal(err)
	}
	if image, err = os.ReadFile(filepath.Join(dir, "state.db")); err != nil {
		f.Fatal(err)
	}
	return image, dump
}

// patch writes b into a copy of an image, and cuts that to size if it is shorter.
func patch(image []byte, at uint32, b []byte, size uint32) []byte {
	out := slices.Clone(image)
	copy(out[int(at)%len(out):], b)
	if int(size) < len(out) {
		out = out[:size]
	}
	return out
}

// Whatever becomes of a journal's file, opening it is ErrCorrupt or shows what
// was written.
func FuzzFile(f *testing.F) {
	image, dump := small(f)
	page := uint32(os.Getpagesize())
	whole := uint32(len(image))
	f.Add(uint32(0), []byte{}, whole)
	f.Add(uint32(0), []byte{}, uint32(0))
	f.Add(page*3, []byte{0xff}, whole)
	f.Add(page*4+8, []byte{1, 0}, whole)
	f.Add(page*5, []byte("not a page"), page*6)
	f.Fuzz(func(t *testing.T, at uint32, b []byte, size uint32) {
		harmless(t, "patched", patch(image, at, b, size), dump)
	})
}

// Pages that were found sound are sound to bbolt: neither reading all of it nor
// its own check, which nothing can save the process from, goes astray.
func FuzzPages(f *testing.F) {
	image, _ := small(f)
	page := uint32(os.Getpagesize())
	for _, at := range []uint32{16 + 16, page + 16 + 32, page*2 + 8, page*3 + 16, page*4 + 12, page*5 + 20} {
		f.Add(at, []byte{3, 0, 0, 0, 0, 0, 0, 0}, at+page, []byte{4})
	}
	f.Fuzz(func(t *testing.T, at uint32, b []byte, at2 uint32, b2 []byte) {
		spoilt := patch(patch(image, at, b, 1<<31), at2, b2, 1<<31)
		for p := range 2 { // or nothing behind the headers is ever reached
			m := spoilt[p*int(page)+16:][:64]
			h := fnv.New64a()
			_, _ = h.Write(m[:56])
			binary.NativeEndian.PutUint64(m[56:], h.Sum64())
		}
		if journal.CheckPages(spoilt) != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatalf("sound, and bbolt says: %v", err)
		}
		defer db.Close()
		// It can also be written. bbolt's own check finds nothing but lost room.
		for round := range 2 {
			t.Logf("round %d", round)
			if err := db.Update(func(tx *bbolt.Tx) error {
				for err := range tx.Check() {
					if !strings.Contains(err.Error(), "unreachable unfreed") {
						t.Errorf("sound, and bbolt says: %v", err)
					}
				}
				return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
					if err := b.ForEach(func(_, _ []byte) error { return nil }); err != nil {
						return err
					}
					return b.Put([]byte("k"), make([]byte, 500))
				})
			}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Whatever the records of a sound file say, opening it is ErrCorrupt or a journal
// that can be used, closed and opened again.
func FuzzRecords(f *testing.F) {
	image, _ := small(f)
	for _, s := range []string{
		`{"conf":{"id":"00000000000000aa","pools":[{"prefix":"10.42.0.0/16","block":26}]},"aliases":[{"docker":"d"}],"blocks":["10.42.0.0/26"]}`,
		`{"conf":{"id":"00000000000000aa","pools":[{"prefix":"10.42.0.0/16","block":26},{"prefix":"fd00::/64","block":122}]},"freeing":[{"block":"10.42.0.0/26","gen":7}]}`,
		`{"id":"x","addrs":["10.42.0.2"],"mac":"02:00:00:00:00:01","network":"00000000000000aa"}`,
		`{"network":"00000000000000aa","addr":"10.42.0.2","released":3,"at":"2026-01-01T00:00:00Z","gen":9,"lent":"00000000000000b1"}`,
		`{"id":"00000000000000aa","name":"h","vtep":"192.0.2.1"}`,
		`{"schema":2,"host":"0123456789abcdef","machine":"machine-1"}`, `["00000000000000aa"]`, `{"epoch":{"num":1},"clock":5}`, `{}`, `null`, ``,
	} {
		for bucket := range uint8(7) {
			f.Add(bucket, "00000000000000aa", []byte(s))
		}
		f.Add(uint8(2), "00000000000000aa/10.42.0.2", []byte(s))
	}
	f.Fuzz(func(t *testing.T, where uint8, key string, raw []byte) {
		if key == "" || len(key) > 1000 {
			return
		}
		bucket := []string{"networks", "endpoints", "leases", "hosts", "meta", "meta", "meta"}[where%7]
		if bucket == "meta" {
			key = []string{"strangers", "meta", "identity"}[where%7-4]
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "state.db")
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket([]byte(bucket)).Put([]byte(key), raw), journal.Seal(tx))
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(dir, "machine-1")
		if err != nil {
			if !errors.Is(err, journal.ErrCorrupt) && !errors.Is(err, journal.ErrForeign) && !strings.Contains(err.Error(), "newer agent") {
				t.Error(err)
			}
			return
		}
		for _, n := range j.Networks() {
			_ = n.Conf.Pools[0].AllocRange()
			j.Leases(n.Conf.ID)
			j.Endpoints(n.Conf.ID)
			j.Taken(n.Conf.ID, n.Conf.Pools[0].Prefix)
			if err := j.Update(func(tx *journal.Tx) error {
				for range tx.Resting(n.Conf.ID, n.Conf.Pools[0].Prefix) {
					break
				}
				tx.PutNetwork(n)
				tx.Stamp()
				return nil
			}); err != nil {
				t.Errorf("it was read and cannot be written: %v", err)
			}
		}
		if d := journal.Drift(j); d != "" {
			t.Error(d)
		}
		want := journal.Dump(j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if j, err = journal.Open(dir, "machine-1"); err != nil {
			t.Fatalf("it was taken, and then: %v", err)
		}
		defer j.Close()
		if got := journal.Dump(j); got != want {
			t.Errorf("it was\n%s\nand then\n%s", want, got)
		}
	})
}
