package datapath_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nltest"
	"github.com/carrick-net/carrick/plan"
)

func TestANetworkIsMadeInThisOrder(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := plans()["three hosts"]
	h.apply(p)
	const want = `ip netns add NS
ip -n NS link add br0 type bridge mcast_snooping 0 vlan_default_pvid 0
ip -n NS link set br0 mtu 1450 addrgenmode none
ip -n NS link set br0 up
ip link add ckvx42 netns NS mtu 1450 master br0 type vxlan id 42 dstport 4789 local 192.0.2.1 nolearning proxy
ip -n NS link set ckvx42 name vxlan0 addrgenmode none type bridge_slave learning off flood off
ip -n NS link set vxlan0 up
ip link add pa1a1a1a1a1a netns NS mtu 1450 master br0 type veth peer name cka1a1a1a1a1a address 02:00:0a:00:00:01 mtu 1450
ip -n NS link set pa1a1a1a1a1a alias a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1 addrgenmode none type bridge_slave learning off flood off
ip -n NS link set pa1a1a1a1a1a up
ip link add pa2a2a2a2a2a netns NS mtu 1450 master br0 type veth peer name cka2a2a2a2a2a address 02:00:0a:00:00:02 mtu 1450
ip -n NS link set pa2a2a2a2a2a alias a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2 addrgenmode none type bridge_slave learning off flood off
ip -n NS link set pa2a2a2a2a2a up
ip netns exec NS sysctl -w net.bridge.bridge-nf-call-arptables=0
ip netns exec NS sysctl -w net.bridge.bridge-nf-call-ip6tables=0
ip netns exec NS sysctl -w net.bridge.bridge-nf-call-iptables=0
ip netns exec NS sysctl -w net.ipv6.conf.br0.accept_ra=0
bridge -n NS fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.2 self permanent
bridge -n NS fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.3 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:0b dev vxlan0 dst 192.0.2.2 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:0c dev vxlan0 dst 192.0.2.2 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:0d dev vxlan0 dst 192.0.2.3 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:01 dev pa1a1a1a1a1a master static
bridge -n NS fdb replace 02:00:0a:00:00:02 dev pa2a2a2a2a2a master static
bridge -n NS fdb replace 02:00:0a:00:00:0b dev vxlan0 master static
bridge -n NS fdb replace 02:00:0a:00:00:0c dev vxlan0 master static
bridge -n NS fdb replace 02:00:0a:00:00:0d dev vxlan0 master static
ip -n NS neigh replace 10.0.0.11 lladdr 02:00:0a:00:00:0b dev vxlan0 nud permanent
ip -n NS neigh replace 10.0.0.12 lladdr 02:00:0a:00:00:0c dev vxlan0 nud permanent
ip -n NS neigh replace 10.0.0.13 lladdr 02:00:0a:00:00:0d dev vxlan0 nud permanent
`
	h.log(want)
	h.holds(p)
}

// log checks what was sent since it was last asked.
func (h *host) log(want string) {
	h.t.Helper()
	got := strings.ReplaceAll(strings.Join(append(h.k.TakeLog(), ""), "\n"), space, "NS")
	if got != want {
		h.t.Errorf("sent\n%s\nwant\n%s", got, want)
	}
}

func TestAChangeSendsItsDifference(t *testing.T) {
	t.Parallel()
	all := plans()
	for _, x := range []struct{ from, to, want string }{
		{"alone", "one container", `ip link add pa1a1a1a1a1a netns NS mtu 1450 master br0 type veth peer name cka1a1a1a1a1a address 02:00:0a:00:00:01 mtu 1450
ip -n NS link set pa1a1a1a1a1a alias a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1 addrgenmode none type bridge_slave learning off flood off
ip -n NS link set pa1a1a1a1a1a up
bridge -n NS fdb replace 02:00:0a:00:00:01 dev pa1a1a1a1a1a master static
`},
		{"one container", "alone", "ip -n NS link del pa1a1a1a1a1a\n"},
		{"three hosts", "no flooding", `bridge -n NS fdb del 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.2 self
bridge -n NS fdb del 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.3 self
`},
		{"three hosts", "smaller MTU", `ip -n NS link set br0 mtu 1400
ip -n NS link set vxlan0 mtu 1400
ip -n NS link set pa1a1a1a1a1a mtu 1400
ip link set cka1a1a1a1a1a mtu 1400
ip -n NS link set pa2a2a2a2a2a mtu 1400
ip link set cka2a2a2a2a2a mtu 1400
`},
		{"one container", "other port", `ip -n NS link del vxlan0
ip link add ckvx42 netns NS mtu 1450 master br0 type vxlan id 42 dstport 8472 local 192.0.2.1 nolearning proxy
ip -n NS link set ckvx42 name vxlan0 addrgenmode none type bridge_slave learning off flood off
ip -n NS link set vxlan0 up
ip link add pa2a2a2a2a2a netns NS mtu 1450 master br0 type veth peer name cka2a2a2a2a2a address 02:00:0a:00:00:02 mtu 1450
ip -n NS link set pa2a2a2a2a2a alias a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2 addrgenmode none type bridge_slave learning off flood off
ip -n NS link set pa2a2a2a2a2a up
bridge -n NS fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.2 self permanent
bridge -n NS fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.3 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:0b dev vxlan0 dst 192.0.2.2 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:0c dev vxlan0 dst 192.0.2.2 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:0d dev vxlan0 dst 192.0.2.3 self permanent
bridge -n NS fdb replace 02:00:0a:00:00:02 dev pa2a2a2a2a2a master static
bridge -n NS fdb replace 02:00:0a:00:00:0b dev vxlan0 master static
bridge -n NS fdb replace 02:00:0a:00:00:0c dev vxlan0 master static
bridge -n NS fdb replace 02:00:0a:00:00:0d dev vxlan0 master static
ip -n NS neigh replace 10.0.0.11 lladdr 02:00:0a:00:00:0b dev vxlan0 nud permanent
ip -n NS neigh replace 10.0.0.12 lladdr 02:00:0a:00:00:0c dev vxlan0 nud permanent
ip -n NS neigh replace 10.0.0.13 lladdr 02:00:0a:00:00:0d dev vxlan0 nud permanent
`},
		{"one container", "absent", `ip -n NS link del vxlan0
ip -n NS link del pa1a1a1a1a1a
ip -n NS link del br0
ip netns del NS
`},
	} {
		h := newHost(t)
		h.apply(all[x.from])
		h.k.TakeLog()
		h.apply(all[x.to])
		h.log(x.want)
		h.holds(all[x.to])
	}
}

// TestEveryPlanFollowsEveryOther walks through all plans so that each follows
// each, on one host and with restarts now and then.
func TestEveryPlanFollowsEveryOther(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	all := plans()
	names := sortedNames(all)
	todo := map[[2]string]bool{}
	for _, from := range names {
		for _, to := range names {
			todo[[2]string{from, to}] = true
		}
	}
	h := newHost(t)
	now := "absent"
	for len(todo) > 0 {
		next := names[rng.IntN(len(names))]
		if rng.IntN(10) == 0 {
			h.restart()
		}
		h.apply(all[next])
		h.holds(all[next])
		delete(todo, [2]string{now, next})
		now = next
	}
}

// transitions runs fn for every step from one plan to another: on a host that
// holds the first, with the number of messages that the step takes.
func transitions(t *testing.T, fn func(h func() *host, to plan.Network, messages int)) {
	all := plans()
	for _, from := range sortedNames(all) {
		for _, to := range sortedNames(all) {
			ready := func() *host {
				h := newHost(t)
				h.apply(all[from])
				return h
			}
			h := ready()
			before := h.k.Messages()
			h.apply(all[to])
			fn(ready, all[to], h.k.Messages()-before)
		}
	}
}

func TestACrashAtAnyMessageIsHealedByTheNextAgent(t *testing.T) {
	t.Parallel()
	steps := 0
	transitions(t, func(ready func() *host, to plan.Network, messages int) {
		for n := range messages {
			steps++
			h := ready()
			h.k.CrashAfter(n)
			rep, err := h.a.Apply(t.Context(), to)
			if err == nil && rep.Failed() == nil {
				t.Fatalf("Apply survived a crash after %d of %d messages", n, messages)
			}
			if err == nil && !errors.Is(rep.Failed(), nltest.ErrCrashed) {
				t.Fatalf("the reason got lost: %v", rep.Failed())
			}
			h.k.Recover()
			h.restart()
			h.apply(to)
			h.holds(to)
			h.o.Close()
		}
	})
	t.Logf("%d crashes", steps)
}

func TestAFailureOfAnyMessageIsHealedByTheNextApply(t *testing.T) {
	t.Parallel()
	errnos := []unix.Errno{unix.ENOMEM, unix.ENODEV, unix.EEXIST}
	i := 0
	transitions(t, func(ready func() *host, to plan.Network, messages int) {
		for n := range messages {
			h := ready()
			i++
			h.k.FailMessage(n+1, errnos[i%len(errnos)])
			// It may have tried again by itself, or may not have.
			_, _ = h.a.Apply(t.Context(), to)
			h.apply(to)
			h.holds(to)
			h.o.Close()
		}
	})
}

func TestAFailedReadingIsHealedByTheNextApply(t *testing.T) {
	t.Parallel()
	to := plans()["three hosts"]
	for _, op := range []string{"Open", "OpenHandle", "Subscribe", "Links", "NSID", "FDB", "Neighbours", "Link", "Peer"} {
		for _, from := range []string{"absent", "other containers", "three hosts"} {
			h := newHost(t)
			h.apply(plans()[from])
			h.restart()
			h.k.FailNext(op, unix.ENOBUFS)
			rep, err := h.a.Apply(t.Context(), to)
			if err == nil && rep.Failed() == nil && !(op == "Peer" && from == "absent") {
				t.Errorf("from %s: %s failed and nobody said so", from, op)
			}
			h.k.Recover()
			h.apply(to)
			h.holds(to)
		}
	}
}
