package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// outage is how long the store stays away: a minute, or CARRICK_OUTAGE (make soak).
func outage(t testing.TB) time.Duration {
	t.Helper()
	s := os.Getenv("CARRICK_OUTAGE")
	if s == "" {
		return time.Minute
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("CARRICK_OUTAGE: %v", err)
	}
	return d
}

// The store is away for a while, dead at first and then silent. Nobody notices who
// does not make networks: traffic flows, containers start, stop and start again,
// agents die and come back.
func TestStoreOutage(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Agents: true})
	ctx := t.Context()
	w := load(t, l, "app", "10.42.0.0/16")
	limit := outage(t)
	w.work(t)
	w.rounds(t, 1)

	began := time.Now()
	if err := l.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	aware(t, l, began)
	for time.Since(began) < limit/2 {
		w.rounds(t, 1)
	}
	// A machine that is gone does not even refuse.
	for _, h := range l.Hosts() {
		if err := l.CutFromConsul(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	for time.Since(began) < limit {
		w.rounds(t, 1)
	}
	aware(t, l, began)
	if err := l.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	w.rest(t)
	t.Logf("the store was away for %s", time.Since(began).Round(time.Second))
	if err := l.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	converged(t, l, "the store's return")
	for _, h := range l.Hosts() {
		healthy(t, h)
	}
	w.allPairs(t)
	w.intact(t)
	create(t, l.Hosts(), "late", "10.43.0.0/16")
	start(t, l.Host(1), "late", "client").reaches(t, start(t, l.Host(3), "late", "server"))
	l.Check(t)
}

// aware fails the test unless every host's status says that the store does not
// answer, how old what it knows is and how much the others do not know, and unless
// a new network is refused on every host with what to do about it. Agents may be
// killed meanwhile, and then the question is asked again.
func aware(t *testing.T, l *lab.Lab, since time.Time) {
	t.Helper()
	for _, h := range l.Hosts() {
		lab.Eventually(t, soon, h.Name()+"'s status to know of the outage", func() error {
			s, err := statusOf(t, h)
			switch {
			case err != nil:
				return err
			case s.Store.OK || len(s.Problems) == 0:
				return fmt.Errorf("%+v", s)
			case s.Store.Contact.Sub(since) > soon:
				return fmt.Errorf("it says that it heard from the store at %s", s.Store.Contact)
			case s.Pending == 0 || s.Unpublished == 0:
				return fmt.Errorf("everything is published, it says: %+v", s)
			}
			_, err = h.Carrick(t.Context(), "status")
			return says(err, "what is known of other hosts is", "endpoint", "Needs attention")
		})
	}
	err := onEach(l.Hosts(), func(h *lab.Host) error {
		return lab.Wait(t.Context(), soon, "a new network to be refused", func() error {
			// Within what a person waits for; the engine itself has no limit.
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			began := time.Now()
			_, err := h.Docker(ctx, createArgs("new", "10.44.0.0/16")...)
			if ctx.Err() != nil {
				return errors.New("it is neither made nor refused")
			}
			if err := says(err, "cannot be created without the store", "carrick status"); err != nil {
				return err
			}
			t.Logf("%s refused it in %s", h.Name(), time.Since(began).Round(100*time.Millisecond))
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// The whole cluster loses its power, and comes back before its store does. What
// was running runs, and who keeps an address is reached by what the hosts remember
// of each other. The store comes back, and all is as if nothing had been.
func TestColdBootWithoutStore(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	var fixed, free []box
	for i, h := range s.Hosts() {
		ip := fmt.Sprintf("10.42.%d.9", 100+i)
		fixed = append(fixed, start(t, h, "app", "fixed-"+h.Name(), "--restart", "always", "--ip", ip))
		free = append(free, start(t, h, "app", "free-"+h.Name(), "--restart", "always"))
	}
	// What was heard a second ago may not be on disk. They talk for two.
	for i, b := range fixed {
		out := b.host.MustInContainer(t, b.name, "probe", "flow", "-count", "400", fixed[(i+1)%len(fixed)].ip)
		if !strings.Contains(out, `"lost":0`) {
			t.Errorf("%s on %s: %s", b.name, b.host.Name(), out)
		}
	}
	s.Check(t)
	if err := s.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return h.PowerCut(ctx) }); err != nil {
		t.Fatal(err)
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return h.Boot(ctx) }); err != nil {
		t.Fatal(err)
	}
	for i, h := range s.Hosts() {
		runsAgain(t, h, free[i].name)
		runsAgain(t, h, fixed[i].name)
		free[i].ip = address(t, h, "app", free[i].name)
		if ip := address(t, h, "app", fixed[i].name); ip != fixed[i].ip {
			t.Errorf("%s had %s and has %s", fixed[i].name, fixed[i].ip, ip)
		}
		fixed[i].reaches(t, free[i])
		free[i].reaches(t, fixed[i])
	}
	for _, from := range fixed {
		for _, to := range fixed {
			from.reaches(t, to)
		}
	}
	// What was not there before works as well, where the network is known.
	for i, h := range s.Hosts() {
		start(t, h, "app", "new-"+h.Name()).reaches(t, fixed[i])
	}

	if err := s.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	converged(t, s.Lab, "the store's return")
	for _, from := range append(fixed, free...) {
		for _, to := range append(fixed, free...) {
			from.reaches(t, to)
		}
	}
}

// runsAgain waits until an engine has started a container again.
func runsAgain(t testing.TB, h *lab.Host, name string) {
	t.Helper()
	lab.Eventually(t, soon, name+" to run again", func() error {
		out, err := h.Docker(t.Context(), "inspect", "-f", "{{.State.Status}} {{.State.Error}}", name)
		if err == nil && out != "running " {
			err = errors.New(out)
		}
		return err
	})
}
