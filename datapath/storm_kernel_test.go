package datapath_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// meter counts the broadcasts of a type that arrive at eth0 of a namespace.
type meter struct {
	t  *testing.T
	fd int
}

func newMeter(t *testing.T, ns netns.Namespace) meter {
	t.Helper()
	m := meter{t: t}
	err := netns.Do(ns, func() (err error) {
		m.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0xb588)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(m.fd) })
	if err := errors.Join(unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(m.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200000})); err != nil {
		t.Fatal(err)
	}
	return m
}

// count reads until nothing has come for a moment, or the time is over.
func (m meter) count(most time.Duration) (n int) {
	m.t.Helper()
	buf := make([]byte, 2048)
	for end := time.Now().Add(most); time.Now().Before(end); {
		_, from, err := unix.Recvfrom(m.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return n
		case err != nil:
			m.t.Fatal(err)
		default:
			if sa, ok := from.(*unix.SockaddrLinklayer); !ok || sa.Pkttype != unix.PACKET_OUTGOING {
				n++
			}
		}
	}
	return n
}

// A container that shouts as loud as it can is heard no more than its network
// allows, on its host and on others, and keeps nobody else from being heard.
func TestAContainerThatShouts(t *testing.T) {
	t.Parallel()
	const rate = 20
	l := nstest.NewLab(t)
	h := [2]*realHost{newRealHost(t, l, 1, 1500), newRealHost(t, l, 2, 1500)}
	h[0].apply(spec{local: []int{1, 2, 3}, remote: map[int][]string{4: {"192.0.2.2"}}, flood: true, storm: rate}.plan())
	h[1].apply(spec{local: []int{4}, remote: map[int][]string{1: {"192.0.2.1"}, 2: {"192.0.2.1"}, 3: {"192.0.2.1"}}, vtep: "192.0.2.2", flood: true, storm: rate}.plan())
	c := map[int]*nstest.Container{}
	for i := 1; i <= 4; i++ {
		c[i] = h[i/4].Container(fmt.Sprint("c", i), endpoint(i).OuterName(), netip.PrefixFrom(ip4(i), 24))
	}
	loud, quiet := nstest.NewTap(t, c[1].NS), nstest.NewTap(t, c[2].NS)
	near, far := newMeter(t, c[3].NS), newMeter(t, c[4].NS)
	const shouts = 5000
	// IPv6's own multicast, of a container that has just started, is out of the same bucket:
	// there is no more of it, and the bucket is full again.
	nstest.Run(t, c[1].NS, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
	h[0].run("nft flush set bridge carrick-storm ports")
	began := time.Now()
	for i := range shouts {
		loud.Send(frame(broadcast, mac(1), fmt.Sprint("shout ", i)))
	}
	// A bucket holds a second's worth, and fills while it is emptied.
	most := rate + int(rate*time.Since(began).Seconds()) + 1
	for name, m := range map[string]meter{"its host": near, "the other host": far} {
		if n := m.count(time.Minute); n < rate || n > most {
			t.Errorf("of %d shouts %d were heard on %s, want %d to %d", shouts, n, name, rate, most)
		}
	}
	// Its bucket is its own, and what is for one is not bounded.
	quiet.Send(frame(broadcast, mac(2), "may I"))
	if near.count(time.Minute) == 0 || far.count(time.Minute) == 0 {
		t.Error("another container is not heard")
	}
	for range shouts {
		loud.Send(frame(mac(4), mac(1), "to you"))
	}
	if n := far.count(time.Minute); n != shouts {
		t.Errorf("of %d frames to one, %d arrived", shouts, n)
	}

	// Nobody's hand in it goes unseen, and no agent's restart empties the buckets.
	for _, line := range []string{
		"nft delete table bridge carrick-storm",
		"nft flush chain bridge carrick-storm prerouting",
		"nft add rule bridge carrick-storm prerouting drop",
		"nft insert rule bridge carrick-storm prerouting accept",
	} {
		h[0].run(line)
		rep, err := h[0].a.Audit(t.Context())
		if err != nil || rep.Drift.Rules != 1 {
			t.Errorf("after %s: %+v, %v", line, rep, err)
		}
		if rep, err := h[0].a.Audit(t.Context()); err != nil || rep.Changes.Total() != 0 {
			t.Errorf("after %s: not healed at once: %+v, %v", line, rep, err)
		}
	}
	if err := h[0].o.Close(); err != nil {
		t.Fatal(err)
	}
	h[0].start()
	p := spec{local: []int{1, 2, 3}, remote: map[int][]string{4: {"192.0.2.2"}}, flood: true, storm: rate}.plan()
	if rep := h[0].apply(p); rep.Changes.Total() != 0 {
		t.Errorf("a new agent changed %+v", rep.Changes)
	}
	p.Storm = 0
	h[0].apply(p)
	for i := range 200 {
		loud.Send(frame(broadcast, mac(1), fmt.Sprint("shout again ", i)))
	}
	if n := far.count(time.Minute); n != 200 {
		t.Errorf("without a bound %d of 200 arrived", n)
	}
}

// Two containers, on two hosts, each bridge the same two networks: whatever one
// says to all goes round for ever, unless it is bounded.
func TestALoopThroughContainersIsBounded(t *testing.T) {
	t.Parallel()
	const rate = 50
	l := nstest.NewLab(t)
	h := [2]*realHost{newRealHost(t, l, 1, 1500), newRealHost(t, l, 2, 1500)}
	const blue = carrick.NetworkID("00c0ffee00c0ffef")
	var listener *nstest.Container
	for i, host := range h {
		me, there := i+1, []string{h[1-i].VTEP.String()}
		local, remote := []int{me}, map[int][]string{2 - i: there}
		if i == 0 {
			local = append(local, 3)
		} else {
			remote[3] = there
		}
		p := spec{local: local, remote: remote, vtep: host.VTEP.String(), flood: true, storm: rate}.plan()
		host.apply(p)
		q := spec{local: []int{me + 10}, remote: map[int][]string{12 - i: there}, vtep: host.VTEP.String(), flood: true, storm: rate, vni: 43}.plan()
		q.ID, q.Namespace = blue, plan.Namespace(blue)
		if rep, err := host.o.Network(blue).Apply(t.Context(), q); err != nil || rep.Failed() != nil {
			t.Fatal(err, rep.Failed())
		}
		c := host.Container("bridging", endpoint(me).OuterName())
		nstest.Run(t, host.NS, fmt.Sprintf("ip link set %s netns /proc/%d/fd/%d name eth1", endpoint(me+10).OuterName(), os.Getpid(), c.NS.FD()))
		nstest.Run(t, c.NS, "ip link add both type bridge")
		for _, line := range []string{"eth0 master both", "eth1 master both up", "both up"} {
			nstest.Run(t, c.NS, "ip link set "+line)
		}
		if i == 0 {
			listener = host.Container("listener", endpoint(3).OuterName(), netip.PrefixFrom(ip4(3), 24))
		}
	}
	tap, m := nstest.NewTap(t, listener.NS), newMeter(t, listener.NS)
	// It takes a moment until the containers' own bridges forward.
	n, end, began := 0, time.Now().Add(20*time.Second), time.Time{}
	for ; n < 2 && time.Now().Before(end); n = m.count(time.Minute) {
		began = time.Now()
		tap.Send(frame(broadcast, mac(3), "round and round"))
	}
	took := time.Since(began)
	t.Logf("%d copies of one frame in %s", n, took.Round(time.Millisecond))
	// It hears what comes from the port here and from the one there. What is dropped
	// does not go round again, so that it ends.
	if most := 2 * (rate + int(rate*took.Seconds()) + 1); n < 2 || n > most || took > time.Minute {
		t.Errorf("%d copies of one frame in %s, want 2 to %d", n, took, most)
	}
}
