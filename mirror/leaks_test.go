package mirror_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/mirror"
)

// kernel is a witness with answers to order.
type kernel struct {
	mu    sync.Mutex
	used  func(call int) (bool, error) // guarded by mu
	calls map[carrick.EndpointID]int   // guarded by mu
}

func (k *kernel) InUse(_ context.Context, _ carrick.NetworkID, ep carrick.EndpointID) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[ep]++
	return k.used(k.calls[ep])
}

func newKernel(fn func(call int) (bool, error)) *kernel {
	return &kernel{used: fn, calls: map[carrick.EndpointID]int{}}
}

func (k *kernel) says(fn func(call int) (bool, error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.used = fn
}

// asked waits until the kernel was asked about an endpoint so often that a mirror
// without doubts would have acted: it looks every 20 ms and is patient for 50.
func (k *kernel) asked(t *testing.T, ep carrick.EndpointID, times int) {
	t.Helper()
	eventually(t, "the kernel was asked often enough", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.calls[ep] >= times
	})
}

func always(used bool, err error) func(int) (bool, error) {
	return func(int) (bool, error) { return used, err }
}

// alias2 is unknown to the engine from the start, and its network has the
// endpoint "used".
func (f *facts) left() bool {
	_, err := f.jr.Endpoint("used")
	return err != nil && slices.Contains(f.drops(), alias2)
}

// A container and its network were removed while the agent was away. The engine
// knows neither; the kernel has the pair back, or has it no more. Both are
// forgotten, and the subnet is free on this host again.
func TestNetworkRemovedWithItsContainer(t *testing.T) {
	t.Parallel()
	k := newKernel(always(false, nil))
	_, f := startWith(t, k)
	eventually(t, "endpoint and alias are gone", f.left)
}

// The engine does not know the network, and a container talks through it: --docker
// is another engine. Nothing is withdrawn, however long that lasts.
func TestNetworkOfAnotherEngine(t *testing.T) {
	t.Parallel()
	k := newKernel(always(true, nil))
	_, f := startWith(t, k)
	k.asked(t, "used", 20)
	if f.left() || len(f.drops()) > 0 {
		t.Error("a living container's endpoint was withdrawn")
	}
	// It ends, and its engine is still another one.
	k.says(always(false, nil))
	eventually(t, "endpoint and alias are gone", f.left)
}

// A kernel that cannot be asked is no witness.
func TestKernelThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	k := newKernel(always(false, errors.New("no such device, maybe")))
	_, f := startWith(t, k)
	k.asked(t, "used", 20)
	if f.left() {
		t.Error("an endpoint was withdrawn on an error")
	}
}

// One look at which nobody uses the endpoint proves nothing: a container that
// restarts is between two uses.
func TestOneLookIsNotEnough(t *testing.T) {
	t.Parallel()
	k := newKernel(func(call int) (bool, error) { return call%2 == 0, nil })
	_, f := startWith(t, k)
	k.asked(t, "used", 40)
	if f.left() {
		t.Error("an endpoint was withdrawn after one look")
	}
}

// A container whose start failed while the agent was away never joined. Its
// endpoint is withdrawn once nobody can come back to it, unless a container has
// its pair after all.
func TestEndpointThatNeverJoined(t *testing.T) {
	t.Parallel()
	k := newKernel(always(true, nil))
	_, f := startWith(t, k)
	err := f.jr.Update(func(tx *journal.Tx) error {
		tx.PutEndpoint(journal.Endpoint{Endpoint: carrick.Endpoint{ID: "never", Addrs: []netip.Addr{unleased}}, Network: net1, Docker: alias1})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	k.asked(t, "never", 5)
	if _, err := f.jr.Endpoint("never"); err != nil {
		t.Error("an endpoint whose pair is in a container was withdrawn")
	}
	k.says(always(false, nil))
	eventually(t, "the endpoint is withdrawn", func() bool { _, err := f.jr.Endpoint("never"); return err != nil })
}

// An address lent to another host has no endpoint here, and is nobody's leak.
func TestLentAddressesAreNoLeaks(t *testing.T) {
	t.Parallel()
	_, f := start(t)
	lent := netip.MustParseAddr("10.42.0.7")
	put := func(l journal.Lease) {
		t.Helper()
		l.Network = net1
		if err := f.jr.Update(func(tx *journal.Tx) error { tx.PutLease(l); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	put(journal.Lease{Addr: lent, Lent: "00000000000000b2"})
	// Two that leak, one after the other: by the second one's end the lent one has
	// been looked at long enough.
	for _, a := range []string{"10.42.0.8", "10.42.0.9"} {
		leaked := netip.MustParseAddr(a)
		put(journal.Lease{Addr: leaked})
		eventually(t, "the leaked address is released", func() bool { return f.jr.Leases(net1)[leaked].Released > 0 })
	}
	if l := f.jr.Leases(net1)[lent]; l.Released != 0 || l.Lent == "" {
		t.Errorf("the lent address became %+v", l)
	}
}

var _ mirror.Witness = (*kernel)(nil)
