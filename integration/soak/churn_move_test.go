package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// removals are containers that keep their address wherever they go.
type removals struct {
	c     *churn
	rand  *rand.Rand
	boxes []*mover
}

// mover is one of them: a container on every host, of which at most one runs.
type mover struct {
	slots []*slot   // the first one's host has the block
	at    int       // which runs, or ran last
	ready time.Time // to be stopped, or to be started
}

const stay = 5 * time.Second // where it moved to

func newRemovals(c *churn) *removals {
	r := &removals{c: c, rand: rand.New(rand.NewPCG(c.seed, 1<<32))}
	for i := range movers {
		m := &mover{}
		for k := range c.sites {
			m.slots = append(m.slots, &slot{
				c: c, at: c.sites[(i+k)%len(c.sites)], net: roomy, name: fmt.Sprintf("mover%d", i),
				fixed: fmt.Sprintf("10.60.0.%d", 130+16*i), mover: m,
			})
		}
		r.boxes = append(r.boxes, m)
	}
	return r
}

// work moves containers until there were so many starts.
func (r *removals) work(ctx context.Context, until int) error {
	for r.c.goalReached() < until {
		m := slices.MinFunc(r.boxes, func(a, b *mover) int { return a.ready.Compare(b.ready) })
		if wait := time.Until(m.ready); wait > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(wait, time.Second)): // and look whether the others are done
			}
			continue
		}
		if err := r.move(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// move takes a container to another host, at once: the address goes with it, whoever
// has its block.
func (r *removals) move(ctx context.Context, m *mover) error {
	next := r.rand.IntN(len(m.slots))
	if s := m.slots[m.at]; s.runs {
		// Its engine keeps the container, or not.
		leave := s.stop
		if r.rand.IntN(2) == 0 {
			leave = s.remove
		}
		if err := leave(ctx); err != nil {
			return err
		}
		next = (m.at + 1 + r.rand.IntN(len(m.slots)-1)) % len(m.slots)
	}
	m.ready = time.Now().Add(stay)
	s := m.slots[next]
	if err := s.start(ctx); err != nil {
		return err
	}
	if s.runs && m.at != next {
		m.at = next
		r.c.tally.add(moves)
	}
	return nil
}
