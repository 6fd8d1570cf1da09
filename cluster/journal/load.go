package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// errNewer: not damage, but nothing for us.
var errNewer = errors.New("written by a newer agent")

// load reads every record. What it does not expect is [ErrCorrupt].
func (f *file) load() (*tables, error) {
	r := reader{tables: newTables()}
	err := guarded(func() error {
		return f.db.View(func(tx *bbolt.Tx) error {
			r.tx = tx
			return r.read()
		})
	})
	switch {
	case errors.Is(err, errNewer):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	f.sum = r.sum
	return r.tables, nil
}

// reader reads a file and sums it up.
type reader struct {
	tx     *bbolt.Tx
	tables *tables
	sum    uint64
	seal   []byte // see sealOf
}

func (r *reader) read() error {
	if r.tx.Bucket(bucketMeta) == nil {
		return errors.New("it is no journal")
	}
	// Who wrote it comes first: what a newer agent wrote looks strange for a reason.
	if err := r.each(bucketMeta, r.meta); err != nil {
		return err
	}
	old := r.tables.identity.Schema < schema
	if err := r.onlyOurs(old); err != nil {
		return err
	}
	c := newChanges()
	if err := errors.Join(
		readAll(r, bucketHosts, func(v Host) { c.hosts[v.ID] = &v }, func(v Host) record { return v }),
		readAll(r, bucketNetworks, func(v Network) { c.networks[v.Conf.ID] = &v }, func(v Network) record { return v }),
		readAll(r, bucketEndpoints, func(v Endpoint) { c.endpoints[v.ID] = &v }, func(v Endpoint) record { return v }),
		readAll(r, bucketLeases, func(v Lease) { c.leases[leaseKey{v.Network, v.Addr}] = &v }, func(v Lease) record { return v }),
	); err != nil {
		return err
	}
	r.tables.apply(c)
	for _, l := range c.leases { // older agents wrote stamps without the clock
		r.tables.meta.witness(l.Gen)
	}
	switch {
	case old && r.seal == nil:
		return nil
	case !bytes.Equal(r.seal, sealOf(r.tx, r.sum)):
		return errors.New("its records are not those that were written")
	}
	return nil
}

// meta reads one of the single records.
func (r *reader) meta(key, raw []byte) error {
	var err error
	switch {
	case bytes.Equal(key, keySum):
		r.seal = raw
		return nil // not part of itself
	case bytes.Equal(key, keyIdentity):
		err = json.Unmarshal(raw, &r.tables.identity)
	case bytes.Equal(key, keyMeta):
		err = json.Unmarshal(raw, &r.tables.meta)
	case bytes.Equal(key, keyStrangers):
		err = json.Unmarshal(raw, &r.tables.strangers)
	}
	r.sum += sumOf(bucketMeta, key, raw)
	return err
}

// onlyOurs refuses a file that is not of this host, or has what nobody wrote.
func (r *reader) onlyOurs(old bool) error {
	id := r.tables.identity
	if id.Schema > schema {
		return fmt.Errorf("%w (schema %d, this one knows %d): upgrade the agent", errNewer, id.Schema, schema)
	}
	if id.Schema < 1 {
		return fmt.Errorf("schema %d", id.Schema)
	}
	if err := id.check(); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, name := range buckets() {
		known[string(name)] = true
		if r.tx.Bucket(name) == nil && !old {
			return fmt.Errorf("it has no %s", name)
		}
	}
	return r.tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
		if !known[string(name)] {
			return fmt.Errorf("it has %q, which is nothing of a journal", name)
		}
		return nil
	})
}

// each calls fn with every value of a bucket.
func (r *reader) each(bucket []byte, fn func(key, raw []byte) error) error {
	b := r.tx.Bucket(bucket)
	if b == nil {
		return nil // of an old file
	}
	return b.ForEach(func(k, raw []byte) error {
		if err := fn(k, raw); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
		return nil
	})
}

// record is what has a place in a bucket.
type record interface {
	key() string
	check() error
}

func readAll[V any](r *reader, bucket []byte, add func(V), as func(V) record) error {
	return r.each(bucket, func(k, raw []byte) error {
		var v V
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		if rec := as(v); rec.key() != string(k) {
			return fmt.Errorf("it is the record of %q", rec.key())
		} else if err := rec.check(); err != nil {
			return err
		}
		add(v)
		r.sum += sumOf(bucket, k, raw)
		return nil
	})
}

// check refuses changes that no Open would take.
func (c *changes) check() error {
	var all []record
	for _, h := range c.hosts {
		if h != nil {
			all = append(all, *h)
		}
	}
	for _, n := range c.networks {
		if n != nil {
			all = append(all, *n)
		}
	}
	for _, e := range c.endpoints {
		if e != nil {
			all = append(all, *e)
		}
	}
	for _, l := range c.leases {
		if l != nil {
			all = append(all, *l)
		}
	}
	for _, r := range all {
		if err := r.check(); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if c.identity != nil {
		return c.identity.check()
	}
	return nil
}
