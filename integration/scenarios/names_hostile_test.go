package scenarios

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// A container that sends garbage to where it asks harms nobody's names, its own
// included.
func TestGarbageForQuestions(t *testing.T) {
	onlySoaked(t)
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	web := start(t, s.h2, "app", "web")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		near := start(t, h, "app", "near")
		rude := start(t, h, "app", "rude")
		rude.resolves(t, "web", web.ip)
		h.MustDocker(t, "run", "-d", "--name", "garbler", "--network", "container:rude", lab.Image, "probe", "garble")
		lab.Eventually(t, soon, "the garbage to flow", func() error {
			out, err := h.Docker(t.Context(), "logs", "garbler")
			if err == nil && !strings.Contains(out, "garbling") {
				err = fmt.Errorf("printed %q", out)
			}
			return err
		})
		asked := 0
		for began := time.Now(); asked < 3 || time.Since(began) < 3*time.Second; asked++ {
			for _, b := range []box{rude, near, web} {
				b.resolvesAll(t, leads{"web": {web.ip}, "near": {near.ip}})
				b.resolvesAll(t, leads{"web": {web.ip}, "near": {near.ip}}, "-tcp")
			}
		}
		h.MustDocker(t, "kill", "--signal", "TERM", "garbler")
		h.MustDocker(t, "wait", "garbler")
		t.Logf("%s: names were right %d times, beside %s", h.Engine(), asked, strings.ReplaceAll(h.MustDocker(t, "logs", "garbler"), "garbling\n", ""))
		start(t, h, "app", "later").resolves(t, "web", web.ip)
		healthy(t, h)
		h.MustDocker(t, "rm", "-f", "garbler", "rude", "near", "later")
	}
}

// A container whose own resolvers are dead is led to the cluster's names, and is told
// that others are not known instead of being left to wait.
func TestNamesWithADeadUpstream(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	web := start(t, s.h2, "app", "web")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		// Nobody has that address (RFC 5737).
		lonely := start(t, h, "app", "lonely", "--dns", "192.0.2.99")
		near := start(t, h, "app", "near")
		lonely.resolvesAll(t, leads{"web": {web.ip}, "near": {near.ip}, "web.app": {web.ip}})
		names := []string{"nobody.example", "else.example", "web", "near"}
		told := make([]string, len(names))
		err := atOnce([]int{0, 1, 2, 3}, func(i int) error {
			args := []string{"probe", "ask", "-wait", "20s"}
			if i == 1 {
				args = append(args, "-tcp")
			}
			out, err := h.InContainer(t.Context(), "lonely", append(args, names[i])...)
			told[i] = strings.TrimSpace(out)
			want := []string{"2", "3"} // SERVFAIL, NXDOMAIN
			if i > 1 {
				want = []string{"0"}
			}
			if f := strings.Fields(out); err == nil && (len(f) != 3 || !slices.Contains(want, f[0])) {
				err = errors.New("it is told " + out)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", h.Engine(), err)
		}
		t.Logf("%s: code, records, milliseconds: %s", h.Engine(), strings.Join(told, "; "))
		h.MustDocker(t, "rm", "-f", "lonely", "near")
	}
}
