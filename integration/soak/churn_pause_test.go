package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// most pairs of a network are asked at a pause; of more, so many at random.
const mostPairs = 400

// pause waits until everything is as it should be: while nobody works, and before
// anything is repaired by hand.
func (c *churn) pause(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	began := time.Now()
	asked := 0
	for net := range subnets {
		asked += c.connected(t, net)
	}
	took := time.Since(began)
	for _, s := range c.sites {
		lab.Eventually(t, calm, s.Name()+" to say that nothing needs attention", func() error {
			_, err := s.Carrick(ctx, "status")
			return err
		})
	}
	c.Check(t)
	// The kernels are read back once more, with what the agents remember of the work.
	for _, s := range c.sites {
		c.neverDrifted(t, s)
	}
	c.usage(t)
	c.lookAtBlocks(t)
	if t.Failed() {
		t.Fatalf("in the pause after %d starts", c.goalReached())
	}
	c.pauses++
	c.pairs += asked
	c.slowest = max(c.slowest, took)
	t.Logf("%s: a pause: %d pairs connect after %s, all sides agree after %s, no drift",
		time.Since(c.began).Round(time.Second), asked, took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// running lists the containers of a network that run.
func (c *churn) running(net string) []*slot {
	var all []*slot
	for _, w := range c.workers {
		all = append(all, w.slots...)
	}
	for _, m := range c.moving.boxes {
		all = append(all, m.slots...)
	}
	return slices.DeleteFunc(all, func(s *slot) bool { return s.net != net || !s.runs })
}

// connected waits until every container of a network reaches every other, both
// ways, and it is the right one that answers. It returns how many pairs it asked.
func (c *churn) connected(t *testing.T, net string) int {
	t.Helper()
	type pair struct{ from, to *slot }
	var all []pair
	live := c.running(net)
	for _, a := range live {
		for _, b := range live {
			if a != b {
				all = append(all, pair{a, b})
			}
		}
	}
	c.rand.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	all = all[:min(len(all), mostPairs)]
	left := map[*slot][]*slot{}
	for _, p := range all {
		left[p.from] = append(left[p.from], p.to)
	}
	lab.Eventually(t, calm, "all pairs of "+net+" to connect", func() error {
		var mu sync.Mutex // guards missed and errs
		missed, errs := map[*slot][]*slot{}, []error{}
		var asking sync.WaitGroup
		for from, to := range left {
			asking.Go(func() {
				bad, err := from.reach(t.Context(), to)
				mu.Lock()
				defer mu.Unlock()
				if len(bad) > 0 {
					missed[from] = bad
				}
				errs = append(errs, err)
			})
		}
		asking.Wait()
		left = missed
		return errors.Join(errs...)
	})
	return len(all)
}

// reach asks others for their names, out of the container's own namespace, and
// returns those that did not answer, or not rightly.
func (s *slot) reach(ctx context.Context, others []*slot) ([]*slot, error) {
	var missed []*slot
	var errs []error
	err := s.at.InNetworkOf(s.pid, func() error {
		for _, o := range others {
			if err := o.answers(ctx); err != nil {
				missed = append(missed, o)
				errs = append(errs, fmt.Errorf("%s (%s on %s) asks %s (%s on %s): %w", s.name, s.addr, s.at.Name(), o.name, o.addr, o.at.Name(), err))
			}
		}
		return nil
	})
	if err != nil {
		return others, err
	}
	return missed, errors.Join(errs...)
}

// answers asks for a container's name.
func (s *slot) answers(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(s.addr.String(), answerPort))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(conn, 100))
	if got := strings.TrimSpace(string(b)); err == nil && got != s.name {
		err = fmt.Errorf("%q answers", got)
	}
	return err
}

// neverDrifted fails the test if an agent of a site has ever found the kernel other
// than it had left it, or cannot tell. One that was killed in the middle of a change
// is no excuse: its successor remembers nothing that could differ.
func (c *churn) neverDrifted(t *testing.T, s *site) {
	t.Helper()
	out, err := s.Carrick(t.Context(), "status", "--json")
	var now struct{ Drift *int }
	if err == nil {
		err = json.Unmarshal([]byte(out), &now)
	}
	if err != nil || now.Drift == nil || *now.Drift != 0 {
		t.Errorf("%s: its agent's drift: %v (%v)", s.Name(), out, err)
	}
	// The log has what agents saw that were killed since.
	for line := range strings.Lines(s.AgentLogSince(&s.logRead)) {
		if strings.Contains(line, "repaired what somebody else had changed") {
			c.tally.add(drift)
			t.Errorf("%s: drift that nobody made: %s", s.Name(), line)
		}
	}
}

// lookAtBlocks counts the blocks that have another owner than at the last pause.
func (c *churn) lookAtBlocks(t *testing.T) {
	t.Helper()
	now := map[string]string{}
	for net := range subnets {
		out, err := c.sites[0].Carrick(t.Context(), "network", "inspect", net, "--json")
		var got struct {
			Blocks []struct{ Prefix, Host string }
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &got)
		}
		if err != nil || len(got.Blocks) == 0 {
			t.Errorf("blocks of %s: %s (%v)", net, out, err)
		}
		for _, b := range got.Blocks {
			if strings.HasSuffix(b.Prefix, "/32") {
				continue // an address that is lent
			}
			now[b.Prefix] = b.Host
			if before := c.owners[b.Prefix]; before != "" && before != b.Host {
				c.handed++
			}
		}
	}
	// Who had a block is remembered while nobody has it.
	for b, h := range c.owners {
		if now[b] == "" {
			now[b] = h
		}
	}
	c.owners = now
}

// usage is what the agents take now.
func (c *churn) usage(t *testing.T) map[*site]lab.Usage {
	t.Helper()
	out := map[*site]lab.Usage{}
	for _, s := range c.sites {
		u, err := s.AgentUsage()
		if err != nil {
			t.Error(err)
		}
		out[s] = u
		c.files = max(c.files, u.Files)
	}
	return out
}

// state is what must not grow.
type state struct {
	inventory lab.Inventory
	processes map[*site]map[string]int // by name
	usage     map[*site]lab.Usage
}

// baseline is the state before anything was made.
func (c *churn) baseline(t *testing.T) state {
	t.Helper()
	warmUp(t, c.Lab)
	before := state{inventory: c.MustInventory(t), processes: map[*site]map[string]int{}, usage: c.usage(t)}
	for _, s := range c.sites {
		p, err := s.processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before.processes[s] = p
	}
	return before
}

// processes counts the host's processes by name.
func (s *site) processes(ctx context.Context) (map[string]int, error) {
	out, err := s.Exec(ctx, "sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null || true")
	n := map[string]int{}
	for _, name := range strings.Fields(out) {
		if name != "sh" && name != "cat" {
			n[name]++
		}
	}
	return n, err
}

// clearAll removes everything that was made.
func (c *churn) clearAll(t *testing.T) {
	t.Helper()
	for _, s := range c.sites {
		var all []struct{ ID string }
		if err := s.api.Call(t.Context(), http.MethodGet, "/containers/json?all=1", nil, &all); err != nil {
			t.Fatal(err)
		}
		for _, x := range all {
			if err := s.api.Call(t.Context(), http.MethodDelete, "/containers/"+x.ID+"?force=1", nil, nil); err != nil {
				t.Error(err)
			}
		}
	}
	for net := range subnets {
		// On whichever host: that is enough, unless an engine still counts a container.
		lab.Eventually(t, calm, "no host to have "+net, func() error {
			var left []error
			for _, s := range c.sites {
				out, err := s.Docker(t.Context(), "network", "ls", "-q", "--filter", "name=^"+net+"$")
				if err == nil && out != "" {
					_, err = s.Docker(t.Context(), "network", "rm", out)
					err = errors.Join(errors.New(s.Name()+" had it"), err)
				}
				left = append(left, err)
			}
			return errors.Join(left...)
		})
	}
}

// spareFiles is how many more open files than in the beginning an agent may have
// in the end: connections to the store come and go.
const spareFiles = 16

// asBefore waits until hosts and store are as they were in the beginning.
func (c *churn) asBefore(t *testing.T, before state) {
	t.Helper()
	lab.Eventually(t, 2*calm, "hosts and store to be as in the beginning", func() error {
		now, err := c.Inventory(t.Context())
		if err != nil {
			return err
		}
		if diff := before.inventory.Diff(now); diff != "" {
			return fmt.Errorf("difference:\n%s", diff)
		}
		for _, s := range c.sites {
			p, err := s.processes(t.Context())
			if err != nil || !maps.Equal(p, before.processes[s]) {
				return fmt.Errorf("%s had processes %v, and has %v (%v)", s.Name(), before.processes[s], p, err)
			}
			if u := c.usage(t)[s]; u.Files > before.usage[s].Files+spareFiles {
				return fmt.Errorf("%s's agent had %d files open, and has %d", s.Name(), before.usage[s].Files, u.Files)
			}
		}
		return nil
	})
	c.Check(t)
}
