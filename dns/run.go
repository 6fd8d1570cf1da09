package dns

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// refreshEvery is how often a sandbox's switch is refreshed.
	refreshEvery = time.Second
	// turns is into how many parts a round of refreshes is cut, so that many sandboxes
	// do not all come at once.
	turns = 10
	// leaving bounds how long the tables take to remove when the service ends.
	leaving = 5 * time.Second
)

// Run refreshes the switches of all sandboxes and waits for the namespaces of new
// ones until the context ends. Then it leaves nothing in any namespace, and the
// service is at its end. It is called once. The error is nil.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.watch(ctx) })
	const step = refreshEvery / turns
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	begin := time.Now()
	for done := 0; ; {
		select {
		case <-ctx.Done():
			wg.Wait()
			s.stop(ctx)
			return nil
		case <-ticker.C:
		}
		// A ticker leaves out what comes too late for it, and every turn must come.
		due := int(time.Since(begin) / step)
		for done = max(done, due-turns); done < due; done++ {
			for _, b := range s.turn(done % turns) {
				// One whose namespace is slow, because somebody there loads thousands of
				// rules, does not hold up the others.
				if b.busy.CompareAndSwap(false, true) {
					wg.Go(func() {
						defer b.busy.Store(false)
						b.refresh(ctx)
					})
				}
			}
		}
	}
}

// turn returns the sandboxes whose turn it is.
func (s *Service) turn(turn int) []*sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*sandbox
	for _, b := range s.sandboxes {
		if hash(b.key)%turns == turn {
			list = append(list, b)
		}
	}
	return list
}

// hash spreads keys.
func hash(key string) int {
	h := uint32(2166136261) // FNV-1a
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int(h >> 1)
}

// stop detaches all sandboxes, for good.
func (s *Service) stop(ctx context.Context) {
	s.mu.Lock()
	s.stopped = true
	all := slices.Collect(maps.Values(s.sandboxes))
	s.sandboxes = map[string]*sandbox{}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaving)
	defer cancel()
	_ = each(all, func(b *sandbox) error {
		b.detach(ctx)
		return nil
	})
}
