// Package consul is kvstore on Consul's KV store, sessions and transactions. It
// is the only package that imports Consul's client.
//
// Reads are of Consul's "consistent" mode, in which the leader asks its
// followers whether it still is one before it answers: the default mode may, for
// the length of a leader's lease, answer from the past, and an old view would
// pass for a store that lost its past. Only the wait of a Watch is of the
// default mode; what looks old in it is read again.
//
// A transaction is one Consul transaction. Every put carries a random value in
// the entry's flags, because Consul does not change an entry (nor its
// ModifyIndex) that is set to what it is; so every put is a new version. A put
// with a lease is a delete and a lock in one transaction, which takes the key
// over from another session; that is why it counts as two operations.
//
// A lease is a session with behavior "delete" and no lock-delay, which Consul
// ends up to twice its TTL after the last renewal.
//
// It must not know what is stored.
package consul

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/kvstore"
)

// Store is a client of one Consul cluster. It implements kvstore.Store.
type Store struct {
	cfg    Config
	log    *slog.Logger
	prefix string // of every key, with its slash
	probe  string // a key of ours that never exists

	endpoints []*endpoint
	current   atomic.Int64 // index of the endpoint in use

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	background sync.WaitGroup // keepers of leases, and flights
	slots      chan struct{}  // one for each blocking query under way
	full       sync.Once      // tells that slots are used up

	mu sync.Mutex // guards the rest
	// seen has the revisions that were returned for a selection since the store
	// last failed: those it is safe to wait from without looking first.
	seen    map[sighting]struct{}
	flights map[sighting]*flight // under way
	// high is the highest index seen since the store last lost its past; lapsed
	// is closed and replaced when it does.
	high   kvstore.Revision
	lapsed chan struct{}
	isDone bool
}

type sighting struct {
	sel kvstore.Selector
	rev kvstore.Revision
}

// maxSeen bounds what is remembered; forgetting costs one read.
const maxSeen = 8192

var _ kvstore.Store = (*Store)(nil)

// Open prepares a client. It does not talk to Consul, which need not be there:
// until it is, every call returns [kvstore.ErrUnavailable]. Errors are those of
// the configuration: an address or a prefix of no valid form, a token or
// certificate file that cannot be read.
func Open(cfg Config) (*Store, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	token := func() string { return string(cfg.Token) }
	if cfg.TokenFile != "" {
		f, err := newTokenFile(cfg.TokenFile, cfg.Logger)
		if err != nil {
			return nil, err
		}
		token = f.Token
	}
	s := &Store{
		cfg:     cfg,
		log:     cfg.Logger,
		prefix:  cfg.Prefix + "/",
		slots:   make(chan struct{}, maxWatchConns),
		seen:    make(map[sighting]struct{}),
		flights: make(map[sighting]*flight),
		lapsed:  make(chan struct{}),
	}
	s.probe = s.prefix + "~" + rand.Text()
	for _, addr := range cfg.Addresses {
		e, err := newEndpoint(addr, cfg, token)
		if err != nil {
			return nil, err
		}
		s.endpoints = append(s.endpoints, e)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// String names the store as its URL, without options.
func (s *Store) String() string {
	return "consul://" + strings.Join(s.cfg.Addresses, ",") + "/" + s.cfg.Prefix
}

// Close ends everything under way. Sessions run out in their own time.
func (s *Store) Close() error {
	s.mu.Lock()
	s.isDone = true
	s.mu.Unlock()
	s.cancel()
	s.background.Wait()
	for _, e := range s.endpoints {
		e.idle()
	}
	return nil
}

// ready says whether a call may begin.
func (s *Store) ready(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return kvstore.ErrClosed
	}
	return ctx.Err()
}

// both is ctx, ended by Close as well, and by the timeout.
func (s *Store) both(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// call makes one request, within the configured timeout. If the endpoint in use
// cannot be reached the next one is tried, for a write only if it was certainly
// not sent. The error wraps a sentinel or is the context's.
func (s *Store) call(ctx context.Context, write bool, f func(context.Context, *api.Client) error) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	callCtx, cancel := s.both(ctx, s.cfg.Timeout)
	defer cancel()
	var failure error
	for range s.endpoints {
		i := s.current.Load()
		err := f(callCtx, s.endpoints[i].calls)
		if err == nil {
			return nil
		}
		failure = s.fail(ctx, i, err)
		if !errors.Is(failure, kvstore.ErrUnavailable) || callCtx.Err() != nil || (write && !neverSent(err)) {
			return failure
		}
	}
	return failure
}

// fail makes an error of endpoint i one of the contract's, and moves on to the
// next endpoint if that is the remedy.
func (s *Store) fail(ctx context.Context, i int64, err error) error {
	failure := s.sentinel(ctx, err)
	if !errors.Is(failure, kvstore.ErrUnavailable) {
		return failure
	}
	s.forget()
	if n := int64(len(s.endpoints)); n > 1 && s.current.CompareAndSwap(i, (i+1)%n) {
		s.log.Warn("consul failed, going on with another address",
			"address", s.endpoints[i].addr, "next", s.endpoints[(i+1)%n].addr, "error", failure)
	}
	return fmt.Errorf("consul at %s: %w", s.endpoints[i].addr, failure)
}

// forget makes every watch look before it waits: what comes back after a
// failure may be another store, whose revisions are below those that are waited
// for, and Consul waits until a revision is above.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.seen)
}

// indexIs takes note of the index of the whole KV store, and lets all watches
// look again if it went back: the store lost its past.
func (s *Store) indexIs(whole kvstore.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if whole >= s.high {
		return
	}
	s.log.Warn("consul lost its past: was it restored or emptied?", "index", whole, "before", s.high)
	s.high = whole
	clear(s.seen)
	close(s.lapsed)
	s.lapsed = make(chan struct{})
}

// lapse is closed when the store is next found to have lost its past.
func (s *Store) lapse() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lapsed
}

// saw remembers that a selection had a revision, in place of an earlier one.
func (s *Store) saw(sel kvstore.Selector, before, now kvstore.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.high = max(s.high, now)
	if len(s.seen) >= maxSeen {
		clear(s.seen)
	}
	delete(s.seen, sighting{sel, before})
	s.seen[sighting{sel, now}] = struct{}{}
}

func (s *Store) hasSeen(sel kvstore.Selector, rev kvstore.Revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[sighting{sel, rev}]
	return ok
}
