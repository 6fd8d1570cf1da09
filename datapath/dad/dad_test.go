package dad_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/dad"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// A foreign machine on the segment has an address, of either family, and says so; nobody
// has the next one.
func TestAsk(t *testing.T) {
	t.Parallel()
	l := nstest.NewLab(t)
	h, foreign := l.Host(1, 1500), l.Host(2, 1500)
	nstest.Run(t, foreign.NS, "ip addr add 10.42.0.3/16 dev eth0")
	nstest.Run(t, foreign.NS, "ip addr add fd00:42::3/64 dev eth0 nodad")
	mine, theirs := link(t, h.NS), link(t, foreign.NS)
	for addr, want := range map[string]carrick.MAC{
		"10.42.0.3": theirs.MAC, "fd00:42::3": theirs.MAC, "192.0.2.2": theirs.MAC, "2001:db8::2": theirs.MAC,
		"10.42.0.4": {}, "fd00:42::4": {},
	} {
		got, err := dad.Ask(t.Context(), h.NS, mine, netip.MustParseAddr(addr))
		if err != nil || got != want {
			t.Errorf("%s: held by %s, %v, want %s", addr, got, err, want)
		}
	}
	// Two who ask for one address at the same time hear each other.
	a := netip.MustParseAddr("10.42.0.9")
	heard := make(chan carrick.MAC, 1)
	go func() {
		m, _ := dad.Ask(t.Context(), foreign.NS, theirs, a)
		heard <- m
	}()
	one, err := dad.Ask(t.Context(), h.NS, mine, a)
	if other := <-heard; err != nil || one.IsZero() && other.IsZero() {
		t.Errorf("two who want one address: %s and %s, %v", one, other, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dad.Ask(ctx, h.NS, mine, a); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	nstest.Run(t, h.NS, "ip link set eth0 down")
	if _, err := dad.Ask(t.Context(), h.NS, mine, a); err == nil || !strings.Contains(err.Error(), "10.42.0.9") {
		t.Errorf("on a link that is down: %v", err)
	}
}

func link(t *testing.T, ns netns.Namespace) dad.Link {
	t.Helper()
	var l dad.Link
	err := netns.Do(ns, func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			l = dad.Link{Index: i.Index, MAC: carrick.MAC(i.HardwareAddr)}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Frames are from anybody.
func FuzzHolder(f *testing.F) {
	four, six := netip.MustParseAddr("10.42.0.3"), netip.MustParseAddr("fd00:42::3")
	mac := carrick.MAC{2, 0, 0, 0, 0, 7}
	f.Add(dad.Probe(mac, four))
	f.Add(dad.Probe(mac, six))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range []netip.Addr{four, six} {
			if got, ok := dad.Holder(b, a); !ok && !got.IsZero() {
				t.Error(fmt.Errorf("%x: nobody, and %s", b, got))
			}
		}
	})
}
