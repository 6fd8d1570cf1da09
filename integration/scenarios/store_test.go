package scenarios

import (
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// The store goes away for a while: running traffic, run, stop and start on known
// networks go on as if nothing had happened, and afterwards the others hear of
// what was done meanwhile.
func TestStoreAway(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	f := flow(t, s.h3, "app", "flow", "udp", sink)
	for _, h := range s.Hosts() {
		start(t, h, "app", "old")
	}
	if err := s.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		b := start(t, h, "app", "new")
		// Known facts stay known: who ran before is reached.
		b.reaches(t, sink)
		h.MustDocker(t, "restart", "-t", "2", "old")
		h.MustDocker(t, "rm", "-f", "old")
	}
	// An agent that starts without the store serves what it knew.
	if err := s.h2.KillAgent(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.h2.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	start(t, s.h2, "app", "newer").reaches(t, sink)
	if err := s.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
	for _, from := range s.Hosts() {
		for _, to := range s.Hosts() {
			box{host: from, name: "new", network: "app"}.reaches(t, box{host: to, name: "new", ip: address(t, to, "app", "new")})
		}
	}
	f.intact(t)
}

// One host is cut off from the store only: it works on, and is heard of again
// when the store is back.
func TestOneHostOffTheStore(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	f := flow(t, s.h2, "app", "flow", "tcp", sink)
	// It has a block of its own once it has run one.
	s.h2.MustDocker(t, "run", "--rm", "--network", "app", lab.Image, "true")
	if err := s.CutFromConsul(ctx, s.h2); err != nil {
		t.Fatal(err)
	}
	b := start(t, s.h2, "app", "unheard")
	b.reaches(t, sink)
	if err := s.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	healthy(t, s.h2)
	lab.Eventually(t, soon, "h1 to reach what was started meanwhile", func() error {
		_, err := sink.nameAt(t, b.ip)
		return err
	})
	f.intact(t)
}
