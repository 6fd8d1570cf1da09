package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// soon bounds waits that should be short. It is generous: two busy cores may
// carry three engines.
const soon = 30 * time.Second

// patience bounds waits for what includes a lease's end, an audit or two looks.
const patience = 3 * time.Minute

// shared is the lab that the scenarios of this package take turns on; see begin.
var shared sharedLab

type sharedLab struct {
	mu  sync.Mutex // held by the scenario whose turn it is
	lab *lab.Lab   // nil before the first, and after one that could not clean up
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.lab != nil {
		if err := shared.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "end the shared lab:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// scenario is one test's turn on the shared lab.
type scenario struct {
	*lab.Lab
	h1, h2, h3 *lab.Host // Debian's engine, Debian's engine, a current engine
}

// begin waits for the test's turn on the shared lab: three hosts with agents, no
// containers, no Carrick networks, no faults. When the test ends, all sides must
// agree about what it leaves running (see [lab.Lab.Check]). Then everything is
// cleaned up as an operator would, containers first and then networks, and the
// hosts and the store must be what they were.
//
// Tests that use it must not be parallel.
func begin(t *testing.T) scenario {
	t.Helper()
	if why := lab.Unable(); why != "" {
		t.Skip(why)
	}
	shared.mu.Lock()
	t.Cleanup(shared.mu.Unlock)
	if shared.lab == nil {
		// The lab outlives the test, and so must the context it is started with.
		l, err := lab.Start(context.WithoutCancel(t.Context()), lab.Options{Agents: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := warmUp(t.Context(), l); err != nil {
			t.Fatal(errors.Join(fmt.Errorf("warm up the lab: %w", err), l.Close()))
		}
		shared.lab = l
	}
	l := shared.lab
	before := idle(t, l)
	t.Cleanup(func() { finish(t, l, before) })
	l.LogOnFailure(t)
	return scenario{Lab: l, h1: l.Host(1), h2: l.Host(2), h3: l.Host(3)}
}

// unchanged fails the test unless the hosts and the store come to be as before.
func (s scenario) unchanged(t testing.TB, before lab.Inventory) {
	t.Helper()
	if err := unchanged(t.Context(), s.Lab, before); err != nil {
		t.Error(err)
	}
}

func unchanged(ctx context.Context, l *lab.Lab, before lab.Inventory) error {
	return lab.Wait(ctx, soon, "the hosts and the store to be as they were", func() error {
		after, err := l.Inventory(ctx)
		if err != nil {
			return err
		}
		if diff := before.Diff(after); diff != "" {
			return errors.New("\n" + diff)
		}
		return nil
	})
}

// idle waits until no host has anything of Carrick's networks in its kernel, and
// returns what is there then. Hosts drop a network a moment after its last
// container there has gone, and keep its block of addresses.
func idle(t testing.TB, l *lab.Lab) lab.Inventory {
	t.Helper()
	for _, h := range l.Hosts() {
		lab.Eventually(t, soon, h.Name()+" to have no network in its kernel", func() error {
			names, err := h.Namespaces(t.Context())
			if err == nil && len(names) > 0 {
				err = fmt.Errorf("namespaces %v", names)
			}
			return err
		})
	}
	return l.MustInventory(t)
}

// warmUp lets everything that stays for good come into being: Docker makes
// docker_gwbridge with the first container that needs a way out.
func warmUp(ctx context.Context, l *lab.Lab) error {
	args := createArgs("warmup", "10.254.0.0/16")
	if err := lab.CreateNetwork(ctx, l.Hosts(), "warmup", args[2:len(args)-1]...); err != nil {
		return err
	}
	for _, h := range l.Hosts() {
		if _, err := h.Docker(ctx, "run", "--rm", "--network", "warmup", "-p", "18080:80", lab.Image, "true"); err != nil {
			return err
		}
	}
	return removeNetworks(ctx, l)
}

// finish compares all sides, cleans up, and compares with the beginning. A lab that cannot be cleaned up is thrown away,
// so that one bad scenario does not fail the others.
func finish(t *testing.T, l *lab.Lab, before lab.Inventory) {
	// The test's own context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	err := repair(ctx, l)
	if err == nil && !t.Failed() {
		err = l.Agree(ctx)
	}
	if err == nil {
		err = tidy(ctx, l)
	}
	if err == nil {
		err = unchanged(ctx, l, before)
	}
	if err == nil && !t.Failed() {
		err = l.Agree(ctx)
	}
	if err == nil {
		return
	}
	t.Error(err)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	shared.lab = nil
}

// repair ends all faults and starts what was stopped.
func repair(ctx context.Context, l *lab.Lab) error {
	if err := l.Clear(ctx); err != nil {
		return err
	}
	for _, c := range l.Consuls() {
		if !c.Running() {
			if err := c.Start(ctx); err != nil {
				return err
			}
		}
	}
	return onEach(l.Hosts(), func(h *lab.Host) error {
		if !h.On() {
			return h.Boot(ctx)
		}
		if !h.AgentRunning() {
			if err := h.StartAgent(ctx); err != nil {
				return err
			}
		}
		if !h.EngineRunning() {
			return h.StartEngine(ctx)
		}
		return nil
	})
}

// tidy removes all containers and all networks of Carrick.
func tidy(ctx context.Context, l *lab.Lab) error {
	err := onEach(l.Hosts(), func(h *lab.Host) error {
		if out, err := h.Docker(ctx, "ps", "-aq"); err != nil {
			return err
		} else if ids := strings.Fields(out); len(ids) > 0 {
			if _, err := h.Docker(ctx, append([]string{"rm", "-f"}, ids...)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return removeNetworks(ctx, l)
}

// removeNetworks removes all networks of Carrick, from whichever host has them; no
// container may be left. An engine counts an endpoint out after its driver's last call,
// and goes over it again 50 to 150 ms later whenever others do so at the same time
// (libnetwork, atomicIncDecEpCnt); it may say before that that the container is gone.
// In 20.10 that count is one object for all requests, and two of them at once can leave
// it wrong for good, whatever the network's driver is: then an operator restarts the
// engine, and so does this.
func removeNetworks(ctx context.Context, l *lab.Lab) error {
	remove := func(wait time.Duration) error {
		return lab.Wait(ctx, wait, "no host to have a network of Carrick", func() error {
			var left []error
			for _, h := range l.Hosts() {
				out, err := h.Docker(ctx, "network", "ls", "-q", "--filter", "driver=carrick")
				if ids := strings.Fields(out); err == nil && len(ids) > 0 {
					_, err = h.Docker(ctx, append([]string{"network", "rm"}, ids...)...)
					err = errors.Join(fmt.Errorf("%s had %d", h.Name(), len(ids)), err)
				}
				left = append(left, err)
			}
			return errors.Join(left...)
		})
	}
	err := remove(soon)
	if err == nil || !strings.Contains(err.Error(), "has active endpoints") {
		return err
	}
	for _, h := range l.Hosts() {
		wrong, werr := miscounted(ctx, h)
		if werr != nil {
			return errors.Join(err, werr)
		}
		if len(wrong) > 0 {
			fmt.Fprintf(os.Stderr, "%s: its engine of 20.10 has miscounted the endpoints of %v and is restarted\n", h.Name(), wrong)
			if err := errors.Join(h.StopEngine(ctx), h.StartEngine(ctx)); err != nil {
				return err
			}
		}
	}
	return remove(patience)
}

// miscounted returns a host's networks that neither an engine of 20.10 nor the agent has
// an endpoint in, and that are there nonetheless.
func miscounted(ctx context.Context, h *lab.Host) ([]string, error) {
	if h.Engine() != lab.Debian20 {
		return nil, nil
	}
	out, err := h.Docker(ctx, "network", "ls", "-q", "--filter", "driver=carrick")
	if err != nil {
		return nil, err
	}
	var wrong []string
	for _, id := range strings.Fields(out) {
		n, err := h.Docker(ctx, "network", "inspect", "-f", "{{.Name}} {{len .Containers}}", id)
		if err != nil {
			return nil, err
		}
		name, count, _ := strings.Cut(n, " ")
		seen, err := h.Carrick(ctx, "network", "inspect", name, "--json")
		if err != nil {
			return nil, err
		}
		var of clusterNetwork
		if err := json.Unmarshal([]byte(seen), &of); err != nil {
			return nil, err
		}
		if count == "0" && len(of.Endpoints) == 0 {
			wrong = append(wrong, name)
		}
	}
	return wrong, nil
}

// onEach does something on several hosts at once and returns all errors.
func onEach(hosts []*lab.Host, do func(*lab.Host) error) error {
	return atOnce(hosts, func(h *lab.Host) error {
		if err := do(h); err != nil {
			return fmt.Errorf("on %s: %w", h.Name(), err)
		}
		return nil
	})
}

// atOnce does something with all items at once and returns all errors.
func atOnce[T any](items []T, do func(T) error) error {
	errs := make([]error, len(items))
	var all sync.WaitGroup
	for i, it := range items {
		all.Go(func() { errs[i] = do(it) })
	}
	all.Wait()
	return errors.Join(errs...)
}
