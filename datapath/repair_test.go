package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

var (
	port1, outer1 = endpoint(1).PortName(), endpoint(1).OuterName()
	port2         = endpoint(2).PortName()
)

// as does what somebody else does in a namespace.
func (h *host) as(space string, c nl.Change) {
	h.t.Helper()
	if err := h.k.As(space, c); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) ref(name string) nl.Ref { return h.k.Ref(space, name) }

// damage is everything that somebody could do to a network, with how many
// objects an audit must find out of order.
func damage() map[string]struct {
	do    func(h *host)
	drift datapath.Counts
} {
	type d = struct {
		do    func(h *host)
		drift datapath.Counts
	}
	c := func(links, fdb, bridged, neigh int) datapath.Counts {
		return datapath.Counts{Links: links, FDB: fdb, Bridged: bridged, Neigh: neigh}
	}
	set := func(s nl.SetLink, name string) func(h *host) {
		return func(h *host) { s.Link = h.ref(name); h.as(space, s) }
	}
	return map[string]d{
		"bridge deleted":            {func(h *host) { h.as(space, nl.DelLink{Link: h.ref("br0")}) }, c(4, 0, 5, 0)},
		"bridge down":               {set(nl.SetLink{Up: nl.Off}, "br0"), c(1, 0, 0, 0)},
		"bridge MTU":                {set(nl.SetLink{MTU: 1000}, "br0"), c(1, 0, 0, 0)},
		"bridge snoops":             {func(h *host) { h.k.Alter(space, "br0", func(l *nl.Link) { l.Bridge.MulticastSnooping = true }) }, c(1, 0, 0, 0)},
		"bridge filters VLANs":      {func(h *host) { h.k.Alter(space, "br0", func(l *nl.Link) { l.Bridge.VLANFiltering = true }) }, c(1, 0, 0, 0)},
		"vxlan deleted":             {func(h *host) { h.as(space, nl.DelLink{Link: h.ref("vxlan0")}) }, c(1, 5, 3, 3)},
		"vxlan out of the bridge":   {set(nl.SetLink{Master: &nl.Ref{}}, "vxlan0"), c(1, 0, 3, 0)},
		"vxlan down":                {set(nl.SetLink{Up: nl.Off}, "vxlan0"), c(1, 0, 0, 3)},
		"vxlan MTU":                 {set(nl.SetLink{MTU: 1000}, "vxlan0"), c(1, 0, 0, 3)},
		"vxlan renamed":             {func(h *host) { set(nl.SetLink{Up: nl.Off}, "vxlan0")(h); set(nl.SetLink{Rename: "vx"}, "vxlan0")(h) }, c(1, 0, 0, 3)},
		"vxlan learns at its port":  {set(nl.SetLink{Port: &nl.PortFlags{Learning: true, MulticastFlood: true, BroadcastFlood: true}}, "vxlan0"), c(1, 0, 0, 0)},
		"vxlan floods":              {set(nl.SetLink{Port: &nl.PortFlags{Flood: true, MulticastFlood: true, BroadcastFlood: true}}, "vxlan0"), c(1, 0, 0, 0)},
		"vxlan answers no ARP":      {func(h *host) { h.k.Alter(space, "vxlan0", func(l *nl.Link) { l.VXLAN.Proxy = false }) }, c(1, 0, 0, 0)},
		"vxlan learns":              {func(h *host) { h.k.Alter(space, "vxlan0", func(l *nl.Link) { l.VXLAN.Learning = true }) }, c(1, 0, 0, 0)},
		"addresses made":            {func(h *host) { h.k.Alter(space, "vxlan0", func(l *nl.Link) { l.NoAddrGen = false }) }, c(1, 0, 0, 0)},
		"port out of the bridge":    {set(nl.SetLink{Master: &nl.Ref{}}, port1), c(1, 0, 1, 0)},
		"port down":                 {set(nl.SetLink{Up: nl.Off}, port1), c(1, 0, 0, 0)},
		"port MTU":                  {set(nl.SetLink{MTU: 1000}, port1), c(1, 0, 0, 0)},
		"port hairpins":             {set(nl.SetLink{Port: &nl.PortFlags{Hairpin: true, MulticastFlood: true, BroadcastFlood: true}}, port1), c(1, 0, 0, 0)},
		"port isolated":             {set(nl.SetLink{Port: &nl.PortFlags{Isolated: true, MulticastFlood: true, BroadcastFlood: true}}, port1), c(1, 0, 0, 0)},
		"port gets no broadcast":    {set(nl.SetLink{Port: &nl.PortFlags{MulticastFlood: true}}, port1), c(1, 0, 0, 0)},
		"port renamed":              {func(h *host) { set(nl.SetLink{Up: nl.Off}, port1)(h); set(nl.SetLink{Rename: "mine"}, port1)(h) }, c(1, 0, 0, 0)},
		"port alias":                {set(nl.SetLink{Alias: "mine"}, port1), c(1, 0, 0, 0)},
		"outer MTU":                 {func(h *host) { h.as("", nl.SetLink{Link: h.k.Ref("", outer1), MTU: 1000}) }, c(1, 0, 0, 0)},
		"outer MAC":                 {func(h *host) { h.as("", nl.SetLink{Link: h.k.Ref("", outer1), MAC: mac(66)}) }, c(1, 0, 0, 0)},
		"outer renamed":             {func(h *host) { h.as("", nl.SetLink{Link: h.k.Ref("", outer1), Rename: "mine"}) }, c(1, 0, 0, 0)},
		"pair deleted":              {func(h *host) { h.as(space, nl.DelLink{Link: h.ref(port1)}) }, c(1, 0, 1, 0)},
		"pair deleted from outside": {func(h *host) { h.as("", nl.DelLink{Link: h.k.Ref("", outer1)}) }, c(1, 0, 1, 0)},
		"second bridge":             {func(h *host) { h.as(space, nl.AddBridge{Name: "br1"}) }, c(1, 0, 0, 0)},
		"port in a second bridge": {func(h *host) {
			h.as(space, nl.AddBridge{Name: "br1"})
			m := h.ref("br1")
			h.as(space, nl.SetLink{Link: h.ref(port1), Master: &m})
		}, c(2, 0, 1, 0)},
		"foreign link": {func(h *host) { h.k.AddForeign(space, nl.Link{Ref: nl.Ref{Name: "dummy0"}, Kind: "dummy"}) }, c(1, 0, 0, 0)},
		"foreign vxlan": {func(h *host) {
			h.k.AddForeign(space, nl.Link{Ref: nl.Ref{Name: "vx9"}, Kind: "vxlan", VXLAN: &nl.VXLANInfo{VNI: 9}})
		}, c(1, 0, 0, 0)},
		"packet filter asked": {func(h *host) {
			h.as(space, nl.SetSysctl{Name: "net.bridge.bridge-nf-call-iptables", Value: "1"})
		}, datapath.Counts{Sysctls: 1}},
		"bridge listens to routers": {func(h *host) {
			h.as(space, nl.SetSysctl{Name: "net.ipv6.conf.br0.accept_ra", Value: "1"})
		}, datapath.Counts{Sysctls: 1}},
		"bridge has an address": {func(h *host) {
			h.k.AddAddress(space, nl.Address{Link: h.ref("br0").Index, Prefix: netip.MustParsePrefix("10.0.0.1/24")})
		}, datapath.Counts{Addresses: 1}},
		"rows": {func(h *host) { h.as(space, nl.DelFDB{Link: h.ref("vxlan0")}) }, c(0, 2, 0, 0)},
	}
}

func TestAnAuditRepairsEverythingAndCountsIt(t *testing.T) {
	t.Parallel()
	p := plans()["three hosts"]
	for name, d := range damage() {
		h := newHost(t)
		h.apply(p)
		d.do(h)
		if sortLines(h.k.Dump()) == text(p) && name != "outer renamed" {
			t.Fatalf("%s: no damage done", name)
		}
		rep, err := h.a.Audit(t.Context())
		if err != nil || rep.Failed() != nil {
			t.Fatalf("%s: %v, %v", name, err, rep.Failed())
		}
		if rep.Drift != d.drift {
			t.Errorf("%s: drift %+v, want %+v", name, rep.Drift, d.drift)
		}
		h.holds(p)
		// And it does not come back.
		rep, err = h.a.Audit(t.Context())
		if err != nil || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 || rep.Resync == "" {
			t.Errorf("%s: second audit %+v, %v", name, rep, err)
		}
	}
}

func TestDamageIsNoticedByTheEventItMakes(t *testing.T) {
	t.Parallel()
	silent := map[string]bool{ // only an audit sees these
		"outer MTU": true, "outer MAC": true, "outer renamed": true, "rows": true,
		"packet filter asked": true, "bridge listens to routers": true, "bridge has an address": true,
	}
	p := plans()["three hosts"]
	for name, d := range damage() {
		// Also right after our own changes, whose events nobody has looked at yet.
		for _, at := range []string{"later", "at once"} {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.apply(p)
				if at == "later" {
					synctest.Wait()
				}
				select {
				case <-h.a.Changed():
					t.Fatalf("%s: our own changes were taken for somebody else's", name)
				default:
				}
				d.do(h)
				synctest.Wait()
				select {
				case <-h.a.Changed():
					rep := h.apply(p)
					if silent[name] || rep.Resync == "" || rep.Drift.Total() == 0 {
						t.Errorf("%s, %s: %+v", name, at, rep)
					}
					h.holds(p)
				default:
					if !silent[name] {
						t.Errorf("%s, %s: nobody noticed", name, at)
					}
				}
			})
		}
	}
}

func TestOwnChangesQueueNoResync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		all := plans()
		h.apply(all["alone"])
		for _, name := range append(sortedNames(all), "alone", "one cut off", "alone", "all cut off", "one container") {
			if name == "absent" {
				continue
			}
			synctest.Wait() // let the events be judged
			if rep := h.apply(all[name]); rep.Resync != "" {
				t.Errorf("before %q: resync because of %q", name, rep.Resync)
			}
		}
	})
}

func TestAFlapIsNoticedAlthoughTheLinkLooksTheSame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		p := plans()["three hosts"]
		h.apply(p)
		synctest.Wait()
		vx := h.ref("vxlan0")
		h.as(space, nl.SetLink{Link: vx, Up: nl.Off})
		h.as(space, nl.SetLink{Link: vx, Up: nl.On})
		synctest.Wait()
		rep := h.apply(p)
		if want := (datapath.Counts{Neigh: 3}); rep.Drift != want {
			t.Errorf("%+v, want drift %+v", rep, want)
		}
		h.holds(p)
	})
}

func TestLostEventsMakeItReadEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		p := plans()["three hosts"]
		h.apply(p)
		synctest.Wait()
		h.k.LoseEvents(space)
		synctest.Wait()
		<-h.a.Changed()
		if rep := h.apply(p); rep.Resync != "events lost" || rep.Changes.Total() != 0 {
			t.Errorf("%+v", rep)
		}
	})
}

func TestAMissingPairIsReportedNotRebuilt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["three hosts"]
	h.apply(p)
	// Both have joined: their ends are in containers.
	c, err := h.k.Namespaces().Create(t.Context(), "container")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.k.Move("", outer1, "container", "eth0")
	p.Ports = slices.Clone(p.Ports)
	for i := range p.Ports {
		p.Ports[i].Create = false
	}
	if rep := h.apply(p); rep.Changes.Total() != 0 {
		t.Errorf("joining changed something: %+v", rep)
	}

	h.as("container", nl.DelLink{Link: h.k.Ref("container", "eth0")})
	for range 2 {
		h.a.QueueResync("test")
		rep, err := h.a.Apply(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := rep.Endpoints[endpoint(1)]; !errors.Is(err, datapath.ErrPairMissing) || !strings.Contains(err.Error(), "docker restart CONTAINER") {
			t.Errorf("verdict of the endpoint: %v", err)
		}
		if err := rep.Endpoints[endpoint(2)]; err != nil {
			t.Errorf("verdict of its neighbour: %v", err)
		}
		want := []string{"endpoint a1a1a1a1a1a1: its veth pair is gone, so its container has lost this network: docker restart CONTAINER"}
		if !slices.Equal(rep.Problems, want) {
			t.Errorf("problems %q", rep.Problems)
		}
	}
	// It costs no reading from now on, and no message.
	n := h.k.Messages()
	if rep, err := h.a.Apply(t.Context(), p); err != nil || rep.Resync != "" || len(rep.Problems) != 1 || h.k.Messages() != n {
		t.Errorf("%+v, %v, %d messages", rep, err, h.k.Messages()-n)
	}
}

func TestTheContainersEndIsNotTouchedButTold(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["three hosts"]
	h.apply(p)
	c, err := h.k.Namespaces().Create(t.Context(), "container")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.k.Move("", outer1, "container", "eth0")
	h.as("container", nl.SetLink{Link: h.k.Ref("container", "eth0"), MAC: mac(66)})

	small := plans()["smaller MTU"]
	rep := h.apply(small)
	want := []string{
		"endpoint a1a1a1a1a1a1: the container's end eth0 has MTU 1450, the network 1400, so larger packets may vanish: docker restart CONTAINER",
		"endpoint a1a1a1a1a1a1: the container's end eth0 has MAC 02:00:0a:00:00:42, the network expects 02:00:0a:00:00:01: docker restart CONTAINER",
	}
	if !slices.Equal(rep.Problems, want) {
		t.Errorf("problems %q", rep.Problems)
	}
	// The problem stays until somebody reads that it is gone.
	if rep := h.apply(small); !slices.Equal(rep.Problems, want) {
		t.Errorf("problems %q", rep.Problems)
	}
	h.as("container", nl.SetLink{Link: h.k.Ref("container", "eth0"), MAC: mac(1), MTU: 1400})
	if rep, err := h.a.Audit(t.Context()); err != nil || len(rep.Problems) != 0 {
		t.Errorf("problems %q, %v", rep.Problems, err)
	}
}

func TestOneFailingPortFailsOnlyItsEndpoint(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["three hosts"]
	h.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: outer1}, Kind: "dummy"})
	rep, err := h.a.Apply(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	bad := rep.Endpoints[endpoint(1)]
	if !errors.Is(bad, datapath.ErrConflict) || !errors.Is(bad, unix.EEXIST) || !strings.Contains(bad.Error(), "ip link del "+outer1) {
		t.Errorf("verdict: %v", bad)
	}
	if err := rep.Endpoints[endpoint(2)]; err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	if !strings.Contains(h.k.Dump(), port2) {
		t.Error("the other port was not made")
	}
	// Somebody follows the advice.
	h.as("", nl.DelLink{Link: h.k.Ref("", outer1)})
	h.apply(p)
	h.holds(p)

	// And a row of its own that fails.
	h = newHost(t)
	h.k.FailNext("SetBridged", unix.ENOSPC)
	rep, err = h.a.Apply(t.Context(), p)
	if err == nil || !errors.Is(rep.Endpoints[endpoint(1)], unix.ENOSPC) || rep.Endpoints[endpoint(2)] != nil {
		t.Errorf("a failing row: %v, %v", err, rep.Endpoints)
	}
}

// A port whose look failed is still ours: that it goes with its endpoint is nobody
// else's doing.
func TestAPortThatFailedAndWentIsNoDrift(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["three hosts"]
	h.apply(p)
	h.k.FailNext("Peer", unix.ENOBUFS)
	rep, err := h.a.Audit(t.Context())
	if err != nil || rep.Endpoints[endpoint(1)] == nil {
		t.Fatalf("no port failed: %+v, %v", rep, err)
	}
	left := p
	gone := p.Ports[0].Name
	left.Ports = p.Ports[1:]
	left.Bridged = slices.DeleteFunc(slices.Clone(p.Bridged), func(b plan.BridgeRow) bool { return b.Port == gone })
	rep = h.apply(left)
	if rep.Resync == "" || rep.Changes.Links != 1 || rep.Drift.Total() != 0 {
		t.Errorf("after the endpoint went: %+v", rep)
	}
}

func TestAKernelWithoutTheModuleIsNamed(t *testing.T) {
	t.Parallel()
	p := plans()["three hosts"]
	for _, m := range []string{"bridge", "vxlan", "veth"} {
		h := newHost(t)
		h.k.Without(m)
		rep, err := h.a.Apply(t.Context(), p)
		bad := rep.Endpoints[endpoint(1)]
		want := "kernel has no " + m + ": modprobe " + m
		if !errors.Is(bad, nl.ErrNotSupported) || !strings.Contains(bad.Error(), want) {
			t.Errorf("without %s: %v", m, bad)
		}
		if (err == nil) != (m == "veth") {
			t.Errorf("without %s: Apply says %v", m, err)
		}
	}
}

func TestATakenVNIIsTracedToItsOwner(t *testing.T) {
	t.Parallel()
	p := plans()["three hosts"]
	taken := nl.Link{Ref: nl.Ref{Name: "vx-000042-abcd"}, Kind: nl.KindVXLAN, VXLAN: &nl.VXLANInfo{VNI: 42, Port: 4789, Local: addr("192.0.2.1")}}
	for _, x := range []struct{ where, want string }{
		{"", "link vx-000042-abcd in the host's namespace: ip link del vx-000042-abcd"},
		{"1-swarmnet", "link vx-000042-abcd in network namespace 1-swarmnet (another overlay, such as Docker swarm's?)"},
		{"carrick-0000000000000001", "link vx-000042-abcd in network namespace carrick-0000000000000001"},
		{"nameless", "a link in a namespace that has no name here"},
	} {
		h := newHost(t)
		if x.where != "" {
			ns, err := h.k.Namespaces().Create(t.Context(), x.where)
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
		}
		h.k.AddForeign(x.where, taken)
		if x.where == "nameless" {
			if err := h.k.Namespaces().Delete(t.Context(), x.where); err != nil {
				t.Fatal(err)
			}
		}
		rep, err := h.a.Apply(t.Context(), p)
		if !errors.Is(err, datapath.ErrConflict) || !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "VNI 42 on UDP port 4789 of this host is taken by "+x.want) {
			t.Errorf("in %q: %v", x.where, err)
		}
		// Join hears of it, and containers of this host reach each other still.
		if !errors.Is(rep.Endpoints[endpoint(1)], datapath.ErrConflict) {
			t.Errorf("in %q: verdict %v", x.where, rep.Endpoints[endpoint(1)])
		}
		if !strings.Contains(h.k.Dump(), "bridge -n "+space+" fdb replace "+mac(1).String()+" dev "+port1) {
			t.Errorf("in %q: no local ports:\n%s", x.where, h.k.Dump())
		}
	}
}

func TestATakenUDPPortIsNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.k.TakePort(4789, true)
	p := plans()["one container"]
	_, err := h.a.Apply(t.Context(), p)
	if !errors.Is(err, datapath.ErrConflict) || !strings.Contains(err.Error(), "UDP port 4789 of this host is taken by another program (ss -ulnp sport = :4789)") {
		t.Errorf("%v", err)
	}
	h.k.TakePort(4789, false)
	h.apply(p)
	h.holds(p)
}

func TestANameThatIsGoneIsGivenBackWithoutHarm(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["three hosts"]
	h.apply(p)
	before := h.k.Dump()
	store := h.k.Namespaces()
	if err := store.Delete(t.Context(), space); err != nil { // `ip netns del`
		t.Fatal(err)
	}
	rep, err := h.a.Audit(t.Context())
	if want := (datapath.Counts{Namespaces: 1}); err != nil || rep.Drift != want || rep.Changes != want {
		t.Errorf("%+v, %v", rep, err)
	}
	// Somebody else's namespace under our name.
	if err := store.Delete(t.Context(), space); err != nil {
		t.Fatal(err)
	}
	ns, err := store.Create(t.Context(), space)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	if rep, err = h.a.Audit(t.Context()); err != nil || rep.Drift.Namespaces != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	if got := h.k.Dump(); got != before {
		t.Errorf("the kernel holds\n%s\nwant\n%s", got, before)
	}
}

func TestARestartedAgentAdoptsWithoutAMessage(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, name := range sortedNames(plans()) {
		p := plans()[name]
		h.apply(p)
		h.restart()
		n := h.k.Messages()
		rep := h.apply(p)
		if got := h.k.Messages() - n; got != 0 || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 || rep.Resync != "first look" {
			t.Errorf("%s: %d messages, %+v", name, got, rep)
		}
	}
}

// sweep applies to every network in the kernel but those kept that nothing of it
// should exist, as an agent does at its start, and returns which went.
func sweep(ctx context.Context, o *datapath.Overlay, keep ...carrick.NetworkID) (gone []carrick.NetworkID, err error) {
	list, err := o.List(ctx)
	for _, e := range list {
		if slices.Contains(keep, e.ID) {
			continue
		}
		_, aerr := o.Network(e.ID).Apply(ctx, plan.Network{ID: e.ID, Namespace: e.Namespace})
		if aerr == nil {
			gone = append(gone, e.ID)
		}
		err = errors.Join(err, aerr)
	}
	return gone, err
}

func TestSweepDeletesWhatIsNotKeptAndNothingElse(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx := t.Context()
	h.apply(plans()["three hosts"])
	for _, name := range []string{"carrick-000000000000000a", "carrick-000000000000000b", "carrick-of-a-user", "docker-1"} {
		ns, err := h.k.Namespaces().Create(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
	}
	h.k.AddForeign("carrick-000000000000000a", nl.Link{Ref: nl.Ref{Name: "vxlan0"}, Kind: nl.KindVXLAN, VXLAN: &nl.VXLANInfo{VNI: 9}})

	list, err := h.o.List(ctx)
	want := []datapath.Existing{
		{ID: "000000000000000a", Namespace: "carrick-000000000000000a", VNI: 9},
		{ID: "000000000000000b", Namespace: "carrick-000000000000000b"},
		{ID: id, Namespace: space, VNI: 42, Ports: []string{port1, port2}},
	}
	if err != nil || !slices.EqualFunc(list, want, func(a, b datapath.Existing) bool {
		return a.ID == b.ID && a.Namespace == b.Namespace && a.VNI == b.VNI && slices.Equal(a.Ports, b.Ports)
	}) {
		t.Errorf("List = %+v, %v", list, err)
	}

	// A half-made one is swept as well; one failure does not stop the sweep.
	h.k.CrashAfter(0)
	_, _ = h.k.Namespaces().Create(ctx, "carrick-000000000000000c")
	h.k.Recover()
	h.restart()
	h.k.FailMessage(1, unix.EBUSY)
	gone, err := sweep(ctx, h.o, id)
	if err == nil || !slices.Equal(gone, []carrick.NetworkID{"000000000000000b", "000000000000000c"}) {
		t.Errorf("Sweep = %v, %v", gone, err)
	}
	if gone, err = sweep(ctx, h.o, id); err != nil || !slices.Equal(gone, []carrick.NetworkID{"000000000000000a"}) {
		t.Errorf("Sweep = %v, %v", gone, err)
	}
	names, err := h.k.Namespaces().List(ctx, "")
	if want := []string{space, "carrick-of-a-user", "docker-1"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("left over: %v, %v; want %v", names, err, want)
	}
	h.apply(plans()["three hosts"])
}

func TestAPlanForAnotherNetworkIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["alone"]
	but := func(fn func(p *plan.Network)) plan.Network {
		p := plans()["three hosts"]
		p.Ports = slices.Clone(p.Ports)
		fn(&p)
		return p
	}
	for _, bad := range []plan.Network{
		{ID: "0000000000000001", Namespace: space, Present: true},
		{ID: id, Namespace: "host", Present: false},
		{ID: id, Namespace: "", Present: false},
		but(func(p *plan.Network) { p.VXLAN.VNI = 0 }),
		but(func(p *plan.Network) { p.VXLAN.Port = 0 }),
		but(func(p *plan.Network) { p.VXLAN.Local = netip.Addr{} }),
		but(func(p *plan.Network) { p.VXLAN.MTU = 0 }),
		but(func(p *plan.Network) { p.Bridge.MTU = 0 }),
		but(func(p *plan.Network) { p.Bridge.Name = "" }),
		but(func(p *plan.Network) { p.Ports[0].MTU = 0 }),
		but(func(p *plan.Network) { p.Ports[0].Name = p.Ports[1].Name }),
		but(func(p *plan.Network) { p.Ports[0].Name = plan.BridgeName }),
	} {
		if _, err := h.a.Apply(t.Context(), bad); err == nil || h.k.Messages() != 0 {
			t.Errorf("%+v was applied", bad)
		}
	}
	h.apply(p)
	if rep, err := h.o.Network("0000000000000001").Audit(t.Context()); err != nil || rep.Changes.Total() != 0 {
		t.Errorf("an audit without a plan: %+v, %v", rep, err)
	}
}

func TestManyHandsOnOneNetwork(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	all := plans()
	var wg sync.WaitGroup
	for i, name := range sortedNames(all) {
		wg.Go(func() {
			for range 5 {
				if _, err := h.o.Network(id).Apply(t.Context(), all[name]); err != nil {
					t.Error(err)
				}
				h.a.QueueResync("test")
				if _, err := h.a.Audit(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := h.o.List(t.Context()); err != nil {
					t.Error(err)
				}
				other := carrick.NetworkID(fmt.Sprintf("%016x", i))
				if err := h.o.Network(other).Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	h.apply(all["three hosts"])
	h.holds(all["three hosts"])
}
