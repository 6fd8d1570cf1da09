package datapath_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// partial is a plan of facts that are not whole.
func partial(p plan.Network) plan.Network {
	p.Partial = p.Present
	return p
}

// both is what the kernel holds after a partial plan when it held another plan
// before: everything of the new one, and of the old one what the new one does not
// replace. ok is false if the new one has devices of its own, which take the rows
// of the old ones along, or an MTU for which the kernel takes IPv6 off them.
func both(old, want plan.Network) (out plan.Network, ok bool) {
	switch {
	case !want.Present || !old.Present:
		return want, true
	case old.VXLAN.VNI != want.VXLAN.VNI || old.VXLAN.Port != want.VXLAN.Port || old.VXLAN.Local != want.VXLAN.Local,
		(old.VXLAN.MTU < 1280) != (want.VXLAN.MTU < 1280),
		old.Bridge.Snoop != want.Bridge.Snoop: // nor has it any more to say of ports that it leaves alone
		return want, false
	}
	out = want
	out.Ports, out.FDB, out.Bridged, out.Neigh = slices.Clone(want.Ports), slices.Clone(want.FDB), slices.Clone(want.Bridged), slices.Clone(want.Neigh)
	if out.Clamp == 0 || old.Clamp != 0 && old.Clamp < out.Clamp {
		out.Clamp = old.Clamp
	}
	for _, p := range old.Ports {
		if !slices.ContainsFunc(want.Ports, func(q plan.Port) bool { return q.Name == p.Name }) {
			out.Ports = append(out.Ports, p)
		}
	}
	for _, r := range old.FDB {
		if !slices.ContainsFunc(want.FDB, func(q plan.FDBRow) bool { return q.MAC == r.MAC && (!r.MAC.IsZero() || q == r) }) {
			out.FDB = append(out.FDB, r)
		}
	}
	for _, r := range old.Bridged {
		if !slices.ContainsFunc(want.Bridged, func(q plan.BridgeRow) bool { return q.MAC == r.MAC }) {
			out.Bridged = append(out.Bridged, r)
		}
	}
	for _, r := range old.Neigh {
		if !slices.ContainsFunc(want.Neigh, func(q plan.NeighRow) bool { return q.Addr == r.Addr }) {
			out.Neigh = append(out.Neigh, r)
		}
	}
	return out, true
}

// After a restart a partial plan is added to whatever there is, and the whole one
// that follows takes away the rest, which is nobody's damage.
func TestPartialPlansOnlyAdd(t *testing.T) {
	t.Parallel()
	all := plans()
	for _, from := range sortedNames(all) {
		for _, to := range sortedNames(all) {
			h := newHost(t)
			h.apply(all[from])
			h.restart()
			rep := h.apply(partial(all[to]))
			want, same := both(all[from], all[to])
			if got := sortLines(h.k.Dump()); same && got != text(want) {
				t.Fatalf("%s, and then partially %s: the kernel holds\n%s\nwant\n%s", from, to, got, text(want))
			}
			before := h.k.Messages()
			again := h.apply(partial(all[to]))
			if n := h.k.Messages() - before; n != 0 {
				t.Fatalf("%s, and then partially %s twice: the second cost %d messages", from, to, n)
			}
			audit, err := h.a.Audit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			whole := h.apply(all[to])
			h.holds(all[to])
			for i, r := range []datapath.Report{rep, again, audit, whole} {
				if r.Drift.Total() != 0 {
					t.Fatalf("%s, and then partially %s: pass %d found drift: %+v", from, to, i, r.Drift)
				}
			}
			h.o.Close()
		}
	}
}

// What a partial plan names is repaired, and what it does not name is left alone:
// rows, ports and links of whoever.
func TestPartialPlansRepairWhatTheyName(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.apply(plans()["three hosts"])
	h.restart()
	few := partial(spec{local: []int{1}, remote: map[int][]string{11: {"192.0.2.2"}}, flood: true}.plan())
	h.apply(few)
	lines := func() []string { return strings.Split(sortLines(h.k.Dump()), "\n") }
	before := lines()
	h.k.AddForeign(space, nl.Link{Ref: nl.Ref{Name: "dummy0"}, Kind: "dummy"})
	h.k.AddNeigh(space, nl.Neighbour{Link: h.ref(plan.VXLANName).Index, Addr: ip4(77), MAC: mac(77), State: nl.StatePermanent})
	h.as(space, nl.DelFDB{Link: h.ref(plan.VXLANName), MAC: mac(11), VTEP: addr("192.0.2.2")})
	h.as(space, nl.DelFDB{Link: h.ref(plan.VXLANName), MAC: mac(13), VTEP: addr("192.0.2.3")}) // not named
	h.as(space, nl.SetLink{Link: h.ref(endpoint(1).PortName()), Up: nl.Off})
	h.as(space, nl.SetLink{Link: h.ref(endpoint(2).PortName()), Up: nl.Off}) // not named
	rep, err := h.a.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rep.Drift.Links != 1 || rep.Changes.Links != 1 || rep.Changes.FDB != 1 || rep.Changes.Neigh != 0 {
		t.Errorf("changes %+v drift %+v", rep.Changes, rep.Drift)
	}
	after := lines()
	var gone, come []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			gone = append(gone, l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			come = append(come, l)
		}
	}
	if len(gone) != 2 || !strings.Contains(gone[0]+gone[1], mac(13).String()) || !strings.Contains(gone[0]+gone[1], endpoint(2).PortName()) {
		t.Errorf("gone for good: %q", gone)
	}
	if len(come) != 3 {
		t.Errorf("new: %q", come)
	}
	// And whole it is right.
	h.apply(plans()["three hosts"])
	h.holds(plans()["three hosts"])
}

// The port of a container that stops goes even while the plan is partial: that
// it is not in the plan any more is known.
func TestAPortThatWasPlannedGoesWithItsContainer(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.apply(plans()["three hosts"])
	h.restart()
	far := map[int][]string{11: {"192.0.2.2"}}
	h.apply(partial(spec{local: []int{1, 3}, remote: far, flood: true}.plan()))
	h.apply(partial(spec{local: []int{1}, remote: far, flood: true}.plan()))
	dump := h.k.Dump()
	if strings.Contains(dump, endpoint(3).PortName()) || strings.Contains(dump, mac(3).String()) {
		t.Errorf("the port of the container that stopped is there:\n%s", dump)
	}
	if !strings.Contains(dump, endpoint(2).PortName()) {
		t.Errorf("a port that no plan had is gone:\n%s", dump)
	}
}

func TestThatNothingExistsIsNeverPartial(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.apply(plans()["one container"])
	p := absent()
	p.Partial = true
	if _, err := h.a.Apply(t.Context(), p); err == nil {
		t.Error("a network was removed because of a plan that was not whole")
	}
	h.holds(plans()["one container"])
}

// A port that is cut off is down, stays down whoever raises it, and comes back.
func TestCutOffAndBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	up, down := plans()["three hosts"], plans()["one cut off"]
	h.apply(up)
	rep := h.apply(down)
	if rep.Changes.Links != 1 || rep.Changes.Bridged != 1 || rep.Drift.Total() != 0 {
		t.Errorf("cutting off: changes %+v drift %+v", rep.Changes, rep.Drift)
	}
	h.holds(down)
	h.as(space, nl.SetLink{Link: h.ref(endpoint(1).PortName()), Up: nl.On})
	<-h.a.Changed()
	rep = h.apply(down)
	if rep.Drift.Links != 1 {
		t.Errorf("somebody raised it: drift %+v", rep.Drift)
	}
	h.holds(down)
	h.restart()
	h.apply(down)
	h.holds(down)
	rep = h.apply(up)
	if rep.Changes.Links != 1 || rep.Changes.Bridged != 1 || rep.Drift.Total() != 0 {
		t.Errorf("coming back: changes %+v drift %+v", rep.Changes, rep.Drift)
	}
	h.holds(up)
}
