package gossip_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/gossip"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// A host loses power: both others take its names back. It has power again: it is
// believed at once, although its agent never knew.
func TestAHostLosesPower(t *testing.T) {
	t.Parallel()
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, h := lab(t, 3, six)
			before := h[0].believes().Told
			h[2].power(l, false)
			cut := time.Now()
			h[0].untilDown(h[2])
			first := time.Since(cut)
			h[1].untilDown(h[2])
			t.Logf("%s: down for one after %v, for both after %v", name, first.Round(time.Millisecond), time.Since(cut).Round(time.Millisecond))
			if h[0].believes().Told <= before {
				t.Error("nobody was told")
			}
			h[2].power(l, true)
			back := time.Now()
			up := func(b belief) bool { return len(b.Down) == 0 }
			h[0].until("nobody is down", up)
			h[1].until("nobody is down", up)
			t.Logf("%s: back for both after %v", name, time.Since(back).Round(time.Millisecond))
			h[0].untilMember(h[2])
			h[1].untilMember(h[2])
			h[2].untilMember(h[0])
			h[2].untilMember(h[1])
			for _, x := range h {
				x.never(h[0])
				x.never(h[1])
			}
		})
	}
}

// Who is cut off sees all others gone at once and takes that for its own fault; the
// others see one gone.
func TestOneOfThreeIsCutOff(t *testing.T) {
	t.Parallel()
	l, h := lab(t, 3, false)
	l.Switch("ip link set h3 nomaster") // its device has a carrier still
	h[0].untilDown(h[2])
	h[1].untilDown(h[2])
	h[2].until("it is cut off", func(b belief) bool { return b.CutOff && len(b.Silent) == 2 })
	l.Switch("ip link set h3 master ul0")
	for _, x := range h {
		x.until("all are members", func(b belief) bool { return len(b.Members) == 2 && !b.CutOff })
	}
	for _, x := range h {
		x.never(h[0])
		x.never(h[1])
	}
	h[2].never(h[2])
}

// Three of five are off in the same moment: the two that are left vouch for each other.
func TestMostHostsLosePower(t *testing.T) {
	t.Parallel()
	l, h := lab(t, 5, false)
	for _, x := range h[2:] {
		x.power(l, false)
	}
	for _, x := range h[:2] {
		for _, y := range h[2:] {
			x.untilDown(y)
		}
		x.never(h[0])
		x.never(h[1])
	}
}

// Of two hosts each takes the other for dead: what cannot be reached from here need not
// be named here.
func TestTwoHostsLoseEachOther(t *testing.T) {
	t.Parallel()
	l, h := lab(t, 2, false)
	l.Switch("ip link set h2 nomaster")
	h[0].untilDown(h[1])
	h[1].untilDown(h[0])
	l.Switch("ip link set h2 master ul0")
	h[0].untilMember(h[1])
	h[1].untilMember(h[0])
	// But a host whose own device is down knows that it could not ask.
	told := h[1].believes().Told
	nstest.Run(t, h[1].NS, "ip link set eth0 down")
	h[0].untilDown(h[1])
	h[1].untilSilent(h[0])
	if b := h[1].believes(); b.Told != told || len(b.Down) > 0 {
		t.Errorf("a host without a network believes another to be down: %+v", b)
	}
}

// An agent takes leave, and its host runs on: nobody is down. The host goes too: its
// names go.
func TestAnAgentStops(t *testing.T) {
	t.Parallel()
	l, h := lab(t, 3, false)
	h[2].stop()
	h[0].untilSilent(h[2])
	h[1].untilSilent(h[2])
	h[2].start()
	h[0].untilMember(h[2])
	h[1].untilMember(h[2])
	h[2].untilMember(h[0])
	h[0].never(h[2])
	h[1].never(h[2])
	h[2].stop()
	h[2].power(l, false)
	h[0].untilDown(h[2])
	h[1].untilDown(h[2])
}

// An agent is killed, and its host runs on: its kernel says so. Then the host dies.
func TestAnAgentIsKilled(t *testing.T) {
	t.Parallel()
	l, h := lab(t, 3, true)
	h[2].kill()
	h[0].untilSilent(h[2])
	h[1].untilSilent(h[2])
	h[2].start()
	for _, x := range h[:2] {
		x.untilMember(h[2])
		x.never(h[2])
	}
	h[2].kill()
	h[0].untilSilent(h[2])
	h[2].power(l, false)
	cut := time.Now()
	h[0].untilDown(h[2])
	h[1].untilDown(h[2])
	t.Logf("a host without an agent is down after %v", time.Since(cut).Round(time.Millisecond))
	// Power is back before its agent: the kernel is enough.
	h[2].power(l, true)
	h[0].until("nobody is down", func(b belief) bool { return len(b.Down) == 0 && slices.Contains(b.Silent, h[2].id) })
	h[2].start()
	h[0].untilMember(h[2])
}

// A firewall shuts the gossip port of a host that runs: an echo shows that it does.
func TestAFirewallIsNoDeath(t *testing.T) {
	t.Parallel()
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, h := lab(t, 3, six)
			for _, line := range []string{
				"nft add table inet fw",
				"nft add chain inet fw in { type filter hook input priority 0 ; }",
				fmt.Sprintf("nft add rule inet fw in meta l4proto { tcp, udp } th dport %d drop", gossip.DefaultPort),
			} {
				nstest.Run(t, h[2].NS, line)
			}
			h[0].untilSilent(h[2])
			h[1].untilSilent(h[2])
			// A host that dies meanwhile takes longer than this needs to be asked.
			h[1].kill()
			h[1].power(l, false)
			h[0].untilDown(h[1])
			h[0].never(h[2])
		})
	}
}

// A firewall drops echoes, and an agent is killed: the kernel refuses its port.
func TestARefusalIsNoDeath(t *testing.T) {
	t.Parallel()
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, h := lab(t, 3, six)
			for _, line := range []string{
				"nft add table inet fw",
				"nft add chain inet fw in { type filter hook input priority 0 ; }",
				"nft add rule inet fw in icmp type echo-request drop",
				"nft add rule inet fw in icmpv6 type echo-request drop",
			} {
				nstest.Run(t, h[2].NS, line)
			}
			h[2].kill()
			h[0].untilSilent(h[2])
			h[1].untilSilent(h[2])
			h[1].kill()
			h[1].power(l, false)
			h[0].untilDown(h[1])
			h[0].never(h[2])
		})
	}
}

// A host without gossip is never down, and says why it is missing.
func TestAStrangerIsNeverDown(t *testing.T) {
	t.Parallel()
	l, h := idle(t, 4, false)
	h[3].key = make([]byte, gossip.KeySize)
	h[3].key[0] = 1 // another key
	for _, i := range []int{0, 1, 3} {
		h[i].start()
	}
	h[0].until("host 2 is a member, and why 3 and 4 are not", func(b belief) bool {
		return slices.Contains(b.Members, h[1].id) &&
			strings.Contains(b.Missing[h[2].id], "refused") && strings.Contains(b.Missing[h[3].id], "decrypt")
	})
	h[3].until("it is alone", func(b belief) bool { return len(b.Missing) == 3 && b.Missing[h[0].id] != "" })
	h[2].power(l, false)
	h[3].power(l, false)
	h[1].power(l, false)
	h[0].untilDown(h[1])
	h[0].never(h[2])
	h[0].never(h[3])
	for _, x := range h {
		h[3].never(x)
	}
}

// Rubbish from hosts and strangers is left alone.
func TestRubbish(t *testing.T) {
	t.Parallel()
	l, h := idle(t, 3, false)
	stranger := l.Host(9, 1500)
	h[0].key, h[1].key = nil, nil // the decoder is open to all
	for _, x := range h[:2] {
		x.start()
	}
	h[0].untilMember(h[1])
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	to := netip.AddrPortFrom(h[0].addr, gossip.DefaultPort).String()
	for _, from := range []*nstest.Host{h[2].Host, stranger} {
		for i := range 400 {
			b := make([]byte, 1+rng.IntN(200))
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
			b[0] = byte(i % 16) // a message's type
			if i%3 == 0 {
				b = append([]byte{244, 7}, append([]byte("carrick"), b...)...) // as ours are labelled
			}
			var conn net.Conn
			network := "udp"
			if i%8 == 0 {
				network = "tcp"
			}
			err := netns.Do(from.NS, func() (err error) {
				conn, err = net.Dial(network, to)
				return err
			})
			if err == nil {
				_, err = conn.Write(b)
				_ = conn.Close()
			}
			if err != nil && network == "udp" {
				t.Fatal(err)
			}
		}
	}
	told := h[0].believes().Told
	h[1].stop()
	h[0].untilSilent(h[1])
	h[1].start()
	h[0].untilMember(h[1])
	if b := h[0].believes(); b.Told != told || len(b.Members) != 1 {
		t.Errorf("rubbish is believed: %+v", b)
	}
	log := h[0].said()
	if n := strings.Count(log, "is not heard"); n != 1 {
		t.Errorf("a stranger is spoken of %d times, want once a minute:\n%s", n, log)
	}
	if n := strings.Count(log, "\n"); n > 300 {
		t.Errorf("the log has %d lines", n)
	}
}

// The port is taken, and becomes free.
func TestThePortIsTaken(t *testing.T) {
	t.Parallel()
	_, h := idle(t, 2, true)
	var squatter net.Listener
	err := netns.Do(h[0].NS, func() (err error) {
		squatter, err = net.Listen("tcp", netip.AddrPortFrom(h[0].addr, gossip.DefaultPort).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	h[0].start()
	h[1].start()
	h[0].until("the port is taken", func(b belief) bool { return strings.Contains(b.Err, "address already in use") })
	if err := squatter.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	h[0].untilMember(h[1])
	h[1].untilMember(h[0])
	if b := h[0].believes(); b.Err != "" {
		t.Errorf("gossips, with an error: %+v", b)
	}
}

// The store tells of hosts late, of others no more, and of one with another address.
func TestTheClusterChanges(t *testing.T) {
	t.Parallel()
	l, h := idle(t, 3, false)
	all := h[0].peers
	some := maps.Clone(all)
	delete(some, h[2].id)
	h[0].peers, h[1].peers = some, some
	for _, x := range h {
		x.start()
	}
	h[0].untilMember(h[1])
	h[2].until("nobody takes it", func(b belief) bool { return b.Missing[h[0].id] != "" && b.Missing[h[1].id] != "" })
	if b := h[0].believes(); len(b.Members) != 1 {
		t.Errorf("the store does not have host 3, and it is a member: %+v", b)
	}
	for _, x := range h[:2] {
		x.tell(all)
		x.untilMember(h[2])
	}
	h[2].power(l, false)
	h[0].untilDown(h[2])
	h[1].untilDown(h[2])
	told := h[0].believes().Told
	h[0].tell(some) // carrick node rm
	h[0].until("host 3 is no more", func(b belief) bool { return len(b.Down) == 0 && len(b.Missing) == 0 && b.Told > told })

	// It comes back with another address.
	h[2].kill()
	h[2].power(l, true)
	h[2].addr = netip.MustParseAddr("192.0.2.77")
	nstest.Run(t, h[2].NS, "ip addr add 192.0.2.77/24 dev eth0")
	moved := maps.Clone(all)
	moved[h[2].id] = h[2].addr
	for _, x := range h[:2] {
		x.tell(moved)
	}
	h[2].peers = moved
	h[2].start()
	for _, x := range h[:2] {
		x.untilMember(h[2])
	}
	h[2].untilMember(h[1])
}

// Agents are killed, stopped and started at random and one host loses power again and
// again, while every fiftieth packet is lost: no host that has power is down for
// anybody, and the one that has none is, each time.
func TestChurnOnABadNetwork(t *testing.T) {
	t.Parallel()
	l, h := lab(t, 5, false)
	for _, x := range h {
		for _, line := range []string{
			"nft add table inet loss",
			"nft add chain inet loss in { type filter hook input priority 0 ; }",
			"nft add rule inet loss in iifname eth0 numgen random mod 100 < 2 counter drop",
		} {
			nstest.Run(t, x.NS, line)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	watcher, victim := h[0], h[4]
	for range 4 {
		victim.power(l, false)
		cut := time.Now()
		for range 2 {
			x := h[1+rng.IntN(3)]
			if rng.IntN(2) == 0 {
				x.kill()
			} else {
				x.stop()
			}
			x.start()
		}
		watcher.untilDown(victim)
		t.Logf("down after %v", time.Since(cut).Round(time.Millisecond))
		victim.power(l, true)
		for _, x := range h {
			x.until("all are members", func(b belief) bool { return len(b.Members) == 4 })
		}
	}
	for _, x := range h {
		for _, y := range h[:4] {
			x.never(y)
		}
	}
	out := nstest.Run(t, h[0].NS, "nft list chain inet loss in")
	if strings.Contains(out, "packets 0 ") {
		t.Errorf("nothing was lost: %s", out)
	}
}
