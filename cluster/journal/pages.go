package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
)

// checkPages walks a whole bbolt file (format 2) and says what is wrong with it:
// every reference leads to a page of the right kind that nothing else refers to,
// every record lies within its page and in its order. bbolt, which maps the file
// and believes it, can then not be led astray.
//
// bbolt has a check of its own. It runs in a goroutine of bbolt's, where a
// reference out of the file or around in a circle ends the process; and it does
// not look at one of the two headers when the other is good. That one is the
// header of the state before: a host would silently forget its last write.
func checkPages(file []byte) error {
	p, err := readHeaders(file)
	if err != nil {
		return err
	}
	if err := p.walk(p.newest.root, true, span{}, p.root); err != nil {
		return err
	}
	return p.freelist(p.newest.freelist)
}

// pages is a file cut into its pages.
type pages struct {
	file   []byte
	size   uint64 // of a page
	newest header
	used   []bool // by page
	within []byte // name of the bucket that is walked
}

// header is what a meta page says.
type header struct{ root, freelist, high, txid uint64 }

const (
	pageHead = 16 // id, flags, count, overflow
	element  = 16 // of a branch or a leaf

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10

	magic   = 0xED0CDAED
	version = 2
)

func u16(b []byte) uint64 { return uint64(binary.NativeEndian.Uint16(b)) }
func u32(b []byte) uint64 { return uint64(binary.NativeEndian.Uint32(b)) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// readHeaders reads both meta pages. Each has a checksum, and a write replaces the
// older one within one sector, so that a power cut leaves both whole.
func readHeaders(file []byte) (*pages, error) {
	first, size, err := readHeader(file, 0)
	if err != nil {
		return nil, fmt.Errorf("first header: %w", err)
	}
	if size < 1<<9 || size > 1<<24 || size&(size-1) != 0 || uint64(len(file)) < 2*size {
		return nil, fmt.Errorf("%d bytes with pages of %d", len(file), size)
	}
	second, size2, err := readHeader(file[size:], 1)
	if err != nil {
		return nil, fmt.Errorf("second header: %w", err)
	}
	newest, older := first, second
	if second.txid > first.txid {
		newest, older = second, first
	}
	switch {
	case size2 != size:
		return nil, fmt.Errorf("pages of %d and of %d bytes", size, size2)
	case newest.txid != older.txid+1:
		return nil, fmt.Errorf("headers of writes %d and %d", older.txid, newest.txid)
	case newest.high > uint64(len(file))/size:
		return nil, fmt.Errorf("%d pages of %d are in the file", uint64(len(file))/size, newest.high)
	}
	return &pages{file: file, size: size, newest: newest, used: make([]bool, newest.high)}, nil
}

func readHeader(page []byte, id uint64) (h header, size uint64, err error) {
	const length = 64
	if len(page) < pageHead+length {
		return h, 0, errors.New("cut off")
	}
	m := page[pageHead : pageHead+length]
	sum := fnv.New64a()
	_, _ = sum.Write(m[:56]) // a hash takes everything
	switch {
	case u64(page) != id || u16(page[8:]) != flagMeta:
		return h, 0, fmt.Errorf("page %d of kind %#x", u64(page), u16(page[8:]))
	case u32(m) != magic:
		return h, 0, errors.New("not that of a journal")
	case u32(m[4:]) != version:
		return h, 0, fmt.Errorf("format %d", u32(m[4:]))
	case u64(m[56:]) != sum.Sum64():
		return h, 0, errors.New("wrong checksum")
	}
	return header{root: u64(m[16:]), freelist: u64(m[32:]), high: u64(m[40:]), txid: u64(m[48:])}, u32(m[8:]), nil
}

// page is a page with the ones it runs over into.
type page struct {
	id, flags, count uint64
	data             []byte // with the head
}

// claim returns a page that nobody has claimed yet.
func (p *pages) claim(id uint64) (page, error) {
	if id < 2 || id >= p.newest.high {
		return page{}, fmt.Errorf("reference to page %d of %d", id, p.newest.high)
	}
	at := p.file[id*p.size:]
	over := u32(at[12:])
	if u64(at) != id || over >= p.newest.high-id {
		return page{}, fmt.Errorf("page %d calls itself %d, with %d more", id, u64(at), over)
	}
	for i := id; i <= id+over; i++ {
		if p.used[i] {
			return page{}, fmt.Errorf("page %d is used twice", i)
		}
		p.used[i] = true
	}
	return page{id: id, flags: u16(at[8:]), count: u16(at[10:]), data: at[:(over+1)*p.size]}, nil
}

// span is the keys that a page may have: from, inclusive, to before, or to the end
// if that is nil.
type span struct{ from, before []byte }

func (s span) has(key []byte) bool {
	return bytes.Compare(key, s.from) >= 0 && (s.before == nil || bytes.Compare(key, s.before) < 0)
}

// walk walks the tree below a page and calls leaf for each of its values. Only a
// tree's top may be empty. No page is met twice, so it ends.
func (p *pages) walk(id uint64, top bool, keys span, leaf func(flags uint64, key, value []byte) error) error {
	pg, err := p.claim(id)
	if err != nil {
		return err
	}
	switch {
	case pg.flags == flagLeaf && (pg.count > 0 || top):
		return pg.leaves(keys, leaf)
	case pg.flags != flagBranch || pg.count == 0:
		return fmt.Errorf("page %d is of kind %#x with %d entries", id, pg.flags, pg.count)
	}
	type branch struct {
		key  []byte
		page uint64
	}
	branches := make([]branch, 0, pg.count)
	if err := pg.elements(keys, func(e []byte) (pos, keyLen, valueLen uint64) {
		return u32(e), u32(e[4:]), 0
	}, func(e, key, _ []byte) error {
		branches = append(branches, branch{key, u64(e[8:])})
		return nil
	}); err != nil {
		return err
	}
	for i, b := range branches {
		below := span{b.key, keys.before}
		if i+1 < len(branches) {
			below.before = branches[i+1].key
		}
		if err := p.walk(b.page, false, below, leaf); err != nil {
			return err
		}
	}
	return nil
}

// leaves calls leaf for each value of a leaf page.
func (pg page) leaves(keys span, leaf func(flags uint64, key, value []byte) error) error {
	return pg.elements(keys, func(e []byte) (pos, keyLen, valueLen uint64) {
		return u32(e[4:]), u32(e[8:]), u32(e[12:])
	}, func(e, key, value []byte) error {
		return leaf(u32(e), key, value)
	})
}

// elements calls fn for each element of a page, with its key and its value. layout
// says where they are, counted from the element: right behind the elements, and
// behind each other. The keys have to be in order and in the span.
func (pg page) elements(keys span, layout func(e []byte) (pos, keyLen, valueLen uint64), fn func(e, key, value []byte) error) error {
	at := pageHead + pg.count*element
	if at > uint64(len(pg.data)) {
		return fmt.Errorf("page %d with %d entries", pg.id, pg.count)
	}
	var last []byte
	for i := range pg.count {
		e := pg.data[pageHead+i*element:][:element]
		pos, keyLen, valueLen := layout(e) // none of them above 2^32
		if pageHead+i*element+pos != at || at+keyLen+valueLen > uint64(len(pg.data)) {
			return fmt.Errorf("page %d entry %d: %d bytes at %d", pg.id, i, keyLen+valueLen, pos)
		}
		key, value := pg.data[at:at+keyLen], pg.data[at+keyLen:at+keyLen+valueLen]
		at += keyLen + valueLen
		if len(key) == 0 || !keys.has(key) || last != nil && bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("page %d entry %d: key %q is out of order", pg.id, i, key)
		}
		if err := fn(e, key, value); err != nil {
			return fmt.Errorf("page %d entry %d: %w", pg.id, i, err)
		}
		last = key
	}
	return nil
}

// root checks an entry of the root: a bucket, which has a tree of its own or, if
// it is small, one leaf page within the value.
func (p *pages) root(flags uint64, key, value []byte) error {
	const bucketHead = 16 // root page, sequence
	if flags != 1 || len(value) < bucketHead {
		return fmt.Errorf("%q is no bucket", key)
	}
	p.within = key
	if root := u64(value); root != 0 {
		return p.walk(root, true, span{}, p.value)
	}
	inline := value[bucketHead:]
	if len(inline) < pageHead || u16(inline[8:]) != flagLeaf || u32(inline[12:]) != 0 {
		return fmt.Errorf("bucket %q is damaged", key)
	}
	return page{count: u16(inline[10:]), data: inline}.leaves(span{}, p.value)
}

// value checks an entry of a bucket: anything but another bucket.
func (p *pages) value(flags uint64, key, _ []byte) error {
	if flags != 0 {
		return fmt.Errorf("%q in bucket %q is no value", key, p.within)
	}
	return nil
}

// freelist checks the list of free pages: none of them is in use. A page that is
// neither is lost room and nothing worse.
func (p *pages) freelist(id uint64) error {
	pg, err := p.claim(id)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	count, ids := pg.count, pg.data[pageHead:]
	if count == math.MaxUint16 { // the number is too large for its field
		if len(ids) < 8 {
			return errors.New("list of free pages is cut off")
		}
		count, ids = u64(ids), ids[8:]
	}
	if pg.flags != flagFreelist || count > uint64(len(ids))/8 {
		return fmt.Errorf("page %d is no list of %d free pages", id, count)
	}
	for i := range count {
		free := u64(ids[i*8:])
		if free < 2 || free >= p.newest.high || p.used[free] {
			return fmt.Errorf("page %d is listed as free", free)
		}
		p.used[free] = true
	}
	return nil
}
