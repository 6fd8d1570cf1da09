package local

import (
	"fmt"
	"testing"

	"github.com/carrick-net/carrick/kvstore"
)

var (
	key = kvstore.OneKey
	all = kvstore.Under
)

func TestChanged(t *testing.T) {
	t.Parallel()
	h := NewHub(10)
	h.Publish(11, []kvstore.Selector{key("net/a")})
	h.Publish(12, []kvstore.Selector{key("node/x"), all("net/b/")})
	for _, c := range []struct {
		sel   kvstore.Selector
		since kvstore.Revision
		want  bool
	}{
		{key("net/a"), 0, true},  // nothing seen yet
		{key("net/a"), 9, true},  // before what is remembered
		{key("net/a"), 13, true}, // after what there is
		{key("net/a"), 10, true},
		{key("net/a"), 11, false},
		{key("net/c"), 10, false},
		{key("net/b"), 10, false},
		{key("net/b/1"), 11, true},
		{key("net/b/1"), 12, false},
		{all("net/"), 11, true},
		{all("net/b/1"), 11, true},
		{all("net/a"), 11, false},
		{all("node/"), 11, true},
		{all(""), 11, true},
		{all(""), 12, false},
		{all("z"), 10, false},
	} {
		if got := h.Changed(c.sel, c.since, 12); got != c.want {
			t.Errorf("%s changed after %d: %t, want %t", c.sel, c.since, got, c.want)
		}
	}
}

// What is not remembered any more counts as a change, and nothing else does.
func TestChangedLongAgo(t *testing.T) {
	t.Parallel()
	const last = 5 * remembered
	h := NewHub(0)
	for r := kvstore.Revision(1); r <= last; r++ {
		h.Publish(r, []kvstore.Selector{key(fmt.Sprint("k/", r%7))})
	}
	if len(h.log) < remembered || len(h.log) > 2*remembered {
		t.Errorf("%d changes are remembered", len(h.log))
	}
	for since := kvstore.Revision(1); since <= last; since += 97 {
		want := since < h.floor
		if got := h.Changed(key("quiet"), since, last); got != want {
			t.Fatalf("quiet changed after %d: %t, want %t; the log begins after %d", since, got, want, h.floor)
		}
		if got := h.Changed(all("k/"), since, last); got != (since < last) {
			t.Fatalf("k/ changed after %d: %t", since, got)
		}
	}
	h.Reset(3)
	if h.Changed(all(""), 3, 3) || !h.Changed(all(""), 2, 3) || !h.Changed(all(""), 4, 3) {
		t.Error("a reset hub remembers its past")
	}
}

func TestWaiters(t *testing.T) {
	t.Parallel()
	h := NewHub(1)
	woken := func(w *Waiter) bool {
		select {
		case <-w.C():
			return true
		default:
			return false
		}
	}
	a, b := h.Join(key("net/a")), h.Join(all("net/"))
	h.Publish(2, []kvstore.Selector{key("net/b")})
	if woken(a) || !woken(b) {
		t.Error("net/b wakes net/a or does not wake net/*")
	}
	h.Publish(3, []kvstore.Selector{key("net/a"), key("net/c")})
	h.Publish(4, []kvstore.Selector{all("net/a")})
	if !woken(a) || woken(a) || !woken(b) || woken(b) {
		t.Error("several changes are not one wake")
	}
	b.Leave()
	h.Reset(1)
	if !woken(a) || woken(b) {
		t.Error("a reset does not wake who is there, or wakes who has left")
	}
}
