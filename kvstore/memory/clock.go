package memory

import (
	"slices"
	"sync"
	"time"
)

// Clock is the time that leases live by.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once, after d has passed, on a goroutine of the clock's
	// choosing that holds none of the caller's locks.
	AfterFunc(d time.Duration, f func())
}

// realClock is package time. In a testing/synctest bubble it is that bubble's.
type realClock struct{}

func (realClock) Now() time.Time                      { return time.Now() }
func (realClock) AfterFunc(d time.Duration, f func()) { time.AfterFunc(d, f) }

// ManualClock stands still until it is advanced. It is safe for concurrent use.
type ManualClock struct {
	mu     sync.Mutex // guards now and timers
	now    time.Time
	timers []timer
}

type timer struct {
	at time.Time
	f  func()
}

// NewManualClock returns a clock that shows the first second of 2026.
func NewManualClock() *ManualClock {
	return &ManualClock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// Now returns the time the clock shows.
func (c *ManualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc calls f from the Advance that takes the clock to d from now.
func (c *ManualClock) AfterFunc(d time.Duration, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timers = append(c.timers, timer{at: c.now.Add(d), f: f})
}

// Jump sets the clock forward by d at once, as the suspension of a machine or of
// the store's does: what falls due on the way happens after it, in its order, and
// sees the time after the jump. A lease that was to be renewed more than once in
// the meantime was not.
func (c *ManualClock) Jump(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	c.mu.Unlock()
	c.Advance(0)
}

// Advance moves the clock by d. Everything that falls due on the way has
// happened, in its order and at its own time, when Advance returns.
func (c *ManualClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.now.Add(d)
	for {
		i := -1
		for j, t := range c.timers {
			if !t.at.After(end) && (i < 0 || t.at.Before(c.timers[i].at)) {
				i = j
			}
		}
		if i < 0 {
			break
		}
		due := c.timers[i]
		c.timers = slices.Delete(c.timers, i, i+1)
		if due.at.After(c.now) {
			c.now = due.at
		}
		c.mu.Unlock()
		due.f()
		c.mu.Lock()
	}
	if end.After(c.now) {
		c.now = end
	}
}
