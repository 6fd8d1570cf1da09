package nft_test

import (
	"errors"
	"testing"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// What Set leaves is what Read returns, and anybody's hand in it is seen.
func TestReadSeesWhatSetLeft(t *testing.T) {
	t.Parallel()
	nstest.RequireRoot(t)
	dir := netns.NewDir(netns.Config{Dir: nstest.Dir(t)})
	ns, err := dir.Create(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	f := nft.Linux{}
	set := func(c nft.Clamp) {
		t.Helper()
		if err := f.Set(t.Context(), ns, c); err != nil {
			t.Fatal(err)
		}
	}
	read := func() nft.State {
		t.Helper()
		s, err := f.Read(t.Context(), ns)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, c := range []nft.Clamp{{}, {Device: "vxlan0", MTU: 1450}, {Device: "vxlan0", MTU: 1450}, {Device: "vxlan0", MTU: 576}, {Device: "averylongname15", MTU: 8930}, {}} {
		set(c)
		if s := read(); s.Clamp != c || s.Damaged || len(s.Others) != 0 {
			t.Errorf("after Set(%v): %+v", c, s)
		}
	}
	for _, hand := range []string{
		"nft add chain bridge carrick more",
		"nft add rule bridge carrick forward counter",
		"nft flush chain bridge carrick forward",
		"nft insert rule bridge carrick forward drop",
		"nft add chain bridge carrick forward { policy drop ; }",
	} {
		c := nft.Clamp{Device: "vxlan0", MTU: 1400}
		set(c)
		nstest.Run(t, ns, hand)
		if s := read(); !s.Damaged || s.Clamp != (nft.Clamp{}) {
			t.Errorf("after %s: %+v", hand, s)
		}
		set(c)
		if s := read(); s.Damaged || s.Clamp != c {
			t.Errorf("repaired after %s: %+v", hand, s)
		}
	}
	// The other table is as much its own.
	for _, b := range []nft.Storm{{Except: "vxlan0", Rate: 2000}, {Except: "vxlan0", Rate: 1}, {Except: "vxlan0", Rate: 10_000_000}, {}, {Except: "vxlan0", Rate: 50}} {
		if err := f.SetStorm(t.Context(), ns, b); err != nil {
			t.Fatal(err)
		}
		if s := read(); s.Storm != b || s.StormDamaged || s.Damaged || s.Clamp.MTU != 1400 || len(s.Others) != 0 {
			t.Errorf("after SetStorm(%v): %+v", b, s)
		}
	}
	for _, hand := range []string{
		"nft flush chain bridge carrick-storm prerouting",
		"nft insert rule bridge carrick-storm prerouting accept",
		"nft add chain bridge carrick-storm more",
		"nft add chain bridge carrick-storm prerouting { policy drop ; }",
	} {
		nstest.Run(t, ns, hand)
		if s := read(); !s.StormDamaged || s.Storm != (nft.Storm{}) || s.Damaged {
			t.Errorf("after %s: %+v", hand, s)
		}
		if err := f.SetStorm(t.Context(), ns, nft.Storm{Except: "vxlan0", Rate: 50}); err != nil {
			t.Fatal(err)
		}
	}
	nstest.Run(t, ns, "nft add table inet theirs")
	s := read()
	if len(s.Others) != 1 || s.Others[0].String() != "inet theirs" {
		t.Fatalf("a foreign table: %+v", s)
	}
	for range 2 { // the second time it is gone already
		if err := f.Remove(t.Context(), ns, s.Others[0]); err != nil {
			t.Fatal(err)
		}
	}
	if s := read(); len(s.Others) != 0 || s.Clamp.MTU != 1400 {
		t.Errorf("after Remove: %+v", s)
	}
	if err := f.Set(t.Context(), ns, nft.Clamp{}); errors.Is(err, nft.ErrNotSupported) || err != nil {
		t.Error(err)
	}
}
