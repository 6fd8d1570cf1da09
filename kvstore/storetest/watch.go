package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick/kvstore"
)

var watchStories = []storyOf{
	{"since 0 returns at once", func(s *story) {
		for _, sel := range []kvstore.Selector{kvstore.OneKey("a"), kvstore.Under("a"), kvstore.Under("")} {
			v, err := s.a.Watch(s.ctx, sel, 0)
			if err != nil {
				s.Fatal(err)
			}
			s.whole(sel, v)
			s.same(v)
		}
		s.put("a", "1")
		for _, sel := range []kvstore.Selector{kvstore.OneKey("a"), kvstore.Under("a"), kvstore.Under("")} {
			v, err := s.a.Watch(s.ctx, sel, 0)
			if err != nil {
				s.Fatal(err)
			}
			s.whole(sel, v)
			s.same(v, "a=1")
		}
	}},
	{"what changed before the watch began is not missed", func(s *story) {
		s.put("net/a", "1")
		for _, sel := range []kvstore.Selector{kvstore.OneKey("net/a"), kvstore.Under("net/")} {
			s.put("net/a", "old")
			seen := s.list(sel).Revision
			s.put("net/a", "new")
			s.same(s.watching(s.a, sel, seen, newer(seen))(), "net/a=new")
			seen = s.list(sel).Revision
			s.commit(new(kvstore.Txn).Delete("net/a"))
			s.same(s.watching(s.a, sel, seen, newer(seen))())
			seen = s.list(sel).Revision
			s.put("net/a", "again")
			s.same(s.watching(s.a, sel, seen, newer(seen))(), "net/a=again")
		}
	}},
	{"a key is created, changed and deleted", func(s *story) {
		b, sel := s.other(), kvstore.OneKey("a")
		created := s.watching(b, sel, s.list(sel).Revision, has("a", "1"))
		s.put("a", "1")
		v := created()
		changed := s.watching(b, sel, v.Revision, has("a", "2"))
		s.put("a", "2")
		v = changed()
		deleted := s.watching(b, sel, v.Revision, lacks("a"))
		s.commit(new(kvstore.Txn).Delete("a"))
		v = deleted()
		again := s.watching(b, sel, v.Revision, has("a", "2"))
		s.put("a", "2")
		again()
	}},
	{"a key below a prefix is created, changed and deleted", func(s *story) {
		b, sel := s.other(), kvstore.Under("net/")
		created := s.watching(b, sel, s.list(sel).Revision, has("net/a", "1"))
		s.put("net/a", "1")
		v := created()
		beside := s.watching(b, sel, v.Revision, has("net/b", "1"))
		s.put("net/b", "1")
		v = beside()
		s.same(v, "net/a=1", "net/b=1")
		changed := s.watching(b, sel, v.Revision, has("net/a", "2"))
		s.put("net/a", "2")
		v = changed()
		s.same(v, "net/a=2", "net/b=1")
		deleted := s.watching(b, sel, v.Revision, lacks("net/a"))
		s.commit(new(kvstore.Txn).Delete("net/a"))
		v = deleted()
		s.same(v, "net/b=1")
		emptied := s.watching(b, sel, v.Revision, lacks("net/b"))
		s.commit(new(kvstore.Txn).Delete("net/b"))
		v = emptied()
		s.same(v)
		again := s.watching(b, sel, v.Revision, has("net/b", "3"))
		s.put("net/b", "3")
		again()
	}},
	{"a prefix is deleted above, at and below the watched one", func(s *story) {
		b := s.other()
		for _, prefix := range []string{"", "net/", "net/1/", "net/1/a", "net/1/a/b"} {
			s.commit(new(kvstore.Txn).Put("net/1/a/b/c", []byte("x")).Put("net/1/a/b/d", []byte("x")))
			below := s.watching(b, kvstore.Under("net/1/a/"), s.list(kvstore.Under("net/1/a/")).Revision, lacks("net/1/a/b/c"))
			one := s.watching(b, kvstore.OneKey("net/1/a/b/d"), s.list(kvstore.OneKey("net/1/a/b/d")).Revision, lacks("net/1/a/b/d"))
			s.commit(new(kvstore.Txn).DeletePrefix(prefix))
			s.same(below())
			s.same(one())
		}
	}},
	{"a same value put again wakes", func(s *story) {
		r1, b := s.put("a", "1"), s.other()
		again := s.watching(b, kvstore.OneKey("a"), s.list(kvstore.OneKey("a")).Revision, func(v kvstore.View) bool {
			return len(v.Entries) == 1 && v.Entries[0].Version > r1
		})
		s.put("a", "1")
		again()
	}},
	{"a neighbour's change does not wake", func(s *story) {
		// The first view that a watch returns is that of the change to the
		// selection, although many to its neighbours came before.
		if s.cluster.Restless {
			return // not a skip: it returns whatever happens
		}
		s.commit(new(kvstore.Txn).Put("net/1/a", []byte("1")).Put("net/1/b", []byte("1")))
		b := s.other()
		first := func(kvstore.View) bool { return true }
		key := s.watching(b, kvstore.OneKey("net/1/a"), s.list(kvstore.OneKey("net/1/a")).Revision, first)
		prefix := s.watching(b, kvstore.Under("net/1/"), s.list(kvstore.Under("net/1/")).Revision, first)
		for i := range 20 {
			s.put(fmt.Sprintf("net/2/%d", i), "x")
			s.put("net/1", "x")
			s.commit(new(kvstore.Txn).Delete("net/1").DeletePrefix("net/2/"))
		}
		s.put("net/1/b", "2")
		s.same(prefix(), "net/1/a=1", "net/1/b=2")
		s.put("net/1/a", "2")
		s.same(key(), "net/1/a=2")
	}},
	{"the last state is never skipped", func(s *story) {
		// A watcher that always asks from what it saw ends at the last state,
		// whatever happened between two calls.
		b, sel := s.other(), kvstore.Under("l/")
		var seen []kvstore.Revision
		done := s.watching(b, sel, 0, func(v kvstore.View) bool {
			seen = append(seen, v.Revision)
			return has("l/end", "x")(v)
		})
		for i := range 100 {
			s.put(fmt.Sprintf("l/%d", i%3), fmt.Sprint(i))
		}
		s.put("l/end", "x")
		s.same(done(), "l/0=99", "l/1=97", "l/2=98", "l/end=x")
		if !slices.IsSorted(seen) {
			s.Errorf("revisions went back: %d", seen)
		}
	}},
	{"many watchers, of one key and of many", func(s *story) {
		const n = 120
		b := s.other()
		s.put("head", "0")
		since := s.list(kvstore.Under("")).Revision
		var heads, waits []func() kvstore.View
		for i := range n {
			key := fmt.Sprintf("net/%d/head", i)
			heads = append(heads, s.watching(b, kvstore.OneKey("head"), since, has("head", "1")))
			waits = append(waits, s.watching(b, kvstore.OneKey(key), since, has(key, "1")))
		}
		// Calls go through while all of them wait.
		for i := range 10 {
			if _, err := b.Txn(s.ctx, new(kvstore.Txn).Put("other", fmt.Append(nil, i))); err != nil {
				s.Fatal(err)
			}
		}
		s.put("head", "1")
		for i := range n {
			s.put(fmt.Sprintf("net/%d/head", i), "1")
		}
		for _, w := range waits {
			w()
		}
		for _, w := range heads {
			v := w()
			if !has("head", "1")(v) {
				s.Fatalf("what one watcher did with its view is seen by another: %q", pairs(v))
			}
			clear(v.Entries[0].Value)
		}
	}},
	{"a revision the store never reached", func(s *story) {
		rev := s.put("a", "1")
		future := rev + 1<<40
		v, err := s.a.Watch(s.ctx, kvstore.Under(""), future)
		if err != nil || v.Revision >= future {
			s.Fatalf("watch since %d of a store at %d: %+v, %v", future, rev, v, err)
		}
		s.same(v, "a=1")
		v, err = s.a.Watch(s.ctx, kvstore.OneKey("b"), future)
		if err != nil || v.Revision >= future {
			s.Fatalf("watch since %d of a store at %d: %+v, %v", future, rev, v, err)
		}
		s.same(v)
	}},
	{"a cancelled watch returns", func(s *story) {
		for _, sel := range []kvstore.Selector{kvstore.OneKey("a"), kvstore.Under("a")} {
			since := s.list(sel).Revision
			ctx, cancel := context.WithCancel(s.ctx)
			wait := background(func() (kvstore.View, error) {
				for {
					v, err := s.a.Watch(ctx, sel, since)
					if err != nil {
						return v, err
					}
					since = v.Revision
				}
			})
			cancel()
			_, err := wait()
			s.is(err, context.Canceled)
			if errors.Is(err, kvstore.ErrUnavailable) {
				s.Errorf("a cancelled watch says that the store is away: %v", err)
			}
		}
	}},
}
