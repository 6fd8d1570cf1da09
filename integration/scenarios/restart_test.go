package scenarios

import (
	"errors"
	"fmt"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// The agent is killed and started again while traffic flows: not one packet is
// lost, and it takes over what is there and deletes nothing.
func TestAgentKilledUnderTraffic(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	flows := []traffic{
		flow(t, s.h1, "app", "same-udp", "udp", sink),
		flow(t, s.h2, "app", "cross-udp", "udp", sink),
		flow(t, s.h3, "app", "cross-tcp", "tcp", sink),
	}
	before := s.MustInventory(t)
	for _, h := range s.Hosts() {
		if err := h.KillAgent(ctx); err != nil {
			t.Fatal(err)
		}
		if diff := before.Diff(s.MustInventory(t)); diff != "" {
			t.Errorf("the death of %s's agent changed something:\n%s", h.Name(), diff)
		}
		if err := h.RestartAgent(ctx); err != nil {
			t.Fatal(err)
		}
		healthy(t, h)
		if diff := before.Diff(s.MustInventory(t)); diff != "" {
			t.Errorf("%s's restarted agent changed something:\n%s", h.Name(), diff)
		}
		// It works on: it knows what it has, and can add to it.
		b := start(t, h, "app", "after")
		b.reaches(t, sink)
		sink.reaches(t, b)
		h.MustDocker(t, "rm", "-f", "after")
	}
	// An upgrade is a stop and a start.
	for _, h := range s.Hosts() {
		if err := h.StopAgent(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.RestartAgent(ctx); err != nil {
			t.Fatal(err)
		}
		healthy(t, h)
	}
	if diff := before.Diff(s.MustInventory(t)); diff != "" {
		t.Errorf("a stop and a start of every agent changed something:\n%s", diff)
	}
	for _, f := range flows {
		f.intact(t)
	}
}

// Containers that end while the agent is away are not forgotten for long: the
// engine gives up telling it, and it finds out by itself.
//
// The engine takes 45 s to give up, three calls at 15 s, so this one has hosts of
// its own.
func TestContainerRemovedWhileAgentIsAway(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Engines: []lab.Engine{lab.Debian20, lab.Current}, Agents: true})
	h1, h2 := l.Host(1), l.Host(2)
	ctx := t.Context()
	if err := warmUp(ctx, l); err != nil {
		t.Fatal(err)
	}
	create(t, l.Hosts(), "app", "10.42.0.0/16")
	for _, h := range l.Hosts() {
		h.MustDocker(t, "run", "--rm", "--network", "app", lab.Image, "true")
	}
	before := idle(t, l)
	for _, h := range l.Hosts() {
		start(t, h, "app", "gone")
	}
	peer := start(t, h2, "app", "peer")
	peer.reaches(t, box{host: h1, name: "gone", ip: address(t, h1, "app", "gone")})
	err := onEach(l.Hosts(), func(h *lab.Host) error {
		if err := h.KillAgent(ctx); err != nil {
			return err
		}
		if _, err := h.Docker(ctx, "rm", "-f", "gone"); err != nil {
			return err
		}
		return h.RestartAgent(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		lab.Eventually(t, soon, "the lost endpoints to be gone everywhere", func() error {
			n, err := ask[clusterNetwork](t, h, "network", "inspect", "app")
			if err == nil && len(n.Endpoints) != 1 {
				err = fmt.Errorf("%s lists %d endpoints, want the one that runs", h.Name(), len(n.Endpoints))
			}
			return err
		})
	}
	h2.MustDocker(t, "rm", "-f", "peer")
	if err := unchanged(ctx, l, before); err != nil {
		t.Error(err)
	}
}

// comeBack waits until a container with --restart=always runs again, and is
// reached from another host and reaches it.
func comeBack(t *testing.T, h *lab.Host, name string, peer box) {
	t.Helper()
	b := box{host: h, name: name, network: peer.network}
	runsAgain(t, h, name)
	b.ip = address(t, h, b.network, name)
	peer.reaches(t, b)
	b.reaches(t, peer)
}

// dockerd is stopped and started, killed, and loses its power: containers that
// are to come back do, and are reached, on an old engine and a current one.
func TestEngineRestarts(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	peer := start(t, s.h2, "app", "peer")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		b := start(t, h, "app", "back", "--restart", "always")
		fixed := start(t, h, "app", "back-fixed", "--restart", "always", "--ip", map[*lab.Host]string{s.h1: "10.42.81.1", s.h3: "10.42.83.3"}[h])
		peer.reaches(t, b)
		for _, way := range []struct {
			name string
			do   func() error
		}{
			{"stop and start", func() error { return errors.Join(h.StopEngine(ctx), h.StartEngine(ctx)) }},
			{"kill -9 and start", func() error { return errors.Join(h.KillEngine(ctx), h.StartEngine(ctx)) }},
			{"power cut and boot", func() error { return errors.Join(h.PowerCut(ctx), h.Boot(ctx)) }},
			{"kill -9 of engine and agent", func() error {
				return errors.Join(h.KillEngine(ctx), h.KillAgent(ctx), h.RestartAgent(ctx), h.StartEngine(ctx))
			}},
		} {
			if err := way.do(); err != nil {
				t.Fatalf("%s on %s: %v", way.name, h.Name(), err)
			}
			comeBack(t, h, "back", peer)
			comeBack(t, h, "back-fixed", peer)
			if ip := address(t, h, "app", "back-fixed"); ip != fixed.ip {
				t.Errorf("after %s on %s --ip %s became %s", way.name, h.Name(), fixed.ip, ip)
			}
			// The old endpoints' facts went with them.
			lab.Eventually(t, soon, "three endpoints after "+way.name, func() error {
				n, err := ask[clusterNetwork](t, s.h2, "network", "inspect", "app")
				if err == nil && len(n.Endpoints) != 3 {
					err = fmt.Errorf("h2 lists %d", len(n.Endpoints))
				}
				return err
			})
		}
		h.MustDocker(t, "rm", "-f", "back", "back-fixed")
	}
}

// With --live-restore the engine can be stopped, and even killed, and no packet
// is lost; afterwards its containers can be stopped and started as ever.
func TestLiveRestore(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h2, "app", "sink")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		h.SetEngineFlags("--live-restore")
		// The flag counts from the start on.
		if err := errors.Join(h.StopEngine(ctx), h.StartEngine(ctx)); err != nil {
			t.Fatal(err)
		}
		b := start(t, h, "app", "stays")
		f := flow(t, h, "app", "flow", "udp", sink)
		g := flow(t, s.h2, "app", "into-"+h.Name(), "tcp", b)
		for name, end := range map[string]func() error{
			"stop":    func() error { return h.StopEngine(ctx) },
			"kill -9": func() error { return h.KillEngine(ctx) },
		} {
			if err := end(); err != nil {
				t.Fatal(err)
			}
			sink.reaches(t, b)
			if err := h.StartEngine(ctx); err != nil {
				t.Fatal(err)
			}
			sink.reaches(t, b)
			t.Logf("%s of %s's engine survived", name, h.Name())
		}
		f.intact(t)
		g.intact(t)
		h.MustDocker(t, "restart", "-t", "2", "stays")
		b.ip = address(t, h, "app", "stays")
		sink.reaches(t, b)
		start(t, h, "app", "fresh").reaches(t, sink)
		h.MustDocker(t, "rm", "-f", "stays", "fresh", "flow")
		h.SetEngineFlags()
		if err := errors.Join(h.StopEngine(ctx), h.StartEngine(ctx)); err != nil {
			t.Fatal(err)
		}
	}
}

// Every host of the cluster loses its power at once, the store's included, and
// all comes back.
func TestWholeClusterLosesPower(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	for _, h := range s.Hosts() {
		start(t, h, "app", "back-"+h.Name(), "--restart", "always")
	}
	if err := s.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return h.PowerCut(ctx) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return h.Boot(ctx) }); err != nil {
		t.Fatal(err)
	}
	var boxes []box
	for _, h := range s.Hosts() {
		name := "back-" + h.Name()
		runsAgain(t, h, name)
		boxes = append(boxes, box{host: h, name: name, network: "app", ip: address(t, h, "app", name)})
	}
	for _, from := range boxes {
		for _, to := range boxes {
			lab.Eventually(t, soon, from.name+" to reach "+to.name, func() error {
				got, err := from.nameAt(t, to.ip)
				if err == nil && got != to.name {
					err = fmt.Errorf("answered by %q", got)
				}
				return err
			})
		}
	}
}
