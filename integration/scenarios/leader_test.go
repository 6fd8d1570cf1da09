package scenarios

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// Three Consul servers lose their leader under load, by death and by a cut cable
// to the other two. A host is on its own as long as its server is; where the
// server lives, networks can be made as soon as there is a leader again.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Agents: true, Consuls: 3})
	ctx := t.Context()
	w := load(t, l, "app", "10.42.0.0/16")
	w.work(t)
	w.rounds(t, 1)
	for i, fault := range []struct {
		what        string
		cause, mend func(*lab.Consul) error
	}{
		{"death", func(c *lab.Consul) error { return c.Kill(ctx) }, func(c *lab.Consul) error { return c.Start(ctx) }},
		{"cut", func(c *lab.Consul) error { return l.CutServer(ctx, c) }, func(*lab.Consul) error { return l.Clear(ctx) }},
	} {
		lab.Eventually(t, patience, "each server to be dispensable", func() error { return l.Redundant(ctx) })
		old := leader(t, l, nil)
		if err := fault.cause(old); err != nil {
			t.Fatal(err)
		}
		var can []*lab.Host // hosts whose server is still one of the cluster
		for n, h := range l.Hosts() {
			if l.Consul(n+1) != old {
				can = append(can, h)
			}
		}
		name, subnet := fmt.Sprintf("new%d", i), fmt.Sprintf("10.5%d.0.0/16", i)
		lab.Eventually(t, patience, can[0].Name()+" to make a network after the leader's "+fault.what, func() error {
			_, err := can[0].Docker(ctx, createArgs(name, subnet)...)
			return err
		})
		appears(t, can, name, time.Now())
		w.start(t, can[0], name, "client-"+name).reaches(t, w.start(t, can[1], name, "server-"+name))
		w.rounds(t, 1)
		if err := fault.mend(old); err != nil {
			t.Fatal(err)
		}
		t.Logf("the leader's %s: it was %s, it is %s", fault.what, old.Name(), leader(t, l, old).Name())
	}
	w.rest(t)
	converged(t, l, "the last container's end")
	w.allPairs(t)
	w.intact(t)
	for _, h := range l.Hosts() {
		healthy(t, h)
	}
}

// leader waits until all servers follow one leader, other than not.
func leader(t testing.TB, l *lab.Lab, not *lab.Consul) *lab.Consul {
	t.Helper()
	var c *lab.Consul
	lab.Eventually(t, patience, "the servers to have a leader", func() error {
		var err error
		if c, err = l.Leader(t.Context()); err == nil && c == not {
			err = errors.New("the old one leads")
		}
		return err
	})
	return c
}
