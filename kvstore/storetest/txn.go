package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/carrick-net/carrick/kvstore"
)

var txnStories = []storyOf{
	{"a revision is that of every key put, and grows", func(s *story) {
		r1 := s.commit(new(kvstore.Txn).Put("a", []byte("1")).Put("b", []byte("1")).Put("c/d", []byte("1")))
		for _, k := range []string{"a", "b", "c/d"} {
			if v := s.get(k).Version; v != r1 {
				s.Errorf("%s has version %d, its transaction returned %d", k, v, r1)
			}
		}
		if r2 := s.put("b", "2"); r2 <= r1 {
			s.Errorf("revision went from %d to %d", r1, r2)
		}
		if v := s.get("a").Version; v != r1 {
			s.Errorf("writing b changed the version of a from %d to %d", r1, v)
		}
	}},
	{"an unchanged value is a new version all the same", func(s *story) {
		r1 := s.put("a", "same")
		r2 := s.commit(new(kvstore.Txn).Put("a", []byte("same")).Put("b", []byte("new")))
		if r2 <= r1 || s.get("a").Version != r2 || s.get("b").Version != r2 {
			s.Fatalf("put with %d, the same again with %d: a has %d, b has %d", r1, r2, s.get("a").Version, s.get("b").Version)
		}
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", r1).Put("a", []byte("same")))
		s.conflict(err, "a")
	}},
	{"without a put there is no revision", func(s *story) {
		s.put("a", "1")
		for _, t := range []*kvstore.Txn{
			{},
			new(kvstore.Txn).Absent("b"),
			new(kvstore.Txn).Delete("b"),
			new(kvstore.Txn).Delete("a"),
			new(kvstore.Txn).DeletePrefix("a"),
		} {
			if rev := s.commit(t); rev != 0 {
				s.Errorf("%+v returned revision %d", *t, rev)
			}
		}
	}},
	{"a condition on a version", func(s *story) {
		r1 := s.put("a", "1")
		r2 := s.commit(new(kvstore.Txn).Version("a", r1).Put("a", []byte("2")))
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", r1).Put("a", []byte("3")))
		s.conflict(err, "a")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", r2+1000).Put("a", []byte("3")))
		s.conflict(err, "a")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Version("nowhere", r2).Put("a", []byte("3")))
		s.conflict(err, "nowhere")
		s.holds(kvstore.Under(""), "a=2")
		s.commit(new(kvstore.Txn).Version("a", r2).Delete("a"))
		s.absent("a")
	}},
	{"a key made anew is not the old one", func(s *story) {
		r1 := s.put("a", "1")
		s.commit(new(kvstore.Txn).Delete("a"))
		s.put("a", "1")
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", r1).Delete("a"))
		s.conflict(err, "a")
		s.holds(kvstore.Under(""), "a=1")
	}},
	{"a condition on absence", func(s *story) {
		s.commit(new(kvstore.Txn).Absent("a").Put("a", []byte("1")))
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Absent("a").Put("a", []byte("2")))
		s.conflict(err, "a")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", 0).Put("a", []byte("2")))
		s.conflict(err, "a")
		s.commit(new(kvstore.Txn).Absent("a/b").Absent("b").Put("b", nil))
	}},
	{"conditions without operations", func(s *story) {
		rev := s.put("a", "1")
		s.commit(new(kvstore.Txn).Version("a", rev).Absent("b"))
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", rev+1))
		s.conflict(err, "a")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Absent("a"))
		s.conflict(err, "a")
	}},
	{"conditions speak of the state before the operations", func(s *story) {
		r := s.put("a", "1")
		s.commit(new(kvstore.Txn).Version("a", r).Absent("b").Put("a", []byte("2")).Put("b", []byte("2")))
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Absent("a").Delete("a"))
		s.conflict(err, "a")
		s.holds(kvstore.Under(""), "a=2", "b=2")
	}},
	{"all or nothing", func(s *story) {
		s.put("old/1", "x")
		s.put("old/2", "x")
		before := s.list(kvstore.Under(""))
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).
			Absent("new").Absent("old/1").Absent("other").Version("old/2", 1<<40).
			Put("new", []byte("1")).Put("old/1", []byte("1")).Delete("old/2"))
		s.conflict(err, "old/1", "old/2")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Absent("old/1").DeletePrefix("old/").Put("new", nil))
		s.conflict(err, "old/1")
		s.same(s.list(kvstore.Under("")), pairs(before)...)
		if got := s.get("old/1").Version; got != before.Entries[0].Version {
			s.Errorf("a failed transaction changed a version from %d to %d", before.Entries[0].Version, got)
		}
	}},
	{"deleting", func(s *story) {
		s.put("a", "1")
		s.put("a/b", "1")
		s.commit(new(kvstore.Txn).Delete("a").Delete("never"))
		s.holds(kvstore.Under(""), "a/b=1")
		s.commit(new(kvstore.Txn).Delete("a"))
	}},
	{"deleting a prefix within a transaction", func(s *story) {
		for _, k := range []string{"net/1", "net/1/a", "net/1/b/c", "net/10", "net/2/a"} {
			s.put(k, "x")
		}
		rev := s.commit(new(kvstore.Txn).Absent("net/3").DeletePrefix("net/1/").Put("net/3", []byte("x")).Delete("net/2/a"))
		s.holds(kvstore.Under(""), "net/1=x", "net/10=x", "net/3=x")
		if v := s.get("net/3").Version; v != rev {
			s.Errorf("version %d, revision %d", v, rev)
		}
		s.commit(new(kvstore.Txn).DeletePrefix("nothing/here/"))
		s.commit(new(kvstore.Txn).DeletePrefix("net/1"))
		s.holds(kvstore.Under(""), "net/3=x")
		s.commit(new(kvstore.Txn).DeletePrefix(""))
		s.holds(kvstore.Under(""))
	}},
	{"the largest transaction", func(s *story) {
		t := new(kvstore.Txn)
		for i := range kvstore.MaxTxnOps / 2 {
			k := fmt.Sprintf("big/%03d", i)
			t.Absent(k).Put(k, bytes.Repeat([]byte{byte(i)}, (kvstore.MaxTxnBytes-4096)/(kvstore.MaxTxnOps/2)))
		}
		s.commit(t)
		if v := s.list(kvstore.Under("big/")); len(v.Entries) != kvstore.MaxTxnOps/2 {
			s.Fatalf("%d of %d keys", len(v.Entries), kvstore.MaxTxnOps/2)
		}
		s.commit(new(kvstore.Txn).Put("one", make([]byte, kvstore.MaxValue)))
		if n := len(s.get("one").Value); n != kvstore.MaxValue {
			s.Fatalf("put %d bytes, got %d", kvstore.MaxValue, n)
		}
	}},
	{"too large is refused", func(s *story) {
		many := new(kvstore.Txn)
		for i := range kvstore.MaxTxnOps + 1 {
			many.Put(fmt.Sprintf("k/%d", i), nil)
		}
		conds := new(kvstore.Txn).Put("k", nil)
		for i := range kvstore.MaxTxnOps {
			conds.Absent(fmt.Sprintf("c/%d", i))
		}
		leased := new(kvstore.Txn)
		for i := range kvstore.MaxTxnOps/2 + 1 {
			leased.PutLeased(fmt.Sprintf("k/%d", i), nil, "l")
		}
		for name, t := range map[string]*kvstore.Txn{
			"operations":  many,
			"conditions":  conds,
			"leased puts": leased,
			"one value":   new(kvstore.Txn).Put("k", make([]byte, kvstore.MaxValue+1)),
			"all values":  new(kvstore.Txn).Put("k", make([]byte, kvstore.MaxValue)).Put("l", make([]byte, kvstore.MaxTxnBytes-kvstore.MaxValue)),
		} {
			if _, err := s.a.Txn(s.ctx, t); !errors.Is(err, kvstore.ErrTooLarge) {
				s.Errorf("too many %s: %v, want ErrTooLarge", name, err)
			}
		}
		s.holds(kvstore.Under(""))
	}},
	{"one operation per key", func(s *story) {
		for _, t := range []*kvstore.Txn{
			new(kvstore.Txn).Put("a", nil).Put("a", nil),
			new(kvstore.Txn).Put("a", nil).Delete("a"),
			new(kvstore.Txn).Put("a/b", nil).DeletePrefix("a/"),
			new(kvstore.Txn).DeletePrefix("a").DeletePrefix("a/b"),
			new(kvstore.Txn).DeletePrefix("").Delete("a"),
			{Conds: []kvstore.Cond{{Kind: kvstore.IfVersion, Key: "a"}}},
			{Conds: []kvstore.Cond{{Kind: kvstore.IfLease, Key: "a"}}},
			{Conds: []kvstore.Cond{{Key: "a"}}},
			{Ops: []kvstore.Op{{Key: "a"}}},
			{Ops: []kvstore.Op{{Kind: kvstore.OpDelete, Key: "a", Value: []byte("x")}}},
		} {
			_, err := s.a.Txn(s.ctx, t)
			s.is(err, kvstore.ErrInvalid)
		}
		s.holds(kvstore.Under(""))
	}},
	{"sixteen writers, no update lost", func(s *story) {
		const writers, each = 16, 6
		clients := make([]kvstore.Store, writers)
		for i := range clients {
			clients[i] = s.other()
		}
		var wg sync.WaitGroup
		for w, st := range clients {
			wg.Go(func() {
				for i := range each {
					if err := increment(s.ctx, st, fmt.Sprintf("log/%02d-%d", w, i)); err != nil {
						s.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if got := string(s.get("counter").Value); got != fmt.Sprint(writers*each) {
			s.Fatalf("%d increments made %s", writers*each, got)
		}
		// Each increment recorded the count it made: none may be there twice.
		seen := make(map[string]string)
		for _, e := range s.list(kvstore.Under("log/")).Entries {
			if before, twice := seen[string(e.Value)]; twice {
				s.Errorf("%s and %s both made %s", before, e.Key, e.Value)
			}
			seen[string(e.Value)] = e.Key
		}
		if len(seen) != writers*each {
			s.Errorf("%d increments are recorded, want %d", len(seen), writers*each)
		}
	}},
	{"one of many creators wins", func(s *story) {
		const rounds, creators = 5, 8
		clients := make([]kvstore.Store, creators)
		for i := range clients {
			clients[i] = s.other()
		}
		for r := range rounds {
			key := fmt.Sprintf("addr/%d", r)
			won := make(chan string, creators)
			var wg sync.WaitGroup
			for i, st := range clients {
				wg.Go(func() {
					name := fmt.Sprint("host-", i)
					_, err := st.Txn(s.ctx, new(kvstore.Txn).Absent(key).Put(key, []byte(name)))
					switch {
					case err == nil:
						won <- name
					case !errors.Is(err, kvstore.ErrConflict):
						s.Error(err)
					}
				})
			}
			wg.Wait()
			close(won)
			var names []string
			for n := range won {
				names = append(names, n)
			}
			if len(names) != 1 || string(s.get(key).Value) != names[0] {
				s.Fatalf("%s was given to %q and is %q's", key, names, s.get(key).Value)
			}
		}
	}},
}

// increment adds one to the counter and records the result under logKey, trying
// until nobody else came between.
func increment(ctx context.Context, st kvstore.Store, logKey string) error {
	for {
		var n int
		e, err := st.Get(ctx, "counter")
		switch {
		case err == nil:
			if _, err := fmt.Sscan(string(e.Value), &n); err != nil {
				return err
			}
		case !errors.Is(err, kvstore.ErrNotFound):
			return err
		}
		next := fmt.Append(nil, n+1)
		_, err = st.Txn(ctx, new(kvstore.Txn).
			Version("counter", e.Version).Absent(logKey).
			Put("counter", next).Put(logKey, next))
		if !errors.Is(err, kvstore.ErrConflict) {
			return err
		}
		var ce *kvstore.ConflictError
		if errors.As(err, &ce) && len(ce.Keys) == 1 && ce.Keys[0] == logKey {
			return fmt.Errorf("%s exists already: a refused transaction was applied", logKey)
		}
	}
}
