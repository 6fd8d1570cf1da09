// Package storetest holds every kvstore.Store to the text of package kvstore:
// one suite, run by each backend's own tests against its real server.
//
// It must not know which backend it runs on, beyond what a [Cluster] says.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/carrick-net/carrick/kvstore"
)

// Cluster is one empty store, as a backend's tests provide it.
type Cluster struct {
	// Open connects one more client. The function that made the Cluster sees
	// to its being closed when the test ends; the suite may do so earlier.
	Open func(t *testing.T) kvstore.Store
	// Single says that only one client can be open at a time.
	Single bool
	// Restless says that watches return without a change, and states that have
	// passed, as the contract lets them.
	Restless bool
	// Expire ends a lease at the server, as if its time had passed without a
	// renewal. Nil if leases of this backend have no time.
	Expire func(t *testing.T, id kvstore.LeaseID)
}

// guard bounds what would otherwise hang. It is shorter than the bounded wait
// of any backend's watch, so a watch that is not woken fails its test.
const guard = 40 * time.Second

// ttl is the shortest that every backend takes.
const ttl = 10 * time.Second

// Run runs the suite. newCluster is called once for each test, from parallel
// tests.
func Run(t *testing.T, newCluster func(t *testing.T) Cluster) {
	for _, group := range [][]storyOf{readStories, txnStories, watchStories, leaseStories, closeStories} {
		for _, st := range group {
			t.Run(st.name, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), guard)
				t.Cleanup(cancel)
				c := newCluster(t)
				st.tell(&story{T: t, ctx: ctx, cluster: c, a: c.Open(t)})
			})
		}
	}
}

type storyOf struct {
	name string
	tell func(*story)
}

// story is one test: a store a, and if need be a second client of it.
type story struct {
	*testing.T
	ctx     context.Context
	cluster Cluster
	a       kvstore.Store
}

// other is a second client, or the same where there can be only one.
func (s *story) other() kvstore.Store {
	s.Helper()
	if s.cluster.Single {
		return s.a
	}
	return s.cluster.Open(s.T)
}

// commit runs a transaction that has to succeed.
func (s *story) commit(t *kvstore.Txn) kvstore.Revision {
	s.Helper()
	rev, err := s.a.Txn(s.ctx, t)
	if err != nil {
		s.Fatalf("transaction %+v: %v", *t, err)
	}
	return rev
}

func (s *story) put(key, value string) kvstore.Revision {
	s.Helper()
	return s.commit(new(kvstore.Txn).Put(key, []byte(value)))
}

func (s *story) get(key string) kvstore.Entry {
	s.Helper()
	e, err := s.a.Get(s.ctx, key)
	if err != nil {
		s.Fatalf("get %s: %v", key, err)
	}
	return e
}

// absent requires that key is not there.
func (s *story) absent(key string) {
	s.Helper()
	if e, err := s.a.Get(s.ctx, key); !errors.Is(err, kvstore.ErrNotFound) {
		s.Fatalf("get %s: %+v, %v; want ErrNotFound", key, e, err)
	}
}

func (s *story) list(sel kvstore.Selector) kvstore.View {
	s.Helper()
	v, err := s.a.List(s.ctx, sel)
	if err != nil {
		s.Fatalf("list %s: %v", sel, err)
	}
	s.whole(sel, v)
	return v
}

// whole checks what every view promises.
func (s *story) whole(sel kvstore.Selector, v kvstore.View) {
	s.Helper()
	if v.Revision == 0 {
		s.Fatalf("view of %s has revision 0", sel)
	}
	for i, e := range v.Entries {
		if !sel.Match(e.Key) {
			s.Fatalf("view of %s has %q", sel, e.Key)
		}
		if i > 0 && v.Entries[i-1].Key >= e.Key {
			s.Fatalf("view of %s is not sorted: %q before %q", sel, v.Entries[i-1].Key, e.Key)
		}
		if e.Version == 0 || e.Version > v.Revision {
			s.Fatalf("view of %s at revision %d has %s with version %d", sel, v.Revision, e.Key, e.Version)
		}
	}
}

// holds requires the selection to be exactly these "key=value".
func (s *story) holds(sel kvstore.Selector, want ...string) kvstore.View {
	s.Helper()
	v := s.list(sel)
	s.same(v, want...)
	return v
}

func (s *story) same(v kvstore.View, want ...string) {
	s.Helper()
	if got := pairs(v); !slices.Equal(got, want) {
		s.Fatalf("view is %q, want %q", got, want)
	}
}

func pairs(v kvstore.View) []string {
	var out []string
	for _, e := range v.Entries {
		out = append(out, fmt.Sprintf("%s=%s", e.Key, e.Value))
	}
	return out
}

// conflict requires err to be a ConflictError that names only keys of want, and
// at least one.
func (s *story) conflict(err error, want ...string) {
	s.Helper()
	var ce *kvstore.ConflictError
	if !errors.As(err, &ce) || !errors.Is(err, kvstore.ErrConflict) {
		s.Fatalf("got %v, want a *ConflictError", err)
	}
	if len(ce.Keys) == 0 {
		s.Fatal("conflict names no key")
	}
	for _, k := range ce.Keys {
		if !slices.Contains(want, k) {
			s.Fatalf("conflict names %q, conditions failed on %q", ce.Keys, want)
		}
	}
}

// is requires err to wrap target.
func (s *story) is(err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Fatalf("got %v, want an error that wraps %q", err, target)
	}
}

// background runs f and returns a function that waits for its result.
func background[T any](f func() (T, error)) func() (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result, 1)
	go func() {
		v, err := f()
		c <- result{v, err}
	}()
	return func() (T, error) {
		r := <-c
		return r.v, r.err
	}
}

// watching starts a watch of st that goes on until the view satisfies ok.
func (s *story) watching(st kvstore.Store, sel kvstore.Selector, since kvstore.Revision, ok func(kvstore.View) bool) func() kvstore.View {
	wait := background(func() (kvstore.View, error) {
		for {
			v, err := st.Watch(s.ctx, sel, since)
			if err != nil || ok(v) {
				return v, err
			}
			since = v.Revision
		}
	})
	return func() kvstore.View {
		s.Helper()
		v, err := wait()
		if err != nil {
			s.Fatalf("watch %s: %v", sel, err)
		}
		s.whole(sel, v)
		return v
	}
}

func has(key, value string) func(kvstore.View) bool {
	return func(v kvstore.View) bool {
		return slices.ContainsFunc(v.Entries, func(e kvstore.Entry) bool {
			return e.Key == key && bytes.Equal(e.Value, []byte(value))
		})
	}
}

// newer is a view of another moment than since: if there was one change, of it.
func newer(since kvstore.Revision) func(kvstore.View) bool {
	return func(v kvstore.View) bool { return v.Revision != since }
}

func lacks(key string) func(kvstore.View) bool {
	return func(v kvstore.View) bool {
		return !slices.ContainsFunc(v.Entries, func(e kvstore.Entry) bool { return e.Key == key })
	}
}

// lost waits for a lease to end.
func (s *story) lost(l kvstore.Lease) {
	s.Helper()
	select {
	case <-l.Lost():
	case <-s.ctx.Done():
		s.Fatalf("lease %s is not lost", l.ID())
	}
}

func (s *story) alive(l kvstore.Lease) {
	s.Helper()
	select {
	case <-l.Lost():
		s.Fatalf("lease %s is lost", l.ID())
	default:
	}
}

func (s *story) lease(st kvstore.Store) kvstore.Lease {
	s.Helper()
	l, err := st.Lease(s.ctx, ttl)
	if err != nil {
		s.Fatalf("lease: %v", err)
	}
	if l.ID() == "" {
		s.Fatal("lease has no id")
	}
	return l
}
