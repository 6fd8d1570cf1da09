package consul_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
)

// There are more watches than connections: all of them hear of a change, if some
// of them late, and writes get through all the time.
func TestMoreWatchesThanConnections(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t, consultest.WithConns(consultest.DefaultConns))
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Prefix: "many", Wait: 200 * time.Millisecond})
	ctx := within(t)
	since := put(t, s, "other", "0")
	const n = 250
	done := make(chan error, n)
	for i := range n {
		go func() {
			from := since
			for {
				v, err := s.Watch(ctx, kvstore.OneKey(fmt.Sprintf("head/%d", i)), from)
				if err != nil || len(v.Entries) == 1 {
					done <- err
					return
				}
				from = v.Revision
			}
		}()
	}
	for i := range 20 {
		put(t, s, "other", fmt.Sprint(i))
	}
	for i := range n {
		put(t, s, fmt.Sprintf("head/%d", i), "end")
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// A transaction within the contract's limits that JSON makes too large for
// Consul all the same is refused whole.
func TestTooLargeForTheServer(t *testing.T) {
	t.Parallel()
	srv := pool.Get(t)
	s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Prefix: "large/" + strings.Repeat("<", 100)})
	txn := new(kvstore.Txn)
	for i := range kvstore.MaxTxnOps {
		txn.Put(fmt.Sprintf("%03d%s", i, strings.Repeat("<", kvstore.MaxKey-3)), bytes.Repeat([]byte{1}, 2000))
	}
	if err := txn.Check(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(within(t), txn); !errors.Is(err, kvstore.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if v, err := s.List(within(t), kvstore.Under("")); err != nil || len(v.Entries) != 0 {
		t.Errorf("left behind: %d entries, %v", len(v.Entries), err)
	}
}

// Two stores on one server, by prefix, do not see each other.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	srv := pool.Get(t)
	one := client(t, consul.Config{Addresses: []string{srv.Addr()}, Prefix: "prefixes/one"})
	other := client(t, consul.Config{Addresses: []string{srv.Addr()}, Prefix: "prefixes/one-more"})
	above := client(t, consul.Config{Addresses: []string{srv.Addr()}, Prefix: "prefixes"})
	put(t, one, "a", "1")
	put(t, other, "a", "2")
	ctx := within(t)
	for s, want := range map[*consul.Store]string{one: "[a=1]", other: "[a=2]", above: "[one-more/a=2 one/a=1]"} {
		v, err := s.List(ctx, kvstore.Under(""))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range v.Entries {
			got = append(got, e.Key+"="+string(e.Value))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%s has %v, want %s", s, got, want)
		}
	}
	if _, err := one.Txn(ctx, new(kvstore.Txn).DeletePrefix("")); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Get(ctx, "a"); err != nil {
		t.Errorf("emptying one store: the other: %v", err)
	}
}

// A caller of no patience watches again and again. Consul would count the
// connection of each query that was given up until its wait ends, and after 200
// let nobody on this host in any more.
func TestImpatientWatcher(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t, consultest.WithConns(consultest.DefaultConns))
	cfg := consul.Config{Addresses: []string{srv.Addr()}, Wait: longWait}
	s := client(t, cfg)
	rev := put(t, s, "a", "1")
	if v, err := s.List(within(t), kvstore.OneKey("a")); err != nil || v.Revision != rev { // from here on a watch may wait at once
		t.Fatalf("%+v, %v", v, err)
	}
	for i := range 300 {
		ctx, cancel := context.WithTimeout(within(t), time.Millisecond)
		_, err := s.Watch(ctx, kvstore.OneKey("a"), rev)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("watch %d: %v", i, err)
		}
	}
	// Neither another watch of this process nor another process suffers.
	another := client(t, cfg)
	next := watch(within(t), s, kvstore.OneKey("c"), put(t, another, "c", "1"))
	put(t, another, "c", "2")
	if w := <-next; w.err != nil || string(w.v.Entries[0].Value) != "2" {
		t.Errorf("another watch: %+v, %v", w.v, w.err)
	}
	patient := watch(within(t), s, kvstore.OneKey("a"), rev)
	for call, err := range everyCall(within(t), another) {
		if err != nil && !errors.Is(err, kvstore.ErrNotFound) {
			t.Errorf("%s of another process: %v", call, err)
		}
	}
	if w := <-patient; w.err != nil || w.v.Revision <= rev {
		t.Errorf("the patient at last: %+v, %v", w.v, w.err)
	}
}
