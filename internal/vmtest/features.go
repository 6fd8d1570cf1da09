package vmtest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// Feature is something that a kernel may have been built without.
type Feature string

// What a test may ask for. The kernel of [Machine] has all of them.
const (
	Dummy     Feature = "dummy links"
	IPVLAN    Feature = "ipvlan with its modes l2, l3 and l3s"
	MACVLAN   Feature = "macvlan"
	VLAN      Feature = "802.1q VLANs"
	VRF       Feature = "vrf links"
	WireGuard Feature = "wireguard links"
	Netem     Feature = "delay and loss by tc (netem)"
)

// Features returns all of them.
func Features() []Feature {
	return []Feature{Dummy, IPVLAN, MACVLAN, VLAN, VRF, WireGuard, Netem}
}

// probe is the commands that work if and only if the kernel has the feature. There is
// a link p0.
func (f Feature) probe() []string {
	switch f {
	case Dummy:
		return []string{"ip link add x0 type dummy"}
	case IPVLAN:
		return []string{"ip link add x0 link p0 type ipvlan mode l3s", "ip link del x0"}
	case MACVLAN:
		return []string{"ip link add x0 link p0 type macvlan mode bridge", "ip link del x0"}
	case VLAN:
		return []string{"ip link add x0 link p0 type vlan id 10"}
	case VRF:
		return []string{"ip link add x0 type vrf table 10"}
	case WireGuard:
		return []string{"ip link add x0 type wireguard"}
	case Netem:
		return []string{"tc qdisc add dev p0 root netem delay 1ms"}
	}
	return nil
}

// Missing makes what the features are about in a namespace of its own, and returns a
// line for each that the kernel refused: the feature, the command and what it said.
// It needs root.
func Missing(t testing.TB, features ...Feature) []string {
	t.Helper()
	store := netns.NewDir(netns.Config{Dir: nstest.Dir(t)})
	var missing []string
	for i, f := range features {
		ns, err := store.Create(t.Context(), fmt.Sprintf("probe%d", i))
		if err != nil {
			t.Fatal(err)
		}
		lines := f.probe()
		if lines == nil {
			t.Fatalf("there is no feature %q", f)
		}
		nstest.Run(t, ns, "ip link add p0 type veth peer name p1")
		for _, line := range lines {
			if out, err := nstest.Try(ns, line); err != nil {
				missing = append(missing, fmt.Sprintf("%s (%s: %s)", f, line, strings.TrimSpace(out)))
				break
			}
		}
		_ = ns.Close()
		if err := store.Delete(t.Context(), ns.Name()); err != nil {
			t.Fatal(err)
		}
	}
	return missing
}
