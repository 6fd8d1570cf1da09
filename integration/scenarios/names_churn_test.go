package scenarios

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-net/carrick/integration/lab"
)

// tolerance is for how long after a container's end its name may lead to who has its
// address since.
const tolerance = time.Second

// Containers start and stop on all hosts as fast as the engines do it. Their names
// move: what was on one host is on another at once. So do addresses: who starts
// takes one that somebody has just left, wherever. On every host somebody resolves
// all names all the time and asks whoever he is led to for his name. It is always
// the right one, and in the end every name leads to its holder, from everywhere, and
// those that nobody has lead nowhere.
func TestNamesUnderChurn(t *testing.T) {
	s := begin(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &nameChurn{starts: 60, until: time.Now().Add(time.Minute), rand: rand.New(rand.NewPCG(seed, 0))}
	names := 24
	if soaked() {
		names, c.starts, c.until = 200, 2000, time.Now().Add(30*time.Minute)
	}
	// The upper half is for those who ask for an address.
	create(t, s.Hosts(), "app", "10.42.0.0/22", "--ip-range", "10.42.0.0/23", "--internal")
	for i := range names / 3 {
		c.pool = append(c.pool, fmt.Sprintf("10.42.2.%d", 10+i))
	}
	var all []string
	for i := range names {
		c.names = append(c.names, &churnedName{name: fmt.Sprintf("n%d", i), made: map[*lab.Host]string{}})
		all = append(all, c.names[i].name)
	}
	// Who asks for a name that nobody has is told so.
	s.h2.MustDocker(t, "run", "-d", "--name", "nameserver", "--network", "app", lab.Image, "probe", "nameserver")
	server := address(t, s.h2, "app", "nameserver")
	c.apis = map[*lab.Host]*lab.EngineAPI{}
	for _, h := range s.Hosts() {
		c.apis[h] = h.EngineAPI()
		t.Cleanup(c.apis[h].Close)
		c.hosts = append(c.hosts, h)
		h.MustDocker(t, slices.Concat([]string{"run", "-d", "--name", "watcher", "--network", "app", "--dns", server, lab.Image, "probe", "watch", "-every", "250ms"}, all)...)
	}
	began := time.Now()
	c.work(t)
	t.Logf("%d starts and %d ends of %d names in %s; %d times a name was on another host than before, %d starts with an address that another name had last",
		len(c.lives), len(c.lives)-c.live(), names, time.Since(began).Round(time.Second), c.moved, c.reused)
	for _, h := range s.Hosts() {
		lab.Eventually(t, patience, h.Name()+"'s watcher to be led to every holder of a name, and to nobody else", func() error {
			out, err := h.Docker(t.Context(), "logs", "watcher")
			if err != nil {
				return err
			}
			return c.settled(out)
		})
		h.MustDocker(t, "kill", "--signal", "TERM", "watcher")
		code := h.MustDocker(t, "wait", "watcher")
		c.judge(t, h, code, h.MustDocker(t, "logs", "watcher"))
	}
}

// nameChurn is the names, and what became of them.
type nameChurn struct {
	hosts  []*lab.Host
	apis   map[*lab.Host]*lab.EngineAPI
	starts int       // that there are to be,
	until  time.Time // unless it takes longer

	mu            sync.Mutex // guards what follows, and all names and lives
	rand          *rand.Rand
	names         []*churnedName
	pool          []string // addresses to ask for; the last one was given up last
	last          map[string]string
	lives         []*nameLife
	begun         int
	moved, reused int
}

// churnedName is a name that at most one running container has.
type churnedName struct {
	name string
	busy bool                 // somebody starts or ends its container
	now  *nameLife            // nil: nobody has it
	at   *lab.Host            // where it was last
	made map[*lab.Host]string // where a container of that name is, and what address it asks for
}

// nameLife is one container's time under a name.
type nameLife struct {
	name, addr string
	host       *lab.Host
	begin, up  time.Time // its start was asked for, and has returned
	end, down  time.Time // its end was asked for, and has returned; zero: it lives
}

func (c *nameChurn) live() int {
	n := 0
	for _, l := range c.lives {
		if l.down.IsZero() {
			n++
		}
	}
	return n
}

// work starts and ends containers until there were enough starts.
func (c *nameChurn) work(t *testing.T) {
	t.Helper()
	c.last = map[string]string{}
	g, ctx := errgroup.WithContext(t.Context())
	for range c.hosts {
		g.Go(func() error {
			for {
				n, goOn := c.take()
				if !goOn || ctx.Err() != nil {
					return ctx.Err()
				}
				err := c.turn(ctx, n)
				c.mu.Lock()
				n.busy = false
				c.mu.Unlock()
				if err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// take takes a name at random that nobody is busy with.
func (c *nameChurn) take() (*churnedName, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.begun < c.starts && time.Now().Before(c.until) {
		if n := c.names[c.rand.IntN(len(c.names))]; !n.busy {
			n.busy = true
			return n, true
		}
	}
	return nil, false
}

// flip is true half of the time.
func (c *nameChurn) flip() bool { return c.below(2) == 0 }

func (c *nameChurn) below(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(n)
}

// turn gives a name to a container that starts, or takes it away, or both: on another
// host, at once.
func (c *nameChurn) turn(ctx context.Context, n *churnedName) error {
	from := n.now
	if from != nil {
		if err := c.end(ctx, n); err != nil || c.flip() {
			return err
		}
	}
	at := c.hosts[c.below(len(c.hosts))]
	for from != nil && at == from.host {
		at = c.hosts[c.below(len(c.hosts))]
	}
	return c.start(ctx, n, at)
}

// end ends the container that has a name, which its engine keeps, or not.
func (c *nameChurn) end(ctx context.Context, n *churnedName) error {
	l := n.now
	fixed := n.made[l.host]
	call, method := "/stop?t=60", http.MethodPost // the stop signal is SIGKILL
	if c.flip() {
		call, method = "?force=1&v=1", http.MethodDelete
	}
	end := time.Now()
	if err := c.apis[l.host].Call(ctx, method, "/containers/"+n.name+call, nil, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.end, l.down = end, time.Now()
	n.now = nil
	if method == http.MethodDelete {
		delete(n.made, l.host)
	}
	if fixed != "" {
		c.pool = append(c.pool, fixed)
	}
	return nil
}

// start starts a container under a name: the one that is there, if the address that it
// asks for is free, and else a new one.
func (c *nameChurn) start(ctx context.Context, n *churnedName, at *lab.Host) error {
	api := c.apis[at]
	fixed, made := n.made[at]
	c.mu.Lock()
	c.begun++
	i := slices.Index(c.pool, fixed)
	remake := made && fixed != "" && i < 0
	if !made || remake {
		fixed, i = "", -1
		if len(c.pool) > 0 && c.rand.IntN(3) > 0 {
			i = len(c.pool) - 1
			fixed = c.pool[i]
		}
	}
	if i >= 0 {
		c.pool = slices.Delete(c.pool, i, i+1)
	}
	c.mu.Unlock()
	if remake {
		if err := api.Call(ctx, http.MethodDelete, "/containers/"+n.name+"?v=1", nil, nil); err != nil {
			return err
		}
	}
	if !made || remake {
		if err := api.Call(ctx, http.MethodPost, "/containers/create?name="+n.name, serving(n.name, fixed), nil); err != nil {
			return err
		}
		n.made[at] = fixed
	}
	begin := time.Now()
	if err := api.Call(ctx, http.MethodPost, "/containers/"+n.name+"/start", nil, nil); err != nil {
		return fmt.Errorf("%s with address %q: %w", n.name, fixed, err)
	}
	up := time.Now()
	var got struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := api.Call(ctx, http.MethodGet, "/containers/"+n.name+"/json", nil, &got); err != nil {
		return err
	}
	l := &nameLife{name: n.name, host: at, addr: got.NetworkSettings.Networks["app"].IPAddress, begin: begin, up: up}
	if l.addr == "" {
		return fmt.Errorf("%s on %s has ended by itself", n.name, at.Name())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.at != nil && n.at != at {
		c.moved++
	}
	n.at = at
	if o := c.last[l.addr]; o != "" && o != n.name {
		c.reused++
	}
	c.last[l.addr] = n.name
	n.now = l
	c.lives = append(c.lives, l)
	return nil
}

// serving is what an engine is asked to make: a container whose page /name says its
// name, and that costs little.
func serving(name, ip string) any {
	type ipam struct{ IPv4Address string }
	type endpoint struct{ IPAMConfig *ipam }
	type logs struct{ Type string }
	type hostConfig struct {
		NetworkMode, IpcMode string
		LogConfig            logs
	}
	type networking struct{ EndpointsConfig map[string]endpoint }
	e := endpoint{}
	if ip != "" {
		e.IPAMConfig = &ipam{ip}
	}
	return struct {
		Image, Hostname, StopSignal string
		HostConfig                  hostConfig
		NetworkingConfig            networking
	}{lab.Image, name, "SIGKILL", hostConfig{"app", "none", logs{"none"}}, networking{map[string]endpoint{"app": e}}}
}

// settled says where the names that a watcher follows lead elsewhere than to their
// holders, as it printed last.
func (c *nameChurn) settled(printed string) error {
	led := leads{}
	for _, line := range strings.Split(printed, "\n") {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "leads" {
			led[f[1]] = f[4:]
		}
	}
	var wrong []error
	for _, n := range c.names {
		var want []string
		if n.now != nil {
			want = []string{n.now.addr}
		}
		if !slices.Equal(led[n.name], want) {
			wrong = append(wrong, fmt.Errorf("%s leads to %v, want %v", n.name, led[n.name], want))
		}
	}
	return errors.Join(wrong...)
}

// judge reads what a watcher printed. An answer that led to somebody else fails the
// test, unless the name's own container was there until a moment before.
func (c *nameChurn) judge(t *testing.T, h *lab.Host, code, printed string) {
	t.Helper()
	lines := strings.Split(printed, "\n")
	summary := lines[len(lines)-1]
	if code != "0" || !strings.HasPrefix(summary, "right ") || strings.HasPrefix(summary, "right 0 ") {
		t.Errorf("%s's watcher ended with %s: %s", h.Name(), code, summary)
	}
	type change struct {
		at    time.Time
		addrs []string
	}
	changes := map[string][]change{}
	stale := 0
	for _, line := range lines[:len(lines)-1] {
		f := strings.Fields(line)
		ms, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil || len(f) < 4 {
			t.Fatalf("%s's watcher printed %q", h.Name(), line)
		}
		at := time.UnixMilli(ms)
		switch {
		case f[2] == "leads":
			changes[f[1]] = append(changes[f[1]], change{at, f[4:]})
		case f[1] == "WRONG":
			t.Errorf("%s: %s", h.Name(), c.tell(at, f))
		case f[1] == "STALE":
			stale++
			if err := c.excuse(at, f[2], f[3]); err != nil {
				t.Errorf("%s: %v: %s", h.Name(), err, c.tell(at, f))
			}
			t.Logf("%s: %s", h.Name(), c.tell(at, f))
		}
	}
	var gone, known []time.Duration
	for _, l := range c.lives {
		list := changes[l.name]
		before, after := c.beside(l)
		if !l.end.IsZero() && (after == nil || after.addr != l.addr) {
			i := slices.IndexFunc(list, func(x change) bool { return x.at.After(l.end) && !slices.Contains(x.addrs, l.addr) })
			if i > 0 && slices.Contains(list[i-1].addrs, l.addr) {
				gone = append(gone, list[i].at.Sub(l.down))
			}
		}
		if before == nil || before.addr != l.addr {
			i := slices.IndexFunc(list, func(x change) bool { return x.at.After(l.begin) && slices.Contains(x.addrs, l.addr) })
			if i >= 0 && (after == nil || list[i].at.Before(after.begin)) {
				known = append(known, list[i].at.Sub(l.up))
			}
		}
	}
	t.Logf("%s (%s): %s; a name led to a container that had stopped for %s (%d), and to one that had started after %s (%d)",
		h.Name(), h.Engine(), summary, spread(gone), len(gone), spread(known), len(known))
}

// beside returns who had the name before and after.
func (c *nameChurn) beside(l *nameLife) (before, after *nameLife) {
	for _, o := range c.lives {
		switch {
		case o.name != l.name || o == l:
		case o.begin.Before(l.begin) && (before == nil || o.begin.After(before.begin)):
			before = o
		case o.begin.After(l.begin) && (after == nil || o.begin.Before(after.begin)):
			after = o
		}
	}
	return before, after
}

// excuse says why a name must not have led to an address at a time.
func (c *nameChurn) excuse(at time.Time, name, addr string) error {
	var last *nameLife
	for _, l := range c.lives {
		if l.name == name && l.addr == addr && l.begin.Before(at) && (last == nil || l.begin.After(last.begin)) {
			last = l
		}
	}
	switch {
	case last == nil:
		return errors.New("it never had that address")
	case !last.down.IsZero() && at.Sub(last.down) > tolerance:
		return fmt.Errorf("it had left that address for %s", at.Sub(last.down))
	}
	return nil
}

// tell is a line of a watcher, and who had the name and the address when.
func (c *nameChurn) tell(at time.Time, line []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:", strings.Join(line[1:], " "))
	ago := func(x time.Time) string {
		if x.IsZero() {
			return "..."
		}
		return fmt.Sprintf("%+d ms", x.Sub(at).Milliseconds())
	}
	for _, l := range c.lives {
		if near := l.down.IsZero() || l.down.After(at.Add(-10*time.Second)); near && l.up.Before(at.Add(10*time.Second)) && (l.name == line[2] || l.addr == line[3]) {
			fmt.Fprintf(&b, " %s was %s on %s from %s to %s (its end took %s);", l.name, l.addr, l.host.Name(), ago(l.up), ago(l.down), l.down.Sub(l.end).Round(time.Millisecond))
		}
	}
	return b.String()
}

// spread is durations for people.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "-"
	}
	slices.Sort(all)
	at := func(p int) time.Duration { return all[(len(all)-1)*p/100].Round(time.Millisecond) }
	return fmt.Sprintf("p50 %s, p90 %s, at most %s", at(50), at(90), at(100))
}
