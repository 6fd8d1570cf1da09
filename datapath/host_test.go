package datapath_test

import (
	"strings"
	"testing"

	"github.com/carrick-net/carrick/plan"
)

// A host's limits are raised, and never lowered; a host without them, or whose
// settings cannot be written, runs all the same.
func TestLimitsAreRaisedAndNeverLowered(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	raise := func() string {
		t.Helper()
		raised, err := h.o.RaiseLimits(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, f := range raised {
			words = append(words, f.String())
		}
		return strings.Join(words, "; ")
	}
	if got := raise(); got != "" {
		t.Errorf("a host without limits: raised %s", got)
	}
	const small, large = "net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"
	h.k.HostLimit(small, "1024")
	h.k.HostLimit(large, "1000000")
	h.k.FixSysctls(true)
	if _, err := h.o.RaiseLimits(t.Context()); err == nil || !strings.Contains(err.Error(), small) {
		t.Errorf("where nothing can be written: %v", err)
	}
	h.k.FixSysctls(false)
	if got, want := raise(), "sysctl "+small+" was 1024, wants 65536"; got != want {
		t.Errorf("raised %s, want %s", got, want)
	}
	if h.k.Sysctl("", small) != "65536" || h.k.Sysctl("", large) != "1000000" {
		t.Errorf("limits are %s and %s", h.k.Sysctl("", small), h.k.Sysctl("", large))
	}
	if got := raise(); got != "" {
		t.Errorf("again: raised %s", got)
	}
	if len(plan.HostLimits()) != 6 {
		t.Errorf("limits %v", plan.HostLimits())
	}
}

// Where /proc/sys is read-only, what is not needed stays as it is, and what is
// needed is a reason of the network's.
func TestSettingsThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.k.FixSysctls(true)
	p := plans()["dual stack"]
	rep := h.apply(p)
	if rep.Changes.Sysctls != 0 || len(rep.Problems) != 0 {
		t.Errorf("%+v", rep)
	}
	h.k.FixSysctls(false)
	rep, err := h.a.Audit(t.Context())
	if err != nil || rep.Drift.Total() != 0 || rep.Changes.Sysctls != 4 {
		t.Errorf("writable again: changed %v, found %v, %v", rep.Changes, rep.Found, err)
	}
}
