package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// Lost returns the hosts whose lease is known to have ended, and those that were
// removed: the names of their containers lead nowhere. Before the store has said who
// is alive, nobody is lost, nor is a host that has just come and whose lease was not
// seen yet.
func (c *Cluster) Lost() map[carrick.HostID]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[carrick.HostID]bool{}
	for id := range c.removing {
		out[id] = true
	}
	if c.aliveOK {
		for id := range c.hosts {
			if since, absent := c.absent[id]; absent && !c.alive[id] && time.Since(since) >= c.cfg.LeaseTTL {
				out[id] = true
			}
		}
	}
	delete(out, c.self)
	return out
}

// Peers returns the VTEPs of the cluster's other hosts, as the store last said.
func (c *Cluster) Peers() map[carrick.HostID]netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[carrick.HostID]netip.Addr, len(c.hosts))
	for id, h := range c.hosts {
		if _, removed := c.removing[id]; id != c.self && !removed {
			out[id] = h.VTEP
		}
	}
	return out
}

// keySize is that of the cluster's key, in bytes.
const keySize = 32

// keyRecord is the key with which the agents speak to each other outside the store.
type keyRecord struct {
	envelope
	Key []byte `json:"key"`
}

func (r *keyRecord) validate() error {
	if len(r.Key) != keySize {
		return fmt.Errorf("a key of %d bytes", len(r.Key))
	}
	return nil
}

// Key returns the cluster's key, 32 random bytes, with which the agents' messages to
// each other are encrypted. The first host makes it. Each keeps it in its journal, so
// that it is there without the store, and a store that lost its past gets it back.
// It waits for the store as long as it takes, unless the key is known.
func (c *Cluster) Key(ctx context.Context) ([]byte, error) {
	for attempt := 0; ; attempt++ {
		key, err := c.tryKey(ctx)
		if err == nil {
			return key, nil
		}
		if known := c.knownKey(); known != nil && !errors.Is(err, kvstore.ErrConflict) {
			return known, nil
		}
		if err := backoff(ctx, attempt, registerEvery); err != nil {
			return nil, err
		}
	}
}

// knownKey is what the journal has of it, or nil.
func (c *Cluster) knownKey() []byte {
	b, err := hex.DecodeString(c.jr.Meta().Key)
	if err != nil || len(b) != keySize {
		return nil
	}
	return b
}

func (c *Cluster) tryKey(ctx context.Context) ([]byte, error) {
	known := c.knownKey()
	r, v, err := get[keyRecord](ctx, c, keyKey)
	if err != nil {
		return nil, err
	}
	if v == 0 {
		r = keyRecord{envelope{schema}, known}
		if known == nil {
			r.Key = make([]byte, keySize)
			_, _ = rand.Read(r.Key) // never fails (Go 1.24)
		}
		t := (&kvstore.Txn{}).Absent(keyKey)
		put(t, &err, keyKey, &r)
		if err != nil {
			return nil, err
		}
		if _, err := c.commit(ctx, t); err != nil {
			return nil, fmt.Errorf("keep the cluster's key: %w", err)
		}
	}
	if !bytes.Equal(known, r.Key) {
		err = c.jr.Update(func(tx *journal.Tx) error {
			m := tx.Meta()
			m.Key = hex.EncodeToString(r.Key)
			tx.SetMeta(m)
			return nil
		})
	}
	return r.Key, err
}
