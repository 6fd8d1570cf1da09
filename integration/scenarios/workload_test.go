package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// workload is what a cluster does all day: traffic between containers of all
// hosts, and, from work until rest, people who run, stop, start and restart
// containers on a network that their hosts know, and agents that are killed.
type workload struct {
	lab     *lab.Lab
	network string
	sinks   []box // one on each host
	flows   []traffic

	deaths map[*lab.Host]*sync.Mutex // held while a host's agent dies and comes back

	cancel context.CancelFunc
	all    sync.WaitGroup
	done   []*progress // by host
}

// progress is what the people at one host have done.
type progress struct {
	mu     sync.Mutex // guards what follows
	rounds int
	errs   []error
}

func (p *progress) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rounds++
	if err != nil {
		p.errs = append(p.errs, err)
	}
}

func (p *progress) seen() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rounds, errors.Join(p.errs...)
}

// load makes a network on all hosts with a server on each, and starts a TCP flow
// from each to the next host and a UDP flow to the one after it.
func load(t testing.TB, l *lab.Lab, network, subnet string) *workload {
	t.Helper()
	w := &workload{lab: l, network: network, deaths: map[*lab.Host]*sync.Mutex{}}
	hosts := l.Hosts()
	create(t, hosts, network, subnet)
	for _, h := range hosts {
		w.sinks = append(w.sinks, start(t, h, network, "sink-"+h.Name()))
	}
	for i, h := range hosts {
		w.deaths[h] = &sync.Mutex{}
		w.flows = append(w.flows,
			flow(t, h, network, "tcp-"+h.Name(), "tcp", w.sinks[(i+1)%len(hosts)]),
			flow(t, h, network, "udp-"+h.Name(), "udp", w.sinks[(i+2)%len(hosts)]))
	}
	return w
}

// work lets people work on every host until rest.
func (w *workload) work(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	t.Cleanup(func() { cancel(); w.all.Wait() })
	for i, h := range w.lab.Hosts() {
		fixed := w.ownAddress(t, h)
		p := &progress{}
		w.done = append(w.done, p)
		w.all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				err := w.round(ctx, w.sinks[i], fixed, n)
				if err != nil {
					err = fmt.Errorf("%s on %s, round %d: %w", time.Now().Format(time.TimeOnly), h.Name(), n, err)
				}
				if ctx.Err() == nil {
					p.note(err)
				}
			}
		})
	}
}

// start is [start] at a moment at which the people at the host do not kill its agent: an
// engine that is in the middle of a call then repeats it without its contents, and fails.
func (w *workload) start(t testing.TB, h *lab.Host, network, name string) box {
	t.Helper()
	w.deaths[h].Lock()
	defer w.deaths[h].Unlock()
	return start(t, h, network, name)
}

// ownAddress is an address of a block of the host's that nobody has.
func (w *workload) ownAddress(t testing.TB, h *lab.Host) string {
	t.Helper()
	n, err := ask[struct {
		Blocks []struct {
			Prefix netip.Prefix `json:"prefix"`
			Host   string       `json:"host"`
		} `json:"blocks"`
	}](t, h, "network", "inspect", w.network)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range n.Blocks {
		if b.Host == h.Name() {
			a := b.Prefix.Addr().As4()
			a[3] += byte(1<<(32-b.Prefix.Bits())) - 2 // the last but one: the last is given out last
			return netip.AddrFrom4(a).String()
		}
	}
	t.Fatalf("%s has no block of %s", h.Name(), w.network)
	return ""
}

// round is one hour of one person at a host: every way in which a container
// starts, and the agent's sudden death. What starts reaches the host's server.
func (w *workload) round(ctx context.Context, near box, fixed string, n int) error {
	h := near.host
	name := fmt.Sprintf("job-%s-%d", h.Name(), n)
	docker := func(args ...string) func() error {
		return func() error {
			_, err := h.Docker(ctx, args...)
			return err
		}
	}
	// Of containers elsewhere only the store could tell.
	reach := func(who string) func() error {
		return func() error {
			got, err := h.InContainer(ctx, who, "probe", "get", "http://"+near.ip+"/name")
			if err == nil && strings.TrimSpace(got) != near.name {
				err = fmt.Errorf("answered by %q", got)
			}
			if err != nil {
				return fmt.Errorf("%s asks %s at %s: %w", who, near.name, near.ip, err)
			}
			return nil
		}
	}
	for _, step := range []func() error{
		docker("run", "-d", "--name", name, "--hostname", name, "--network", w.network, lab.Image), reach(name),
		docker("stop", "-t", "2", name),
		docker("run", "-d", "--name", name+"-fixed", "--network", w.network, "--ip", fixed, lab.Image), reach(name + "-fixed"),
		func() error {
			w.deaths[h].Lock()
			defer w.deaths[h].Unlock()
			// Its end is waited for, also by whoever ends the work at this moment: he looks
			// whether it runs.
			if err := h.KillAgent(context.WithoutCancel(ctx)); err != nil {
				return err
			}
			return h.RestartAgent(ctx)
		},
		docker("start", name), reach(name),
		docker("restart", "-t", "2", name, name+"-fixed"), reach(name), reach(name + "-fixed"),
		docker("rm", "-f", name, name+"-fixed"),
	} {
		if err := step(); err != nil {
			if ctx.Err() == nil {
				_, _ = h.Docker(ctx, "rm", "-f", name, name+"-fixed") // the next round is another story
			}
			return err
		}
	}
	return nil
}

// rounds waits until the people on every host have done this many more rounds, and
// fails the test if any of what they did failed.
func (w *workload) rounds(t testing.TB, more int) {
	t.Helper()
	from := make([]int, len(w.done))
	for i, p := range w.done {
		from[i], _ = p.seen()
	}
	lab.Eventually(t, time.Duration(1+more)*time.Minute, fmt.Sprintf("%d more rounds on every host", more), func() error {
		for i, p := range w.done {
			if n, err := p.seen(); err == nil && n < from[i]+more {
				return fmt.Errorf("%s: %d of %d", w.lab.Hosts()[i].Name(), n-from[i], more)
			}
		}
		return nil
	})
	w.fine(t)
}

// fine fails the test if any of what people did failed.
func (w *workload) fine(t testing.TB) {
	t.Helper()
	for _, p := range w.done {
		if _, err := p.seen(); err != nil {
			t.Fatal(err)
		}
	}
}

// rest ends the work, wherever people are, puts away what they had in hand, and
// fails the test if anything failed.
func (w *workload) rest(t testing.TB) {
	t.Helper()
	w.cancel()
	w.all.Wait()
	total := 0
	for i, p := range w.done {
		n, err := p.seen()
		if err != nil {
			t.Error(err)
		}
		total += n
		h := w.lab.Hosts()[i]
		if !h.AgentRunning() {
			if err := h.RestartAgent(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if out := h.MustDocker(t, "ps", "-aq", "--filter", "name=^job-"); out != "" {
			h.MustDocker(t, append([]string{"rm", "-f"}, strings.Fields(out)...)...)
		}
	}
	t.Logf("%d rounds of run, run --ip, stop, start, restart and an agent's death", total)
	w.done = nil
}

// intact ends the traffic and fails the test if one packet was lost.
func (w *workload) intact(t testing.TB) {
	t.Helper()
	for _, f := range w.flows {
		f.intact(t)
	}
}

// allPairs fails the test unless every server reaches every other at once.
func (w *workload) allPairs(t testing.TB) {
	t.Helper()
	for _, from := range w.sinks {
		for _, to := range w.sinks {
			from.reaches(t, to)
		}
	}
}

// converged waits until all sides of all hosts agree and says how long it took.
func converged(t testing.TB, l *lab.Lab, since string) {
	t.Helper()
	began := time.Now()
	l.Check(t)
	t.Logf("all sides agree %s after %s", time.Since(began).Round(100*time.Millisecond), since)
}

// hostStatus is what `carrick status --json` says of the store.
type hostStatus struct {
	Pending     int  `json:"pending"`
	Unpublished int  `json:"unpublished"`
	Fenced      bool `json:"fenced"`
	Epoch       struct {
		State string   `json:"state"`
		Num   int      `json:"num"`
		Wait  []string `json:"wait"`
	} `json:"epoch"`
	Store struct {
		OK      bool      `json:"ok"`
		Contact time.Time `json:"contact"`
	} `json:"store"`
	Problems []string `json:"problems"`
}

// statusOf is `carrick status --json`, whatever its exit code.
func statusOf(t testing.TB, h *lab.Host) (hostStatus, error) {
	var s hostStatus
	out, err := h.Carrick(t.Context(), "status", "--json")
	var c *lab.CommandError
	if err != nil && !errors.As(err, &c) {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}
