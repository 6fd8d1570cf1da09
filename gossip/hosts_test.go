package gossip_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/gossip"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// An agent of these tests is a process of its own, since a process is what has sockets
// in a namespace, and what can be killed. It is this test binary with this variable
// set: what it is to be, as JSON. On its standard input come peers, on its output
// goes what it believes whenever that changes; it stops when its input ends.
const agentEnv = "CARRICK_GOSSIP_TEST_AGENT"

type setup struct {
	Self carrick.HostID
	Addr netip.Addr
	Key  []byte
}

// belief is what an agent says of the others.
type belief struct {
	Members, Down, Silent []carrick.HostID
	Missing               map[carrick.HostID]string
	CutOff                bool
	Err                   string
	Told                  int // how often Changed was called
}

func TestMain(m *testing.M) {
	if what := os.Getenv(agentEnv); what != "" {
		if err := beAgent(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beAgent(what string) error {
	var s setup
	if err := json.Unmarshal([]byte(what), &s); err != nil {
		return err
	}
	var mu sync.Mutex // guards told
	told := 0
	d, err := gossip.New(gossip.Config{
		Self: s.Self, Addr: s.Addr, Key: s.Key, Retry: 50 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Changed: func() {
			mu.Lock()
			defer mu.Unlock()
			told++
		},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			var peers map[carrick.HostID]netip.Addr
			if err := json.Unmarshal(in.Bytes(), &peers); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			d.SetPeers(peers)
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	var last belief
	tick := time.NewTicker(10 * time.Millisecond)
	for first := true; ; first = false {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
		}
		h := d.Health()
		mu.Lock()
		b := belief{h.Members, h.Down, h.Silent, h.Missing, h.CutOff, "", told}
		mu.Unlock()
		if h.Err != nil {
			b.Err = h.Err.Error()
		}
		if got := slices.Sorted(maps.Keys(d.Down())); !slices.Equal(got, h.Down) && !slices.Equal(got, d.Health().Down) {
			return fmt.Errorf("Down says %v, Health %v", got, h.Down)
		}
		if !first && reflect.DeepEqual(b, last) {
			continue
		}
		last = b
		if err := json.NewEncoder(os.Stdout).Encode(b); err != nil {
			return err
		}
	}
}

// host is a throwaway host with an agent on it, or without.
type host struct {
	*nstest.Host
	t    *testing.T
	n    int
	id   carrick.HostID
	addr netip.Addr
	key  []byte

	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{}

	mu    sync.Mutex // guards all below
	now   belief
	past  []belief
	log   []byte
	peers map[carrick.HostID]netip.Addr
}

func id(n int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", n)) }

// lab makes n hosts that know of each other, with agents that are members.
func lab(t *testing.T, n int, six bool) (*nstest.Lab, []*host) {
	t.Helper()
	l, hosts := idle(t, n, six)
	for _, h := range hosts {
		h.start()
	}
	for _, h := range hosts {
		h.until("all are members", func(b belief) bool { return len(b.Members) == n-1 })
	}
	return l, hosts
}

// idle makes n hosts that know of each other, without agents.
func idle(t *testing.T, n int, six bool) (*nstest.Lab, []*host) {
	t.Helper()
	l := nstest.NewLab(t)
	all := map[carrick.HostID]netip.Addr{}
	var hosts []*host
	for i := 1; i <= n; i++ {
		h := &host{Host: l.Host(i, 1500), t: t, n: i, id: id(i), key: make([]byte, gossip.KeySize)}
		h.addr = h.VTEP
		if six {
			h.addr = h.VTEP6
		}
		all[h.id] = h.addr
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		h.peers = all
	}
	return l, hosts
}

func (h *host) start() {
	h.t.Helper()
	what, err := json.Marshal(setup{h.id, h.addr, h.key})
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd = exec.Command(os.Args[0])
	h.cmd.Env = append(os.Environ(), agentEnv+"="+string(what))
	h.cmd.Stderr = logOf{h}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		h.t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	// A child has the namespace of the thread that makes it.
	if err := netns.Do(h.NS, h.cmd.Start); err != nil {
		h.t.Fatal(err)
	}
	h.ended = make(chan struct{})
	h.mu.Lock()
	h.now = belief{}
	h.mu.Unlock()
	go func(cmd *exec.Cmd, ended chan struct{}) {
		for in := bufio.NewScanner(out); in.Scan(); {
			var b belief
			if err := json.Unmarshal(in.Bytes(), &b); err != nil {
				h.t.Error(err)
				break
			}
			h.mu.Lock()
			h.now, h.past = b, append(h.past, b)
			h.mu.Unlock()
		}
		_ = cmd.Wait()
		close(ended)
	}(h.cmd, h.ended)
	h.t.Cleanup(h.kill)
	h.tell(h.peers)
}

type logOf struct{ h *host }

func (w logOf) Write(b []byte) (int, error) {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	w.h.log = append(w.h.log, b...)
	return len(b), nil
}

// tell says which hosts the store has.
func (h *host) tell(peers map[carrick.HostID]netip.Addr) {
	h.t.Helper()
	h.peers = peers
	if err := json.NewEncoder(h.in).Encode(peers); err != nil {
		h.t.Fatal(err)
	}
}

// kill is kill -9.
func (h *host) kill() {
	_ = h.cmd.Process.Kill()
	<-h.ended
}

// stop lets the agent take leave.
func (h *host) stop() {
	_ = h.in.Close()
	<-h.ended
	if !h.cmd.ProcessState.Success() {
		h.t.Errorf("host %d: the agent ended with %v\n%s", h.n, h.cmd.ProcessState, h.said())
	}
}

func (h *host) said() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.log)
}

func (h *host) believes() belief {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

// until waits for a belief and says how long that took.
func (h *host) until(what string, good func(belief) bool) time.Duration {
	h.t.Helper()
	began := time.Now()
	limit := time.After(time.Minute)
	for !good(h.believes()) {
		select {
		case <-limit:
			h.t.Fatalf("host %d never came to believe that %s, but %+v\n%s", h.n, what, h.believes(), h.said())
		case <-h.ended:
			h.t.Fatalf("host %d: the agent ended\n%s", h.n, h.said())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return time.Since(began)
}

func (h *host) untilDown(who *host) time.Duration {
	h.t.Helper()
	return h.until(fmt.Sprintf("host %d is down", who.n), func(b belief) bool { return slices.Contains(b.Down, who.id) })
}

func (h *host) untilMember(who *host) time.Duration {
	h.t.Helper()
	return h.until(fmt.Sprintf("host %d is a member", who.n), func(b belief) bool { return slices.Contains(b.Members, who.id) })
}

func (h *host) untilSilent(who *host) {
	h.t.Helper()
	h.until(fmt.Sprintf("host %d is silent", who.n), func(b belief) bool { return slices.Contains(b.Silent, who.id) })
}

// never says whether a host was never believed to be down, by any agent that ran here.
func (h *host) never(who *host) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.past {
		if slices.Contains(b.Down, who.id) {
			h.t.Errorf("host %d believed host %d to be down: %+v\n%s", h.n, who.n, b, h.log)
			return
		}
	}
}

// power is that of a host's network card, as others see it.
func (h *host) power(l *nstest.Lab, on bool) {
	h.t.Helper()
	state := "down"
	if on {
		state = "up"
	}
	l.Switch(fmt.Sprintf("ip link set h%d %s", h.n, state))
}
