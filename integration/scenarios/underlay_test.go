package scenarios

import (
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// advertise starts a host's agent anew with a VTEP address.
func advertise(t testing.TB, h *lab.Host, addr string) {
	t.Helper()
	if h.AgentRunning() {
		if err := h.StopAgent(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.StartAgent(t.Context(), "--advertise", addr); err != nil {
		t.Fatal(err)
	}
}

// meet waits until all boxes reach each other, over all addresses they have.
func meet(t testing.TB, boxes []box6) {
	t.Helper()
	for _, from := range boxes {
		for _, to := range boxes {
			from.reaches(t, to.box)
			if to.ip6 != "" {
				from.reaches(t, to.over6())
			}
		}
	}
}

// Hosts have addresses of both families, and reach each other over IPv6. One that
// advertises the other family is named wherever it is missed, and one that comes
// back with another address of the right one is found by all.
func TestIPv6Underlay(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Engines: []lab.Engine{lab.Debian20, lab.Current}, IPv6: true})
	h1, h2 := l.Host(1), l.Host(2)
	for h, addr := range map[*lab.Host]string{h1: "fd31::1", h2: "fd31::2"} {
		advertise(t, h, addr)
	}
	create(t, l.Hosts(), "dual", dual4, "--ipv6", "--subnet", dual6)
	create(t, l.Hosts(), "four", "10.43.0.0/16")
	var dual, four []box6
	for _, h := range l.Hosts() {
		dual = append(dual, start6(t, h, "dual", "dual-"+h.Name()))
		four = append(four, box6{box: start(t, h, "four", "four-"+h.Name())})
	}
	meet(t, dual)
	meet(t, four)
	allPairs(t, dual)
	fullSize(t, dual[0], dual[1], 1430)
	fullSize(t, dual[1], dual[0], 1430)
	sends(t, four[0].box, four[1].box)
	for _, h := range l.Hosts() {
		healthy(t, h)
	}

	advertise(t, h2, h2.Addr().String())
	statusSays(t, h1, true, "h2", h2.Addr().String(), "fd31::1", "--advertise")
	statusSays(t, h2, true, "h1", "fd31::1", h2.Addr().String(), "--advertise")

	h2.MustExec(t, "ip", "addr", "add", "fd31::202/64", "dev", "eth0", "nodad")
	advertise(t, h2, "fd31::202")
	meet(t, dual)
	meet(t, four)
	for _, h := range l.Hosts() {
		statusSays(t, h, false, "--advertise")
	}
	sends(t, dual[1].box, dual[0].box)
	fullSize(t, dual[1], dual[0], 1430)
}
