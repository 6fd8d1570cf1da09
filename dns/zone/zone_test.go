package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// ep makes an endpoint of its id, addresses and names, both split at spaces.
func ep(id, addrs, names string) carrick.Endpoint {
	e := carrick.Endpoint{ID: carrick.EndpointID(id), Names: strings.Fields(names)}
	for _, a := range strings.Fields(addrs) {
		e.Addrs = append(e.Addrs, addr(a))
	}
	return e
}

func view(name string, hosts map[carrick.HostID][]carrick.Endpoint) carrick.View {
	return carrick.View{Network: carrick.Network{Name: name}, Endpoints: hosts}
}

func ask(s *Set, name string) string {
	return answer(s.Addresses(name, nil, carrick.IPv4, carrick.IPv6))
}

func answer(a []netip.Addr, k Kind) string {
	switch {
	case k == Unknown && a == nil:
		return "unknown"
	case k == NoData && a == nil:
		return "nodata"
	case k == Answered && a != nil:
		return fmt.Sprint(a)
	}
	return fmt.Sprintf("kind %d with %v", k, a)
}

func TestNames(t *testing.T) {
	t.Parallel()
	z := New("me")
	hosts := map[carrick.HostID][]carrick.Endpoint{
		"me": {ep("e1", "10.0.0.1 fd00::1", "Web web.local all"), ep("e2", "10.0.0.2", "db db.app")},
		"h2": {ep("e3", "10.0.0.3", "cache all"), ep("e4", "10.0.0.4", "")},
	}
	z.Update(view("App", hosts), nil)
	s := NewSet(z)
	for name, want := range map[string]string{
		"web": "[10.0.0.1 fd00::1]", "WEB.": "[10.0.0.1 fd00::1]", "web.app": "[10.0.0.1 fd00::1]", "wEb.aPP.": "[10.0.0.1 fd00::1]",
		"web.local": "[10.0.0.1 fd00::1]", "web.local.app": "[10.0.0.1 fd00::1]", "all": "[10.0.0.1 10.0.0.3 fd00::1]",
		"db.app": "[10.0.0.2]", "db.app.app": "[10.0.0.2]",
		"": "unknown", ".": "unknown", "app": "unknown", ".app": "unknown", "webapp": "unknown", "web.other": "unknown", "nobody": "unknown",
	} {
		if got := ask(s, name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	if got := answer(s.Addresses("cache", nil, carrick.IPv6)); got != "nodata" {
		t.Errorf("IPv6 of cache: %s", got)
	}
	for a, want := range map[string]string{"10.0.0.1": "Web.app 2", "fd00::1": "Web.app 2", "10.0.0.4": " 0", "10.0.0.9": " 0"} {
		name, k := s.Reverse(addr(a))
		if got := fmt.Sprintf("%s %d", name, k); got != want {
			t.Errorf("reverse of %s: %s, want %s", a, got, want)
		}
	}
	// In another network nothing of it is known.
	if got := ask(NewSet(New("me")), "web"); got != "unknown" {
		t.Errorf("elsewhere: %s", got)
	}
	if got := ask(&Set{}, "web"); got != "unknown" {
		t.Errorf("nowhere: %s", got)
	}
}

// Whose name must not lead anywhere keeps it.
func TestNotToBeFound(t *testing.T) {
	t.Parallel()
	sick := ep("e3", "10.0.0.3", "sick both")
	sick.Unhealthy = true
	hosts := map[carrick.HostID][]carrick.Endpoint{
		"me": {ep("e1", "10.0.0.1", "cut"), ep("e2", "10.0.0.2", "fine both"), sick},
		"h2": {ep("e4", "10.0.0.4", "away both")},
	}
	v := view("app", hosts)
	v.Fenced = map[carrick.EndpointID]bool{"e1": true, "e4": true} // e4 is not ours to fence
	z, s := New("me"), (*Set)(nil)
	s = NewSet(z)
	z.Update(v, func(h carrick.HostID) bool { return h == "h2" })
	for name, want := range map[string]string{"cut": "nodata", "cut.app": "nodata", "sick": "nodata", "away": "nodata", "both": "[10.0.0.2]"} {
		if got := ask(s, name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
		if !s.Knows(name) {
			t.Errorf("%q is not known", name)
		}
	}
	for _, a := range []string{"10.0.0.3", "10.0.0.4"} {
		if name, k := s.Reverse(addr(a)); k != NoData {
			t.Errorf("reverse of %s: %q %d", a, name, k)
		}
	}
	z.SetLost(nil)
	v.Fenced = nil
	z.Update(v, nil)
	for name, want := range map[string]string{"cut": "[10.0.0.1]", "away": "[10.0.0.4]", "both": "[10.0.0.2 10.0.0.4]"} {
		if got := ask(s, name); got != want {
			t.Errorf("later, %q: %s, want %s", name, got, want)
		}
	}
}

// An address that two claim is one's.
func TestClaimedTwice(t *testing.T) {
	t.Parallel()
	old, young, own := ep("e1", "10.0.0.1 10.0.0.5", "old"), ep("e2", "10.0.0.1", "young"), ep("e3", "10.0.0.1", "own")
	old.Gen, young.Gen, own.Gen = 1, 2, 0
	hosts := map[carrick.HostID][]carrick.Endpoint{"h1": {old}, "h2": {young}}
	z := New("me")
	s := NewSet(z)
	check := func(when string, want map[string]string) {
		t.Helper()
		for name, w := range want {
			if got := ask(s, name); got != w {
				t.Errorf("%s: %q: %s, want %s", when, name, got, w)
			}
		}
	}
	z.Update(view("app", hosts), nil)
	check("two", map[string]string{"old": "[10.0.0.5]", "young": "[10.0.0.1]"})
	// The loser's name never answers with it, whatever becomes of the winner's host.
	z.SetLost(func(h carrick.HostID) bool { return h == "h2" })
	check("winner lost", map[string]string{"old": "[10.0.0.5]", "young": "nodata"})
	hosts["me"] = []carrick.Endpoint{own}
	v := view("app", hosts)
	z.Update(v, nil)
	check("own", map[string]string{"old": "[10.0.0.5]", "young": "nodata", "own": "[10.0.0.1]"})
	v.Fenced = map[carrick.EndpointID]bool{"e3": true}
	z.Update(v, nil)
	check("own fenced", map[string]string{"young": "[10.0.0.1]", "own": "nodata"})
	if name, _ := s.Reverse(addr("10.0.0.1")); name != "young.app" {
		t.Errorf("reverse: %s", name)
	}
	delete(hosts, "h2")
	v.Fenced = nil
	delete(hosts, "me")
	z.Update(view("app", hosts), nil)
	check("winners gone", map[string]string{"old": "[10.0.0.1 10.0.0.5]", "young": "unknown", "own": "unknown"})
}

// model answers from a view, from the beginning each time.
type model struct {
	me   carrick.HostID
	v    carrick.View
	lost map[carrick.HostID]bool
}

type claimant struct {
	host carrick.HostID
	e    carrick.Endpoint
}

func (m model) owner(a netip.Addr) (claimant, bool) {
	var all []claimant
	for h, eps := range m.v.Endpoints {
		for _, e := range eps {
			if slices.Contains(e.Addrs, a) && !(h == m.me && m.v.Fenced[e.ID]) {
				all = append(all, claimant{h, e})
			}
		}
	}
	if len(all) == 0 {
		return claimant{}, false
	}
	slices.SortFunc(all, func(a, b claimant) int {
		switch {
		case (a.host == m.me) != (b.host == m.me):
			if a.host == m.me {
				return -1
			}
			return 1
		case a.e.Gen != b.e.Gen:
			if a.e.Gen > b.e.Gen {
				return -1
			}
			return 1
		case a.host != b.host:
			return strings.Compare(string(a.host), string(b.host))
		}
		return strings.Compare(string(a.e.ID), string(b.e.ID))
	})
	return all[0], true
}

func (m model) ask(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	known := false
	got := map[netip.Addr]bool{}
	for h, eps := range m.v.Endpoints {
		for _, e := range eps {
			has := slices.ContainsFunc(e.Names, func(n string) bool {
				n = strings.ToLower(n)
				return n == name || m.v.Network.Name != "" && n+"."+strings.ToLower(m.v.Network.Name) == name
			})
			if !has {
				continue
			}
			known = true
			if e.Unhealthy || m.lost[h] || h == m.me && m.v.Fenced[e.ID] {
				continue
			}
			for _, a := range e.Addrs {
				if o, ok := m.owner(a); ok && o.host == h && o.e.ID == e.ID {
					got[a] = true
				}
			}
		}
	}
	switch {
	case !known:
		return "unknown"
	case len(got) == 0:
		return "nodata"
	}
	var list []netip.Addr
	for a := range got {
		list = append(list, a)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return fmt.Sprint(list)
}

// A zone that is told of changes says what one made from nothing would.
func TestChangesAgainstModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a", "B", "c", "d.app", "e.x", "A", "f"}
	random := func(h carrick.HostID) []carrick.Endpoint {
		var eps []carrick.Endpoint
		for i := range r.IntN(4) {
			e := carrick.Endpoint{ID: carrick.EndpointID(fmt.Sprintf("%s-%d", h, i)), Gen: carrick.Gen(r.IntN(3)), Unhealthy: r.IntN(6) == 0}
			e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(12))}))
			if r.IntN(2) == 0 {
				e.Addrs = append(e.Addrs, addr(fmt.Sprintf("fd00::%d", r.IntN(12))))
			}
			for range r.IntN(4) {
				e.Names = append(e.Names, names[r.IntN(len(names))])
			}
			eps = append(eps, e)
		}
		return eps
	}
	m := model{me: "h0", v: view("App", map[carrick.HostID][]carrick.Endpoint{}), lost: map[carrick.HostID]bool{}}
	z := New(m.me)
	s := NewSet(z)
	for step := range 3000 {
		h := carrick.HostID(fmt.Sprintf("h%d", r.IntN(5)))
		next := map[carrick.HostID][]carrick.Endpoint{}
		for k, v := range m.v.Endpoints {
			next[k] = v
		}
		switch r.IntN(8) {
		case 0:
			delete(next, h)
		case 1:
			m.lost[h] = !m.lost[h]
			z.SetLost(func(h carrick.HostID) bool { return m.lost[h] })
		case 2:
			m.v.Fenced = map[carrick.EndpointID]bool{carrick.EndpointID(fmt.Sprintf("h0-%d", r.IntN(4))): true}
		case 3:
			m.v.Network.Name = []string{"", "App", "x"}[r.IntN(3)]
		default:
			next[h] = random(h)
		}
		m.v.Endpoints = next
		z.Update(m.v, func(h carrick.HostID) bool { return m.lost[h] })
		for _, n := range names {
			for _, q := range []string{n, n + ".app", n + ".x."} {
				if got, want := ask(s, q), m.ask(q); got != want {
					t.Fatalf("seed %d, step %d: %q: %s, want %s\n%+v", seed, step, q, got, want, m)
				}
			}
		}
	}
}

// Nothing is left of what came and went.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	z := New("me")
	hosts := map[carrick.HostID][]carrick.Endpoint{"me": {ep("e1", "10.0.0.1 10.0.0.1", "a A b")}, "h": {ep("e2", "10.0.0.1", "a")}}
	z.Update(view("app", hosts), nil)
	z.Update(view("app", nil), nil)
	if len(z.parts)+len(z.names)+len(z.addrs) != 0 {
		t.Errorf("left: %v %v %v", z.parts, z.names, z.addrs)
	}
}

func TestAnswersAreShuffled(t *testing.T) {
	t.Parallel()
	z := New("me")
	z.Update(view("app", map[carrick.HostID][]carrick.Endpoint{"h": {ep("e1", "10.0.0.1", "a"), ep("e2", "10.0.0.2", "a"), ep("e3", "10.0.0.3", "a")}}), nil)
	got, _ := NewSet(z).Addresses("a", func(n int, swap func(i, j int)) { swap(0, n-1) }, carrick.IPv4)
	if fmt.Sprint(got) != "[10.0.0.3 10.0.0.2 10.0.0.1]" {
		t.Errorf("%v", got)
	}
}

func TestParseReverse(t *testing.T) {
	t.Parallel()
	six := "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa": "1.2.3.4", "4.3.2.1.IN-ADDR.arpa.": "1.2.3.4", "255.0.0.127.in-addr.arpa": "127.0.0.255",
		six: "2001:db8::567:89ab", strings.ToUpper(six) + ".": "2001:db8::567:89ab",
		"3.2.1.in-addr.arpa": "", "256.0.0.1.in-addr.arpa": "", "04.3.2.1.in-addr.arpa": "", "+4.3.2.1.in-addr.arpa": "", "5.4.3.2.1.in-addr.arpa": "",
		six[2:]: "", "g" + six[1:]: "", strings.Replace(six, ".", "a", 1): "", "in-addr.arpa": "", "": "", "web": "",
	} {
		a, ok := ParseReverse(name)
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("%s: %v %v, want %q", name, a, ok, want)
		}
	}
}

// BenchmarkChange is what one host's change costs a zone of 1000 hosts with 10
// containers each.
func BenchmarkChange(b *testing.B) {
	hosts := map[carrick.HostID][]carrick.Endpoint{}
	eps := func(h int) []carrick.Endpoint {
		var list []carrick.Endpoint
		for i := range 10 {
			list = append(list, ep(fmt.Sprintf("%d-%d", h, i), fmt.Sprintf("10.%d.%d.%d", h>>8, h&255, i), fmt.Sprintf("c%d-%d all", h, i)))
		}
		return list
	}
	for h := range 1000 {
		hosts[carrick.HostID(fmt.Sprint(h))] = eps(h)
	}
	z := New("0")
	z.Update(view("app", hosts), nil)
	two := [][]carrick.Endpoint{eps(7), eps(7)}
	for i := 0; b.Loop(); i++ {
		hosts["7"] = two[i%2]
		z.Update(view("app", hosts), nil)
	}
}

// BenchmarkLookup is a question to such a zone.
func BenchmarkLookup(b *testing.B) {
	hosts := map[carrick.HostID][]carrick.Endpoint{}
	for h := range 1000 {
		hosts[carrick.HostID(fmt.Sprint(h))] = []carrick.Endpoint{ep(fmt.Sprint(h), fmt.Sprintf("10.0.%d.%d", h>>8, h&255), fmt.Sprintf("c%d", h))}
	}
	z := New("0")
	z.Update(view("app", hosts), nil)
	s := NewSet(z)
	for b.Loop() {
		if _, k := s.Addresses("c7.app", nil, carrick.IPv4); k != Answered {
			b.Fatal(k)
		}
	}
}
