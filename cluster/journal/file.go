package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick"
)

var (
	bucketMeta      = []byte("meta")
	bucketNetworks  = []byte("networks")
	bucketEndpoints = []byte("endpoints")
	bucketLeases    = []byte("leases")
	bucketHosts     = []byte("hosts")
	keyMeta         = []byte("meta")
	keyIdentity     = []byte("identity")
	keyStrangers    = []byte("strangers")
	keySum          = []byte("sum")
)

func buckets() [][]byte {
	return [][]byte{bucketMeta, bucketNetworks, bucketEndpoints, bucketLeases, bucketHosts}
}

// file is an open file of a journal. It is for one goroutine at a time.
type file struct {
	db *bbolt.DB
	fd *os.File // db's
	// sum is of all records there are: that of each, added up. It is in the file as
	// well, see sealOf.
	sum uint64
	// stuck: a write ended in a fault, and the database may be locked for good.
	stuck bool
}

// open lets bbolt have a file that is known to be sound.
func open(path string) (*file, error) {
	f := &file{}
	opt := bbolt.Options{Timeout: lockWait, NoStatistics: true, OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
		f.fd, err = os.OpenFile(name, flag, mode)
		return f.fd, err
	}}
	err := guarded(func() (err error) {
		f.db, err = bbolt.Open(path, 0o600, &opt)
		return err
	})
	if err != nil {
		if errors.Is(err, errFault) {
			_ = f.fd.Close() // nobody else will
		}
		return nil, err
	}
	return f, nil
}

// isAt says whether the file is what path names.
func (f *file) isAt(path string) bool {
	mine, err := f.fd.Stat()
	there, err2 := os.Stat(path)
	return err == nil && err2 == nil && os.SameFile(mine, there)
}

func (f *file) close() error {
	if f.stuck {
		return f.fd.Close() // all else would wait for ever; what is left is a mapping
	}
	return f.db.Close()
}

// openFile opens a journal's file and reads all of it. An error is [ErrCorrupt]
// or of the system. The journal may be of an older schema.
func openFile(path string) (*file, *tables, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if err := guarded(func() error { return checkPages(raw) }); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	f, err := open(path)
	if err != nil {
		return nil, nil, err
	}
	t, err := f.load()
	if err != nil {
		_ = f.close()
		return nil, nil, err
	}
	return f, t, nil
}

// createFile makes a file that holds the tables, puts it in the place of path
// and opens it. There is either what was at path before or all of the new one,
// also after a power cut.
func createFile(path string, t *tables) (*file, error) {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := open(next)
	if err == nil {
		err = f.fill(t)
		if err == nil {
			err = os.Rename(next, path)
		}
		if err == nil {
			err = syncDir(filepath.Dir(path))
		}
		if err != nil {
			_ = f.close()
		}
	}
	if err != nil {
		_ = os.Remove(next) // it may be all that fills the disk
		return nil, err
	}
	return f, nil
}

func (f *file) fill(t *tables) error {
	err := guarded(func() error {
		return f.db.Update(func(tx *bbolt.Tx) error {
			for _, name := range buckets() {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		f.stuck = f.stuck || errors.Is(err, errFault)
		return err
	}
	return f.write(t.all())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// write makes changes durable.
func (f *file) write(c *changes) error {
	w := writer{sum: f.sum}
	err := guarded(func() error {
		return f.db.Update(func(tx *bbolt.Tx) error {
			w.tx = tx
			return w.changes(c)
		})
	})
	if err != nil {
		f.stuck = errors.Is(err, errFault)
		return err
	}
	f.sum = w.sum
	return nil
}

// writer writes one transaction and keeps the sum.
type writer struct {
	tx  *bbolt.Tx
	sum uint64
}

func (w *writer) changes(c *changes) error {
	err := errors.Join(
		putOne(w, keyIdentity, c.identity), putOne(w, keyMeta, c.meta), putOne(w, keyStrangers, c.strangers),
		putAll(w, bucketHosts, c.hosts, func(id carrick.HostID) string { return string(id) }),
		putAll(w, bucketNetworks, c.networks, func(id carrick.NetworkID) string { return string(id) }),
		putAll(w, bucketEndpoints, c.endpoints, func(id carrick.EndpointID) string { return string(id) }),
		putAll(w, bucketLeases, c.leases, leaseKey.String),
	)
	if err != nil {
		return err
	}
	return w.tx.Bucket(bucketMeta).Put(keySum, sealOf(w.tx, w.sum))
}

func putOne[V any](w *writer, key []byte, v *V) error {
	if v == nil {
		return nil
	}
	return w.put(bucketMeta, key, v)
}

func putAll[K comparable, V any](w *writer, bucket []byte, changes map[K]*V, key func(K) string) error {
	for k, v := range changes {
		var err error
		if v == nil {
			err = w.delete(bucket, []byte(key(k)))
		} else {
			err = w.put(bucket, []byte(key(k)), v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) put(bucket, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.uncount(bucket, key)
	w.sum += sumOf(bucket, key, raw)
	return w.tx.Bucket(bucket).Put(key, raw)
}

func (w *writer) delete(bucket, key []byte) error {
	w.uncount(bucket, key)
	return w.tx.Bucket(bucket).Delete(key)
}

func (w *writer) uncount(bucket, key []byte) {
	if old := w.tx.Bucket(bucket).Get(key); old != nil {
		w.sum -= sumOf(bucket, key, old)
	}
}

// sealOf is what a file has to say of itself after a write: the sum, and which
// write it was. Without the latter a part that is whole in itself, and was so some
// writes ago, would pass for the present.
func sealOf(tx *bbolt.Tx, sum uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(tx.ID())), sum)
}

// sumOf is the part of one record in the sum.
func sumOf(bucket, key, value []byte) uint64 {
	h := fnv.New64a()
	for _, part := range [][]byte{bucket, key, value} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		_, _ = h.Write(n[:]) // a hash takes everything
		_, _ = h.Write(part)
	}
	return h.Sum64()
}

// errFault: a call touched a part of the mapped file that is not there, or went
// astray over what it found.
var errFault = errors.New("the file cannot be read where it could before")

// guarded calls fn and makes an error of a panic. The file is mapped: where it
// was truncated, or the disk does not give it, a read of memory is a fault.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errFault, p)
		}
	}()
	return fn()
}

// lockWait bounds how long Open waits for a lock. The holder is another
// agent, which will not go away by itself.
const lockWait = time.Second
