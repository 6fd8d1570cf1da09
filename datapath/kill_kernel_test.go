package datapath_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// verb is something that happens to a network while an agent looks after it.
type verb struct {
	from, to plan.Network
	// damage is done to what from left, before the agent is handed to.
	damage func(h *realHost)
	// joined: the pairs of from are containers'.
	joined bool
}

// verbs is all that an applier is for.
func verbs() map[string]verb {
	all := plans()
	far := map[int][]string{11: {"192.0.2.2"}, 12: {"192.0.2.2"}, 13: {"192.0.2.3"}}
	base := spec{local: []int{1, 2}, remote: far, flood: true, dual: true}
	with := func(fn func(s *spec)) plan.Network {
		s := base
		s.remote = map[int][]string{}
		for i, v := range far {
			s.remote[i] = v
		}
		fn(&s)
		return s.plan()
	}
	same := func(*spec) {}
	clamped := func(mtu int) plan.Network {
		p := with(same)
		p.Clamp = mtu
		return p
	}
	out := map[string]verb{
		"the first container of a network":  {from: absent(), to: with(same)},
		"a container more":                  {from: with(func(s *spec) { s.local = []int{1} }), to: with(same)},
		"a container less":                  {from: with(same), to: with(func(s *spec) { s.local = []int{1} })},
		"a container less that ran":         {from: with(same), to: with(func(s *spec) { s.local = []int{1} }), joined: true},
		"a container more elsewhere":        {from: with(same), to: with(func(s *spec) { s.remote[14] = []string{"192.0.2.4"} })},
		"a container less elsewhere":        {from: with(same), to: with(func(s *spec) { delete(s.remote, 13) })},
		"a container moves elsewhere":       {from: with(same), to: with(func(s *spec) { s.remote[11] = []string{"192.0.2.3"} })},
		"a container comes here":            {from: with(same), to: with(func(s *spec) { delete(s.remote, 11); s.local = []int{1, 2, 11} })},
		"a container leaves for elsewhere":  {from: with(same), to: with(func(s *spec) { s.local = []int{1}; s.remote[2] = []string{"192.0.2.2"} })},
		"the last container of a network":   {from: with(same), to: absent()},
		"the last one, which ran":           {from: with(same), to: absent(), joined: true},
		"a container is cut off":            {from: with(same), to: with(func(s *spec) { s.down = []int{1} }), joined: true},
		"a container is let in again":       {from: with(func(s *spec) { s.down = []int{1} }), to: with(same), joined: true},
		"another VNI":                       {from: with(same), to: with(func(s *spec) { s.vni = 43 }), joined: true},
		"another UDP port":                  {from: with(same), to: with(func(s *spec) { s.port = 8472 }), joined: true},
		"another VTEP":                      {from: with(same), to: with(func(s *spec) { s.vtep = "192.0.2.9" }), joined: true},
		"another family of the underlay":    {from: with(same), to: all["IPv6 underlay"]},
		"a smaller MTU":                     {from: with(same), to: with(func(s *spec) { s.mtu = 1400 })},
		"an MTU too small for IPv6":         {from: all["three hosts"], to: all["tiny MTU"]},
		"an MTU large enough again":         {from: all["tiny MTU"], to: all["three hosts"]},
		"flooding goes off":                 {from: with(same), to: with(func(s *spec) { s.flood = false })},
		"flooding goes on":                  {from: with(func(s *spec) { s.flood = false }), to: with(same)},
		"a way that carries less":           {from: with(same), to: clamped(1300), joined: true},
		"a way that carries all":            {from: clamped(1300), to: with(same), joined: true},
		"other MACs":                        {from: all["three hosts"], to: all["other MACs"]},
		"little is known":                   {from: with(same), to: partial(with(func(s *spec) { s.remote = map[int][]string{14: {"192.0.2.4"}} })), joined: true},
		"little is known of a new network":  {from: absent(), to: partial(with(func(s *spec) { s.remote = nil }))},
		"all is known again":                {from: partial(with(func(s *spec) { s.remote = map[int][]string{14: {"192.0.2.4"}} })), to: with(same)},
		"little is known, and another port": {from: with(same), to: partial(with(func(s *spec) { s.port = 8472; s.remote = nil })), joined: true},
	}
	for name, lines := range map[string]string{
		"the vxlan device was deleted":    "ip link del vxlan0",
		"the bridge was deleted":          "ip link del br0",
		"the vxlan device was renamed":    "ip link set vxlan0 down ; ip link set vxlan0 name mine",
		"ports were taken out":            "ip link set " + port1 + " nomaster ; ip link set vxlan0 nomaster",
		"all was taken down":              "ip link set br0 down ; ip link set vxlan0 down ; ip link set " + port1 + " down",
		"names of ports were swapped":     "ip link set " + port1 + " down ; ip link set " + port2 + " down ; ip link set " + port1 + " name x ; ip link set " + port2 + " name " + port1 + " ; ip link set x name " + port2,
		"the vxlan device learns":         "ip link set vxlan0 type vxlan learning",
		"MTUs were changed":               "ip link set vxlan0 mtu 1000 ; ip link set br0 mtu 1000 ; ip link set " + port1 + " mtu 1000",
		"rows were deleted and added":     "bridge fdb del 00:00:00:00:00:00 dev vxlan0 self ; bridge fdb replace 02:00:0a:00:00:0b dev vxlan0 dst 192.0.2.66 vni 66 self ; ip neigh flush dev vxlan0 nud permanent",
		"strangers were put there":        "ip link add stranger type bridge ; ip link add strange1 type veth peer name strange2 ; ip link set strange2 master br0 ; ip link add vx66 type vxlan id 66 dstport 4789",
		"something else has the names":    "ip link del br0 ; ip link del vxlan0 ; ip link add br0 type vxlan id 66 dstport 8472 ; ip link add vxlan0 type bridge",
		"the vxlan socket lives nearby":   "ip link del vxlan0 ; ip link add vxlan0 type vxlan id 42 dstport 4789 local 192.0.2.1 nolearning proxy ; ip link set vxlan0 master br0",
		"the passing name was left there": "ip link add ckvx42 type bridge",
	} {
		out[name] = verb{from: with(same), to: with(same), joined: true, damage: func(h *realHost) { h.run(lines) }}
	}
	return out
}

// stage is a host before a verb, with the containers that run there.
type stage struct {
	*realHost
	verb
	containers []*nstest.Container
}

// set makes the host as it is before the verb, with an agent that will die: one
// that knows it or, if it is fresh, one that was just started.
func (s *stage) set(fresh bool) (*life, *datapath.Overlay) {
	s.t.Helper()
	if len(s.containers) == 0 {
		s.apply(absent())
	}
	if err := s.o.Close(); err != nil {
		s.t.Fatal(err)
	}
	l := &life{left: -1}
	open := func() *datapath.Overlay {
		o, err := datapath.Open(s.t.Context(), datapath.Config{Kernel: mortalKernel{l},
			Filter: mortalFilter{nft.Linux{}, l}, Namespaces: mortalStore{s.Namespaces, l, s.Dir}})
		if err != nil {
			s.t.Fatal(err)
		}
		return o
	}
	o := open()
	from := s.from
	if len(s.containers) > 0 {
		from = s.plan(s.from)
	}
	if rep, err := o.Network(id).Apply(s.t.Context(), from); err != nil || rep.Failed() != nil {
		s.t.Fatal(err, rep.Failed())
	}
	if s.joined && len(s.containers) == 0 {
		for i, p := range s.from.Ports {
			s.containers = append(s.containers, s.Container(fmt.Sprintf("c%d", i), p.Outer))
		}
	}
	if s.damage != nil {
		s.damage(s.realHost)
	}
	if fresh {
		if err := o.Close(); err != nil {
			s.t.Fatal(err)
		}
		o = open()
	}
	if s.damage != nil { // an audit is due, since no event tells of rows
		o.Network(id).QueueResync("audit")
	}
	return l, o
}

// strike ends what cannot be used again: containers that lost their pairs.
func (s *stage) strike() {
	for _, p := range s.from.Ports {
		if !slices.ContainsFunc(s.to.Ports, func(x plan.Port) bool { return x.Endpoint == p.Endpoint }) {
			for i, c := range s.containers {
				_ = c.NS.Close()
				s.Remove(fmt.Sprintf("c%d", i))
			}
			s.containers = nil
			return
		}
	}
}

// plan is a plan as it is once the containers of from run.
func (s *stage) plan(p plan.Network) plan.Network {
	if !s.joined {
		return p
	}
	p.Ports = slices.Clone(p.Ports)
	for i, x := range p.Ports {
		if slices.ContainsFunc(s.from.Ports, func(y plan.Port) bool { return y.Endpoint == x.Endpoint }) {
			p.Ports[i].Create = false
		}
	}
	return p
}

// adopt is a new agent on whatever the dead one left. It may have to wait for the
// kernel to take apart a namespace that lost its name.
func (h *realHost) adopt(p plan.Network) {
	h.t.Helper()
	h.start()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		var rep datapath.Report
		rep, err = h.a.Apply(h.t.Context(), p)
		if err = errors.Join(err, rep.Failed()); err == nil {
			return
		}
		if !errors.Is(err, datapath.ErrConflict) {
			break
		}
	}
	h.t.Fatal(err)
}

const patience = 20 * time.Second

func TestAnAgentKilledAtAnyStepOfAnyVerbLeavesNothingThatTheNextDoesNotMend(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for name, v := range verbs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &stage{realHost: newRealHost(t, nstest.NewLab(t), 1, 1500), verb: v}

			// What it should come to: nobody dies.
			_, o := s.set(false)
			to := s.plan(v.to)
			if rep, err := o.Network(id).Apply(t.Context(), to); err != nil || rep.Failed() != nil {
				t.Fatal(err, rep.Failed())
			}
			want := s.world(s.containers...)
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			s.start()
			s.strike()

			// Every other one dies in its first pass, when it has just been started; the
			// others know what they did before.
			for n, alive := 0, 0; alive < 2; n++ {
				fresh := (uint64(n)+seed)%2 == 0
				when := fmt.Sprintf("killed at step %d (in its first pass: %v)", n, fresh)
				l, o := s.set(fresh)
				l.set(n)
				rep, err := o.Network(id).Apply(t.Context(), to)
				switch err := errors.Join(err, rep.Failed()); {
				case !l.over() && err != nil || l.over() && err != nil && !errors.Is(err, errDead):
					t.Fatalf("%s: Apply said %v", when, err)
				case l.over() && err == nil && len(rep.Problems) == 0:
					t.Fatalf("%s: nobody was told", when)
				case !l.over():
					alive++
					t.Logf("%d steps (in its first pass: %v)", l.effect, fresh)
				}
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				s.adopt(to)
				s.same(when, to, want, s.containers)
				// The facts may have changed back meanwhile.
				if !v.joined && !v.to.Partial && !v.from.Partial {
					s.apply(v.from)
					s.settled(v.from)
				}
				s.strike()
			}
		})
	}
}

// same checks that the host is as it should be, and that the agent thinks so.
func (h *realHost) same(when string, p plan.Network, want string, containers []*nstest.Container) {
	h.t.Helper()
	if got := h.world(containers...); got != want {
		h.t.Fatalf("%s: the kernel holds\n%s\nwant\n%s", when, got, want)
	}
	h.settled(p)
}

// settled checks that there is nothing more to do.
func (h *realHost) settled(p plan.Network) {
	h.t.Helper()
	h.k.reset()
	if rep := h.apply(p); rep.Changes.Total() != 0 {
		h.t.Fatalf("an equal plan changed %+v: %q", rep.Changes, h.k.reset())
	}
	if rep, err := h.a.Audit(h.t.Context()); err != nil || rep.Drift.Total() != 0 || rep.Changes.Total() != 0 {
		h.t.Fatalf("an audit found %+v, %v; sent %q", rep, err, h.k.reset())
	}
}

// If somebody takes the namespace's name the agent gives it back; if it is
// killed at that, the namespace has no name and no holder, and dies. Pairs that
// were not in use yet are made again.
func TestAnAgentKilledWhileItGivesANameBack(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(h *realHost){
		"the name was deleted": func(h *realHost) {
			if err := h.Namespaces.Delete(h.t.Context(), space); err != nil {
				h.t.Fatal(err)
			}
		},
		"another namespace has the name": func(h *realHost) {
			if err := h.Namespaces.Delete(h.t.Context(), space); err != nil {
				h.t.Fatal(err)
			}
			ns, err := h.Namespaces.Create(h.t.Context(), space)
			if err != nil {
				h.t.Fatal(err)
			}
			_ = ns.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newRealHost(t, nstest.NewLab(t), 1, 1500)
			p := plans()["three hosts"]
			s := &stage{realHost: h, verb: verb{from: p, to: p, damage: damage}}
			h.apply(p)
			want := h.world()
			for n, done := 0, false; !done; n++ {
				l, o := s.set(false)
				l.set(n)
				a := o.Network(id)
				rep, err := a.Audit(t.Context())
				if err := errors.Join(err, rep.Failed()); l.over() != errors.Is(err, errDead) {
					t.Fatalf("killed at step %d: Audit said %v", n, err)
				}
				done = !l.over()
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				h.adopt(p)
				h.same(fmt.Sprintf("killed at step %d", n), p, want, nil)
			}
		})
	}
}
