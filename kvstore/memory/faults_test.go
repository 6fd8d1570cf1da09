package memory_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// world is a server with hosts, whose time the test moves.
type world struct {
	*testing.T
	ctx   context.Context
	clock *memory.ManualClock
	srv   *memory.Server
	a, b  *memory.Client
}

func newWorld(t *testing.T) *world {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	clock := memory.NewManualClock()
	srv := memory.NewServer(memory.WithClock(clock))
	return &world{t, ctx, clock, srv, srv.Client("a"), srv.Client("b")}
}

func (w *world) put(c *memory.Client, key, value string) error {
	_, err := c.Txn(w.ctx, new(kvstore.Txn).Put(key, []byte(value)))
	return err
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) want(err, target error) {
	w.Helper()
	if !errors.Is(err, target) {
		w.Fatalf("got %v, want %v", err, target)
	}
}

func (w *world) holds(want string) {
	w.Helper()
	if got := w.srv.Dump(); got != want {
		w.Fatalf("the store holds\n%swant\n%s", got, want)
	}
}

func (w *world) lease(c *memory.Client, key string) kvstore.Lease {
	w.Helper()
	l, err := c.Lease(w.ctx, 15*time.Second)
	w.must(err)
	_, err = c.Txn(w.ctx, new(kvstore.Txn).PutLeased(key, []byte("up"), l.ID()))
	w.must(err)
	return l
}

func isLost(l kvstore.Lease) bool {
	select {
	case <-l.Lost():
		return true
	default:
		return false
	}
}

type watched struct {
	v   kvstore.View
	err error
}

func (w *world) watch(c *memory.Client, since kvstore.Revision) <-chan watched {
	ch := make(chan watched, 1)
	go func() {
		v, err := c.Watch(w.ctx, kvstore.Under(""), since)
		ch <- watched{v, err}
	}()
	return ch
}

func TestOneHostIsCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.put(w.a, "k", "1"))
	under := w.watch(w.a, w.srv.Revision())
	w.a.Cut()
	w.want((<-under).err, kvstore.ErrUnavailable)
	w.want(w.put(w.a, "k", "2"), kvstore.ErrUnavailable)
	_, err := w.a.Get(w.ctx, "k")
	w.want(err, kvstore.ErrUnavailable)
	_, err = w.a.List(w.ctx, kvstore.Under(""))
	w.want(err, kvstore.ErrUnavailable)
	_, err = w.a.Lease(w.ctx, time.Minute)
	w.want(err, kvstore.ErrUnavailable)
	w.must(w.put(w.b, "k", "b"))
	w.holds("k \"b\"\n")
	w.a.Heal()
	w.must(w.put(w.a, "k", "a"))
	w.srv.Cut()
	w.want(w.put(w.a, "k", "2"), kvstore.ErrUnavailable)
	w.want(w.put(w.b, "k", "2"), kvstore.ErrUnavailable)
	w.srv.Heal()
	w.must(w.put(w.b, "k", "b"))
}

func TestStalledStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.a.Stall()
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 2)
	go func() {
		_, err := w.a.Get(ctx, "k")
		done <- err
	}()
	cancel()
	w.want(<-done, context.Canceled)
	go func() { done <- w.put(w.a, "k", "1") }()
	w.holds("")
	w.a.Heal()
	w.must(<-done)
	w.holds("k \"1\"\n")
	w.srv.Stall()
	go func() { done <- w.put(w.b, "k", "2") }()
	w.must(w.b.Close())
	w.want(<-done, kvstore.ErrClosed)
	w.holds("k \"1\"\n")
}

func TestLostReplies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.a.LoseReplies(1)
	w.want(w.put(w.a, "k", "1"), kvstore.ErrUnavailable)
	w.holds("k \"1\"\n") // and yet
	w.must(w.put(w.a, "k", "2"))
	w.srv.LoseReplies(2)
	_, err := w.a.Txn(w.ctx, new(kvstore.Txn).Absent("k").Put("k", nil))
	w.want(err, kvstore.ErrUnavailable) // whoever hears nothing hears of no conflict
	w.want(w.put(w.b, "k", "3"), kvstore.ErrUnavailable)
	w.holds("k \"3\"\n")
	w.must(w.put(w.b, "k", "4"))
}

func TestFailNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.a.FailNext(memory.Txn, kvstore.ErrDenied)
	w.a.FailNext(memory.Txn, kvstore.ErrTooLarge)
	w.srv.FailNext(memory.Get, kvstore.ErrDenied)
	w.must(w.put(w.b, "k", "b"))
	w.want(w.put(w.a, "k", "1"), kvstore.ErrDenied)
	w.want(w.put(w.a, "k", "1"), kvstore.ErrTooLarge)
	w.holds("k \"b\"\n")
	w.must(w.put(w.a, "k", "a"))
	_, err := w.b.Get(w.ctx, "k")
	w.want(err, kvstore.ErrDenied)
	_, err = w.b.Get(w.ctx, "k")
	w.must(err)
	for verb, call := range map[memory.Verb]func() error{
		memory.List:  func() error { _, err := w.a.List(w.ctx, kvstore.Under("")); return err },
		memory.Watch: func() error { _, err := w.a.Watch(w.ctx, kvstore.Under(""), 0); return err },
		memory.Lease: func() error { _, err := w.a.Lease(w.ctx, time.Minute); return err },
	} {
		w.a.FailNext(verb, kvstore.ErrUnavailable)
		w.want(call(), kvstore.ErrUnavailable)
		w.must(call())
	}
	l := w.lease(w.a, "node/a")
	w.a.FailNext(memory.Revoke, kvstore.ErrUnavailable)
	w.want(l.Close(w.ctx), kvstore.ErrUnavailable)
	if !isLost(l) {
		t.Error("a lease that was to be revoked is not lost for its holder")
	}
	w.holds("k \"a\"\nnode/a \"up\" lease\n")
	w.must(l.Close(w.ctx)) // again, and now it is told
	w.holds("k \"a\"\n")
}

func TestBlockedWatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	since := w.srv.Revision()
	w.a.BlockWatches()
	blind, seeing := w.watch(w.a, since), w.watch(w.b, since)
	w.must(w.put(w.a, "k", "1"))
	if got := <-seeing; got.err != nil || len(got.v.Entries) != 1 {
		t.Fatalf("the other host: %+v", got)
	}
	w.must(w.put(w.a, "k", "2"))
	select {
	case got := <-blind:
		t.Fatalf("a blocked watch returned %+v", got)
	default:
	}
	w.a.UnblockWatches()
	if got := <-blind; got.err != nil || string(got.v.Entries[0].Value) != "2" {
		t.Fatalf("after unblocking: %+v", got)
	}
	w.srv.BlockWatches()
	both := w.watch(w.b, 0)
	w.must(w.put(w.a, "k", "3"))
	w.srv.UnblockWatches()
	if got := <-both; got.err != nil || string(got.v.Entries[0].Value) != "3" {
		t.Fatalf("after unblocking all: %+v", got)
	}
}

// As on Consul: who cannot renew presumes its lease lost after a ttl, the server
// lets it go before two.
func TestLeaseOfAHostCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	la, lb := w.lease(w.a, "node/a"), w.lease(w.b, "node/b")
	w.clock.Advance(time.Hour)
	if isLost(la) || isLost(lb) {
		t.Fatal("a lease that is renewed is lost")
	}
	w.a.Cut()
	w.clock.Advance(14 * time.Second)
	if isLost(la) {
		t.Fatal("presumed lost before its ttl")
	}
	w.clock.Advance(6 * time.Second) // a ttl after the last renewal, wherever that was
	if !isLost(la) {
		t.Fatal("not presumed lost after its ttl")
	}
	w.holds("node/a \"up\" lease\nnode/b \"up\" lease\n")
	w.clock.Advance(10 * time.Second)
	w.holds("node/b \"up\" lease\n")
	w.a.Heal()
	_, err := w.a.Txn(w.ctx, new(kvstore.Txn).PutLeased("node/a", nil, la.ID()))
	w.want(err, kvstore.ErrLeaseLost)
	if isLost(lb) {
		t.Error("the other host's lease is lost as well")
	}
}

func TestLeaseOverAShortCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.lease(w.a, "node/a")
	for range 10 {
		w.a.Cut()
		w.clock.Advance(9 * time.Second)
		w.a.Heal()
		w.clock.Advance(6 * time.Second)
	}
	if isLost(l) {
		t.Fatal("lost over cuts shorter than its ttl")
	}
	w.holds("node/a \"up\" lease\n")
}

func TestLeaseOfAClosedClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.lease(w.a, "node/a")
	w.must(w.a.Close())
	if !isLost(l) {
		t.Error("nobody renews it, but it is not lost")
	}
	w.holds("node/a \"up\" lease\n")
	w.clock.Advance(30 * time.Second)
	w.holds("")
}

func TestExpireLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	la, lb := w.lease(w.a, "node/a"), w.lease(w.b, "node/b")
	w.b.Cut()
	w.srv.ExpireLease(la.ID())
	w.srv.ExpireLease(lb.ID())
	w.srv.ExpireLease("nobody's")
	w.holds("")
	if !isLost(la) || isLost(lb) {
		t.Errorf("lost: %t for who can be told, %t for who cannot", isLost(la), isLost(lb))
	}
	w.b.Heal()
	w.clock.Advance(5 * time.Second)
	if !isLost(lb) {
		t.Error("the next renewal does not tell")
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.lease(w.a, "node/a")
	w.must(w.put(w.a, "k", "1"))
	since := w.srv.Revision()
	under := w.watch(w.b, since)
	w.srv.Wipe()
	if got := <-under; got.err != nil || got.v.Revision >= since || len(got.v.Entries) != 0 {
		t.Errorf("a watch over a wipe: %+v", got)
	}
	if !isLost(l) {
		t.Error("a lease that was wiped is not lost")
	}
	w.holds("")
	w.must(w.put(w.b, "k", "new"))
	if got := <-w.watch(w.a, since); got.err != nil || got.v.Revision >= since {
		t.Errorf("a watch from before the wipe: %+v", got)
	}
}

func TestRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	la := w.lease(w.a, "node/a")
	w.must(w.put(w.a, "k", "old"))
	backup := w.srv.Snapshot()
	old := w.srv.Revision()
	w.must(la.Close(w.ctx))
	lb := w.lease(w.b, "node/b")
	w.must(w.put(w.a, "k", "new"))
	under := w.watch(w.b, w.srv.Revision())
	w.srv.Restore(backup)
	if got := <-under; got.err != nil || got.v.Revision != old || len(got.v.Entries) != 2 {
		t.Errorf("a watch over a restore: %+v", got)
	}
	// The past is back, also a lease that had ended; one made since is unknown.
	w.holds("k \"old\"\nnode/a \"up\" lease\n")
	_, err := w.b.Txn(w.ctx, new(kvstore.Txn).PutLeased("node/b", nil, lb.ID()))
	w.want(err, kvstore.ErrLeaseLost)
	w.clock.Advance(5 * time.Second)
	if !isLost(lb) {
		t.Error("a lease that the store does not know any more is not lost")
	}
	w.clock.Advance(25 * time.Second) // nobody renews the one that came back
	w.holds("k \"old\"\n")
	w.must(w.put(w.a, "k", "newer"))
	w.srv.Restore(backup) // a backup can be used twice
	w.holds("k \"old\"\nnode/a \"up\" lease\n")
}

func TestMixedPut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.lease(w.a, "node/a")
	w.want(w.put(w.a, "node/a", "plain"), kvstore.ErrDenied)
	w.holds("node/a \"up\" lease\n")
}

// A watcher that was away while more happened than is remembered gets the view
// at once, as one that was away for less.
func TestWatchFromLongAgo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.put(w.a, "quiet", "1"))
	since := w.srv.Revision()
	for range 20000 {
		w.must(w.put(w.a, "loud", "x"))
	}
	v, err := w.a.Watch(w.ctx, kvstore.OneKey("quiet"), since)
	if err != nil || len(v.Entries) != 1 {
		t.Errorf("from long ago: %+v, %v", v, err)
	}
}
