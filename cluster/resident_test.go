package cluster_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// heedful is a store that notes which watches were answered with nothing: Consul
// would answer those at every write of anybody.
type heedful struct {
	kvstore.Store
	mu    sync.Mutex // guards empty
	empty map[string]bool
}

func (h *heedful) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	v, err := h.Store.Watch(ctx, sel, since)
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.empty[sel.String()] = len(v.Entries) == 0
	}
	return v, err
}

func (h *heedful) idle() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.empty) == 0 {
		return "nothing watched yet"
	}
	var out []string
	for sel, empty := range h.empty {
		if empty {
			out = append(out, sel)
		}
	}
	return strings.Join(out, " ")
}

// Nothing that a host watches is empty, whatever happens to the store.
func TestNoWatchOfNothing(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	var heeds []*heedful
	var hosts []*sim.Host
	for i := 1; i <= 3; i++ {
		h := &heedful{empty: map[string]bool{}}
		heeds = append(heeds, h)
		hosts = append(hosts, sim.NewHostWith(t, s, sim.Options{Number: i, Wrap: func(c *memory.Client) kvstore.Store {
			h.Store = c
			return h
		}}))
	}
	quiet := func(when string) {
		t.Helper()
		sim.Eventually(t, "no watch of nothing "+when, func() bool {
			for _, h := range heeds {
				if h.idle() != "" {
					return false
				}
			}
			return true
		})
	}
	quiet("after the start")
	hosts[0].MustRun(hosts[0].MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"}), sim.Run{})
	snap := s.Snapshot()
	if d := s.Dump(); !strings.Contains(d, "v1/removed ") || strings.Count(d, "v1/ask/") != 3 {
		t.Errorf("not one for each prefix:\n%s", d)
	}
	s.Wipe()
	quiet("after the store was wiped")
	s.Restore(snap)
	quiet("after it was restored")
	if _, err := hosts[0].Store.Txn(t.Context(), (&kvstore.Txn{}).Delete("v1/removed").DeletePrefix("v1/ask/")); err != nil {
		t.Fatal(err)
	}
	quiet("after somebody deleted them")
}
