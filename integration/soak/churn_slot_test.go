package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// slot is a container of one host that comes and goes. It belongs to one goroutine
// while people work, and to the test while they pause.
type slot struct {
	c     *churn
	at    *site
	name  string
	net   string
	fixed string // --ip
	mover *mover // that it is part of
	made  bool
	runs  bool
	addr  netip.Addr
	pid   int // as the host numbers it
}

// spec is what the engine is asked to make: what costs it least.
func (s *slot) spec() any {
	type ipam struct{ IPv4Address string }
	type endpoint struct{ IPAMConfig *ipam }
	type logs struct{ Type string }
	type hostConfig struct {
		NetworkMode, IpcMode string
		LogConfig            logs
		SecurityOpt          []string
	}
	type networking struct{ EndpointsConfig map[string]endpoint }
	e := endpoint{}
	if s.fixed != "" {
		e.IPAMConfig = &ipam{s.fixed}
	}
	return struct {
		Image, Hostname, StopSignal string
		Cmd                         []string
		HostConfig                  hostConfig
		NetworkingConfig            networking
	}{
		Image: lab.Image, Hostname: s.name, StopSignal: "SIGKILL",
		// Whoever connects is told the name.
		Cmd:              []string{"nc", "-ll", "-p", answerPort, "-e", "/bin/hostname"},
		HostConfig:       hostConfig{NetworkMode: s.net, IpcMode: "none", LogConfig: logs{"none"}, SecurityOpt: []string{"seccomp=unconfined"}},
		NetworkingConfig: networking{map[string]endpoint{s.net: e}},
	}
}

// answerPort is where every container of the churn tells its name.
const answerPort = "80"

// start starts the container, and makes it before that if there is none. A failure
// that has an excuse is counted, and the container is removed.
func (s *slot) start(ctx context.Context) error {
	if !s.made {
		if err := s.at.api.Call(ctx, http.MethodPost, "/containers/create?name="+s.name, s.spec(), nil); err != nil {
			return err
		}
		s.made = true
		s.c.tally.add(made)
	}
	from := time.Now()
	err := s.at.api.Call(ctx, http.MethodPost, "/containers/"+s.name+"/start", nil, nil)
	if err != nil {
		why := s.c.excuse(s, from, err)
		if why == "" || ctx.Err() != nil {
			return fmtFailure(s, "start", from, err)
		}
		s.c.tally.fail(why)
		return s.remove(ctx)
	}
	s.runs = true
	s.c.starts.Add(1)
	mac, err := s.look(ctx)
	if err != nil {
		return fmtFailure(s, "look at", from, err)
	}
	return s.c.ledger.take(s, mac)
}

// look asks the engine for the container's address, process and MAC.
func (s *slot) look(ctx context.Context) (mac string, err error) {
	var got struct {
		State struct {
			Running bool
			Pid     int
		}
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress, MacAddress string }
		}
	}
	if err := s.at.api.Call(ctx, http.MethodGet, "/containers/"+s.name+"/json", nil, &got); err != nil {
		return "", err
	}
	n := got.NetworkSettings.Networks[s.net]
	if !got.State.Running || got.State.Pid == 0 {
		return "", fmt.Errorf("it has ended by itself: %+v", got)
	}
	if s.addr, err = netip.ParseAddr(n.IPAddress); err != nil {
		return "", fmt.Errorf("its address: %w", err)
	}
	if s.fixed != "" && s.addr.String() != s.fixed {
		return "", fmt.Errorf("its address is %s", s.addr)
	}
	s.pid = got.State.Pid
	return n.MacAddress, nil
}

// stop stops the container.
func (s *slot) stop(ctx context.Context) error {
	s.c.ledger.give(s)
	s.runs = false
	from := time.Now()
	// The stop signal is SIGKILL.
	if err := s.at.api.Call(ctx, http.MethodPost, "/containers/"+s.name+"/stop?t=60", nil, nil); err != nil {
		return fmtFailure(s, "stop", from, err)
	}
	s.c.tally.add(stops)
	return nil
}

// remove removes the container, whether it runs or not.
func (s *slot) remove(ctx context.Context) error {
	ran := s.runs
	if ran {
		s.c.ledger.give(s)
	}
	s.runs, s.made = false, false
	from := time.Now()
	if err := s.at.api.Call(ctx, http.MethodDelete, "/containers/"+s.name+"?force=1&v=1", nil, nil); err != nil {
		return fmtFailure(s, "remove", from, err)
	}
	if ran {
		s.c.tally.add(stops)
	}
	return nil
}

// worker starts and stops its containers on one host.
type worker struct {
	c     *churn
	rand  *rand.Rand
	slots []*slot
}

func newWorker(c *churn, at *site, n int) *worker {
	w := &worker{c: c, rand: rand.New(rand.NewPCG(c.seed, uint64(n)))}
	for i := range slotsPerWorker {
		net := roomy
		if i%2 == 1 {
			net = tight
		}
		w.slots = append(w.slots, &slot{c: c, at: at, net: net, name: fmt.Sprintf("w%d-%d", n, i)})
	}
	return w
}

// work goes on until there were so many starts.
func (w *worker) work(ctx context.Context, until int) error {
	for w.c.goalReached() < until {
		if err := ctx.Err(); err != nil {
			return err
		}
		s := w.slots[w.rand.IntN(len(w.slots))]
		var err error
		switch out := s.net == tight && w.c.ebbs(s.at); {
		case s.runs && w.rand.IntN(4) == 0:
			err = s.remove(ctx)
		case s.runs:
			err = s.stop(ctx)
		case !out:
			err = s.start(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ledger is who has which address, and who had it.
type ledger struct {
	mu            sync.Mutex // guards what follows
	now           map[place]*slot
	last          map[place]past
	again, onward int // how often an address was used again, and on another host
}

// place is an address of a network.
type place struct {
	net  string
	addr netip.Addr
}

type past struct {
	at  *site
	mac string
}

func newLedger() *ledger { return &ledger{now: map[place]*slot{}, last: map[place]past{}} }

// take notes that a container has an address. That another has it is an error, and
// so is another MAC than the address had before.
func (l *ledger) take(s *slot, mac string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := place{s.net, s.addr}
	if o := l.now[p]; o != nil {
		return fmt.Errorf("%s of network %s is held by %s on %s and by %s on %s", s.addr, s.net, o.name, o.at.Name(), s.name, s.at.Name())
	}
	l.now[p] = s
	if before, used := l.last[p]; used {
		l.again++
		if before.at != s.at {
			l.onward++
		}
		if before.mac != mac {
			return fmt.Errorf("%s of network %s has MAC %s on %s, and had %s on %s", s.addr, s.net, mac, s.at.Name(), before.mac, before.at.Name())
		}
	}
	l.last[p] = past{s.at, mac}
	return nil
}

// give notes, before the engine knows, that a container will not have its address.
func (l *ledger) give(s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.now, place{s.net, s.addr})
}
