package probe_test

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/probe"
)

// host is an agent's prober on a throwaway host.
type host struct {
	*nstest.Host
	t    *testing.T
	p    *probe.Prober
	stop func()

	mu      sync.Mutex
	wanted  []probe.Port
	carries map[netip.Addr]int
}

func newHost(t *testing.T, l *nstest.Lab, n, mtu int) *host {
	h := &host{Host: l.Host(n, mtu), t: t, carries: map[netip.Addr]int{}}
	return h
}

func (h *host) start() {
	h.p = probe.New(probe.Config{
		Kernel: nl.Linux{}, Namespaces: h.Namespaces,
		Wanted: func() []probe.Port {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.wanted
		},
		Carries: func(a netip.Addr, n int) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.carries[a] = n
		},
		Tick: 10 * time.Millisecond, Again: 50 * time.Millisecond, Suspect: 10 * time.Millisecond, Wait: 300 * time.Millisecond, Silence: time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.p.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(h.stop)
}

func (h *host) want(ports ...probe.Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted = ports
}

func (h *host) carry(a netip.Addr) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.carries[a]
}

// until waits until what is found of the only way holds these words; "" is that the
// way is fine.
func (h *host) until(words ...string) string {
	h.t.Helper()
	limit := time.After(time.Minute)
	for {
		for _, s := range h.p.Found() {
			good := (s == "") == (len(words) == 0)
			for _, w := range words {
				good = good && strings.Contains(s, w)
			}
			if good {
				return s
			}
		}
		select {
		case <-limit:
			h.t.Fatalf("never found %q, but %v; problems %q", words, h.p.Found(), h.p.Problems())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// two are two hosts of the same MTU that have a network of mtu bytes.
func two(t *testing.T, six bool, outer int) (*nstest.Lab, [2]*host) {
	l := nstest.NewLab(t)
	hosts := [2]*host{newHost(t, l, 1, outer), newHost(t, l, 2, outer)}
	vtep := func(h *host) netip.Addr {
		if six {
			return h.VTEP6
		}
		return h.VTEP
	}
	for i, h := range hosts {
		far := vtep(hosts[1-i])
		h.want(probe.Port{Port: carrick.DefaultPort, Local: vtep(h), Device: "eth0",
			Peers: []probe.Peer{{Name: "other", VTEP: far, MTU: outer - carrick.Overhead(far), Answers: true}}})
		h.start()
	}
	return l, hosts
}

// A way that is fine is found to be, of any size and family.
func TestAGoodWayIsFine(t *testing.T) {
	t.Parallel()
	for _, six := range []bool{false, true} {
		for _, mtu := range []int{1450, 1500, 9000} {
			_, hosts := two(t, six, mtu)
			for _, h := range hosts {
				h.until()
			}
		}
	}
}

// The switch between takes less than both hosts' devices say, and tells nobody.
func TestASmallSwitchIsFound(t *testing.T) {
	t.Parallel()
	for _, six := range []bool{false, true} {
		l, hosts := two(t, six, 1500)
		hosts[0].until()
		l.Switch("ip link set h2 mtu 1400")
		far := hosts[1].VTEP
		if six {
			far = hosts[1].VTEP6
		}
		hosts[0].until("host other", "do not arrive", "raise the MTU")
		limit := time.After(time.Minute)
		for got := 0; got <= 1390 || got > 1404; got = hosts[0].carry(far) {
			select {
			case <-limit:
				t.Fatalf("the way carries %d, want 1400 and not more than a VLAN's header on top", got)
			case <-time.After(5 * time.Millisecond):
			}
		}
		l.Switch("ip link set h2 mtu 1500")
		hosts[0].until()
		for hosts[0].carry(far) != 0 {
			select {
			case <-limit:
				t.Fatalf("the way is fine and carries %d", hosts[0].carry(far))
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// Somebody between keeps VXLAN's port to himself.
func TestAClosedPortIsFound(t *testing.T) {
	t.Parallel()
	l, hosts := two(t, false, 1500)
	hosts[0].until()
	l.Switch("nft add table bridge wall")
	l.Switch("nft add chain bridge wall forward { type filter hook forward priority 0 ; }")
	l.Switch("nft add rule bridge wall forward udp dport 4789 drop")
	hosts[0].until("host other", "UDP port 4789", "firewall", "-o port=")
	l.Switch("nft delete table bridge wall")
	hosts[0].until()
}

// A network card finishes no checksums: what is small and finished arrives, and no TCP
// of a container does. Only the host with the card is told, with the remedy; and the
// remedy, taken by its word, is one.
func TestABadCardIsFound(t *testing.T) {
	t.Parallel()
	l, hosts := two(t, false, 1500)
	for _, h := range hosts {
		h.until()
	}
	l.BadCard(1)
	said := hosts[0].until("wrong checksums", "ethtool -K eth0 ")
	hosts[1].until()
	_, remedy, _ := strings.Cut(said, ": ethtool")
	nstest.Run(t, hosts[0].NS, "ethtool"+remedy)
	hosts[0].until()
}

// Whoever uses no port has nothing in the kernel, whether its agent stopped or was
// killed before; and probing goes on after both, and after anybody's hand in it.
func TestProbesLeaveNothing(t *testing.T) {
	t.Parallel()
	_, hosts := two(t, false, 1500)
	h := hosts[0]
	h.until()
	names := func() []string {
		t.Helper()
		list, err := h.Namespaces.List(t.Context(), probe.NamespacePrefix)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if n := names(); len(n) != 1 {
		t.Fatalf("namespaces %q", n)
	}
	h.stop()
	if n := names(); len(n) != 0 {
		t.Errorf("the agent has stopped and left %q", n)
	}
	// What a killed one leaves.
	ns, err := h.Namespaces.Create(t.Context(), probe.NamespacePrefix+"8472")
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	h.start()
	h.until()
	if n := names(); len(n) != 1 || n[0] != probe.NamespacePrefix+"4789" {
		t.Errorf("namespaces %q", n)
	}
	ns, err = h.Namespaces.Open(t.Context(), probe.NamespacePrefix+"4789")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	nstest.Run(t, ns, "ip link del ckprobe4789")
	h.until() // an old answer, maybe
	limit := time.After(time.Minute)
	for {
		if out, err := nstest.Try(ns, "ip link show ckprobe4789"); err == nil && strings.Contains(out, "LOWER_UP") {
			break
		}
		select {
		case <-limit:
			t.Fatal("the device does not come back")
		case <-time.After(5 * time.Millisecond):
		}
	}
	h.want()
	for len(names()) != 0 {
		select {
		case <-limit:
			t.Fatalf("no port is in use and there is %q", names())
		case <-time.After(5 * time.Millisecond):
		}
	}
	if len(h.p.Found()) != 0 || len(h.p.Problems()) != 0 {
		t.Errorf("found %v, problems %q", h.p.Found(), h.p.Problems())
	}
}
