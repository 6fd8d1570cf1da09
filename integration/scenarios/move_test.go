package scenarios

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// silence is when a stream of packets was not answered for longest.
type silence struct {
	Sent     int       `json:"sent"`
	Received int       `json:"received"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
}

// pulse runs a container that pings an address and sends it packets every 10 ms,
// and returns once it is answered.
func pulse(t testing.TB, h *lab.Host, network, name, addr string) traffic {
	t.Helper()
	h.MustDocker(t, "run", "-d", "--name", name, "--network", network, lab.Image, "probe", "pulse", "-every", "10ms", addr)
	p := traffic{h, name}
	lab.Eventually(t, soon, name+" to be answered", func() error {
		out, err := h.Docker(t.Context(), "logs", name)
		if err == nil && !strings.Contains(out, "flowing") {
			err = fmt.Errorf("%s printed %q", name, out)
		}
		return err
	})
	return p
}

// silences ends the pulse and returns what it says, by the kind of packet.
func (f traffic) silences(t testing.TB) map[string]silence {
	t.Helper()
	f.host.MustDocker(t, "kill", "--signal", "TERM", f.name)
	f.host.MustDocker(t, "wait", f.name)
	out := f.host.MustDocker(t, "logs", f.name)
	lines := strings.Split(out, "\n")
	s := map[string]silence{}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Fatalf("%s on %s printed %q: %v", f.name, f.host.Name(), out, err)
	}
	f.host.MustDocker(t, "rm", f.name)
	return s
}

// A container with an address of its own is stopped on one host and started on
// another while everybody talks to it: those on the host that it left, on the one
// that it came to, and on a third. All find it again by themselves, also when it
// has got another MAC, and how long that took is printed. The last goes back to
// the host that owns its address, which is given back a while after the stop.
func TestAContainerMoves(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", dual4, "--ipv6", "--subnet", dual6)
	for i, story := range []move{
		{name: "with its MAC", from: s.h1, to: s.h3},
		{name: "with another MAC", from: s.h3, to: s.h1, after: "02:42:00:00:77:01"},
		{name: "with its own MAC instead of another", from: s.h1, to: s.h2, before: "02:42:00:00:77:02"},
		{name: "with another MAC, when nobody remembers it", from: s.h2, to: s.h3, after: "02:42:00:00:77:03", rest: true, back: true},
	} {
		story.addr4, story.addr6 = fmt.Sprintf("10.42.%d.7", 70+i), fmt.Sprintf("fd00:42::%x:7", 70+i)
		mover := fmt.Sprintf("mover%d", i)
		start(t, story.from, "app", mover, story.flags(story.before)...)
		s.move(t, story, mover, mover+"-moved")
		if story.back {
			story.name, story.from, story.to, story.after = "back, with its MAC", story.to, story.from, ""
			s.move(t, story, mover+"-moved", mover+"-back")
		}
	}
}

// move is one story of a container that moves.
type move struct {
	name          string
	from, to      *lab.Host
	addr4, addr6  string
	before, after string // its MAC, if not made of the address
	rest          bool   // it is started when nobody has an entry for it any more
	back          bool
}

func (m move) flags(mac string) []string {
	f := []string{"--ip", m.addr4, "--ip6", m.addr6}
	if mac != "" {
		f = append(f, "--mac-address", mac)
	}
	return f
}

func (s scenario) move(t *testing.T, m move, name, next string) {
	t.Helper()
	m.to.MustDocker(t, append(append([]string{"create", "--name", next, "--hostname", next, "--network", "app"}, m.flags(m.after)...), lab.Image)...)
	pulses := map[string]traffic{}
	for _, h := range s.Hosts() {
		pulses["IPv4 from "+h.Name()] = pulse(t, h, "app", "pulse4", m.addr4)
		pulses["IPv6 from "+h.Name()] = pulse(t, h, "app", "pulse6", m.addr6)
	}

	m.from.MustDocker(t, "stop", "-t", "1", name)
	stopped := time.Now()
	m.from.MustDocker(t, "rm", name)
	if m.rest {
		for _, h := range s.Hosts() {
			lab.Eventually(t, patience, h.Name()+" to give the address up", func() error {
				out, err := h.InContainer(t.Context(), "pulse4", "ip", "neigh", "show", m.addr4)
				if err == nil && !strings.Contains(out, "FAILED") && !strings.Contains(out, "INCOMPLETE") {
					err = fmt.Errorf("it says %q", out)
				}
				return err
			})
		}
	}
	starting := time.Now()
	m.to.MustDocker(t, "start", next)
	started := time.Now()
	for _, h := range s.Hosts() {
		b := box{host: h, name: "pulse4", network: "app"}
		b.reaches(t, box{host: m.to, name: next, ip: m.addr4})
		b.reaches(t, box{host: m.to, name: next, ip: "[" + m.addr6 + "]"})
	}
	t.Logf("%s, from %s to %s: %d ms from the stop's end to the start's begin, which took %d ms", m.name, m.from.Name(), m.to.Name(),
		starting.Sub(stopped).Milliseconds(), started.Sub(starting).Milliseconds())
	for _, h := range s.Hosts() {
		for _, family := range []string{"IPv4", "IPv6"} {
			for kind, quiet := range pulses[family+" from "+h.Name()].silences(t) {
				t.Logf("  %s from %s, %-4s: nothing for %5d ms, answered %4d ms after the start returned", family, h.Name(), kind,
					quiet.To.Sub(quiet.From).Milliseconds(), quiet.To.Sub(started).Milliseconds())
				if quiet.Received == 0 || quiet.To.Before(starting) {
					t.Errorf("%s from %s, %s: never answered after the move: %+v", family, h.Name(), kind, quiet)
				}
			}
		}
	}
}
