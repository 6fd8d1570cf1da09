package nft_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// Whatever kind of iptables a host has: the rules of a name are in Docker's chain for
// users, after what users say and before the RETURN that ends it, are put right when
// somebody changes them, and go without a trace.
func TestAcceptsInDockersChain(t *testing.T) {
	t.Parallel()
	nstest.RequireRoot(t)
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dir := netns.NewDir(netns.Config{Dir: nstest.Dir(t)})
			ns, err := dir.Create(t.Context(), "n")
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			u, chains := nft.User{}, false
			pools := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/64")}
			set := func(wantChanged bool, name string, prefixes ...netip.Prefix) {
				t.Helper()
				n, whole, err := u.Set(t.Context(), ns, name, prefixes)
				if err != nil || (n > 0) != wantChanged || whole != (chains || len(prefixes) == 0) {
					t.Fatalf("set the rules of %s: %d changed, in every family %v, %v; want some %v", name, n, whole, err, wantChanged)
				}
			}
			names := func(want ...string) {
				t.Helper()
				if got, err := u.Names(t.Context(), ns); err != nil || !slices.Equal(got, want) {
					t.Errorf("names %q, %v; want %q", got, err, want)
				}
			}
			iptables := func(args string) string {
				t.Helper()
				return nstest.Shell(t, ns, strings.NewReplacer("ip6tables", "ip6tables-"+kind, "iptables", "iptables-"+kind).Replace(args))
			}
			chain := func(program string) string {
				t.Helper()
				out := strings.TrimSpace(iptables(program + " -S DOCKER-USER"))
				_, rules, _ := strings.Cut(out, "\n")
				return rules
			}
			set(false, "aa", pools...) // no chain, nothing to accept
			names()
			iptables("iptables -N DOCKER-USER")
			iptables("iptables -A DOCKER-USER -s 10.42.0.9 -j DROP")
			iptables("iptables -A DOCKER-USER -j RETURN")
			iptables("ip6tables -N DOCKER-USER")
			chains = true

			set(true, "aa", pools...)
			set(false, "aa", pools...)
			set(true, "bb", netip.MustParsePrefix("10.43.7.0/27"))
			names("aa", "bb")
			want := `-A DOCKER-USER -s 10.42.0.9/32 -j DROP
-A DOCKER-USER -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment "carrick aa" -j ACCEPT
-A DOCKER-USER -s 10.43.7.0/27 -d 10.43.7.0/27 -m comment --comment "carrick bb" -j ACCEPT
-A DOCKER-USER -j RETURN`
			if got := chain("iptables"); got != want {
				t.Errorf("the chain is\n%s\nnot\n%s", got, want)
			}
			if got, want := chain("ip6tables"), `-A DOCKER-USER -s fd00:42::/64 -d fd00:42::/64 -m comment --comment "carrick aa" -j ACCEPT`; got != want {
				t.Errorf("the chain of IPv6 is\n%s\nnot\n%s", got, want)
			}
			again := `-s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment "carrick aa" -j ACCEPT`
			for _, c := range []struct {
				hand    string
				changes bool
			}{
				{"iptables -D DOCKER-USER " + again, true},
				{"iptables -A DOCKER-USER " + again, true},
				{"iptables -I DOCKER-USER " + strings.Replace(again, "-d 10.42.0.0/16", "-d 10.42.9.0/24", 1), true},
				{"iptables -I DOCKER-USER -s 10.42.0.0/16 -j ACCEPT", false}, // somebody else's
				// What is said after ours would be said in vain.
				{"iptables -D DOCKER-USER -j RETURN; iptables -A DOCKER-USER -d 10.42.0.8 -j DROP; iptables -A DOCKER-USER -j RETURN", true},
				{"iptables -I DOCKER-USER -j RETURN", true}, // it ends before ours
			} {
				iptables(c.hand)
				set(c.changes, "aa", pools...)
				set(false, "aa", pools...)
			}
			if got := chain("iptables"); strings.Index(got, again) > strings.Index(got, "-j RETURN") || strings.Count(got, again) != 1 {
				t.Errorf("the chain is\n%s", got)
			}
			iptables("iptables -D DOCKER-USER -j RETURN")
			iptables("iptables -D DOCKER-USER -s 10.42.0.0/16 -j ACCEPT")
			set(true, "aa")
			set(true, "bb")
			names()
			if got, want := chain("iptables")+chain("ip6tables"), "-A DOCKER-USER -s 10.42.0.9/32 -j DROP\n-A DOCKER-USER -d 10.42.0.8/32 -j DROP\n-A DOCKER-USER -j RETURN"; got != want {
				t.Errorf("what is left is\n%s\nnot\n%s", got, want)
			}
		})
	}
}
