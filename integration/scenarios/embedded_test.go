package scenarios

import (
	"errors"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// One host, no store to run: everything that makes sense there works the same.
func TestEmbeddedStore(t *testing.T) {
	t.Parallel()
	for _, kind := range []lab.Engine{lab.Debian20, lab.Current} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			l := lab.New(t, lab.Options{Engines: []lab.Engine{kind}, Consuls: -1, Agents: true})
			h := l.Host(1)
			ctx := t.Context()

			if err := warmUp(ctx, l); err != nil {
				t.Fatal(err)
			}
			before := idle(t, l)

			create(t, l.Hosts(), "app", "10.42.0.0/16")
			web := start(t, h, "app", "web", "-p", "8080:80", "--restart", "always")
			client := start(t, h, "app", "client", "--ip", "10.42.5.5")
			client.reaches(t, web)
			web.reaches(t, client)
			for _, name := range []string{"web", "client"} {
				if from, err := h.InContainer(ctx, name, "timeout", "5", "wget", "-qO-", l.OutsideURL()); err != nil || from != h.Addr().String() {
					t.Errorf("outside saw %s as %q (%v)", name, from, err)
				}
			}

			// Bad input is refused here as well.
			_, err := h.Docker(ctx, createArgs("bad", "10.42.1.0/24")...)
			refused(t, err, "overlap")
			_, err = h.Docker(ctx, createArgs("bad", "10.50.0.0/16", "-o", "colour=red")...)
			refused(t, err, "colour")

			// The agent dies and comes back under traffic.
			f := flow(t, h, "app", "flow", "tcp", web)
			if err := errors.Join(h.KillAgent(ctx), h.RestartAgent(ctx)); err != nil {
				t.Fatal(err)
			}
			healthy(t, h)
			start(t, h, "app", "after").reaches(t, web)
			f.intact(t)

			// Power cut.
			if err := errors.Join(h.PowerCut(ctx), h.Boot(ctx)); err != nil {
				t.Fatal(err)
			}
			h.MustDocker(t, "start", "client")
			comeBack(t, h, "web", client)
			l.Check(t)

			h.MustDocker(t, "rm", "-f", "web", "client", "after", "flow")
			h.MustDocker(t, "network", "rm", "app")
			if err := unchanged(ctx, l, before); err != nil {
				t.Error(err)
			}
			l.Check(t)
		})
	}
}
