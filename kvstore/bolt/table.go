package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick/kvstore"
)

// The file's buckets.
var (
	metaBucket  = []byte("meta")   // "format" and "revision", 8 bytes each, big endian
	kvBucket    = []byte("kv")     // key -> record
	leaseBucket = []byte("leased") // key -> id of its lease, for every key that has one
)

var (
	formatKey   = []byte("format")
	revisionKey = []byte("revision")
)

// format is the layout this package reads and writes.
const format = 1

// table is the file's content inside one transaction. It implements
// local.Table.
type table struct{ meta, kv, leased *bbolt.Bucket }

func tableOf(tx *bbolt.Tx) (*table, error) {
	t := &table{meta: tx.Bucket(metaBucket), kv: tx.Bucket(kvBucket), leased: tx.Bucket(leaseBucket)}
	if t.meta == nil || t.kv == nil || t.leased == nil {
		return nil, fmt.Errorf("a bucket is missing: %w", kvstore.ErrUnavailable)
	}
	return t, nil
}

// prepare makes an empty file ours, or refuses one of another format.
func prepare(tx *bbolt.Tx) error {
	for _, name := range [][]byte{metaBucket, kvBucket, leaseBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return fmt.Errorf("create bucket %s: %w", name, err)
		}
	}
	t, err := tableOf(tx)
	if err != nil {
		return err
	}
	v := t.meta.Get(formatKey)
	if v == nil {
		return errors.Join(t.meta.Put(formatKey, number(format)), t.meta.Put(revisionKey, number(1)))
	}
	if len(v) != 8 || binary.BigEndian.Uint64(v) != format {
		return fmt.Errorf("its format is %x, this version of carrick knows %d: use the version that wrote it", v, format)
	}
	return nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// revision is that of the last write; an empty file begins at 1.
func (t *table) revision() (kvstore.Revision, error) {
	v := t.meta.Get(revisionKey)
	if len(v) != 8 {
		return 0, damaged(revisionKey, "not 8 bytes")
	}
	return kvstore.Revision(binary.BigEndian.Uint64(v)), nil
}

func (t *table) setRevision(r kvstore.Revision) error {
	return t.meta.Put(revisionKey, number(uint64(r)))
}

func (t *table) Get(key string) (kvstore.Entry, bool, error) {
	v := t.kv.Get([]byte(key))
	if v == nil {
		return kvstore.Entry{}, false, nil
	}
	e, err := decodeRecord([]byte(key), v)
	return e, err == nil, err
}

func (t *table) Put(e kvstore.Entry) error {
	rec, err := encodeRecord(e)
	if err != nil {
		return err
	}
	key := []byte(e.Key)
	if e.Lease != "" { // a key with a lease never becomes one without: local.Apply
		if err := t.leased.Put(key, []byte(e.Lease)); err != nil {
			return err
		}
	}
	return t.kv.Put(key, rec)
}

func (t *table) Delete(key string) error {
	return errors.Join(t.leased.Delete([]byte(key)), t.kv.Delete([]byte(key)))
}

func (t *table) Keys(prefix string) ([]string, error) {
	var keys []string
	p, c := []byte(prefix), t.kv.Cursor()
	for k, _ := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, _ = c.Next() {
		keys = append(keys, string(k))
	}
	return keys, nil
}

// leasedKeys returns the keys bound to id, or to any lease if id is "".
func (t *table) leasedKeys(id kvstore.LeaseID) []string {
	var keys []string
	c := t.leased.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if id == "" || string(v) == string(id) {
			keys = append(keys, string(k))
		}
	}
	return keys
}

// view reads a selection.
func (t *table) view(sel kvstore.Selector) (kvstore.View, error) {
	rev, err := t.revision()
	if err != nil {
		return kvstore.View{}, err
	}
	v := kvstore.View{Revision: rev}
	if !sel.Prefix {
		e, ok, err := t.Get(sel.Key)
		if ok {
			v.Entries = []kvstore.Entry{e}
		}
		return v, err
	}
	p, c := []byte(sel.Key), t.kv.Cursor()
	for k, rec := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, rec = c.Next() {
		e, err := decodeRecord(k, rec)
		if err != nil {
			return kvstore.View{}, err
		}
		v.Entries = append(v.Entries, e)
	}
	return v, nil
}
