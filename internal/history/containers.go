package history

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
)

// boxesPerHost bounds how many containers there are.
const boxesPerHost = 9

// run is docker run, in one of the networks its host has.
func (w *world) run(o op) {
	h := w.host(o.a)
	if !h.On() {
		return
	}
	n := w.network(h, o.b)
	if n == nil {
		return
	}
	if w.boxesOn(h) >= boxesPerHost {
		w.remove(o)
		return
	}
	w.newBox(h, n, o.c, o.d, 1)()
}

// network picks a network that an engine has.
func (w *world) network(h *sim.Host, n uint32) *sim.Network {
	all := h.Networks()
	names := slices.Sorted(maps.Keys(all))
	if len(names) == 0 {
		return nil
	}
	return all[names[int(n)%len(names)]]
}

func (w *world) boxesOn(h *sim.Host) int {
	n := 0
	for _, b := range w.boxes {
		if b.host == h {
			n++
		}
	}
	return n
}

// newBox prepares a docker run, of which several happen at once in a network, and
// returns what does it.
func (w *world) newBox(h *sim.Host, n *sim.Network, mode, which uint32, atOnce int) func() {
	w.named++
	name := fmt.Sprintf("b%d", w.named)
	want := w.address(h, n, mode, which)
	before := w.outlook(h, n, want, atOnce)
	return func() {
		b, err := h.RunBox(name, which%3 == 0, n, sim.Run{IP: want})
		w.say("%s: run %s in %s --ip %q: %s", h.Name, name, n.Name, want, outcome(b, err))
		w.judge("run", before, err)
		if err != nil {
			return
		}
		w.rightAddress(h, n, b, want)
		w.mu.Lock()
		w.boxes = append(w.boxes, &box{b, h})
		w.mu.Unlock()
	}
}

func outcome(b *sim.Box, err error) string {
	if err != nil {
		return err.Error()
	}
	s := "ok"
	if b != nil {
		for _, c := range b.Parts() {
			s += fmt.Sprintf(" %s=%v (%s)", c.Network.Name, c.Addrs(), c.Endpoint.Short())
		}
	}
	return s
}

// address picks what --ip says; "" is no --ip.
func (w *world) address(h *sim.Host, n *sim.Network, mode, which uint32) string {
	base := n.Subnet.Addr().As4()
	size := uint32(1) << (32 - n.Subnet.Bits())
	any := func(i uint32) string {
		a := base
		a[3] += byte(i % size)
		return netip.AddrFrom4(a).String()
	}
	switch mode % 8 {
	case 0:
		return any(which)
	case 1: // of the host's own blocks
		if rec, err := h.Cluster.Journal().ByAlias(n.ID); err == nil && len(rec.Blocks) > 0 {
			b := rec.Blocks[int(which)%len(rec.Blocks)]
			a := b.Addr().As4()
			a[3] += byte(which >> 8 % (1 << (32 - b.Bits())))
			return netip.AddrFrom4(a).String()
		}
		return ""
	case 2: // one that some container has
		if b := w.boxThat(which, func(b *box) bool { return b.Up() }); b != nil {
			for _, c := range b.Parts() {
				if c.Network.Name == n.Name {
					return c.Addr.Addr().String()
				}
			}
		}
		return ""
	}
	return ""
}

// rightAddress checks that a container has what it was promised.
func (w *world) rightAddress(h *sim.Host, n *sim.Network, b *sim.Box, want string) {
	for _, c := range b.Parts() {
		if c.Network != n {
			continue
		}
		if want != "" && c.Addr.Addr().String() != want {
			w.fail("%s: %s asked for %s and has %s", h.Name, b.Name, want, c.Addr)
		}
		if rec, err := h.Cluster.Journal().ByAlias(n.ID); err == nil {
			pool := rec.Conf.Pools[0]
			if why := pool.Reserved(c.Addr.Addr()); why != "" || !pool.Prefix.Contains(c.Addr.Addr()) || want == "" && !pool.AllocRange().Contains(c.Addr.Addr()) {
				w.fail("%s: %s has %s, which it may not have (%s)", h.Name, b.Name, c.Addr, why)
			}
		}
	}
}

// outlook is what is to be expected of an allocation.
type outlook struct {
	host    *sim.Host
	network *sim.Network
	want    netip.Addr
	runs    bool // the agent
	dies    bool // maybe, in the middle
	known   bool // the network, to the journal
	fenced  bool
	free    int // addresses of own blocks
	atOnce  int
	fine    bool
	// About want:
	reserved, outside bool
	own, taken        bool
	lent              bool // to a host that may give it back when asked
}

func (w *world) outlook(h *sim.Host, n *sim.Network, want string, atOnce int) outlook {
	o := outlook{host: h, network: n, runs: h.Running() && h.On(), dies: w.fused[h], atOnce: atOnce, fine: w.fine(h)}
	if want != "" {
		o.want = netip.MustParseAddr(want)
	}
	jr := h.Cluster.Journal()
	rec, err := jr.ByAlias(n.ID)
	o.known = err == nil && !rec.Leaving
	if !o.known {
		return o
	}
	o.fenced = jr.Meta().Fenced
	leases := jr.Leases(rec.Conf.ID)
	pool := rec.Conf.Pools[0]
	for _, b := range rec.Blocks {
		for a := b.Addr(); pool.Prefix.Contains(b.Addr()) && b.Contains(a); a = a.Next() {
			if l, used := leases[a]; pool.AllocRange().Contains(a) && pool.Reserved(a) == "" && (!used || l.Released != 0) {
				o.free++
			}
		}
	}
	if o.want.IsValid() {
		o.outside = !pool.Prefix.Contains(o.want)
		o.reserved = pool.Reserved(o.want) != ""
		o.own = slices.ContainsFunc(rec.Blocks, func(b netip.Prefix) bool { return b.Contains(o.want) })
		l, used := leases[o.want]
		o.taken = used && l.Released == 0
		o.lent = o.taken && l.Lent != ""
	}
	return o
}

// judge says whether an operation that needs an address may have ended so.
func (w *world) judge(kind string, o outlook, err error) {
	bad := func(why string) {
		w.count(kind, "WRONG")
		w.fail("%s on %s in %s, --ip %v: %s: %v (free %d, at once %d, store fine %t, fenced %t)", kind, o.host.Name, o.network.Name, o.want, why, err, o.free, o.atOnce, o.fine, o.fenced)
	}
	switch {
	case err == nil && (o.reserved || o.outside):
		bad("an address that nobody may have")
	case err == nil && o.want.IsValid() && o.own && o.taken && !o.lent && o.atOnce == 1 && !o.dies:
		bad("an address that is given out")
	case err == nil:
		w.count(kind, "ok")
	case !o.runs || o.dies || errors.Is(err, sim.ErrNoAgent) || errors.Is(err, sim.ErrOff):
		w.count(kind, "no agent")
	case !o.known:
		w.count(kind, "network unknown")
	case o.fenced, errors.Is(err, cluster.ErrFenced) && (w.removed[o.host] || w.losses > 0):
		w.count(kind, "fenced")
	case o.reserved || o.outside:
		w.count(kind, "forbidden address refused")
		if !errors.Is(err, ipam.ErrReserved) && !errors.Is(err, ipam.ErrOutside) {
			bad("refused for another reason than that it is reserved")
		}
	case o.want.IsValid() && o.own && o.taken:
		w.count(kind, "taken address refused")
		if !errors.Is(err, ipam.ErrInUse) {
			bad("refused for another reason than that it is in use")
		}
	case o.want.IsValid() && o.own && o.atOnce == 1:
		bad("an address of the host's own blocks, and free")
	case o.want.IsValid():
		w.count(kind, "explicit address refused")
	case o.free >= o.atOnce:
		bad("the host has free addresses")
	case !o.fine || !w.fine(o.host):
		w.count(kind, "no address without the store")
	case w.losses > 0 && errors.Is(err, cluster.ErrUnknownNetwork):
		// A backup has an earlier network of the same prefix, which has to go first.
		w.count(kind, "network not in the store again yet")
	case superseded(o.host) && errors.Is(err, cluster.ErrUnknownNetwork):
		w.count(kind, "network replaced meanwhile")
	default:
		if b, ok := w.unowned(o.network, o.host); ok {
			bad("block " + b.String() + " is nobody's")
			return
		}
		w.count(kind, "full")
	}
}

// superseded says whether another network has the subnet of one of this host's, made
// while the host was removed or the store had lost its past. One of them has to go.
func superseded(h *sim.Host) bool {
	return slices.ContainsFunc(h.Cluster.Conflicts(), func(s string) bool { return strings.Contains(s, "cannot be published") })
}

// unowned looks for a block that a host could claim.
func (w *world) unowned(n *sim.Network, h *sim.Host) (netip.Prefix, bool) {
	rec, err := h.Cluster.Journal().ByAlias(n.ID)
	if err != nil {
		return netip.Prefix{}, false
	}
	ctx, cancel := w.ctx()
	defer cancel()
	s, err := cluster.Inspect(ctx, w.eye)
	if err != nil {
		return netip.Prefix{}, false
	}
	owned := s.Networks[rec.Conf.ID].Blocks
	return ipam.NextBlock(rec.Conf.Pools[0], func(b netip.Prefix) bool { _, ok := owned[b]; return ok })
}

// stop is docker stop.
func (w *world) stop(o op) {
	if b := w.boxThat(o.a, func(b *box) bool { return b.Up() }); b != nil {
		w.end1("stop", b, b.Stop)
	}
}

// remove is docker rm -f.
func (w *world) remove(o op) {
	b := w.boxThat(o.a, func(b *box) bool { return b.host.On() })
	if b == nil {
		return
	}
	w.end1("remove", b, b.Remove)
	w.forget(b)
}

func (w *world) forget(b *box) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boxes = slices.DeleteFunc(w.boxes, func(x *box) bool { return x == b })
}

// end1 does what ends a container's part in networks. An agent that runs has no
// reason to refuse.
func (w *world) end1(kind string, b *box, do func() error) {
	may := !b.host.Running() || w.fused[b.host]
	err := do()
	w.say("%s: %s %s: %s", b.host.Name, kind, b.Name, outcome(nil, err))
	switch {
	case err == nil:
		w.count(kind, "ok")
	case may || errors.Is(err, sim.ErrNoAgent) || errors.Is(err, sim.ErrOff):
		w.count(kind, "no agent")
	default:
		w.count(kind, "WRONG")
		w.fail("%s %s on %s: %v", kind, b.Name, b.host.Name, err)
	}
}

// start is docker start.
func (w *world) start(o op) {
	if b := w.boxThat(o.a, func(b *box) bool { return !b.Up() && b.host.On() }); b != nil {
		w.startBox("start", b)
	}
}

func (w *world) startBox(kind string, b *box) {
	var before []outlook
	for n, ip := range b.Wants() {
		before = append(before, w.outlook(b.host, n, ip, 1))
	}
	err := b.Start()
	w.say("%s: %s %s: %s", b.host.Name, kind, b.Name, outcome(b.Box, err))
	w.judgeAll(kind, before, err)
}

// judgeAll is judge for a container that starts in several networks, all or none.
func (w *world) judgeAll(kind string, before []outlook, err error) {
	if err == nil {
		w.count(kind, "ok")
		return
	}
	if len(before) == 1 {
		w.judge(kind, before[0], err)
		return
	}
	w.count(kind, "refused in one of several networks")
}

// restart is docker restart.
func (w *world) restart(o op) {
	if b := w.boxThat(o.a, func(b *box) bool { return b.Up() }); b != nil {
		w.end1("restart: stop", b, b.Stop)
		w.startBox("restart", b)
	}
}

// connect is docker network connect.
func (w *world) connect(o op) {
	b := w.boxThat(o.a, func(b *box) bool { return b.host.On() })
	if b == nil {
		return
	}
	n := w.network(b.host, o.b)
	if n == nil || b.In(n) {
		return
	}
	up := b.Up()
	want := w.address(b.host, n, o.c, o.d)
	before := w.outlook(b.host, n, want, 1)
	err := b.Connect(n, sim.Run{IP: want})
	w.say("%s: connect %s (up %t) to %s --ip %q: %s", b.host.Name, b.Name, up, n.Name, want, outcome(b.Box, err))
	if up {
		w.judge("connect", before, err)
	}
}

// disconnect is docker network disconnect.
func (w *world) disconnect(o op) {
	b := w.boxThat(o.a, func(b *box) bool { return b.host.On() && len(b.Networks()) > 1 })
	if b == nil {
		return
	}
	all := b.Networks()
	n := all[int(o.b)%len(all)]
	w.end1("disconnect", b, func() error { return b.Disconnect(n) })
}

// together is how many containers start and stop at once.
func together(o op) int { return 2 + int(o.a%5) }

// together starts and stops containers on several hosts at once.
func (w *world) together(o op) {
	type place struct {
		host    *sim.Host
		network *sim.Network
	}
	runs := map[place]int{}
	var places []place
	used := map[*box]bool{}
	var todo []func()
	for i := range together(o) {
		// Numbers of its own for each, made of the operation's.
		x := (o.b ^ uint32(i)*2654435761) * 2246822519
		if x>>4%3 == 0 {
			if b := w.boxThat(x>>8, func(b *box) bool { return b.Up() && !used[b] }); b != nil {
				used[b] = true
				todo = append(todo, func() { w.end1("stop", b, b.Stop) })
				continue
			}
		}
		h := w.host(x >> 12)
		if !h.On() || w.boxesOn(h) >= boxesPerHost {
			continue
		}
		if n := w.network(h, x>>16); n != nil {
			runs[place{h, n}]++
			places = append(places, place{h, n})
		}
	}
	for _, p := range places {
		todo = append(todo, w.newBox(p.host, p.network, 7, o.d, runs[p]))
	}
	var wg sync.WaitGroup
	for _, f := range todo {
		wg.Go(f)
	}
	wg.Wait()
}

// holdersAreAlone is the promise: no address of a network is held by two
// containers that run. Those of a removed host count from its return on, and cut
// off ones hold nothing.
func (w *world) holdersAreAlone() {
	type key struct {
		network carrick.NetworkID
		addr    netip.Addr
	}
	type holder struct {
		host *sim.Host
		c    *sim.Container
	}
	held := map[key]holder{}
	for _, h := range w.hosts {
		if w.gone[h] && !w.back(h) {
			continue
		}
		delete(w.gone, h)
		jr := h.Cluster.Journal()
		for _, c := range h.Live() {
			rec, err := jr.ByAlias(c.Network.ID)
			if err != nil {
				continue
			}
			if e, err := jr.Endpoint(c.Endpoint); err == nil && e.Fenced {
				continue
			}
			for _, a := range c.Addrs() {
				k := key{rec.Conf.ID, a}
				if other, twice := held[k]; twice && !w.revived[h] && !w.revived[other.host] {
					w.fail("%s of network %s is held by %s on %s and by %s on %s", a, c.Network.Name, other.c.Endpoint.Short(), other.host.Name, c.Endpoint.Short(), h.Name)
					return
				}
				held[k] = holder{h, c}
			}
		}
	}
}
