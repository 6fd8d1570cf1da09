package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// onlooker is a store as a host sees it that follows one network and does nothing
// else: what it writes goes nowhere, and of its watches only that of the network's
// head is a real one. So a thousand hosts can be watched watching without a
// thousand registrations telling each other of themselves.
type onlooker struct {
	kvstore.Store
	head       string
	alias      string // key of this host's alias, which the store does not have
	aliasValue string
	reads      atomic.Int64
}

func (o *onlooker) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	if key == o.alias {
		return kvstore.Entry{Key: key, Value: []byte(o.aliasValue), Version: 1}, nil
	}
	if strings.HasPrefix(key, "v1/net/") {
		o.reads.Add(1)
	}
	return o.Store.Get(ctx, key)
}

func (o *onlooker) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	if strings.HasPrefix(sel.Key, "v1/net/") {
		o.reads.Add(1)
	}
	return o.Store.List(ctx, sel)
}

func (o *onlooker) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	switch {
	case sel.Key == o.head:
		return o.Store.Watch(ctx, sel, since)
	case since == 0:
		return kvstore.View{Revision: 1}, nil
	}
	<-ctx.Done()
	return kvstore.View{}, ctx.Err()
}

func (o *onlooker) Txn(_ context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	for _, op := range t.Ops {
		if op.Key == "v1/epoch" { // it would take its own word for a change
			return 0, fmt.Errorf("%s is written: %w", op.Key, kvstore.ErrInvalid)
		}
	}
	return 1, nil
}

func (o *onlooker) Lease(context.Context, time.Duration) (kvstore.Lease, error) {
	return lasting{make(chan struct{})}, nil
}

type lasting struct{ lost chan struct{} }

func (lasting) ID() kvstore.LeaseID         { return "none" }
func (l lasting) Lost() <-chan struct{}     { return l.lost }
func (lasting) Close(context.Context) error { return nil }

// watcher is a host that follows a network, and knows when it heard of what is
// waited for.
type watcher struct {
	cluster *cluster.Cluster
	store   *onlooker
	net     carrick.NetworkID
}

// await is one endpoint that many watchers wait for.
type await struct {
	mu    sync.Mutex // guards the rest
	id    carrick.EndpointID
	heard map[*watcher]time.Time
}

// expect begins to wait for another endpoint.
func (a *await) expect(id carrick.EndpointID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id, a.heard = id, map[*watcher]time.Time{}
}

// note looks whether a watcher knows the endpoint by now.
func (a *await) note(w *watcher) {
	now := time.Now()
	a.mu.Lock()
	id := a.id
	a.mu.Unlock()
	if _, _, ok := w.cluster.FindEndpoint(w.net, func(e carrick.Endpoint) bool { return e.ID == id }); !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.heard[w]; !ok && a.id == id {
		a.heard[w] = now
	}
}

// by says when each of the watchers knew it, once all do.
func (a *await) by(watchers int) ([]time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.heard) < watchers {
		return nil, false
	}
	var out []time.Time
	for _, t := range a.heard {
		out = append(out, t)
	}
	return out, true
}

// watch starts a host that follows a network and waits until it knows it. stores
// makes its connection.
func watch(b *testing.B, i int, n carrick.Network, s kvstore.Store, a *await) (*watcher, error) {
	jr, err := journal.Open(filepath.Join(b.TempDir(), fmt.Sprint(i)), "machine")
	if err != nil {
		return nil, err
	}
	b.Cleanup(func() { _ = jr.Close() })
	docker, host, net := carrick.DockerNetworkID(endpointID()), jr.Identity().Host, "v1/net/"+string(n.ID)
	err = jr.Update(func(tx *journal.Tx) error {
		tx.PutNetwork(journal.Network{Conf: n, Aliases: []journal.Alias{{Docker: docker}}})
		return nil
	})
	if err != nil {
		return nil, err
	}
	w := &watcher{net: n.ID, store: &onlooker{
		Store: s, head: net + "/head", alias: net + "/alias/" + string(host),
		aliasValue: fmt.Sprintf(`{"v":1,"host":%q,"aliases":[{"docker":%q}]}`, host, docker),
	}}
	w.cluster = cluster.New(cluster.Config{
		Store: w.store, Journal: jr, Name: fmt.Sprintf("w%d", i), VTEP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}),
		MTU: 1500, Version: "bench", Machine: "machine", Boot: "boot", Log: slog.New(slog.DiscardHandler),
		Changed: func(carrick.NetworkID) { a.note(w) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.cluster.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Errorf("watcher %d: %v", i, err)
		}
	})
	w.cluster.Follow(n.ID)
	lctx, lcancel := context.WithTimeout(b.Context(), time.Minute)
	defer lcancel()
	if !w.cluster.Loaded(lctx, n.ID) {
		return nil, fmt.Errorf("watcher %d has no snapshot: %v", i, w.cluster.Health().Err)
	}
	return w, nil
}
