package cluster_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// atConf has something happen just before a network's configuration is read.
type atConf struct {
	*memory.Client
	happens *atomic.Pointer[func()]
}

func (s atConf) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	if strings.HasSuffix(key, "/conf") {
		if f := s.happens.Swap(nil); f != nil {
			(*f)()
		}
	}
	return s.Client.Get(ctx, key)
}

// A network goes while its name is being told to the store. The store does not end up
// with an alias that its host does not have: a removal would wait for it.
func TestNamedWhileItGoes(t *testing.T) {
	t.Parallel()
	s := memory.NewServer()
	var happens atomic.Pointer[func()]
	a := sim.NewHost(t, s, 1)
	b := sim.NewHostWith(t, s, sim.Options{Number: 2, Wrap: func(m *memory.Client) kvstore.Store { return atConf{m, &happens} }})
	a.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	n := b.MustCreate("app", sim.Create{Subnet: "10.42.0.0/24"})
	errs := make(chan error, 1)
	removed := func() { errs <- b.Cluster.DropAlias(t.Context(), n.ID) }
	happens.Store(&removed)
	if err := errors.Join(b.Cluster.NameAlias(t.Context(), n.ID, "app"), <-errs); err != nil {
		t.Fatal(err)
	}
	f, err := sim.Look(t.Context(), s, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, net := range f.Store.Networks {
		if len(net.Aliases) != 1 {
			t.Errorf("network %s has aliases %v", id, net.Aliases)
		}
	}
}
