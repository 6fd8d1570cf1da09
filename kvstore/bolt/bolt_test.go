package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/bolt"
	"github.com/carrick-net/carrick/kvstore/storetest"
)

func open(t *testing.T, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Cluster {
		path := filepath.Join(t.TempDir(), "store.db")
		return storetest.Cluster{
			Single: true,
			Open:   func(t *testing.T) kvstore.Store { return open(t, path) },
		}
	})
}

func put(t *testing.T, s kvstore.Store, txn *kvstore.Txn) kvstore.Revision {
	t.Helper()
	rev, err := s.Txn(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// A second agent on the same file is told so instead of waiting.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state", "store.db")
	first := open(t, path)
	_, err := bolt.Open(path)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "another carrick agent") {
		t.Fatalf("got %v, want an error that names %s and the other agent", err, path)
	}
	put(t, first, new(kvstore.Txn).Put("a", nil)) // undisturbed
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// The agent ends, by Close or by kill -9, and starts again: leased keys are
// gone, everything else is there, and revisions go on.
func TestNextStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	var last kvstore.Revision
	for i := range 3 {
		s := open(t, path)
		v, err := s.List(t.Context(), kvstore.Under(""))
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Entries) != i || v.Revision < last {
			t.Fatalf("start %d finds %+v at revision %d, the last one was %d", i, v.Entries, v.Revision, last)
		}
		if i > 0 && v.Revision == last {
			t.Errorf("start %d removed leased keys under no revision of its own", i)
		}
		l, err := s.Lease(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		last = put(t, s, new(kvstore.Txn).
			Put(fmt.Sprintf("stays/%d", i), []byte("x")).
			PutLeased("node/a", []byte("x"), l.ID()).PutLeased("node/b", nil, l.ID()))
		if i == 1 {
			path = copyOf(t, path) // as it was when the power went
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// copyOf copies a file that is in use. A transaction that has ended is in it.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(out, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// A revision of the former process is good to watch from: it returns with the
// next change, or at once if it is not the last one.
func TestWatchFromTheFormerProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	s := open(t, path)
	seen := put(t, s, new(kvstore.Txn).Put("a", []byte("1")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	v, err := s.Watch(t.Context(), kvstore.OneKey("a"), seen-1)
	if err != nil || len(v.Entries) != 1 || v.Revision != seen {
		t.Errorf("from before the former process's end: %+v, %v", v, err)
	}
	next := make(chan kvstore.View, 1)
	go func() {
		defer close(next)
		if v, err := s.Watch(t.Context(), kvstore.OneKey("a"), seen); err == nil {
			next <- v
		}
	}()
	put(t, s, new(kvstore.Txn).Put("b", []byte("1")))
	put(t, s, new(kvstore.Txn).Put("a", []byte("2")))
	if v := <-next; len(v.Entries) != 1 || string(v.Entries[0].Value) != "2" {
		t.Errorf("from its end: %+v", v)
	}
}

// What was read stays what it is while the file changes under it.
func TestReadsOutliveTheirTransaction(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	fill := func(c byte) *kvstore.Txn {
		txn := new(kvstore.Txn)
		for i := range 60 { // more than a bucket keeps inline
			txn.Put(fmt.Sprintf("k/%d", i), bytes.Repeat([]byte{c}, 4096))
		}
		return txn
	}
	put(t, s, fill('a'))
	v, err := s.List(t.Context(), kvstore.Under("k/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []byte("bcdefg") {
		put(t, s, fill(c))
	}
	for _, e := range v.Entries {
		if !bytes.Equal(e.Value, bytes.Repeat([]byte("a"), 4096)) {
			t.Fatalf("%s changed after it was read", e.Key)
		}
		clear(e.Value) // the caller's: must not fault
	}
}

// A plain put of a leased key is refused, so that it cannot lose its lease
// unseen.
func TestMixedPut(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	l, err := s.Lease(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, new(kvstore.Txn).PutLeased("node/a", nil, l.ID()))
	if _, err := s.Txn(t.Context(), new(kvstore.Txn).Put("b", nil).Put("node/a", nil)); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Get(t.Context(), "b"); !errors.Is(err, kvstore.ErrNotFound) {
		t.Errorf("half of it was written: %v", err)
	}
}

// A file that is not a store is left as it is.
func TestNotAStore(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"text":    []byte("hello, world\n"),
		"zeros":   make([]byte, 64<<10),
		"garbage": bytes.Repeat([]byte("0123456789abcdef"), 4096),
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := bolt.Open(path)
		if err == nil {
			t.Errorf("%s is opened as %s", name, s)
			_ = s.Close()
			continue
		}
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%v does not name the file", err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s was changed", name)
		}
	}
	if s, err := bolt.Open("/proc/none/store.db"); err == nil {
		t.Errorf("opened %s", s)
	}
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"bolt:///var/lib/carrick/store.db": "/var/lib/carrick/store.db",
		"bolt:///a/../b":                   "/b",
		"bolt:///with%20space":             "/with space",
	} {
		if got, err := bolt.ParseURL(in); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "bolt:", "bolt://", "bolt:///", "bolt://host/path", "bolt:relative", "/path", "consul:///path", "bolt:///p?x=y", "bolt:///p#f", "bolt://u@/p", "bolt:///%zz"} {
		if got, err := bolt.ParseURL(in); err == nil {
			t.Errorf("%q is accepted as %q", in, got)
		}
	}
	path := filepath.Join(t.TempDir(), "with space.db")
	s := open(t, path)
	if got, err := bolt.ParseURL(s.String()); err != nil || got != path {
		t.Errorf("%s leads to %q, %v", s, got, err)
	}
}
