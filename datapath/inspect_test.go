package datapath_test

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// What is read back is what was planned, without a message being sent; and where
// the outer ends are tells which endpoints a container has.
func TestInspectReadsAndWritesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if held, err := h.o.Inspect(t.Context(), id); err != nil || held.Present {
		t.Errorf("of a network that is not there: %+v, %v", held, err)
	}
	p := plans()["three hosts"]
	h.apply(p)
	if _, err := h.k.Namespaces().Create(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	h.k.Move("", outer1, "container", "eth0")
	h.k.TakeLog()
	held, err := h.o.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if log := h.k.TakeLog(); len(log) > 0 {
		t.Errorf("inspecting sent %q", log)
	}
	if !held.Present || held.VNI != p.VXLAN.VNI || len(held.Ports) != len(p.Ports) {
		t.Fatalf("held %+v", held)
	}
	order := func(a, b plan.FDBRow) int { return cmp.Or(bytes.Compare(a.MAC[:], b.MAC[:]), a.VTEP.Compare(b.VTEP)) }
	if want := slices.SortedFunc(slices.Values(p.FDB), order); !slices.Equal(held.Rows.FDB, want) || !slices.Equal(held.Rows.Bridged, p.Bridged) || !slices.Equal(held.Rows.Neigh, p.Neigh) {
		t.Errorf("rows %+v\nwant %+v %+v %+v", held.Rows, p.FDB, p.Bridged, p.Neigh)
	}
	in, _ := held.Port(endpoint(1))
	out, _ := held.Port(endpoint(2))
	if in.Home || in.Outer != "eth0" || !in.Up || in.OuterMAC != p.Ports[0].MAC {
		t.Errorf("the port whose pair is in a container: %+v", in)
	}
	if !out.Home || out.Outer != endpoint(2).OuterName() {
		t.Errorf("the port whose pair is on the host: %+v", out)
	}

	// Somebody wrote over an alias and took another port down.
	h.as(space, nl.SetLink{Link: h.ref(port1), Alias: "mine"})
	h.as(space, nl.SetLink{Link: h.ref(port2), Up: nl.Off})
	h.as(space, nl.DelFDB{Link: h.ref("vxlan0"), MAC: p.FDB[0].MAC})
	held, err = h.o.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if in, ok := held.Port(endpoint(1)); !ok || in.Endpoint != "" {
		t.Errorf("the port without its alias: %+v", in)
	}
	if out, _ := held.Port(endpoint(2)); out.Up {
		t.Errorf("the port that is down: %+v", out)
	}
	if len(held.Rows.FDB) != len(p.FDB)-1 {
		t.Errorf("%d rows, want one less than %d", len(held.Rows.FDB), len(p.FDB))
	}
	if _, ok := held.Port(carrick.EndpointID("none")); ok {
		t.Error("a port of no endpoint")
	}
}

// On the real kernel: a pair goes into a container, comes home as Docker brings
// it, and ends.
func TestInspectSeesWhereAPairIs(t *testing.T) {
	t.Parallel()
	n, c := newPeers(t, v4, 50)
	h, ep := n.hosts[0], endpoint(0)
	look := func() (datapath.Held, datapath.HeldPort, bool) {
		t.Helper()
		held, err := h.o.Inspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		p, ok := held.Port(ep)
		return held, p, ok
	}
	held, p, ok := look()
	if !ok || p.Home || p.Outer != "eth0" || p.OuterMAC != n.mac(0) || !p.Up || held.VNI != 42 {
		t.Errorf("in a container: %+v %v of %+v", p, ok, held)
	}
	want := n.plan(0)
	if len(held.Rows.FDB) != len(want.FDB) || !slices.Equal(held.Rows.Bridged, want.Bridged) || !slices.Equal(held.Rows.Neigh, want.Neigh) {
		t.Errorf("rows %+v, want %+v %+v %+v", held.Rows, want.FDB, want.Bridged, want.Neigh)
	}
	nstest.Run(t, c[0].NS, "ip link set eth0 down")
	nstest.Run(t, c[0].NS, fmt.Sprintf("ip link set eth0 netns /proc/%d/fd/%d name %s", os.Getpid(), h.NS.FD(), ep.OuterName()))
	if _, p, ok := look(); !ok || !p.Home || p.Outer != ep.OuterName() {
		t.Errorf("back home: %+v %v", p, ok)
	}
	nstest.Run(t, h.NS, "ip link del "+ep.OuterName())
	if _, p, ok := look(); ok {
		t.Errorf("gone: %+v", p)
	}
}
