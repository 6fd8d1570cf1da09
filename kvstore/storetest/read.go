package storetest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/carrick-net/carrick/kvstore"
)

var readStories = []storyOf{
	{"an empty store", func(s *story) {
		s.absent("no/such/key")
		s.holds(kvstore.Under(""))
		s.holds(kvstore.OneKey("no/such/key"))
	}},
	{"what was put can be got", func(s *story) {
		rev := s.put("net/1/conf", "vxlan")
		e := s.get("net/1/conf")
		if e.Key != "net/1/conf" || string(e.Value) != "vxlan" || e.Version != rev || e.Lease != "" {
			s.Fatalf("got %+v after a put with revision %d", e, rev)
		}
		s.absent("net/1")
		s.absent("net/1/conf/x")
		s.absent("net/1/con")
	}},
	{"another client sees a write as soon as it has ended", func(s *story) {
		b := s.other()
		for i := range 20 {
			want := fmt.Sprint(i)
			rev := s.put("k", want)
			e, err := b.Get(s.ctx, "k")
			if err != nil || string(e.Value) != want || e.Version != rev {
				s.Fatalf("wrote %q with revision %d, another client got %+v, %v", want, rev, e, err)
			}
			v, err := b.List(s.ctx, kvstore.Under("k"))
			if err != nil || len(v.Entries) != 1 || v.Entries[0].Version != rev {
				s.Fatalf("wrote %q with revision %d, another client listed %+v, %v", want, rev, v, err)
			}
		}
	}},
	{"a prefix is of bytes, not of segments", func(s *story) {
		for _, k := range []string{"a", "a/b", "a/b/c", "ab", "a-b", "b", "A", "b/a"} {
			s.put(k, "x")
		}
		s.holds(kvstore.Under("a"), "a=x", "a-b=x", "a/b=x", "a/b/c=x", "ab=x")
		s.holds(kvstore.Under("a/"), "a/b=x", "a/b/c=x")
		s.holds(kvstore.Under("a/b"), "a/b=x", "a/b/c=x")
		s.holds(kvstore.Under("a/b/c"), "a/b/c=x")
		s.holds(kvstore.Under("a/b/c/"))
		s.holds(kvstore.Under(""), "A=x", "a=x", "a-b=x", "a/b=x", "a/b/c=x", "ab=x", "b=x", "b/a=x")
		s.holds(kvstore.OneKey("a"), "a=x")
	}},
	{"a list is sorted by bytes", func(s *story) {
		for _, k := range []string{"p/10", "p/9", "p/1", "p/é", "p/a", "p/Z", "p/世", "p/ x"} {
			s.put(k, "")
		}
		s.holds(kvstore.Under("p/"), "p/ x=", "p/1=", "p/10=", "p/9=", "p/Z=", "p/a=", "p/é=", "p/世=")
	}},
	{"a list of a thousand keys is whole", func(s *story) {
		var want []string
		for i := 0; i < 1000; {
			t := new(kvstore.Txn)
			for ; i < 1000 && len(t.Ops) < kvstore.MaxTxnOps; i++ {
				k := fmt.Sprintf("many/%04d", i)
				t.Put(k, []byte("v"))
				want = append(want, k+"=v")
			}
			s.commit(t)
		}
		s.holds(kvstore.Under("many/"), want...)
	}},
	{"a list is consistent", func(s *story) {
		// Two keys that are always written together are never seen apart.
		stop := make(chan struct{})
		done := background(func() (int, error) {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return i, nil
				default:
				}
				v := fmt.Appendf(nil, "%d", i)
				if _, err := s.a.Txn(s.ctx, new(kvstore.Txn).Put("pair/a", v).Put("pair/b", v)); err != nil {
					return i, err
				}
			}
		})
		b := s.other()
		for range 50 {
			v, err := b.List(s.ctx, kvstore.Under("pair/"))
			if err != nil {
				s.Errorf("list: %v", err)
				break
			}
			if n := len(v.Entries); n == 1 || n == 2 && !bytes.Equal(v.Entries[0].Value, v.Entries[1].Value) {
				s.Errorf("half a transaction is visible: %q", pairs(v))
				break
			}
		}
		close(stop)
		if _, err := done(); err != nil {
			s.Fatal(err)
		}
	}},
	{"any byte is a value", func(s *story) {
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		for i, v := range [][]byte{all, {}, nil, {0}, []byte("null"), []byte(`"`), bytes.Repeat([]byte{0xff}, 1000)} {
			key := fmt.Sprintf("bin/%d", i)
			s.commit(new(kvstore.Txn).Put(key, v))
			if got := s.get(key).Value; !bytes.Equal(got, v) {
				s.Errorf("put %x, got %x", v, got)
			}
		}
	}},
	{"odd characters in keys", func(s *story) {
		keys := []string{
			"o/a b", "o/ a / b", "o/a?b=c", "o/a#b", "o/a&b;c", "o/a+b", "o/a:b@c", "o/[::1]:80", "o/10.0.0.0_8",
			`o/a"b'c`, `o/a\b`, "o/<a>", "o/é世", "o/...", "o/.a", "o/~", "o/{a}$b!*()", "o/a,b=c^`|",
			"o/" + strings.Repeat("x", kvstore.MaxKey-2),
		}
		for i, k := range keys {
			s.commit(new(kvstore.Txn).Absent(k).Put(k, fmt.Append(nil, i)))
		}
		for i, k := range keys {
			e := s.get(k)
			if e.Key != k || string(e.Value) != fmt.Sprint(i) {
				s.Errorf("put %q under %q, got %q under %q", fmt.Sprint(i), k, e.Value, e.Key)
			}
			if v := s.holds(kvstore.OneKey(k), fmt.Sprintf("%s=%d", k, i)); v.Entries[0].Version != e.Version {
				s.Errorf("get and list disagree on the version of %q", k)
			}
			if v := s.list(kvstore.Under(k)); !has(k, fmt.Sprint(i))(v) {
				s.Errorf("%q is not among what begins with it", k)
			}
			if _, err := s.a.Watch(s.ctx, kvstore.OneKey(k), 0); err != nil {
				s.Errorf("watch %q: %v", k, err)
			}
			s.commit(new(kvstore.Txn).Version(k, e.Version).Delete(k))
			s.absent(k)
		}
	}},
	{"keys of another form are refused", func(s *story) {
		for _, k := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "a/..", "a\x00b", "a\nb", "a\x7f", "\xff", "a\u200bb", "a%20b", "%", " a", "a ", " "} {
			_, err := s.a.Get(s.ctx, k)
			s.is(err, kvstore.ErrInvalid)
			_, err = s.a.List(s.ctx, kvstore.OneKey(k))
			s.is(err, kvstore.ErrInvalid)
			_, err = s.a.Watch(s.ctx, kvstore.OneKey(k), 0)
			s.is(err, kvstore.ErrInvalid)
			_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Put(k, nil))
			s.is(err, kvstore.ErrInvalid)
			_, err = s.a.Txn(s.ctx, new(kvstore.Txn).Absent(k))
			s.is(err, kvstore.ErrInvalid)
		}
		for _, p := range []string{"/", "/a", "a//", "a/..", "a\n", "a ", "a%"} {
			_, err := s.a.List(s.ctx, kvstore.Under(p))
			s.is(err, kvstore.ErrInvalid)
		}
		_, err := s.a.Get(s.ctx, strings.Repeat("x", kvstore.MaxKey+1))
		s.is(err, kvstore.ErrTooLarge)
		s.holds(kvstore.Under(""))
	}},
	{"values are not shared", func(s *story) {
		value := []byte("right")
		s.commit(new(kvstore.Txn).Put("k", value))
		copy(value, "WRONG")
		e := s.get("k")
		if string(e.Value) != "right" {
			s.Fatalf("a caller's slice was kept: %q", e.Value)
		}
		copy(e.Value, "WRONG")
		v := s.holds(kvstore.Under(""), "k=right")
		copy(v.Entries[0].Value, "WRONG")
		w, err := s.a.Watch(s.ctx, kvstore.OneKey("k"), 0)
		if err != nil {
			s.Fatal(err)
		}
		s.same(w, "k=right")
		copy(w.Entries[0].Value, "WRONG")
		s.holds(kvstore.OneKey("k"), "k=right")
	}},
}
