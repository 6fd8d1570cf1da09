package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// world is the lab and what should be in it.
type world struct {
	*lab.Lab
	rand  *rand.Rand
	nets  map[string]string // name to subnet; each is on every host
	boxes map[string]*box   // by name
	// offStore has the hosts that are cut from the store.
	offStore map[*lab.Host]bool
	count    int    // of names given, so that none is given twice
	last     string // what the last step did
}

// box is a container that should run.
type box struct {
	name, net string
	host      *lab.Host
	addr      string
}

// Enough to meet each other, few enough to check all pairs.
const (
	maxNets  = 3
	maxBoxes = 9
)

// step does one random thing. What the faults of the moment make fail is no
// failure of the test; what is wrong is found by check.
func (w *world) step(t *testing.T) {
	t.Helper()
	type action struct {
		weight int
		do     func(*testing.T)
	}
	actions := []action{
		{8, w.run}, {4, w.remove}, {4, w.restart}, {2, w.addNetwork}, {1, w.removeNetwork},
		{2, w.killAgent}, {1, w.stopAgent}, {5, w.damage}, {1, w.split}, {1, w.cutStore},
	}
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	n := w.rand.IntN(total)
	for _, a := range actions {
		if n -= a.weight; n < 0 {
			a.do(t)
			return
		}
	}
}

func (w *world) say(t *testing.T, format string, args ...any) {
	t.Helper()
	w.last = fmt.Sprintf(format, args...)
	t.Log(w.last)
}

// pick returns a random element of a map, by sorted key; ok is false if it is
// empty.
func pick[V any](r *rand.Rand, m map[string]V) (key string, v V, ok bool) {
	if len(m) == 0 {
		return "", v, false
	}
	keys := slices.Sorted(maps.Keys(m))
	key = keys[r.IntN(len(keys))]
	return key, m[key], true
}

func (w *world) host() *lab.Host { return w.Hosts()[w.rand.IntN(len(w.Hosts()))] }

// run starts a container.
func (w *world) run(t *testing.T) {
	net, _, ok := pick(w.rand, w.nets)
	if !ok || len(w.boxes) >= maxBoxes {
		return
	}
	w.count++
	b := &box{name: fmt.Sprintf("box%d", w.count), net: net, host: w.host()}
	w.say(t, "run %s on %s in %s", b.name, b.host.Name(), net)
	if !b.host.AgentRunning() {
		return // the engine would try for 15 s, and fail as it should
	}
	if _, err := b.host.Docker(t.Context(), "run", "-d", "--name", b.name, "--hostname", b.name, "--network", net, lab.Image); err != nil {
		// With the store away a host can run out of addresses it owns.
		t.Logf("which failed: %v", err)
		if _, err := b.host.Docker(t.Context(), "rm", "-f", b.name); err != nil {
			t.Error(err)
		}
		return
	}
	w.boxes[b.name] = b
}

func (w *world) remove(t *testing.T) {
	_, b, ok := pick(w.rand, w.boxes)
	if !ok {
		return
	}
	w.say(t, "remove %s from %s", b.name, b.host.Name())
	w.needAgent(t, b.host)
	b.host.MustDocker(t, "rm", "-f", b.name)
	delete(w.boxes, b.name)
}

func (w *world) restart(t *testing.T) {
	_, b, ok := pick(w.rand, w.boxes)
	if !ok {
		return
	}
	w.say(t, "restart %s on %s", b.name, b.host.Name())
	w.needAgent(t, b.host)
	_, err := b.host.Docker(t.Context(), "restart", "-t", "1", b.name)
	switch {
	case err == nil:
	case w.offStore[b.host]:
		// A start is published before it succeeds, so in this version it needs the
		// store. What has failed to start is of no use to the checks.
		t.Logf("which failed without the store: %v", err)
		b.host.MustDocker(t, "rm", "-f", b.name)
		delete(w.boxes, b.name)
	default:
		t.Fatal(err)
	}
}

// needAgent starts a host's agent. Without one an engine tries each call for 15 s,
// which the scenarios look at; here it would only use up the time.
func (w *world) needAgent(t *testing.T, h *lab.Host) {
	t.Helper()
	if h.AgentRunning() {
		return
	}
	if err := h.RestartAgent(t.Context()); err != nil {
		t.Fatalf("start the agent of %s: %v", h.Name(), err)
	}
}

func (w *world) addNetwork(t *testing.T) {
	if len(w.nets) >= maxNets {
		return
	}
	w.repair(t) // a new network is the cluster's business
	w.count++
	name, subnet := fmt.Sprintf("net%d", w.count), fmt.Sprintf("10.%d.%d.0/24", 60+w.count/256%128, w.count%256)
	w.say(t, "make network %s of %s", name, subnet)
	for _, h := range w.Hosts() {
		h.MustDocker(t, "network", "create", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", subnet, name)
	}
	w.nets[name] = subnet
}

func (w *world) removeNetwork(t *testing.T) {
	name, _, ok := pick(w.rand, w.nets)
	if !ok {
		return
	}
	w.repair(t)
	w.say(t, "remove network %s with all that is in it", name)
	w.drop(t, name)
}

// drop removes a network and its containers everywhere.
func (w *world) drop(t *testing.T, name string) {
	t.Helper()
	for _, b := range w.boxes {
		if b.net == name {
			b.host.MustDocker(t, "rm", "-f", b.name)
			delete(w.boxes, b.name)
		}
	}
	for _, h := range w.Hosts() {
		h.MustDocker(t, "network", "rm", name)
	}
	delete(w.nets, name)
}

func (w *world) killAgent(t *testing.T) {
	h := w.host()
	if !h.AgentRunning() {
		return
	}
	w.say(t, "kill -9 the agent of %s", h.Name())
	if err := h.KillAgent(t.Context()); err != nil {
		t.Error(err)
	}
	w.needAgent(t, h)
}

func (w *world) stopAgent(t *testing.T) {
	h := w.host()
	if !h.AgentRunning() {
		return
	}
	w.say(t, "stop the agent of %s and leave it", h.Name())
	if err := h.StopAgent(t.Context()); err != nil {
		t.Error(err)
	}
}

// damage does to a network's namespace what people do.
func (w *world) damage(t *testing.T) {
	h := w.host()
	names, err := h.Namespaces(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "carrick-") })
	if len(names) == 0 {
		return
	}
	ns := names[w.rand.IntN(len(names))]
	harm := [][]string{
		{"ip", "-n", ns, "link", "set", "vxlan0", "down"},
		{"ip", "-n", ns, "link", "set", "br0", "down"},
		{"ip", "-n", ns, "link", "del", "vxlan0"},
		{"ip", "-n", ns, "link", "set", "vxlan0", "nomaster"},
		{"ip", "-n", ns, "neigh", "flush", "dev", "vxlan0", "nud", "permanent"},
		{"ip", "-n", ns, "link", "set", "vxlan0", "mtu", "1280"},
		{"bridge", "-n", ns, "fdb", "add", "02:00:00:00:00:99", "dev", "vxlan0", "dst", "172.31.0.99", "self", "permanent"},
		{"ip", "-n", ns, "neigh", "replace", "10.60.0.99", "lladdr", "02:00:00:00:00:99", "dev", "vxlan0", "nud", "permanent"},
		{"bridge", "-n", ns, "link", "set", "dev", "vxlan0", "learning", "on"},
	}[w.rand.IntN(9)]
	w.say(t, "on %s: %s", h.Name(), strings.Join(harm, " "))
	if _, err := h.Exec(t.Context(), harm...); err != nil {
		t.Logf("which failed: %v", err) // another hand was there first
	}
}

func (w *world) split(t *testing.T) {
	hosts := w.Hosts()
	i := w.rand.IntN(len(hosts))
	a, b := hosts[i], hosts[(i+1)%len(hosts)]
	w.say(t, "cut %s from %s", a.Name(), b.Name())
	if err := w.Split(t.Context(), a, b); err != nil {
		t.Error(err)
	}
}

func (w *world) cutStore(t *testing.T) {
	h := w.host()
	w.say(t, "cut %s from the store", h.Name())
	w.offStore[h] = true
	if err := w.CutFromConsul(t.Context(), h); err != nil {
		t.Error(err)
	}
}

// repair ends all faults of the lab. What was done to the kernel it leaves to the
// agents.
func (w *world) repair(t *testing.T) {
	t.Helper()
	if err := w.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	clear(w.offStore)
	for _, h := range w.Hosts() {
		w.needAgent(t, h)
	}
}

// check waits until every promise holds at once.
func (w *world) check(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for _, h := range w.Hosts() {
		lab.Eventually(t, calm, h.Name()+" to say that nothing needs attention", func() error {
			_, err := h.Carrick(ctx, "status")
			return err
		})
	}
	owner := map[string]string{} // network and address to container
	for _, b := range w.boxes {
		addr, err := addressOf(ctx, b)
		if err != nil {
			t.Fatal(err)
		}
		b.addr = addr
		if other, taken := owner[b.net+" "+addr]; taken {
			t.Errorf("%s and %s both have %s in %s", other, b.name, addr, b.net)
		}
		owner[b.net+" "+addr] = b.name
	}
	var all sync.WaitGroup
	errs := make(chan error, len(w.boxes))
	for _, b := range w.boxes {
		all.Go(func() { errs <- w.reachesAll(ctx, b) })
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

// addressOf asks the engine for a container's address.
func addressOf(ctx context.Context, b *box) (string, error) {
	out, err := b.host.Docker(ctx, "inspect", "--format", "{{json .NetworkSettings.Networks}}", b.name)
	if err != nil {
		return "", err
	}
	var nets map[string]struct{ IPAddress string }
	if err := json.Unmarshal([]byte(out), &nets); err != nil {
		return "", fmt.Errorf("%s: %w", b.name, err)
	}
	if nets[b.net].IPAddress == "" {
		return "", fmt.Errorf("%s on %s has no address in %s: %s", b.name, b.host.Name(), b.net, out)
	}
	return nets[b.net].IPAddress, nil
}

// reachesAll waits until a container gets every other one of its network to tell
// it its name: the right container at the right address.
func (w *world) reachesAll(ctx context.Context, b *box) error {
	var ask strings.Builder
	for _, o := range w.boxes {
		if o.net == b.net && o != b {
			fmt.Fprintf(&ask, "[ \"$(timeout 3 wget -qO- http://%s/name)\" = %s ] || echo %s of %s at %s;", o.addr, o.name, o.name, o.host.Name(), o.addr)
		}
	}
	if ask.Len() == 0 {
		return nil
	}
	return lab.Wait(ctx, calm, b.name+" on "+b.host.Name()+" to reach all of "+b.net, func() error {
		missed, err := b.host.InContainer(ctx, b.name, "sh", "-c", ask.String())
		if err == nil && missed != "" {
			err = errors.New("it misses " + strings.TrimSpace(missed))
		}
		return err
	})
}

// warmUp lets what stays for good come into being: docker_gwbridge.
func (w *world) warmUp(t *testing.T) {
	t.Helper()
	for _, h := range w.Hosts() {
		h.MustDocker(t, "network", "create", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", "10.254.0.0/16", "warmup")
		h.MustDocker(t, "run", "--rm", "--network", "warmup", "-p", "18080:80", lab.Image, "true")
	}
	for _, h := range w.Hosts() {
		h.MustDocker(t, "network", "rm", "warmup")
	}
}

// clear removes everything that the run made.
func (w *world) clear(t *testing.T) {
	t.Helper()
	w.repair(t)
	for _, name := range slices.Sorted(maps.Keys(w.nets)) {
		w.drop(t, name)
	}
}
