package mirror

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
)

// inspections bounds how many containers are asked for at the same time. An engine
// answers for one that is starting only when it has started, so the others must not
// wait for it.
const inspections = 32

// names keeps what containers are called in the facts.
type names struct {
	m *Mirror
	// places has a token for each inspection under way.
	places chan struct{}

	mu sync.Mutex
	// asking has the containers that are being asked for, and whether something
	// happened to them since. Guarded by mu.
	asking map[string]bool
	// seen has how each container looked when it was last asked for, by its id.
	// Guarded by mu.
	seen map[string]looks
}

// looks is what a list of containers says of one. If it differs, it is asked for.
type looks struct {
	name      string
	unhealthy bool
	endpoints string
}

func newNames(m *Mirror) *names {
	return &names{m: m, places: make(chan struct{}, inspections), asking: map[string]bool{}, seen: map[string]looks{}}
}

// happened asks for a container's names, now and as long as things happen to it.
func (n *names) happened(ctx context.Context, wg *sync.WaitGroup, container string) {
	n.mu.Lock()
	_, busy := n.asking[container]
	n.asking[container] = busy
	n.mu.Unlock()
	if busy {
		return
	}
	wg.Go(func() {
		select {
		case n.places <- struct{}{}:
			defer func() { <-n.places }()
		case <-ctx.Done():
		}
		for {
			if ctx.Err() == nil && !n.ask(ctx, container) {
				n.mu.Lock()
				delete(n.seen, container) // the next list asks again
				n.mu.Unlock()
			}
			n.mu.Lock()
			again := n.asking[container] && ctx.Err() == nil
			if again {
				n.asking[container] = false
			} else {
				delete(n.asking, container)
			}
			n.mu.Unlock()
			if !again {
				return
			}
		}
	})
}

// ask asks for a container's names and makes them facts.
func (n *names) ask(ctx context.Context, container string) bool {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := n.m.cfg.Engine.Attachments(ctx, container)
	if err != nil {
		n.m.cfg.Log.Debug("names not known yet", "container", shortID(container), "err", err)
		return false
	}
	for _, a := range list {
		if err := n.m.cfg.Facts.SetNames(a.Endpoint, a.Names, a.Unhealthy); err != nil {
			n.m.cfg.Log.Warn("names not recorded", "endpoint", a.Endpoint.Short(), "err", err)
			return false
		}
	}
	return true
}

// compare asks for every container in a network of ours that does not look as it did
// when it was last asked for: its event was missed.
func (n *names) compare(ctx context.Context, wg *sync.WaitGroup, containers map[carrick.EndpointID]Container) {
	now := map[string]looks{}
	for _, ep := range slices.Sorted(maps.Keys(containers)) {
		c := containers[ep]
		if e, err := n.m.cfg.Facts.Journal().Endpoint(ep); err != nil {
			continue
		} else if l := now[c.ID]; true {
			l.name, l.unhealthy, l.endpoints = c.Name, c.Unhealthy, l.endpoints+string(ep)
			if e.Names == nil {
				l.endpoints += "?" // a crash came between
			}
			now[c.ID] = l
		}
	}
	n.mu.Lock()
	before := n.seen
	n.seen = now
	n.mu.Unlock()
	for id, l := range now {
		if before[id] != l {
			n.happened(ctx, wg, id)
		}
	}
}
