package storetest

import (
	"github.com/carrick-net/carrick/kvstore"
)

var leaseStories = []storyOf{
	{"leased keys vanish when the lease is closed", func(s *story) {
		b := s.other()
		l := s.lease(s.a)
		rev := s.commit(new(kvstore.Txn).PutLeased("node/a", []byte("up"), l.ID()).PutLeased("node/a/x", nil, l.ID()).Put("stays", []byte("1")))
		if e := s.get("node/a"); e.Lease != l.ID() || e.Version != rev || string(e.Value) != "up" {
			s.Fatalf("got %+v, want version %d and lease %s", e, rev, l.ID())
		}
		if v := s.list(kvstore.Under("node/")); len(v.Entries) != 2 || v.Entries[0].Lease != l.ID() {
			s.Fatalf("list shows %+v", v.Entries)
		}
		if e := s.get("stays"); e.Lease != "" {
			s.Fatalf("a plain key has lease %s", e.Lease)
		}
		gone := s.watching(b, kvstore.Under("node/"), s.list(kvstore.Under("node/")).Revision, lacks("node/a"))
		s.alive(l)
		if err := l.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		s.holds(kvstore.Under(""), "stays=1")
		s.same(gone())
		s.lost(l)
		if err := l.Close(s.ctx); err != nil {
			s.Errorf("closing twice: %v", err)
		}
	}},
	{"two leases do not touch each other", func(s *story) {
		l1, l2 := s.lease(s.a), s.lease(s.other())
		if l1.ID() == l2.ID() {
			s.Fatalf("both leases are %s", l1.ID())
		}
		s.commit(new(kvstore.Txn).PutLeased("node/1", nil, l1.ID()))
		s.commit(new(kvstore.Txn).PutLeased("node/2", nil, l2.ID()))
		if err := l1.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		s.holds(kvstore.Under(""), "node/2=")
		s.alive(l2)
	}},
	{"a leased key changes and is put anew", func(s *story) {
		l := s.lease(s.a)
		r1 := s.commit(new(kvstore.Txn).PutLeased("node/a", []byte("1"), l.ID()))
		r2 := s.commit(new(kvstore.Txn).Version("node/a", r1).PutLeased("node/a", []byte("2"), l.ID()))
		e := s.get("node/a")
		if string(e.Value) != "2" || e.Version != r2 || e.Lease != l.ID() || r2 <= r1 {
			s.Fatalf("got %+v after revisions %d and %d", e, r1, r2)
		}
		s.commit(new(kvstore.Txn).Delete("node/a"))
		s.absent("node/a")
		s.commit(new(kvstore.Txn).Absent("node/a").PutLeased("node/a", []byte("3"), l.ID()))
		if err := l.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		s.absent("node/a")
	}},
	{"a key changes over to another lease", func(s *story) {
		// An agent that was killed and starts again: its former lease is still
		// alive at the server.
		former, now := s.lease(s.a), s.lease(s.other())
		s.commit(new(kvstore.Txn).PutLeased("node/a", []byte("former"), former.ID()))
		rev := s.commit(new(kvstore.Txn).PutLeased("node/a", []byte("now"), now.ID()))
		if e := s.get("node/a"); e.Lease != now.ID() || string(e.Value) != "now" || e.Version != rev {
			s.Fatalf("got %+v, want lease %s and version %d", e, now.ID(), rev)
		}
		if err := former.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		s.holds(kvstore.Under(""), "node/a=now")
		s.commit(new(kvstore.Txn).Held("node/a", now.ID()))
	}},
	{"a plain key becomes a leased one", func(s *story) {
		s.put("node/a", "plain")
		l := s.lease(s.a)
		s.commit(new(kvstore.Txn).PutLeased("node/a", []byte("leased"), l.ID()))
		if err := l.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		s.absent("node/a")
	}},
	{"a condition on a lease", func(s *story) {
		l, other := s.lease(s.a), s.lease(s.a)
		s.commit(new(kvstore.Txn).PutLeased("node/a", nil, l.ID()).Put("plain", nil))
		s.commit(new(kvstore.Txn).Held("node/a", l.ID()).Put("w", []byte("1")))
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Held("node/a", other.ID()).Put("w", []byte("2")))
		s.conflict(err, "node/a")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Held("plain", l.ID()).Put("w", []byte("2")))
		s.conflict(err, "plain")
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Held("absent", l.ID()).Put("w", []byte("2")))
		s.conflict(err, "absent")
		if err := l.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Held("node/a", l.ID()).Put("w", []byte("2")))
		s.conflict(err, "node/a")
		s.holds(kvstore.OneKey("w"), "w=1")
	}},
	{"writing with a lease that is gone", func(s *story) {
		l := s.lease(s.a)
		if err := l.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		for _, id := range []kvstore.LeaseID{l.ID(), "00000000-0000-0000-0000-000000000000", "nonsense"} {
			_, err := s.a.Txn(s.ctx, new(kvstore.Txn).Put("a", nil).PutLeased("node/a", nil, id))
			s.is(err, kvstore.ErrLeaseLost)
			// A condition that does not hold comes first.
			_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Version("a", 7).PutLeased("node/a", nil, id))
			s.conflict(err, "a")
		}
		s.holds(kvstore.Under(""))
	}},
	{"any client may write with a lease", func(s *story) {
		l, b := s.lease(s.a), s.other()
		if _, err := b.Txn(s.ctx, new(kvstore.Txn).PutLeased("node/a", nil, l.ID())); err != nil {
			s.Fatal(err)
		}
		if err := l.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		s.absent("node/a")
	}},
	{"a lease expires", func(s *story) {
		if s.cluster.Expire == nil {
			// Not a skip: without time there is only the end of the process,
			// which the backend's own tests show.
			return
		}
		b := s.other()
		l := s.lease(s.a)
		s.commit(new(kvstore.Txn).PutLeased("node/a", nil, l.ID()).Put("stays", nil))
		gone := s.watching(b, kvstore.Under("node/"), s.list(kvstore.Under("node/")).Revision, lacks("node/a"))
		s.cluster.Expire(s.T, l.ID())
		gone()
		s.holds(kvstore.Under(""), "stays=")
		_, err := s.a.Txn(s.ctx, new(kvstore.Txn).PutLeased("node/a", nil, l.ID()))
		s.is(err, kvstore.ErrLeaseLost)
		s.lost(l)
		if err := l.Close(s.ctx); err != nil {
			s.Errorf("closing a lost lease: %v", err)
		}
	}},
}
