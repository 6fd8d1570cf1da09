package datapath_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// scene is a network on two hosts of three, with something of everything that a
// plan can hold: on h1 a container, one that is cut off, and an endpoint that
// Docker has not yet taken; one container on each of h2 and h3, of which h3 is only
// known of.
type scene struct {
	t    *testing.T
	h    *realHost // h1
	want plan.Network
	// near and far are the containers on h1 and h2.
	near, far *nstest.Container
	known     map[string]bool // MACs of endpoints
}

// ownGroups are neighbours that the kernel makes for multicast addresses.
var ownGroups = regexp.MustCompile(`lladdr (33:33|01:00:5e):.* NOARP$`)

func newScene(t *testing.T) *scene {
	pg := page{
		network: carrick.Network{ID: id, Name: "app", VNI: 4242, Port: carrick.DefaultPort, Flood: true, MTU: 8950, Pools: []carrick.Pool{
			{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}, {Prefix: netip.MustParsePrefix("fd00:42::/64"), Block: 122},
		}},
		fenced: true,
	}
	l := nstest.NewLab(t)
	hosts := []*realHost{newRealHost(t, l, 1, 1500), newRealHost(t, l, 2, 9000), newRealHost(t, l, 3, 9000)}
	v, me := pg.view(hosts)
	last := carrick.Endpoint{ID: endpoint(9), Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.9"), netip.MustParseAddr("fd00:42::9")}}
	last.MAC = carrick.MACFor(pg.network.VNI, last.Addrs[0])
	v.Endpoints[me] = append(v.Endpoints[me], last)
	s := &scene{t: t, h: hosts[0], known: map[string]bool{}}
	for _, eps := range v.Endpoints {
		for _, e := range eps {
			s.known[e.MAC.String()] = true
		}
	}
	containers := map[int]*nstest.Container{}
	for i, host := range []carrick.HostID{me, "0000000000000002"} {
		h := hosts[i]
		if _, err := h.a.Apply(t.Context(), plan.Make(v, host)); err != nil {
			t.Fatal(err)
		}
		for j, e := range v.Endpoints[host] {
			if e.ID == last.ID {
				continue
			}
			c := h.Container(fmt.Sprintf("c%d", j), e.ID.OuterName(), netip.PrefixFrom(e.Addrs[0], 16), netip.PrefixFrom(e.Addrs[1], 64))
			v.Joined[e.ID] = true
			if j == 0 {
				containers[i] = c
			}
		}
	}
	s.near, s.far = containers[0], containers[1]
	// h2's rows in the tables, h3's by host, as they are after a plan was made anew.
	var planner plan.Planner
	s.want = planner.Make(v, me)
	if len(s.want.Remote) != 2 {
		t.Fatalf("%d remotes", len(s.want.Remote))
	}
	remote := s.want.Remote
	s.want.Remote = remote[:1]
	s.want = s.want.Flat()
	s.want.Remote = remote[1:]
	s.h.apply(s.want)
	for _, a := range s.far.Addrs {
		nstest.Echo(t, s.far.NS, netip.AddrPortFrom(a, echoPort))
	}
	s.reach("at the beginning")
	return s
}

// reach checks that the containers reach each other.
func (s *scene) reach(when string) {
	s.t.Helper()
	for _, a := range s.far.Addrs {
		if err := nstest.TryExchange(s.near.NS, netip.AddrPortFrom(a, echoPort), 200, 20*time.Second); err != nil {
			s.t.Errorf("%s: %v", when, err)
		}
	}
}

// in runs commands in the network's namespace.
func (s *scene) in(line string) error {
	if out, err := s.h.try(line); err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	return nil
}

// holds is all that an operator sees of the network, and the same as read in our
// own types.
func (s *scene) holds() string {
	s.t.Helper()
	ns, err := s.h.Namespaces.Open(s.t.Context(), space)
	if err != nil {
		return err.Error()
	}
	defer ns.Close()
	out := "namespace " + ns.ID().String() + "\n"
	for _, c := range []string{"ip -d link", "ip addr", "bridge fdb", "ip -4 neigh show nud all", "ip -6 neigh show nud all", "nft list ruleset"} {
		text := regexp.MustCompile(` qdisc \w+`).ReplaceAllString(nstest.Run(s.t, ns, c), "") // differs once a link was up
		lines := strings.Split(nstest.Tidy(text, c, s.known), "\n")
		if !strings.HasPrefix(c, "bridge") { // what was made again has another place
			slices.Sort(lines)
		}
		lines = slices.DeleteFunc(lines, func(l string) bool { return ownGroups.MatchString(l) || strings.Contains(l, " expires ") }) // the kernel's own
		out += "$ " + c + strings.Join(lines, "\n") + "\n"
	}
	var outer []string
	for _, p := range s.want.Ports {
		if text, err := nstest.Try(s.h.NS, "ip link show "+p.Outer); err == nil && p.Create {
			outer = append(outer, nstest.Tidy(text, "ip -d link", s.known))
		}
	}
	return out + strings.Join(outer, "") + s.h.reading()
}

// every calls fn for every single thing that can be done by hand.
func (s *scene) every(fn func(field string, v vandal)) {
	all := s.vandals()
	for _, field := range slices.Sorted(maps.Keys(all)) {
		for _, v := range all[field] {
			if err := v.do(); err != nil {
				if v.may {
					s.t.Logf("%s: %s: this kernel cannot: %v", field, v.what, err)
					continue
				}
				s.t.Errorf("%s: %s: %v", field, v.what, err)
				continue
			}
			fn(field, v)
			if v.after != nil {
				v.after()
			}
		}
	}
}

// What a plan consists of is what vandals know: a new kind of object must have
// one, and one that is gone has none.
func TestVandalsKnowEverythingThatIsPlanned(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	all := s.vandals()
	planned := map[string]bool{}
	for _, f := range fields(reflect.TypeFor[plan.Network](), "") {
		planned[f] = true
		if part, _, _ := strings.Cut(f, "."); part == "Underlay" || part == "Routed" {
			continue // other appliers', with vandals of their own: datapath/underlay, datapath/routed
		}
		if _, none := noObject[f]; none == (len(all[f]) > 0) {
			t.Errorf("plan.Network's %s has %d vandals, and an excuse: %v", f, len(all[f]), none)
		}
	}
	for f := range noObject {
		if !planned[f] {
			t.Errorf("%s is excused and not in a plan", f)
		}
	}
	kinds, n := map[datapath.Kind]bool{}, 0
	for f, list := range all {
		if !planned[f] {
			t.Errorf("there are vandals for %s, which is not in a plan", f)
		}
		for _, v := range list {
			n++
			for _, k := range v.kinds {
				kinds[k] = true
			}
		}
	}
	for _, k := range datapath.Kinds() {
		if !kinds[k] && k != datapath.KindRoute { // likewise
			t.Errorf("nobody damages a %s", k)
		}
	}
	t.Logf("%d things to do by hand, to %d parts of a plan", n, len(all))
}

// Every single object is damaged by hand in every way we could think of: one audit
// finds it, counts it under its kind and nothing else, and heals it.
func TestOneAuditHealsWhateverAnybodyDid(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	before := s.holds()
	n := 0
	s.every(func(field string, v vandal) {
		n++
		rep, err := s.h.a.Audit(t.Context())
		if err != nil || rep.Failed() != nil {
			t.Errorf("%s: %s: %v, %v", field, v.what, err, rep.Failed())
		}
		var kinds []datapath.Kind
		for _, k := range datapath.Kinds() {
			if rep.Drift.Of(k) > 0 {
				kinds = append(kinds, k)
			}
			if found := slices.ContainsFunc(rep.Found, func(f datapath.Finding) bool { return f.Kind == k }); found != (rep.Drift.Of(k) > 0) {
				t.Errorf("%s: %s: drift %v, and found %v", field, v.what, rep.Drift, rep.Found)
			}
		}
		slices.Sort(kinds)
		slices.Sort(v.kinds)
		if !slices.Equal(kinds, v.kinds) {
			t.Errorf("%s: %s: counted as %v, want %v: %v", field, v.what, rep.Drift, v.kinds, rep.Found)
		}
		if after := s.holds(); after != before {
			t.Fatalf("%s: %s: not healed. %s", field, v.what, firstDifference(after, before))
		}
		s.reach(v.what)
		if rep, err = s.h.a.Audit(t.Context()); err != nil || rep.Changes.Total() != 0 || rep.Drift.Total() != 0 {
			t.Errorf("%s: %s: a second audit changed %v, found %v, %v", field, v.what, rep.Changes, rep.Found, err)
		}
	})
	t.Logf("%d times healed", n)
}

// What the kernel tells of, the events of links alone heal: nobody audits.
func TestEventsAloneHealLinks(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	before, typed := s.holds(), s.h.reading()
	n := 0
	s.every(func(field string, v vandal) {
		if v.silent {
			if _, err := s.h.a.Audit(t.Context()); err != nil {
				t.Fatal(err)
			}
			return
		}
		n++
		limit := time.NewTimer(30 * time.Second)
		defer limit.Stop()
		for s.h.reading() != typed {
			select {
			case <-s.h.a.Changed():
				s.h.apply(s.want)
			case <-limit.C:
				t.Fatalf("%s: %s: no event healed it. %s", field, v.what, firstDifference(s.h.reading(), typed))
			}
		}
	})
	if after := s.holds(); after != before {
		t.Errorf("in the end: %s", firstDifference(after, before))
	}
	t.Logf("%d times healed", n)
}

// The pair of a container that runs is Docker's: nobody makes it again behind its
// back, the container to restart is named, and that is no drift.
func TestADeletedPairIsReportedAndNotRebuilt(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	gone := s.want.Ports[slices.IndexFunc(s.want.Ports, func(p plan.Port) bool { return !p.Create && !p.Down })]
	if err := s.in("ip link del " + gone.Name); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		rep, err := s.h.a.Audit(t.Context())
		if err != nil || !errors.Is(rep.Endpoints[gone.Endpoint], datapath.ErrPairMissing) {
			t.Fatalf("%v, %v", err, rep.Endpoints)
		}
		if rep.Drift.Total() != 0 || rep.Changes.Total() != 0 {
			t.Errorf("changed %v, found %v", rep.Changes, rep.Found)
		}
		if !slices.ContainsFunc(rep.Problems, func(p string) bool {
			return strings.Contains(p, gone.Endpoint.Short()) && strings.Contains(p, "docker restart")
		}) {
			t.Errorf("problems %q", rep.Problems)
		}
		for ep, err := range rep.Endpoints {
			if ep != gone.Endpoint && err != nil {
				t.Errorf("%v", err)
			}
		}
	}
}
