package scenarios

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// listener is a container that prints what is said to a multicast group.
func listener(t testing.TB, h *lab.Host, network, name, group string) traffic {
	t.Helper()
	h.MustDocker(t, "run", "-d", "--name", name, "--network", network, lab.Image, "probe", "join", group)
	l := traffic{h, name}
	lab.Eventually(t, soon, name+" to join", func() error {
		_, err := l.heard(t)
		return err
	})
	return l
}

// heard is what was said to the group since it was joined.
func (f traffic) heard(t testing.TB) ([]string, error) {
	out, err := f.host.Docker(t.Context(), "logs", f.name)
	if err == nil && !strings.HasPrefix(out, "joined") {
		err = fmt.Errorf("%s on %s printed %q", f.name, f.host.Name(), out)
	}
	return strings.Fields(strings.TrimPrefix(out, "joined")), err
}

// A multicast application runs on all hosts, over both families: who joined the
// group hears what is said to it from wherever, groups apart, and goes on hearing
// it when agents are killed. With flood=off the application is as if alone on its
// host.
func TestMulticastAcrossHosts(t *testing.T) {
	s := begin(t)
	groups := map[string]string{"4": "239.7.7.7", "6": "ff05::777", "mdns": "224.0.0.251"}
	for network, far := range map[string]bool{"loud": true, "quiet": false} {
		args := []string{"--ipv6"}
		subnet := "10.42.0.0/16"
		if network == "quiet" {
			subnet = "10.43.0.0/16"
			args = append(args, "--subnet", "fd00:43::/64", "-o", "flood=off")
		} else {
			args = append(args, "--subnet", "fd00:42::/64")
		}
		create(t, s.Hosts(), network, subnet, args...)
		var ears []traffic
		want := map[string][]string{}
		for _, h := range s.Hosts() {
			for kind, group := range groups {
				ears = append(ears, listener(t, h, network, "ear-"+network+kind+"-"+h.Name(), group))
			}
		}
		speak := func(round string) {
			for _, h := range s.Hosts() {
				for kind, group := range groups {
					word := round + "-" + kind + "-from-" + h.Name()
					h.MustDocker(t, "run", "--rm", "--network", network, lab.Image, "probe", "say", word, group)
					for _, e := range ears {
						if strings.HasPrefix(e.name, "ear-"+network+kind+"-") && (far || e.host == h) {
							want[e.name] = append(want[e.name], word)
						}
					}
				}
			}
			for _, e := range ears {
				lab.Eventually(t, soon, e.name+" to hear all", func() error {
					got, err := e.heard(t)
					slices.Sort(got)
					slices.Sort(want[e.name])
					if err == nil && !slices.Equal(got, want[e.name]) {
						err = fmt.Errorf("it heard %q, want %q", got, want[e.name])
					}
					return err
				})
			}
		}
		speak("first")
		for _, h := range s.Hosts() {
			if err := h.KillAgent(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := h.RestartAgent(t.Context()); err != nil {
				t.Fatal(err)
			}
			healthy(t, h)
		}
		speak("again")
		for _, h := range s.Hosts() {
			names := strings.Fields(h.MustDocker(t, "ps", "-aq"))
			h.MustDocker(t, append([]string{"rm", "-f"}, names...)...)
		}
	}
}

// A container shouts at all others as loud as it can, for some seconds. It is heard
// on the other hosts as often as its network allows and no more, and what the
// others have to say to each other meanwhile arrives.
func TestAShoutingContainerIsBounded(t *testing.T) {
	s := begin(t)
	const rate, seconds = 300, 3
	create(t, s.Hosts(), "app", "10.42.0.0/16", "-o", fmt.Sprintf("storm=%d", rate))
	server := start(t, s.h2, "app", "server")
	talk := []traffic{flow(t, s.h1, "app", "talk1", "udp", server), flow(t, s.h3, "app", "talk3", "udp", server)}
	ears := []traffic{listener(t, s.h1, "app", "ear", "239.7.7.7"), listener(t, s.h2, "app", "ear", "239.7.7.7"), listener(t, s.h3, "app", "ear", "239.7.7.7")}
	start(t, s.h1, "app", "mouth")
	began := time.Now()
	sent, err := strconv.Atoi(s.h1.MustInContainer(t, "mouth", "probe", "shout", "-for", fmt.Sprintf("%ds", seconds), "HEY", "239.7.7.7"))
	most := rate + int(rate*time.Since(began).Seconds()) + 1
	if err != nil || sent < 5*most {
		t.Errorf("it shouted %d times only (%v)", sent, err)
	}
	for _, f := range talk {
		f.intact(t)
	}
	for _, e := range ears {
		words, err := e.heard(t)
		if n := len(words); err != nil || n < rate || n > most {
			t.Errorf("of %d shouts %s heard %d, want %d to %d (%v)", sent, e.host.Name(), n, rate, most, err)
		} else {
			t.Logf("of %d shouts %s heard %d", sent, e.host.Name(), n)
		}
	}
}
