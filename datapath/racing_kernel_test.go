package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// A link that comes between reading and sending makes no verb fail: the kernel
// is read again, and what came is dealt with like what was there before.
func TestWhatComesBetweenReadingAndSendingMakesNothingFail(t *testing.T) {
	t.Parallel()
	passing := func(c nl.Change) bool { s, ok := c.(nl.SetLink); return ok && s.Rename == plan.VXLANName }
	kind := func(want nl.Change) func(c nl.Change) bool {
		return func(c nl.Change) bool { return fmt.Sprintf("%T", c) == fmt.Sprintf("%T", want) }
	}
	for name, x := range map[string]struct {
		at   func(c nl.Change) bool
		line string
	}{
		"a bridge":                          {kind(nl.AddBridge{}), "ip link add br0 type bridge"},
		"a vxlan device named as it":        {kind(nl.AddBridge{}), "ip link add br0 type vxlan id 66 dstport 8472"},
		"a vxlan device":                    {kind(nl.AddVXLAN{}), oldVXLAN},
		"a vxlan device of another name":    {kind(nl.AddVXLAN{}), "host: ip link add mine netns NS type vxlan id 42 dstport 4789 local 192.0.2.1"},
		"the passing name":                  {kind(nl.AddVXLAN{}), "ip link add ckvx42 type bridge"},
		"the vxlan device's name":           {passing, "ip link add vxlan0 type bridge"},
		"a port":                            {kind(nl.AddVeth{}), "ip link add " + port1 + " type bridge"},
		"a pair":                            {kind(nl.AddVeth{}), "host: ip link add " + outer1 + " type veth peer name " + port1 + " netns NS"},
		"a pair of another port":            {kind(nl.AddVeth{}), "host: ip link add " + outer1 + " type veth peer name other netns NS"},
		"a row of the vxlan device":         {kind(nl.SetFDB{}), "bridge fdb add " + mac(11).String() + " dev vxlan0 dst 192.0.2.66 self"},
		"a row of the bridge":               {kind(nl.SetFDB{}), "bridge fdb add " + mac(11).String() + " dev " + port1 + " master static"},
		"a neighbour":                       {kind(nl.SetFDB{}), "ip neigh add 10.0.0.11 lladdr 02:66:00:00:00:00 dev vxlan0 nud permanent"},
		"the end of the bridge":             {kind(nl.AddVXLAN{}), "ip link del br0"},
		"the end of the bridge, later":      {kind(nl.AddVeth{}), "ip link del br0"},
		"the end of the vxlan device":       {kind(nl.SetFDB{}), "ip link del vxlan0"},
		"the end of the device, on its way": {passing, "ip link del ckvx42"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newRealHost(t, nstest.NewLab(t), 1, 1500)
			p := plans()["three hosts"]
			h.apply(p)
			want := h.world()
			for _, from := range []string{"absent", "other port"} {
				if from != "absent" && !strings.Contains(name, "vxlan") && !strings.Contains(name, "passing") {
					continue // the change has no such message
				}
				h.apply(absent())
				h.apply(plans()[from])
				if err := h.o.Close(); err != nil {
					t.Fatal(err)
				}
				k := &racingKernel{at: x.at, do: func() {
					line := strings.ReplaceAll(x.line, "NS", h.file())
					if host, ok := strings.CutPrefix(line, "host: "); ok {
						nstest.Run(t, h.NS, host)
					} else {
						h.run(line)
					}
				}}
				o, err := datapath.Open(t.Context(), datapath.Config{Kernel: k, Namespaces: h.Namespaces})
				if err != nil {
					t.Fatal(err)
				}
				rep, err := o.Network(id).Apply(t.Context(), p)
				if err = errors.Join(err, rep.Failed()); err != nil {
					t.Errorf("from %q: %v", from, err)
				}
				if !k.done && from == "absent" {
					t.Errorf("from %q: nothing came between", from)
				}
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				h.start()
				h.apply(p)
				h.same("afterwards", p, want, nil)
			}
		})
	}
}

// racingKernel is the real kernel, on which somebody else does something just
// before the first change of a certain kind.
type racingKernel struct {
	at func(c nl.Change) bool
	do func()

	mu   sync.Mutex
	done bool // guarded by mu
}

func (k *racingKernel) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	h, err := nl.Linux{}.Open(ctx, ns)
	return racingHandle{h, k}, err
}

type racingHandle struct {
	nl.Handle
	k *racingKernel
}

func (h racingHandle) Send(ctx context.Context, changes ...nl.Change) []error {
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	if !h.k.done && slices.ContainsFunc(changes, h.k.at) {
		h.k.done = true
		h.k.do()
	}
	return h.Handle.Send(ctx, changes...)
}

// Two agents at once is a mistake, but none that ends in a name that exists.
func TestANamespaceThatSomebodyElseMakesAtTheSameMomentIsUsed(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	p := plans()["three hosts"]
	h.apply(p)
	want := h.world()
	h.apply(absent())
	o, err := datapath.Open(t.Context(), datapath.Config{Kernel: h.k, Namespaces: racingStore{h.Namespaces}})
	if err != nil {
		t.Fatal(err)
	}
	if rep, err := o.Network(id).Apply(t.Context(), p); err != nil || rep.Failed() != nil {
		t.Errorf("%v, %v", err, rep.Failed())
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	h.apply(p)
	h.same("afterwards", p, want, nil)
}

type racingStore struct{ *netns.Dir }

func (s racingStore) Create(ctx context.Context, name string) (netns.Namespace, error) {
	ns, err := s.Dir.Create(ctx, name)
	if err == nil {
		err = ns.Close()
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return nil, err
	}
	return s.Dir.Create(ctx, name)
}
