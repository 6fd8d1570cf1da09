package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// deafKernel is the real kernel, one of whose answers is lost: what was sent is
// done, and nobody knows. It is used by one goroutine.
type deafKernel struct {
	lose int // the batch whose answer is lost, from 1
	sent int // batches so far
}

func (k *deafKernel) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	h, err := nl.Linux{}.Open(ctx, ns)
	return deafHandle{h, k}, err
}

type deafHandle struct {
	nl.Handle
	k *deafKernel
}

func (h deafHandle) Send(ctx context.Context, changes ...nl.Change) []error {
	errs := h.Handle.Send(ctx, changes...)
	if len(changes) == 0 {
		return errs
	}
	if h.k.sent++; h.k.sent != h.k.lose {
		return errs
	}
	errs = make([]error, len(changes))
	for i, c := range changes {
		errs[i] = fmt.Errorf("%s: receive on netlink socket: %w", c.Command(""), unix.ENOBUFS)
	}
	return errs
}

// An answer that is lost says nothing about what was done. Whatever it was about,
// the pass either makes good by itself or fails, and then the next one does.
func TestALostAnswerToAnyMessageIsMadeGoodByTheNextPass(t *testing.T) {
	t.Parallel()
	all := verbs()
	for _, name := range []string{"the first container of a network", "a container less", "a container moves elsewhere",
		"a container comes here", "another UDP port", "an MTU too small for IPv6", "an MTU large enough again",
		"the bridge was deleted", "names of ports were swapped", "strangers were put there", "rows were deleted and added", "the last container of a network"} {
		v, ok := all[name]
		if !ok {
			t.Fatalf("no verb is called %q", name)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newRealHost(t, nstest.NewLab(t), 1, 1500)
			h.apply(v.to)
			want := h.world()
			for n := 1; ; n++ {
				h.apply(absent())
				if err := h.o.Close(); err != nil {
					t.Fatal(err)
				}
				k := &deafKernel{lose: -1}
				o, err := datapath.Open(t.Context(), datapath.Config{Kernel: k, Filter: nft.Linux{}, Namespaces: h.Namespaces})
				if err != nil {
					t.Fatal(err)
				}
				h.o, h.a = o, o.Network(id)
				h.apply(v.from)
				if v.damage != nil {
					v.damage(h)
					h.a.QueueResync("audit")
				}
				k.sent, k.lose = 0, n
				rep, err := h.a.Apply(t.Context(), v.to)
				lost := k.sent >= n
				if err := errors.Join(err, rep.Failed()); err != nil && (!lost || !errors.Is(err, unix.ENOBUFS)) {
					t.Fatalf("without the answer to batch %d: %v", n, err)
				}
				h.apply(v.to)
				h.same(fmt.Sprintf("without the answer to batch %d", n), v.to, want, nil)
				if !lost {
					t.Logf("%d batches", n-1)
					return
				}
			}
		})
	}
}
