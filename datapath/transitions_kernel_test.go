package datapath_test

import (
	"math/rand/v2"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
)

// fresh is what each plan leads to on a host that held nothing.
func fresh(t *testing.T, h *realHost) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, p := range plans() {
		h.apply(p)
		out[name] = h.reading()
		h.apply(absent())
	}
	return out
}

func TestEveryPlanFollowsEveryOtherOnTheRealKernel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	nstest.Run(t, h.NS, "ip link add vxlan0 type bridge") // names in the host do not matter
	nstest.Run(t, h.NS, "ip link add br0 type bridge")
	want := fresh(t, h)
	names := sortedNames(want)
	todo := map[[2]string]bool{}
	for _, from := range names {
		for _, to := range names {
			todo[[2]string{from, to}] = true
		}
	}
	now := "absent"
	for len(todo) > 0 {
		// To a neighbour that is still to be seen, if there is one.
		next := names[rng.IntN(len(names))]
		for _, i := range rng.Perm(len(names)) {
			if todo[[2]string{now, names[i]}] {
				next = names[i]
				break
			}
		}
		if rng.IntN(2) == 0 {
			h.a.QueueResync("an audit that is due at the same time")
		}
		rep := h.apply(plans()[next])
		audit, err := h.a.Audit(t.Context())
		if err != nil || rep.Drift.Total() != 0 || audit.Drift.Total() != 0 || audit.Changes.Total() != 0 {
			t.Fatalf("from %q to %q: nobody touched anything, and drift was found: %v; by the audit: %v, changed %v, %v", now, next, rep.Found, audit.Found, audit.Changes, err)
		}
		if got := h.reading(); got != want[next] {
			t.Fatalf("from %q to %q: the kernel holds\n%s\nwant\n%s", now, next, got, want[next])
		}
		delete(todo, [2]string{now, next})
		now = next
	}
}
