// Package snapshot is a host's memory of the others: the endpoints that each had
// in each network when last heard. With it an agent that starts while the store
// is away knows where to send.
//
// It is a cache. Changes reach the file a moment later and not in step with
// anything, and a file that is lost or damaged costs what was in it and nothing
// else: nothing here is an error that a caller has to handle. What comes out may
// be old. It may add to what is known and never take away.
//
// The file is a log of checksummed records, the last one of a host in a network
// being the one that counts. A tree of pages would have to be trusted after a
// power cut that tore it; of a log, the part before the tear is good.
package snapshot

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
)

// fileName is the cache's name in the state directory.
const fileName = "cache.db"

// lazy is how long changes are collected before they are written.
const lazy = time.Second

// Record is what one host had in one network.
type Record struct {
	// Num and Seq stamp the commit that wrote it: the number of the store's
	// incarnation and the sequence in it. Of two records the higher pair is the
	// later one.
	Num uint32 `json:"num"`
	Seq uint64 `json:"seq"`
	// Endpoints, in no particular order. None at all is no record.
	Endpoints []carrick.Endpoint `json:"eps"`
}

type key struct {
	net  carrick.NetworkID
	host carrick.HostID
}

// Cache is an open cache. It is safe for concurrent use. A nil one remembers
// nothing.
type Cache struct {
	log  *slog.Logger
	kick chan struct{} // holds one value when there is something to write

	// io is held while the file is used, and comes before mu.
	io   sync.Mutex
	file *file // nil: there is none; guarded by io
	sick bool  // the last write failed and was told; guarded by io

	asOf time.Time // see AsOf

	mu      sync.Mutex
	pending batch     // what the file does not have yet; guarded by mu
	heard   time.Time // see Heard; guarded by mu
}

// batch is a set of changes: whole networks to forget, and then records to set,
// or to forget if they are empty.
type batch struct {
	drop map[carrick.NetworkID]bool
	put  map[key]Record
}

func newBatch() batch {
	return batch{drop: map[carrick.NetworkID]bool{}, put: map[key]Record{}}
}

func (b batch) empty() bool { return len(b.drop)+len(b.put) == 0 }

func (b batch) forget(id carrick.NetworkID) {
	b.drop[id] = true
	maps.DeleteFunc(b.put, func(k key, _ Record) bool { return k.net == id })
}

// Open opens the cache in a state directory, which the caller has to itself. A
// file that cannot be used is moved out of the way; without any, the cache works
// until its end and is forgotten then. Each of these is logged.
func Open(dir string, log *slog.Logger) *Cache {
	c := &Cache{log: log, kick: make(chan struct{}, 1), pending: newBatch()}
	f, err := openFile(filepath.Join(dir, fileName), log)
	if err != nil {
		log.Warn("what is known of other hosts will not outlive this agent", "err", err)
		return c
	}
	c.file = f
	c.asOf, c.heard = f.asOf, f.asOf
	c.stamp()
	return c
}

// Load returns what the hosts had in a network. It reads the disk.
func (c *Cache) Load(id carrick.NetworkID) map[carrick.HostID]Record {
	out := map[carrick.HostID]Record{}
	if c == nil {
		return out
	}
	c.io.Lock()
	defer c.io.Unlock()
	c.mu.Lock()
	news := batch{drop: maps.Clone(c.pending.drop), put: maps.Clone(c.pending.put)}
	c.mu.Unlock()
	if c.file != nil && !news.drop[id] {
		for host, at := range c.file.index[id] {
			r, err := c.file.record(at)
			if err != nil {
				c.log.Warn("cached endpoints of a host ignored", "network", id, "host", host, "err", err)
				continue
			}
			out[host] = r
		}
	}
	for k, r := range news.put {
		switch {
		case k.net != id:
		case len(r.Endpoints) == 0:
			delete(out, k.host)
		default:
			out[k.host] = r
		}
	}
	return out
}

// Put replaces what a host has in a network; without endpoints it is forgotten.
// It does no I/O. The record's endpoints are kept and must not be modified.
func (c *Cache) Put(id carrick.NetworkID, host carrick.HostID, r Record) {
	c.change(func(b batch) { b.put[key{id, host}] = r })
}

// Drop forgets a network. It does no I/O.
func (c *Cache) Drop(id carrick.NetworkID) {
	c.change(func(b batch) { b.forget(id) })
}

// Keep drops every network for which keep is false.
func (c *Cache) Keep(keep func(carrick.NetworkID) bool) {
	if c == nil {
		return
	}
	c.io.Lock()
	defer c.io.Unlock()
	if c.file == nil {
		return
	}
	for id := range c.file.index {
		if !keep(id) {
			c.Drop(id)
		}
	}
}

func (c *Cache) change(fn func(batch)) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fn(c.pending)
	select {
	case c.kick <- struct{}{}:
	default: // told already
	}
}

// Run writes changes, those of a second together, and now and then the time, until
// ctx ends, and then what is left.
func (c *Cache) Run(ctx context.Context) error {
	if c == nil {
		return nil
	}
	defer c.Flush()
	tick := time.NewTicker(heardEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.io.Lock()
			c.stamp()
			c.io.Unlock()
			continue
		case <-c.kick:
		}
		wait := time.NewTimer(lazy)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		}
		c.Flush()
	}
}

// Flush hands all changes to the operating system. What cannot be written stays
// due, and is tried again with the next change.
func (c *Cache) Flush() {
	if c == nil {
		return
	}
	c.io.Lock()
	defer c.io.Unlock()
	defer c.stamp()
	c.mu.Lock()
	todo := c.pending
	c.pending = newBatch()
	c.mu.Unlock()
	if c.file == nil || todo.empty() {
		return
	}
	err := c.file.write(todo)
	if err == nil {
		if c.file.wasteful() {
			if err := c.file.compact(); err != nil {
				c.log.Warn("what is known of other hosts takes more of the disk than it needs", "err", err)
			}
		}
		if c.sick {
			c.log.Info("what is known of other hosts is on disk again")
		}
		c.sick = false
		return
	}
	if !c.sick {
		c.log.Warn("what is known of other hosts could not be written", "err", err)
	}
	c.sick = true
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.pending.drop {
		todo.forget(id)
	}
	maps.Copy(todo.put, c.pending.put)
	c.pending = todo
}

// Close writes what is left and closes the file.
func (c *Cache) Close() error {
	if c == nil {
		return nil
	}
	c.Flush()
	c.io.Lock()
	defer c.io.Unlock()
	if c.file == nil {
		return nil
	}
	f := c.file
	c.file = nil
	return f.close()
}

// sortedKeys makes the file the same for the same changes.
func sortedKeys(m map[key]Record) []key {
	return slices.SortedFunc(maps.Keys(m), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.net, b.net), cmp.Compare(a.host, b.host))
	})
}
