package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// reading is all of a network's kernel state that a plan has a say in, as text
// without the numbers that the kernel gives.
func (h *realHost) reading() string {
	h.t.Helper()
	ctx := h.t.Context()
	ns, err := h.Namespaces.Open(ctx, space)
	if errors.Is(err, netns.ErrNotFound) {
		return "absent"
	}
	if err != nil {
		h.t.Fatal(err)
	}
	defer ns.Close()
	k, err := nl.Linux{}.Open(ctx, ns)
	if err != nil {
		h.t.Fatal(err)
	}
	defer k.Close()
	links, err := k.Links(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, l := range links {
		s := fmt.Sprintf("link %s %s mtu %d up %v master %q alias %q nogen %v", l.Name, l.Kind, l.MTU, l.Up, names[l.Master], l.Alias, l.NoAddrGen)
		if l.Port != nil {
			s += fmt.Sprintf(" port %+v", *l.Port)
		}
		if l.Bridge != nil {
			s += fmt.Sprintf(" bridge %+v", *l.Bridge)
		}
		if l.VXLAN != nil {
			s += fmt.Sprintf(" vxlan %+v", *l.VXLAN)
		}
		if l.Kind == nl.KindVeth {
			far, err := k.Peer(ctx, l)
			if err != nil {
				h.t.Fatal(err)
			}
			s += fmt.Sprintf(" peer %s %s mtu %d", far.Name, far.MAC, far.MTU)
		}
		out = append(out, s)
	}
	rows, err := k.FDB(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Self && r.VTEP.IsValid() || r.Of != 0 && r.State == nl.StateNoARP {
			out = append(out, fmt.Sprintf("row %s dev %s dst %v", r.MAC, names[r.Link], r.VTEP))
		}
	}
	for i, n := range names {
		neigh, err := k.Neighbours(ctx, nl.Ref{Index: i, Name: n})
		if err != nil {
			h.t.Fatal(err)
		}
		for _, x := range neigh {
			if x.State == nl.StatePermanent {
				out = append(out, fmt.Sprintf("neigh %s %s dev %s", x.Addr, x.MAC, n))
			}
		}
	}
	addrs, err := k.Addresses(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range addrs {
		out = append(out, fmt.Sprintf("address %s dev %s", a.Prefix, names[a.Link]))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// fresh is what each plan leads to on a host that held nothing.
func fresh(t *testing.T, h *realHost) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, p := range plans() {
		h.apply(p)
		out[name] = h.reading()
		h.apply(absent())
	}
	return out
}

func TestEveryPlanFollowsEveryOtherOnTheRealKernel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	nstest.Run(t, h.NS, "ip link add vxlan0 type bridge") // names in the host do not matter
	nstest.Run(t, h.NS, "ip link add br0 type bridge")
	want := fresh(t, h)
	names := sortedNames(want)
	todo := map[[2]string]bool{}
	for _, from := range names {
		for _, to := range names {
			todo[[2]string{from, to}] = true
		}
	}
	now := "absent"
	for len(todo) > 0 {
		// To a neighbour that is still to be seen, if there is one.
		next := names[rng.IntN(len(names))]
		for _, i := range rng.Perm(len(names)) {
			if todo[[2]string{now, names[i]}] {
				next = names[i]
				break
			}
		}
		h.apply(plans()[next])
		if got := h.reading(); got != want[next] {
			t.Fatalf("from %q to %q: the kernel holds\n%s\nwant\n%s", now, next, got, want[next])
		}
		delete(todo, [2]string{now, next})
		now = next
	}
}

// dyingKernel is the real kernel of an agent that dies after a number of
// messages.
type dyingKernel struct {
	left int
	dead bool
}

var errDead = errors.New("the agent is dead")

func (k *dyingKernel) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	h, err := nl.Linux{}.Open(ctx, ns)
	return dyingHandle{h, k}, err
}

type dyingHandle struct {
	nl.Handle
	k *dyingKernel
}

func (h dyingHandle) Send(ctx context.Context, changes ...nl.Change) []error {
	var errs []error
	for _, c := range changes {
		err := errDead
		if h.k.left > 0 {
			h.k.left--
			err = errors.Join(h.Handle.Send(ctx, c)...)
		} else {
			h.k.dead = true
		}
		errs = append(errs, err)
	}
	return errs
}

func TestACrashAtAnyMessageIsHealedOnTheRealKernel(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	want := fresh(t, h)
	for _, step := range [][2]string{{"absent", "three hosts"}, {"three hosts", "other port"}, {"tiny MTU", "smaller MTU"}, {"three hosts", "absent"}} {
		from, to := plans()[step[0]], plans()[step[1]]
		for n := 0; ; n++ {
			h.apply(from)
			if err := h.o.Close(); err != nil {
				t.Fatal(err)
			}
			k := &dyingKernel{left: n}
			o, err := datapath.Open(t.Context(), datapath.Config{Kernel: k, Namespaces: h.Namespaces})
			if err != nil {
				t.Fatal(err)
			}
			rep, err := o.Network(id).Apply(t.Context(), to)
			if err := errors.Join(err, rep.Failed()); k.dead != errors.Is(err, errDead) {
				t.Fatalf("%v after %d messages: %v", step, n, err)
			}
			o.Close()
			h.start()
			h.apply(to)
			if got := h.reading(); got != want[step[1]] {
				t.Fatalf("%v after a crash at message %d: the kernel holds\n%s\nwant\n%s", step, n, got, want[step[1]])
			}
			if !k.dead {
				t.Logf("%v: %d messages", step, n)
				break
			}
		}
	}
}
