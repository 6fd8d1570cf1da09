package nft_test

import (
	"errors"
	"testing"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// namesNS is a namespace with its switch.
func namesNS(t testing.TB) (netns.Namespace, *nft.NamesSwitch) {
	t.Helper()
	nstest.RequireRoot(t)
	ns, err := netns.NewDir(netns.Config{Dir: nstest.Dir(t)}).Create(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	s := nft.OpenNames(ns)
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), ns.Close()); err != nil {
			t.Error(err)
		}
	})
	return ns, s
}

// What Set leaves is what Read returns, and anybody's hand in it is seen: by Refresh
// at once, as a change of whatever, and by Read, as what it is.
func TestNamesReadSeesWhatSetLeft(t *testing.T) {
	t.Parallel()
	ns, s := namesNS(t)
	set := func(n nft.Names) {
		t.Helper()
		if err := s.Set(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	read := func() nft.NamesState {
		t.Helper()
		got, err := s.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := read(); got != (nft.NamesState{}) {
		t.Errorf("before all: %+v", got)
	}
	one := nft.Names{UDP: 34567, TCP: 34568, Mark: 0x4361726b}
	for _, n := range []nft.Names{{}, one, one, {UDP: 1, TCP: 65535, Mark: 1}, {}, one} {
		set(n)
		if got := read(); got.Names != n || got.Damaged || got.Alive != (n != nft.Names{}) {
			t.Errorf("after Set(%v): %+v", n, got)
		}
	}
	for range 3 {
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := read(); got != (nft.NamesState{Names: one, Alive: true}) {
			t.Errorf("after Refresh: %+v", got)
		}
	}
	for _, hand := range []string{
		"nft add chain ip carrickdns more",
		"nft add rule ip carrickdns out counter",
		"nft flush chain ip carrickdns out",
		"nft insert rule ip carrickdns out drop",
		"nft add chain ip carrickdns out { policy drop ; }",
		"nft add set ip carrickdns another { type ipv4_addr ; }",
		"nft add table ip carrickdns { flags dormant ; }",
	} {
		set(one)
		nstest.Run(t, ns, hand)
		if err := s.Refresh(t.Context()); !errors.Is(err, nft.ErrNamesChanged) {
			t.Errorf("refresh after %s: %v", hand, err)
		}
		if got := read(); !got.Damaged || got.Names != (nft.Names{}) {
			t.Errorf("after %s: %+v", hand, got)
		}
		set(one)
		if got := read(); got != (nft.NamesState{Names: one, Alive: true}) {
			t.Errorf("repaired after %s: %+v", hand, got)
		}
	}
	nstest.Run(t, ns, "nft delete table ip carrickdns")
	if err := s.Refresh(t.Context()); !errors.Is(err, nft.ErrNamesChanged) {
		t.Errorf("refresh of a table that is gone: %v", err)
	}
	if got := read(); got != (nft.NamesState{}) {
		t.Errorf("a table that is gone: %+v", got)
	}
	// What somebody else does for himself is looked at once and is no damage.
	set(one)
	nstest.Run(t, ns, "nft add table inet theirs")
	if err := s.Refresh(t.Context()); !errors.Is(err, nft.ErrNamesChanged) {
		t.Errorf("refresh after a foreign change: %v", err)
	}
	if got := read(); got.Names != one || got.Damaged {
		t.Errorf("after a foreign change: %+v", got)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
}

// A table whose element is gone, as after three seconds without a refresh, works
// again with the next one.
func TestNamesRefreshAfterItExpired(t *testing.T) {
	t.Parallel()
	ns, s := namesNS(t)
	one := nft.Names{UDP: 34567, TCP: 34568, Mark: 1}
	if err := s.Set(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, ns, "nft flush set ip carrickdns alive")
	if got, err := s.Read(t.Context()); err != nil || got != (nft.NamesState{Names: one}) {
		t.Errorf("an expired table: %+v, %v", got, err)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := s.Read(t.Context()); err != nil || !got.Alive {
		t.Errorf("refreshed: %+v, %v", got, err)
	}
}

// BenchmarkNamesRefresh is what each container costs the agent every second.
func BenchmarkNamesRefresh(b *testing.B) {
	_, s := namesNS(b)
	if err := s.Set(b.Context(), nft.Names{UDP: 1, TCP: 2, Mark: 3}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
