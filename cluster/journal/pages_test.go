package journal_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// file is a bbolt file, to be spoilt at one place.
type file struct {
	b    []byte
	size int // of a page
}

func (f file) page(id uint64) []byte { return f.b[int(id)*f.size:][:f.size] }

func (f file) u16(id uint64, at int) *field16 { return (*field16)(f.page(id)[at:][:2]) }
func (f file) u32(id uint64, at int) *field32 { return (*field32)(f.page(id)[at:][:4]) }
func (f file) u64(id uint64, at int) *field64 { return (*field64)(f.page(id)[at:][:8]) }

type (
	field16 [2]byte
	field32 [4]byte
	field64 [8]byte
)

func (v *field16) get() uint16  { return binary.NativeEndian.Uint16(v[:]) }
func (v *field16) set(n uint16) { binary.NativeEndian.PutUint16(v[:], n) }
func (v *field32) get() uint32  { return binary.NativeEndian.Uint32(v[:]) }
func (v *field32) set(n uint32) { binary.NativeEndian.PutUint32(v[:], n) }
func (v *field64) get() uint64  { return binary.NativeEndian.Uint64(v[:]) }
func (v *field64) set(n uint64) { binary.NativeEndian.PutUint64(v[:], n) }

// sign makes the checksums of both headers right.
func (f file) sign() {
	for id := range uint64(2) {
		h := fnv.New64a()
		_, _ = h.Write(f.page(id)[16 : 16+56])
		f.u64(id, 16+56).set(h.Sum64())
	}
}

// newest is the header that counts.
func (f file) newest() uint64 {
	if f.u64(1, 16+48).get() > f.u64(0, 16+48).get() {
		return 1
	}
	return 0
}

// bucketHead finds where the root's page says where a bucket's tree begins.
func (f file) bucketHead(name string) (page uint64, at int) {
	root := f.u64(f.newest(), 16+16).get()
	for i := range int(f.u16(root, 10).get()) {
		e := 16 + i*16
		pos, k := e+int(f.u32(root, e+4).get()), int(f.u32(root, e+8).get())
		if string(f.page(root)[pos:pos+k]) == name {
			return root, pos + k
		}
	}
	return 0, 0
}

// tree is the top page of a bucket's tree.
func (f file) tree(name string) uint64 { return f.u64(f.bucketHead(name)).get() }

// child is the page below a branch page.
func (f file) child(page uint64, i int) *field64 { return f.u64(page, 16+i*16+8) }

// Each thing that can be wrong with a page, alone, is seen. All checksums are
// right.
func TestWhatCanBeWrongWithPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	fill(t, j)
	for part := range 4 {
		must(t, j, func(tx *journal.Tx) {
			for i := range 60 {
				ep := carrick.EndpointID(fmt.Sprintf("%064x", part*60+i))
				a := nth16(uint32(1000 + part*60 + i)) // of one length, so that keys can be swapped
				tx.PutLease(journal.Lease{Network: netID, Addr: a})
				tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: ep, Addrs: []netip.Addr{a}}, Network: netID, Docker: docker})
			}
		})
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	whole := file{image, os.Getpagesize()}
	leases, endpoints := whole.tree("leases"), whole.tree("endpoints")
	if leases == 0 || endpoints == 0 || whole.u16(leases, 8).get() != 1 || whole.u16(leases, 10).get() < 3 {
		t.Fatal("the trees are too small")
	}
	if err := journal.CheckPages(image); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(f file){
		"headers of writes apart":   func(f file) { f.u64(f.newest(), 16+48).set(f.u64(f.newest(), 16+48).get() + 2) },
		"headers of one write":      func(f file) { f.u64(f.newest(), 16+48).set(f.u64(1-f.newest(), 16+48).get()) },
		"more pages than there are": func(f file) { f.u64(f.newest(), 16+40).set(uint64(len(f.b)/f.size) + 1) },
		"no pages":                  func(f file) { f.u64(f.newest(), 16+40).set(0) },
		"pages of no size":          func(f file) { f.u32(0, 16+8).set(0); f.u32(1, 16+8).set(0) },
		"pages of an odd size":      func(f file) { f.u32(0, 16+8).set(4097) },
		"pages of two sizes":        func(f file) { f.u32(1, 16+8).set(uint32(2 * f.size)) },
		"another format":            func(f file) { f.u32(0, 16+4).set(3) },
		"not bbolt's":               func(f file) { f.u32(1, 16).set(0xED0CDAEE) },
		"a header that is a leaf":   func(f file) { f.u16(1, 8).set(2) },
		"a header of another page":  func(f file) { f.u64(1, 0).set(7) },
		"a root out of the file":    func(f file) { f.u64(f.newest(), 16+16).set(1 << 40) },
		"a root that is a header":   func(f file) { f.u64(f.newest(), 16+16).set(1) },
		"a root that is a leaf":     func(f file) { f.u64(f.newest(), 16+16).set(f.child(leases, 0).get()) },
		"no list of free pages":     func(f file) { f.u64(f.newest(), 16+32).set(1<<64 - 1) },
		"a leaf as the free pages":  func(f file) { f.u16(f.u64(f.newest(), 16+32).get(), 8).set(2) },
		"a used page is free":       func(f file) { f.u64(f.u64(f.newest(), 16+32).get(), 16).set(leases) },
		"a header is free":          func(f file) { f.u64(f.u64(f.newest(), 16+32).get(), 16).set(1) },
		"a page beyond is free":     func(f file) { f.u64(f.u64(f.newest(), 16+32).get(), 16).set(1 << 33) },
		"a page is free twice":      func(f file) { l := f.u64(f.newest(), 16+32).get(); f.u64(l, 16+8).set(f.u64(l, 16).get()) },
		"too many free pages":       func(f file) { f.u16(f.u64(f.newest(), 16+32).get(), 10).set(2000) },
		"free pages without number": func(f file) { l := f.u64(f.newest(), 16+32).get(); f.u16(l, 10).set(0xffff); f.u64(l, 16).set(1 << 60) },
		"two trees are one":         func(f file) { f.u64(f.bucketHead("endpoints")).set(leases) },
		"a tree in a circle":        func(f file) { f.child(leases, 1).set(leases) },
		"children swapped": func(f file) {
			a, b := *f.child(leases, 0), *f.child(leases, 1)
			*f.child(leases, 0), *f.child(leases, 1) = b, a
		},
		"a child out of the file":  func(f file) { f.child(leases, 0).set(1 << 50) },
		"a page of another number": func(f file) { f.u64(f.child(leases, 1).get(), 0).set(99) },
		"a page of no kind":        func(f file) { f.u16(f.child(leases, 1).get(), 8).set(0x40) },
		"a page of two kinds":      func(f file) { f.u16(f.child(leases, 1).get(), 8).set(3) },
		"a page over the end":      func(f file) { f.u32(f.child(leases, 1).get(), 12).set(1 << 20) },
		"a page into another":      func(f file) { f.u32(f.child(leases, 1).get(), 12).set(1) },
		"a leaf of nothing":        func(f file) { f.u16(f.child(leases, 1).get(), 10).set(0) },
		"a branch of nothing":      func(f file) { f.u16(leases, 10).set(0) },
		"more entries than fit":    func(f file) { f.u16(f.child(leases, 1).get(), 10).set(60000) },
		"a key without an end":     func(f file) { f.u32(f.child(leases, 1).get(), 16+8).set(1<<32 - 1) },
		"a value without an end":   func(f file) { f.u32(f.child(leases, 1).get(), 16+12).set(1<<32 - 1) },
		"a value over the page": func(f file) {
			p := f.child(leases, 1).get()
			n := int(f.u16(p, 10).get())
			f.u32(p, 16+(n-1)*16+12).set(uint32(f.size))
		},
		"a key of nothing": func(f file) {
			p := f.child(leases, 1).get()
			e := 16
			k, v := f.u32(p, e+8), f.u32(p, e+12)
			v.set(v.get() + k.get())
			k.set(0)
		},
		"an entry from elsewhere":    func(f file) { p := f.child(leases, 1).get(); f.u32(p, 16+4).set(f.u32(p, 16+4).get() + 1) },
		"a value that is a bucket":   func(f file) { f.u32(f.child(leases, 1).get(), 16).set(1) },
		"a bucket that is a value":   func(f file) { r := f.u64(f.newest(), 16+16).get(); f.u32(r, 16).set(0) },
		"an inline tree of a branch": func(f file) { p, at := f.bucketHead("meta"); f.u16(p, at+16+8).set(1) },
		"an inline tree that runs over": func(f file) {
			p, at := f.bucketHead("meta")
			f.u32(p, at+16+12).set(1)
		},
		"an inline tree of too many": func(f file) { p, at := f.bucketHead("meta"); f.u16(p, at+16+10).set(999) },
		"keys out of order": func(f file) {
			p := f.child(leases, 1).get()
			at := func(i int) []byte {
				e := 16 + i*16
				pos := e + int(f.u32(p, e+4).get())
				return f.page(p)[pos:][:f.u32(p, e+8).get()]
			}
			a, b := at(1), at(2)
			if len(a) != len(b) {
				t.Fatalf("keys %q and %q", a, b)
			}
			for i := range a {
				a[i], b[i] = b[i], a[i]
			}
		},
		"the first key before its branch": func(f file) {
			p := f.child(leases, 1).get()
			f.page(p)[16+int(f.u32(p, 16+4).get())] = ' '
		},
	} {
		f := file{slices.Clone(image), whole.size}
		spoil(f)
		f.sign()
		if bytes.Equal(f.b, image) {
			t.Errorf("%s: nothing was changed", name)
		} else if err := journal.CheckPages(f.b); err == nil {
			t.Errorf("%s: nothing is wrong", name)
		}
	}
}
