package local

import (
	"strings"
	"sync"

	"github.com/carrick-net/carrick/kvstore"
)

// remembered is how many changes a Hub keeps at least. A watcher that was away for
// longer gets the view at once, which a watch may always do.
const remembered = 4096

// Hub tells watchers of changes to what they selected, and remembers recent
// changes so that a watcher can ask about a revision of the past. All methods
// are safe for concurrent use.
type Hub struct {
	mu      sync.Mutex // guards everything below
	floor   kvstore.Revision
	log     []change // by ascending revision, all above floor
	waiters map[*Waiter]struct{}
}

type change struct {
	sel kvstore.Selector
	rev kvstore.Revision
}

// Waiter is one watcher's place in a hub.
type Waiter struct {
	hub *Hub
	sel kvstore.Selector
	c   chan struct{}
}

// NewHub returns a hub that knows of no change after rev.
func NewHub(rev kvstore.Revision) *Hub {
	return &Hub{floor: rev, waiters: make(map[*Waiter]struct{})}
}

// Join registers a watcher of sel. Join first and look at the store afterwards,
// so that no change falls between.
func (h *Hub) Join(sel kvstore.Selector) *Waiter {
	w := &Waiter{hub: h, sel: sel, c: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiters[w] = struct{}{}
	return w
}

// Leave ends the watch.
func (w *Waiter) Leave() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	delete(w.hub.waiters, w)
}

// C receives after changes to the selection; several may be one.
func (w *Waiter) C() <-chan struct{} { return w.c }

// Publish reports the changes of one transaction. Revisions ascend from call to
// call.
func (h *Hub) Publish(rev kvstore.Revision, sels []kvstore.Selector) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range sels {
		h.log = append(h.log, change{sel: s, rev: rev})
	}
	if extra := len(h.log) - remembered; extra > remembered { // trimmed seldom, since it copies
		// The floor is a whole revision: changes of the same transaction that
		// are still in the log are merely reported a second time.
		h.floor = h.log[extra-1].rev
		h.log = append([]change(nil), h.log[extra:]...)
	}
	for w := range h.waiters {
		for _, s := range sels {
			if overlap(w.sel, s) {
				w.wake()
				break
			}
		}
	}
}

// Reset forgets every change and wakes every watcher: the store is another one
// now, at revision rev.
func (h *Hub) Reset(rev kvstore.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.floor, h.log = rev, nil
	for w := range h.waiters {
		w.wake()
	}
}

// Changed says whether the selection may have changed after since, in a store
// that is now at revision now.
func (h *Hub) Changed(sel kvstore.Selector, since, now kvstore.Revision) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if since == 0 || since > now || since < h.floor {
		return true
	}
	for i := len(h.log) - 1; i >= 0 && h.log[i].rev > since; i-- {
		if overlap(sel, h.log[i].sel) {
			return true
		}
	}
	return false
}

func (w *Waiter) wake() {
	select {
	case w.c <- struct{}{}:
	default: // one is waiting to be received already
	}
}

// overlap says whether some key can be in both selections.
func overlap(a, b kvstore.Selector) bool {
	switch {
	case a.Prefix && b.Prefix:
		return strings.HasPrefix(a.Key, b.Key) || strings.HasPrefix(b.Key, a.Key)
	case a.Prefix:
		return a.Match(b.Key)
	default:
		return b.Match(a.Key)
	}
}
