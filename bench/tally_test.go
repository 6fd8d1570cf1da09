package bench

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// kind is what a transaction is for, as far as the counts tell them apart.
type kind string

const (
	structural  kind = "structural"  // who owns which block, who is in which network
	publication kind = "publication" // the endpoints of a host, batched
	upkeep      kind = "upkeep"      // registration, liveness, requests
)

// txn is one transaction that was sent.
type txn struct {
	kind     kind
	began    time.Time
	ended    time.Time
	ok       bool
	conflict bool
	record   []byte // of the host's endpoints, if it wrote one
}

// tally is a store that keeps what one host asks of it.
type tally struct {
	kvstore.Store

	mu      sync.Mutex // guards the rest
	reads   int        // Get and List
	watches int        // answers
	txns    []txn
}

func (t *tally) read() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
}

func (t *tally) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	t.read()
	return t.Store.Get(ctx, key)
}

func (t *tally) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	t.read()
	return t.Store.List(ctx, sel)
}

func (t *tally) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	v, err := t.Store.Watch(ctx, sel, since)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watches++
	return v, err
}

func (t *tally) Txn(ctx context.Context, x *kvstore.Txn) (kvstore.Revision, error) {
	one := txn{kind: upkeep, began: time.Now()}
	for _, op := range x.Ops {
		switch {
		case op.Key == "v1/epoch":
			one.kind = structural
		case strings.HasSuffix(op.Key, "/head") && one.kind != structural:
			one.kind = publication
		case strings.HasPrefix(op.Key, "v1/net/") && strings.Contains(op.Key, "/host/"):
			one.record = op.Value
		}
	}
	rev, err := t.Store.Txn(ctx, x)
	one.ended = time.Now()
	one.ok, one.conflict = err == nil, errors.Is(err, kvstore.ErrConflict)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.txns = append(t.txns, one)
	return rev, err
}

// sent is when the last publication that succeeded was sent, and how long the
// store took to commit it.
func (t *tally) sent() (at time.Time, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.txns {
		if x.ok && x.kind == publication {
			at, took = x.began, x.ended.Sub(x.began)
		}
	}
	return at, took
}

// reset forgets what was counted.
func (t *tally) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads, t.watches, t.txns = 0, 0, nil
}

// counts is what one or several hosts asked.
type counts struct {
	reads, watches int
	commits        map[kind]int
	conflicts      map[kind]int
	first, last    time.Time                        // of publications: the first's beginning, the last's end
	published      map[carrick.EndpointID]time.Time // when the store first had it
}

// count adds up.
func count(tallies ...*tally) (counts, error) {
	c := counts{commits: map[kind]int{}, conflicts: map[kind]int{}, published: map[carrick.EndpointID]time.Time{}}
	for _, t := range tallies {
		t.mu.Lock()
		reads, watches, txns := t.reads, t.watches, t.txns
		t.mu.Unlock()
		c.reads += reads
		c.watches += watches
		for _, x := range txns {
			if err := c.add(x); err != nil {
				return counts{}, err
			}
		}
	}
	return c, nil
}

func (c *counts) add(x txn) error {
	if x.conflict {
		c.conflicts[x.kind]++
	}
	if !x.ok {
		return nil
	}
	c.commits[x.kind]++
	if x.kind != publication {
		return nil
	}
	if c.first.IsZero() || x.began.Before(c.first) {
		c.first = x.began
	}
	if x.ended.After(c.last) {
		c.last = x.ended
	}
	if x.record == nil {
		return nil
	}
	var r struct {
		Endpoints []carrick.Endpoint `json:"eps"`
	}
	if err := json.Unmarshal(x.record, &r); err != nil {
		return err
	}
	for _, e := range r.Endpoints {
		if at, ok := c.published[e.ID]; !ok || x.ended.Before(at) {
			c.published[e.ID] = x.ended
		}
	}
	return nil
}
