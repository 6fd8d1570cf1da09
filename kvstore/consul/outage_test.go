package consul_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
)

// guard bounds what would otherwise hang; no test expects to come near it.
const guard = 90 * time.Second

// longWait makes a watch that only its wait's end would wake outlast the guard.
const longWait = 10 * time.Minute

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	t.Cleanup(cancel)
	return ctx
}

func put(t *testing.T, s kvstore.Store, key, value string) kvstore.Revision {
	t.Helper()
	rev, err := s.Txn(within(t), new(kvstore.Txn).Put(key, []byte(value)))
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

// everyCall calls each method once.
func everyCall(ctx context.Context, s kvstore.Store) map[string]error {
	errs := make(map[string]error)
	_, errs["Get"] = s.Get(ctx, "a")
	_, errs["List"] = s.List(ctx, kvstore.Under(""))
	_, errs["Watch"] = s.Watch(ctx, kvstore.Under(""), 0)
	_, errs["Watch since"] = s.Watch(ctx, kvstore.Under(""), 1)
	_, errs["Txn"] = s.Txn(ctx, new(kvstore.Txn).Put("a", nil))
	_, errs["conditions"] = s.Txn(ctx, new(kvstore.Txn).Absent("b"))
	_, errs["Lease"] = s.Lease(ctx, 10*time.Second)
	return errs
}

func allAre(t *testing.T, errs map[string]error, want error) {
	t.Helper()
	for call, err := range errs {
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", call, err, want)
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v passes for the caller's own context", call, err)
		}
	}
}

type watched struct {
	v   kvstore.View
	err error
}

// watch watches in the background until there is a change. Whatever the caller does next
// may come before or after it reaches the server, and it has to be right either
// way.
func watch(ctx context.Context, s kvstore.Store, sel kvstore.Selector, since kvstore.Revision) <-chan watched {
	c := make(chan watched, 1)
	go func() {
		for {
			v, err := s.Watch(ctx, sel, since)
			if err != nil || v.Revision != since {
				c <- watched{v, err}
				return
			}
		}
	}()
	return c
}

// A server is killed and comes back with its data. Meanwhile every call says so,
// afterwards everything goes on: the same client, its watch, its lease.
func TestServerKilledAndStartedAgain(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t)
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}})
	ctx := within(t)
	lease, err := s.Lease(ctx, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(ctx, new(kvstore.Txn).PutLeased("node/a", nil, lease.ID())); err != nil {
		t.Fatal(err)
	}
	rev := put(t, s, "a", "before")
	inFlight := watch(ctx, s, kvstore.OneKey("a"), rev)

	srv.Stop()
	if w := <-inFlight; !errors.Is(w.err, kvstore.ErrUnavailable) {
		t.Errorf("a watch during the kill: %+v, %v", w.v, w.err)
	}
	allAre(t, everyCall(ctx, s), kvstore.ErrUnavailable)

	srv.Start(t)
	e, err := s.Get(ctx, "a")
	if err != nil || string(e.Value) != "before" || e.Version != rev {
		t.Fatalf("after the restart: %+v, %v; wrote version %d", e, err, rev)
	}
	again := watch(ctx, s, kvstore.OneKey("a"), rev)
	if now := put(t, s, "a", "after"); now <= rev {
		t.Errorf("revision went from %d to %d", rev, now)
	}
	if w := <-again; w.err != nil || string(w.v.Entries[0].Value) != "after" {
		t.Errorf("a watch after the restart: %+v, %v", w.v, w.err)
	}
	if _, err := s.Txn(ctx, new(kvstore.Txn).Held("node/a", lease.ID())); err != nil {
		t.Errorf("the lease over a short outage: %v", err)
	}
}

// A black hole: connections are accepted and nothing answers.
func TestServerFrozen(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t)
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Timeout: 300 * time.Millisecond, Wait: 100 * time.Millisecond})
	rev := put(t, s, "a", "1")
	srv.Freeze(t)
	allAre(t, everyCall(within(t), s), kvstore.ErrUnavailable)

	// These writes wait in the server's sockets and will be done, in any order.
	// Whoever has no patience is let go, long before any time limit.
	patient := client(t, consul.Config{Addresses: []string{srv.Addr()}, Timeout: guard})
	ctx, cancel := context.WithCancel(within(t))
	waiting := watch(ctx, patient, kvstore.OneKey("a"), rev)
	cancel()
	if w := <-waiting; !errors.Is(w.err, context.Canceled) || errors.Is(w.err, kvstore.ErrUnavailable) {
		t.Errorf("a cancelled watch of a black hole: %v", w.err)
	}

	srv.Thaw(t)
	last := put(t, patient, "b", "2")
	e, err := s.Get(within(t), "b")
	if err != nil || string(e.Value) != "2" || e.Version != last {
		t.Errorf("after the thaw: %+v, %v; wrote version %d", e, err, last)
	}
}

// The store is emptied. Watches that were under way and such that begin later,
// from a revision that the new store will not reach for long, hear of it.
func TestServerWiped(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t)
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Wait: longWait})
	ctx := within(t)
	sels := []kvstore.Selector{kvstore.OneKey("net/a"), kvstore.OneKey("net/none"), kvstore.Under("net/"), kvstore.Under("none/"), kvstore.Under("")}
	for range 50 { // beyond what a new server's start writes
		put(t, s, "net/a", "1")
	}
	since := make([]kvstore.Revision, len(sels))
	for i, sel := range sels {
		v, err := s.Watch(ctx, sel, 0)
		if err != nil {
			t.Fatal(err)
		}
		since[i] = v.Revision
	}
	// Nothing is under way during the wipe, so no call fails: only the revision
	// tells.
	srv.Wipe(t)
	for i, sel := range sels {
		w := <-watch(ctx, s, sel, since[i])
		if w.err != nil || w.v.Revision >= since[i] || len(w.v.Entries) != 0 {
			t.Errorf("watch %s since %d of a wiped store: %+v, %v", sel, since[i], w.v, w.err)
		}
	}
	put(t, s, "net/a", "new")
}

// An operator restores a backup into the running server. No connection breaks;
// the watches that are under way hear of it all the same, each its selection.
func TestSnapshotRestored(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t)
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Wait: longWait})
	ctx := within(t)
	put(t, s, "net/a", "old")
	backup, _, err := raw(t, srv).Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer backup.Close()
	for i := range 50 {
		put(t, s, "net/a", fmt.Sprint("new-", i))
	}
	put(t, s, "net/b", "new")
	want := map[kvstore.Selector]int{kvstore.Under("net/"): 1, kvstore.OneKey("net/a"): 1, kvstore.OneKey("net/b"): 0}
	since := make(map[kvstore.Selector]kvstore.Revision)
	waiting := make(map[kvstore.Selector]<-chan watched)
	start := func() {
		for sel := range want {
			v, err := s.List(ctx, sel)
			if err != nil {
				t.Fatal(err)
			}
			since[sel] = v.Revision
			waiting[sel] = watch(ctx, s, sel, v.Revision)
		}
	}
	// A round with a change first, so that the connections are not new ones.
	start()
	if _, err := s.Txn(ctx, new(kvstore.Txn).Put("net/a", []byte("newer")).Put("net/b", []byte("newer"))); err != nil {
		t.Fatal(err)
	}
	for sel := range want {
		if w := <-waiting[sel]; w.err != nil || w.v.Revision <= since[sel] {
			t.Fatalf("watch %s since %d: %+v, %v", sel, since[sel], w.v, w.err)
		}
	}
	start()
	// Only a query that the server has when it is restored is ended by that, and
	// one is enough for all. These calls come after the queries were started, and
	// give them the time of as many round trips; the restore takes its own.
	for range 50 {
		if _, err := s.Get(ctx, "net/a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw(t, srv).Snapshot().Restore(nil, backup); err != nil {
		t.Fatal(err)
	}
	for sel, n := range want {
		w := <-waiting[sel]
		if w.err != nil || w.v.Revision >= since[sel] || len(w.v.Entries) != n {
			t.Errorf("watch %s since %d over a restore: %+v, %v", sel, since[sel], w.v, w.err)
		}
	}
}
