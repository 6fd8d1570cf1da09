package nft_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// The devices of each name are those that were set last, whatever somebody made of the
// table, and go without a trace.
func TestSources(t *testing.T) {
	t.Parallel()
	nstest.RequireRoot(t)
	ns, err := netns.NewDir(netns.Config{Dir: nstest.Dir(t)}).Create(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s := nft.Sources{}
	set := func(wantChanged bool, name string, devices ...string) {
		t.Helper()
		if changed, err := s.Set(t.Context(), ns, name, devices); err != nil || changed != wantChanged {
			t.Fatalf("set the devices of %s to %q: changed %v, %v", name, devices, changed, err)
		}
	}
	names := func(want ...string) {
		t.Helper()
		if got, err := s.Names(t.Context(), ns); err != nil || !slices.Equal(got, want) {
			t.Errorf("names %q, %v; want %q", got, err, want)
		}
	}
	set(false, "aa")
	names()
	set(true, "aa", "cr2", "cr1", "cr2")
	set(false, "aa", "cr1", "cr2")
	set(true, "bb", "cr3")
	names("aa", "bb")
	text := func() string { return nstest.Run(t, ns, "nft -nn list table ip6 carrick-aa") }
	whole := text()
	for _, part := range []string{`"cr1"`, `"cr2"`, "hook prerouting priority -300; policy accept;", "iifname @pairs ip6 saddr != :: ip6 saddr != fe80::/10 fib saddr . iif oif "} {
		if !strings.Contains(whole, part) {
			t.Errorf("no %s in\n%s", part, whole)
		}
	}
	for _, does := range []string{
		"delete table ip6 carrick-aa", "flush chain ip6 carrick-aa sources", "add rule ip6 carrick-aa sources drop",
		"insert rule ip6 carrick-aa sources accept", "add element ip6 carrick-aa pairs { eth0 }", "delete element ip6 carrick-aa pairs { cr1 }",
		"add chain ip6 carrick-aa more", "add set ip6 carrick-aa more { type ifname; }", "add table ip6 carrick-aa { flags dormant; }",
	} {
		nstest.Shell(t, ns, "nft '"+does+"'")
		set(true, "aa", "cr1", "cr2")
		set(false, "aa", "cr1", "cr2")
		if got := text(); got != whole {
			t.Errorf("%s: then there is\n%s\nnot\n%s", does, got, whole)
		}
	}
	// More than one message takes.
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("cr%011x", i))
	}
	set(true, "aa", many...)
	set(false, "aa", many...)
	set(true, "aa", many[1:]...)
	set(true, "aa", "cr1", "cr2")
	if got := text(); got != whole {
		t.Errorf("after 5000 there is\n%s\nnot\n%s", got, whole)
	}
	nstest.Shell(t, ns, "nft add table ip6 mine")
	set(true, "aa")
	names("bb")
	set(true, "bb")
	if got := strings.TrimSpace(nstest.Run(t, ns, "nft list tables")); got != "table ip6 mine" {
		t.Errorf("left is %q", got)
	}
}
