package consul_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
)

// A host dies without a word: its key vanishes in its time, and that of a host
// that lives stays. (Consul's shortest TTL is 10 s, and it takes up to two.)
func TestLeaseOfADeadHost(t *testing.T) {
	t.Parallel()
	srv := pool.Get(t)
	cfg := consul.Config{Addresses: []string{srv.Addr()}, Prefix: "deadhost"}
	alive, dead := client(t, cfg), client(t, cfg)
	ctx := within(t)
	kept, err := alive.Lease(ctx, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	left, err := dead.Lease(ctx, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alive.Txn(ctx, new(kvstore.Txn).PutLeased("node/alive", nil, kept.ID()).PutLeased("node/dead", nil, left.ID())); err != nil {
		t.Fatal(err)
	}
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	var v kvstore.View
	for since := kvstore.Revision(0); since == 0 || len(v.Entries) > 1; since = v.Revision {
		if v, err = alive.Watch(ctx, kvstore.Under("node/"), since); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.Entries) != 1 || v.Entries[0].Key != "node/alive" {
		t.Fatalf("left are %+v", v.Entries)
	}
	if _, err := alive.Txn(ctx, new(kvstore.Txn).Held("node/alive", kept.ID())); err != nil {
		t.Error(err)
	}
	select {
	case <-kept.Lost():
		t.Error("the lease of the living host is lost")
	default:
	}
	if _, err := alive.Txn(ctx, new(kvstore.Txn).PutLeased("node/dead", nil, left.ID())); !errors.Is(err, kvstore.ErrLeaseLost) {
		t.Errorf("a write with the lease of the dead: %v", err)
	}
}

// The store is away for longer than a lease lasts: the holder knows by itself,
// and takes its key over with a new lease when the store is back, whether or not
// the server has noticed the end of the former.
func TestLeaseOverALongOutage(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t)
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}})
	ctx := within(t)
	former, err := s.Lease(ctx, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(ctx, new(kvstore.Txn).PutLeased("node/a", []byte("former"), former.ID())); err != nil {
		t.Fatal(err)
	}
	srv.Stop()
	select {
	case <-former.Lost():
	case <-ctx.Done():
		t.Fatal("a lease that nobody can renew is not lost")
	}
	if err := former.Close(ctx); !errors.Is(err, kvstore.ErrUnavailable) {
		t.Errorf("revoking without the store: %v", err)
	}
	srv.Start(t)
	now, err := s.Lease(ctx, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(ctx, new(kvstore.Txn).PutLeased("node/a", []byte("now"), now.ID())); err != nil {
		t.Fatal(err)
	}
	if err := former.Close(ctx); err != nil {
		t.Errorf("revoking again, with the store: %v", err)
	}
	if e, err := s.Get(ctx, "node/a"); err != nil || string(e.Value) != "now" || e.Lease != now.ID() {
		t.Errorf("got %+v, %v", e, err)
	}
}

// An operator ends the session: the holder hears of it at its next renewal.
func TestLeaseRevokedByAnOperator(t *testing.T) {
	t.Parallel()
	srv := pool.Get(t)
	var log lockedBuffer
	s := client(t, consul.Config{
		Addresses: []string{srv.Addr()}, Prefix: "revoked",
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	l, err := s.Lease(within(t), 0) // becomes the shortest
	if err != nil {
		t.Fatal(err)
	}
	entry, _, err := raw(t, srv).Session().Info(string(l.ID()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if entry.TTL != "10s" || entry.LockDelay != 0 || entry.Behavior != "delete" || len(entry.NodeChecks)+len(entry.Checks)+len(entry.ServiceChecks) != 0 {
		t.Errorf("the session is %+v", entry)
	}
	if _, err := raw(t, srv).Session().Destroy(string(l.ID()), nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Lost():
	case <-within(t).Done():
		t.Fatal("not lost")
	}
	if !strings.Contains(log.String(), "lease lost") {
		t.Errorf("the log says %q", log.String())
	}
}
