package scenarios

import (
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// The store goes away for a while, and agents are killed and started meanwhile:
// running traffic does not notice, containers come, go and restart, and the others
// hear of it when the store is back.
func TestStoreAway(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	flows := []traffic{
		flow(t, s.h2, "app", "tcp-flow", "tcp", sink),
		flow(t, s.h3, "app", "udp-flow", "udp", sink),
	}
	gone := start(t, s.h2, "app", "gone")
	stays := start(t, s.h2, "app", "stays")
	sink.reaches(t, gone)
	if err := s.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	s.h2.MustDocker(t, "rm", "-f", "gone")
	sink.reaches(t, stays)
	s.h2.MustDocker(t, "restart", "-t", "2", "stays")
	stays.ip = address(t, s.h2, "app", "stays")
	for _, h := range []*lab.Host{s.h2, s.h3} {
		if err := h.KillAgent(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.RestartAgent(ctx); err != nil {
			t.Fatal(err)
		}
	}
	meanwhile := start(t, s.h2, "app", "meanwhile")
	meanwhile.reaches(t, stays)
	s.h2.MustDocker(t, "stop", "-t", "2", "meanwhile")
	s.h2.MustDocker(t, "start", "meanwhile")
	meanwhile.ip = address(t, s.h2, "app", "meanwhile")
	meanwhile.reaches(t, stays) // other hosts hear of it when the store is back
	if err := s.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
	for _, f := range flows {
		f.intact(t)
	}
	for _, h := range s.Hosts() {
		b := start(t, h, "app", "new")
		b.reaches(t, sink)
		sink.reaches(t, b)
	}
	meanwhile.reaches(t, sink)
	sink.reaches(t, meanwhile)
	sink.misses(t, gone)
}

// One host is cut off from the store only: its traffic goes on, and it catches up
// when the store is back.
func TestOneHostOffTheStore(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	f := flow(t, s.h2, "app", "flow", "tcp", sink)
	old := start(t, s.h2, "app", "old")
	if err := s.CutFromConsul(ctx, s.h2); err != nil {
		t.Fatal(err)
	}
	// What happens elsewhere meanwhile it does not hear of.
	later := start(t, s.h3, "app", "later")
	old.reaches(t, sink)
	sink.reaches(t, old)
	if err := s.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	healthy(t, s.h2)
	lab.Eventually(t, soon, "h2 to reach what was started meanwhile", func() error {
		_, err := old.nameAt(t, later.ip)
		return err
	})
	f.intact(t)
}
