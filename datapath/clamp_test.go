package datapath_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nft"
)

// Whatever somebody does to the packet filter of a network is found by the next
// audit, and undone.
func TestADamagedFilterIsRepaired(t *testing.T) {
	t.Parallel()
	all := plans()
	for name, hand := range map[string]func(*nft.State){
		"clamp removed":  func(s *nft.State) { s.Clamp = nft.Clamp{} },
		"storm removed":  func(s *nft.State) { s.Storm = nft.Storm{} },
		"storm changed":  func(s *nft.State) { s.Storm.Rate = 9 },
		"storm damaged":  func(s *nft.State) { s.Storm, s.StormDamaged = nft.Storm{}, true },
		"clamp changed":  func(s *nft.State) { s.Clamp.MTU = 9000 },
		"other device":   func(s *nft.State) { s.Clamp.Device = "eth0" },
		"rule added":     func(s *nft.State) { s.Clamp, s.Damaged = nft.Clamp{}, true },
		"foreign table":  func(s *nft.State) { s.Others = []nft.Table{{Family: unix.NFPROTO_INET, Name: "theirs"}} },
		"unwanted clamp": func(s *nft.State) { s.Clamp = nft.Clamp{Device: "vxlan0", MTU: 600} },
	} {
		h := newHost(t)
		p := all["bounded and held"]
		if name == "unwanted clamp" {
			p = all["bounded"]
		}
		h.apply(p)
		h.holds(p)
		h.k.AlterFilter(space, hand)
		rep, err := h.a.Audit(t.Context())
		if err != nil || rep.Drift.Rules != 1 || rep.Changes.Rules != 1 {
			t.Errorf("%s: audit found %+v, changed %+v: %v", name, rep.Drift, rep.Changes, err)
		}
		h.holds(p)
		rep, err = h.a.Audit(t.Context())
		if err != nil || rep.Drift.Total() != 0 || rep.Changes.Total() != 0 {
			t.Errorf("%s: second audit found %+v, changed %+v: %v", name, rep.Drift, rep.Changes, err)
		}
	}
}

// A plan that does not know all hosts never loosens what an earlier one needed.
func TestAPartialPlanKeepsTheClamp(t *testing.T) {
	t.Parallel()
	all := plans()
	h := newHost(t)
	h.apply(all["clamped"])
	h.restart()
	for _, name := range []string{"three hosts", "clamped"} {
		p := all[name]
		p.Partial = true
		h.apply(p)
		if d := h.k.Dump(); !strings.Contains(d, "maxseg size set 1360") {
			t.Errorf("after a partial %q:\n%s", name, d)
		}
	}
	p := all["clamped more"]
	p.Partial = true
	h.apply(p)
	if d := h.k.Dump(); !strings.Contains(d, "maxseg size set 1160") {
		t.Errorf("after a partial plan with a lower clamp:\n%s", d)
	}
	h.apply(all["three hosts"])
	h.holds(all["three hosts"])
}

// Without nftables a network works, and says what it cannot do as long as it cannot.
func TestAKernelWithoutAPacketFilter(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.k.Without("nf_tables")
	if rep := h.apply(plans()["three hosts"]); len(rep.Problems) != 0 {
		t.Errorf("nobody asked for a clamp: %q", rep.Problems)
	}
	for range 2 {
		rep := h.apply(plans()["clamped"])
		if len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "1400") || !strings.Contains(rep.Problems[0], "nf_tables") {
			t.Errorf("problems %q", rep.Problems)
		}
	}
	if rep := h.apply(plans()["three hosts"]); len(rep.Problems) != 0 {
		// The reading of before stands until the next.
		if rep, err := h.a.Audit(t.Context()); err != nil || len(rep.Problems) != 0 {
			t.Errorf("nobody asks for a clamp any more: %q, %v", rep.Problems, err)
		}
	}
}
