package history

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// world is the hosts, their store, and what is wrong with them at present. One
// goroutine plays; others help it within an operation.
type world struct {
	cfg    Config
	t      trial
	server *memory.Server
	eye    *memory.Client // sees the store whatever is wrong with it
	hosts  []*sim.Host
	plans  []plan

	boxes []*box
	named int // boxes ever made

	// What is wrong at present.
	away    bool               // the store, for everybody
	unruly  bool               // the store misbehaves
	cut     map[*sim.Host]bool // from the store
	blinded map[*sim.Host]bool // no watch returns
	lossy   map[*sim.Host]bool // replies may be lost, writes may be late
	fused   map[*sim.Host]bool // the agent will die at a write
	gone    map[*sim.Host]bool // removed, and not back yet
	// revived were removed, and the store lost its past before they had met it
	// again: nobody can tell them that they were.
	revived map[*sim.Host]bool
	removed map[*sim.Host]bool // since the last quiet moment
	losses  int                // of the store's past since then

	backups []backup
	counts  map[string]int
	quiets  int
	tale    tale

	mu     sync.Mutex
	failed string // guarded by mu
}

// box is a container with what it was asked to be.
type box struct {
	*sim.Box
	host *sim.Host
}

// plan is a network as users make it on every host.
type plan struct {
	name   string
	create sim.Create
}

func newWorld(t *testing.T, cfg Config) *world {
	w := &world{
		cfg: cfg, server: memory.NewServer(), counts: map[string]int{},
		cut: map[*sim.Host]bool{}, blinded: map[*sim.Host]bool{}, lossy: map[*sim.Host]bool{}, fused: map[*sim.Host]bool{}, gone: map[*sim.Host]bool{}, removed: map[*sim.Host]bool{}, revived: map[*sim.Host]bool{},
	}
	w.t = trial{t, w}
	w.eye = w.server.Client("eye")
	return w
}

// rest is how long addresses rest before another host may have them: shorter than
// in production, so that it takes fewer wakings of everybody to pass.
const rest = 40 * time.Second

// setup makes hosts and some networks.
func (w *world) setup() {
	r := rand.New(rand.NewPCG(w.cfg.Seed, 1))
	w.plans = []plan{
		{"wide", sim.Create{Subnet: "10.10.0.0/24"}},
		{"narrow", sim.Create{Subnet: "10.11.0.0/27"}},
		{"ranged", sim.Create{Subnet: "10.12.0.0/26", Range: "10.12.0.0/27", Gateway: "10.12.0.62", Aux: map[string]string{"router": "10.12.0.9"}}},
		{"blue", sim.Create{Subnet: "10.11.0.0/27", IPAMOpts: map[string]string{"tenant": "blue"}}},
	}
	log := slog.New(slog.NewTextHandler(lines{w}, &slog.HandlerOptions{Level: w.level(), ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	for n := 1; n <= 3+r.IntN(4); n++ {
		h := sim.NewHostWith(w.t, w.server, sim.Options{Number: n, Dir: filepath.Join(w.cfg.Dir, fmt.Sprintf("h%d", n)), Whole: true, Rest: rest, Log: log})
		w.hosts = append(w.hosts, h)
	}
	for i, h := range w.hosts {
		for j, p := range w.plans {
			if (i+j)%3 != 0 {
				if _, err := h.NetworkCreate(p.name, p.create); err != nil {
					panic(stop(fmt.Sprintf("%s: create %s at the start: %v", h.Name, p.name, err)))
				}
			}
		}
	}
}

func (w *world) level() slog.Level {
	if w.cfg.Out != nil {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// end stops everything, so that the bubble can end.
func (w *world) end() {
	w.server.Heal()
	w.server.Calm()
	w.server.UnblockWatches()
	for _, h := range w.hosts {
		h.Kill()
	}
}

// do lets an operation happen, and time pass after it.
func (w *world) do(o op) {
	k := kinds()[o.kind]
	k.do(w, o)
	switch o.pause % 8 {
	case 0, 1, 2: // what it began goes on meanwhile
	case 3, 4:
		synctest.Wait()
	case 5, 6:
		w.sleep(time.Duration(o.pause>>8%200) * time.Millisecond)
	case 7:
		w.sleep(time.Duration(o.pause>>8%3000) * time.Millisecond)
	}
}

// sleep lets time pass.
func (w *world) sleep(d time.Duration) {
	t := time.NewTimer(d)
	<-t.C
}

// fail remembers what is wrong; the first thing counts.
func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
	}
}

func (w *world) failure() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// say adds a line to the tale.
func (w *world) say(format string, args ...any) {
	line := time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	w.tale.add(line)
	if w.cfg.Out != nil {
		_, _ = fmt.Fprintln(w.cfg.Out, line)
	}
}

// count notes an operation's outcome.
func (w *world) count(kind, outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[kind+": "+outcome]++
}

// lines puts hosts' messages into the tale, those that are repeated once in a
// while.
type lines struct{ w *world }

func (l lines) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	if l.w.cfg.Out != nil || l.w.tale.news(line) {
		l.w.say("    %s", line)
	}
	return len(b), nil
}

// tale keeps the last lines of what happened. It is safe for concurrent use.
type tale struct {
	mu     sync.Mutex
	lines  []string // guarded by mu
	next   int      // guarded by mu
	recent []string // messages, to know repetitions; guarded by mu
}

// news says whether a message is not one of the last.
func (s *tale) news(line string) bool {
	const kept = 40
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.recent, line) {
		return false
	}
	if s.recent = append(s.recent, line); len(s.recent) > kept {
		s.recent = s.recent[1:]
	}
	return true
}

func (s *tale) add(line string) {
	const kept = 300
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) < kept {
		s.lines = append(s.lines, line)
		return
	}
	s.lines[s.next] = line
	s.next = (s.next + 1) % kept
}

func (s *tale) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(append(append([]string{}, s.lines[s.next:]...), s.lines[:s.next]...), "\n")
}

// host picks one.
func (w *world) host(n uint32) *sim.Host { return w.hosts[int(n)%len(w.hosts)] }

// hostThat picks one of those for which cond holds; nil if there is none.
func (w *world) hostThat(n uint32, cond func(*sim.Host) bool) *sim.Host {
	var some []*sim.Host
	for _, h := range w.hosts {
		if cond(h) {
			some = append(some, h)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[int(n)%len(some)]
}

// boxThat picks a container.
func (w *world) boxThat(n uint32, cond func(*box) bool) *box {
	var some []*box
	for _, b := range w.boxes {
		if cond(b) {
			some = append(some, b)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[int(n)%len(some)]
}

// fine says whether a host's agent runs and its store answers it, with nothing
// wrong that this history knows of.
func (w *world) fine(h *sim.Host) bool {
	if w.away || w.unruly || w.cut[h] || w.blinded[h] || w.lossy[h] || w.fused[h] || w.gone[h] || !h.On() || !h.Running() {
		return false
	}
	select {
	case <-h.Cluster.Ready():
	default:
		return false
	}
	j := h.Cluster.InspectJournal()
	e := w.epoch()
	return !j.Behind && !j.Fenced && !e.Recovering && e.Inc != "" && j.Epoch.Inc == e.Inc
}

// ctx bounds what this history itself asks of the hosts.
func (w *world) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}
