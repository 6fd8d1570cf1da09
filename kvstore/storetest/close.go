package storetest

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/carrick-net/carrick/kvstore"
)

// calls is one call of each method of a store.
func calls(st kvstore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Get":   func(ctx context.Context) error { _, err := st.Get(ctx, "a"); return err },
		"List":  func(ctx context.Context) error { _, err := st.List(ctx, kvstore.Under("a")); return err },
		"Watch": func(ctx context.Context) error { _, err := st.Watch(ctx, kvstore.Under("a"), 0); return err },
		"Txn": func(ctx context.Context) error {
			_, err := st.Txn(ctx, new(kvstore.Txn).Put("written", nil))
			return err
		},
		"empty Txn": func(ctx context.Context) error { _, err := st.Txn(ctx, new(kvstore.Txn)); return err },
		"Lease":     func(ctx context.Context) error { _, err := st.Lease(ctx, ttl); return err },
	}
}

var closeStories = []storyOf{
	{"a context that has ended", func(s *story) {
		ctx, cancel := context.WithCancel(s.ctx)
		cancel()
		for name, call := range calls(s.a) {
			if err := call(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, kvstore.ErrUnavailable) {
				s.Errorf("%s with a cancelled context: %v", name, err)
			}
		}
		s.holds(kvstore.Under(""))
	}},
	{"after Close everything is closed", func(s *story) {
		if err := s.a.Close(); err != nil {
			s.Fatal(err)
		}
		if err := s.a.Close(); err != nil {
			s.Errorf("closing twice: %v", err)
		}
		for name, call := range calls(s.a) {
			if err := call(s.ctx); !errors.Is(err, kvstore.ErrClosed) {
				s.Errorf("%s after Close: %v", name, err)
			}
		}
		s.a = s.cluster.Open(s.T)
		s.holds(kvstore.Under(""))
	}},
	{"Close ends what is under way", func(s *story) {
		since := s.list(kvstore.Under("a")).Revision
		var began, ended sync.WaitGroup
		for range 20 {
			began.Add(1)
			ended.Go(func() {
				began.Done()
				from := since
				for {
					v, err := s.a.Watch(s.ctx, kvstore.Under("a"), from)
					if errors.Is(err, kvstore.ErrClosed) {
						return
					}
					if err != nil {
						s.Errorf("a watch of a closed store: %v", err)
						return
					}
					from = v.Revision
				}
			})
		}
		began.Wait()
		if err := s.a.Close(); err != nil {
			s.Fatal(err)
		}
		ended.Wait()
	}},
	{"Close does not revoke leases", func(s *story) {
		l := s.lease(s.a)
		s.commit(new(kvstore.Txn).PutLeased("node/a", []byte("up"), l.ID()).Put("stays", []byte("1")))
		if err := s.a.Close(); err != nil {
			s.Fatal(err)
		}
		s.lost(l)
		if err := l.Close(s.ctx); !errors.Is(err, kvstore.ErrClosed) {
			s.Errorf("closing a lease of a closed store: %v", err)
		}
		if s.cluster.Single {
			return // nobody is left to look; the backend's tests say what its next start finds
		}
		s.a = s.other()
		s.holds(kvstore.Under(""), "node/a=up", "stays=1")
	}},
	{"what was written stays", func(s *story) {
		rev := s.put("a", "1")
		if err := s.a.Close(); err != nil {
			s.Fatal(err)
		}
		s.a = s.cluster.Open(s.T)
		if v := s.holds(kvstore.Under(""), "a=1"); v.Entries[0].Version != rev {
			s.Errorf("version %d became %d", rev, v.Entries[0].Version)
		}
		if r := s.put("a", "2"); r <= rev {
			s.Errorf("revision went from %d to %d", rev, r)
		}
	}},
	{"the name of a store", func(s *story) {
		if name := s.a.String(); name == "" || strings.Contains(name, "secret") {
			s.Errorf("the store calls itself %q", name)
		}
	}},
}
