package journal_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// history is a journal's file after each of its writes, and what it held then.
type history struct {
	images [][]byte
	dumps  []string
}

// live makes a history of a busy host: addresses given out and released, networks
// that come and go, in a file that grows and whose pages are used again.
func live(t *testing.T, writes int) history {
	t.Helper()
	var h history
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	j := open(t, dir)
	keep := func() {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		h.images, h.dumps = append(h.images, raw), append(h.dumps, journal.Dump(j))
	}
	keep()
	fill(t, j)
	keep()
	r := rand.New(rand.NewPCG(1, 2))
	for i := range writes {
		must(t, j, func(tx *journal.Tx) {
			for range 1 + r.IntN(12) {
				a := nth16(64 + uint32(r.IntN(400)))
				switch r.IntN(4) {
				case 0:
					tx.Release(netID, a, time.Unix(1e9, 0))
				case 1:
					tx.DeleteLease(netID, a)
				default:
					tx.PutLease(journal.Lease{Network: netID, Addr: a, Gen: tx.Stamp()})
				}
			}
			if id := carrick.NetworkID("00000000000000b0"); i%7 == 3 {
				n, _ := tx.Network(netID)
				n.Conf.ID, n.Aliases = id, nil
				tx.PutNetwork(n)
				tx.PutLease(journal.Lease{Network: id, Addr: netip.MustParseAddr("10.42.0.9")})
			} else if i%7 == 6 {
				tx.DeleteNetwork(id)
			}
		})
		keep()
	}
	return h
}

// reopened is what a host finds that starts with such a file.
func reopened(t *testing.T, image []byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "state.db"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(dir, "machine-1")
	if err != nil {
		return "", err
	}
	defer j.Close()
	if j.Fresh() {
		t.Error("the journal was forgotten")
	}
	return journal.Dump(j), nil
}

// The power goes at any moment of any write, and of what was on its way to the
// disk any part is there, in any order: the host finds the state before the write or the
// one after it, and the one after if it was told so.
func TestPowerCutAtAnyWrite(t *testing.T) {
	t.Parallel()
	h := live(t, 30)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	page := os.Getpagesize()
	expect := func(what string, i int, image []byte, want ...string) {
		t.Helper()
		got, err := reopened(t, image)
		if err != nil {
			t.Fatalf("write %d, %s: %v", i, what, err)
		}
		if !slices.Contains(want, got) {
			t.Fatalf("write %d, %s: found\n%s\nwant one of\n%q", i, what, got, want)
		}
	}
	grown := 0
	for i := 1; i < len(h.images); i++ {
		before, after := h.images[i-1], h.images[i]
		// bbolt writes pages that are free, waits for the disk, writes a header, and
		// waits again. A file that has to grow does so before.
		var data, head []int // sectors that differ
		for at := 0; at < len(after); at += sector {
			if at < len(before) && bytes.Equal(before[at:at+sector], after[at:at+sector]) {
				continue
			}
			if at < 2*page {
				head = append(head, at)
			} else {
				data = append(data, at)
			}
		}
		if len(head) != 1 {
			t.Fatalf("write %d: %d sectors of the headers changed, want one: a torn header is damage", i, len(head))
		}
		cut := func(size int, sectors ...int) []byte {
			image := make([]byte, size)
			copy(image, before)
			for _, at := range sectors {
				if at < size {
					copy(image[at:at+sector], after[at:])
				}
			}
			return image
		}
		expect("nothing of it", i, before, h.dumps[i-1])
		if len(after) > len(before) {
			grown++
			expect("the file has grown", i, cut(len(after)), h.dumps[i-1])
		}
		expect("all but the header", i, cut(len(after), data...), h.dumps[i-1])
		for range 2 {
			some := slices.DeleteFunc(slices.Clone(data), func(int) bool { return r.IntN(2) == 0 })
			expect("some sectors", i, cut(len(after), some...), h.dumps[i-1])
		}
		expect("all of it", i, cut(len(after), append(data, head...)...), h.dumps[i])
	}
	if grown < 2 {
		t.Errorf("the file grew %d times: too short a history", grown)
	}
}

// A host whose first start ended while it made its journal starts for the first
// time, however much of the file there is: it becomes the journal when it is whole.
func TestPowerCutAtTheFirstStart(t *testing.T) {
	t.Parallel()
	whole := live(t, 0).images[0]
	for size := 0; size <= len(whole); size += 1000 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state.db.new"), whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		j := open(t, dir)
		if !j.Fresh() {
			t.Errorf("%d bytes of a new file: not fresh", size)
		}
		fill(t, j)
		j = again(t, j, dir)
		if _, err := j.Network(netID); err != nil || j.Fresh() {
			t.Errorf("%d bytes of a new file: %v, fresh %t", size, err, j.Fresh())
		}
		if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// A new file that a cut left beside the journal is nobody's.
func TestPowerCutWhileItIsWrittenAnew(t *testing.T) {
	t.Parallel()
	h := live(t, 3)
	dir := t.TempDir()
	last := len(h.images) - 1
	for name, raw := range map[string][]byte{"state.db": h.images[last], "state.db.new": h.images[1]} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := journal.Dump(open(t, dir)); got != h.dumps[last] {
		t.Errorf("found\n%s", got)
	}
}

// The disk did not write one page of several and said it had: the pages that are
// there are sound and fit, but they are not what was written.
func TestAPageFromThePast(t *testing.T) {
	t.Parallel()
	h := live(t, 16)
	page := os.Getpagesize()
	found := 0
	for i := 2; i < len(h.images); i++ {
		now := h.images[i]
		for back := 1; back < min(i, 4); back++ {
			old := h.images[i-back]
			for at := 2 * page; at < min(len(old), len(now)); at += page {
				if bytes.Equal(old[at:at+page], now[at:at+page]) {
					continue
				}
				image := slices.Clone(now)
				copy(image[at:at+page], old[at:])
				got, err := reopened(t, image)
				switch {
				case errors.Is(err, journal.ErrCorrupt):
					found++
				case err != nil:
					t.Fatalf("image %d, page %d of %d writes ago: %v", i, at/page, back, err)
				case got != h.dumps[i]:
					t.Fatalf("image %d, page %d of %d writes ago was taken:\n%s\nwant\n%s", i, at/page, back, got, h.dumps[i])
				}
			}
		}
	}
	if found == 0 {
		t.Error("no page of the past made a difference")
	}
}
