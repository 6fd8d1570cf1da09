package snapshot

import (
	"os"
	"time"
)

// heardEvery is how often the disk is told when the others were last heard of.
const heardEvery = 10 * time.Second

// Heard notes that the store answered at a time: what is in the cache is as old as
// that. It does no I/O.
func (c *Cache) Heard(at time.Time) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.After(c.heard) {
		c.heard = at
	}
}

// AsOf returns how old the cache was when it was opened: when the store had last
// answered, or up to heardEvery earlier. Zero: it never had, or nobody knows.
func (c *Cache) AsOf() time.Time {
	if c == nil {
		return time.Time{}
	}
	return c.asOf
}

// stamp keeps the time last heard as the file's time. c.io must be held.
func (c *Cache) stamp() {
	c.mu.Lock()
	heard := c.heard
	c.mu.Unlock()
	if c.file == nil {
		return
	}
	if heard.IsZero() {
		heard = never()
	}
	if err := os.Chtimes(c.file.path, heard, heard); err != nil {
		c.log.Debug("the age of what is known of other hosts is not on disk", "err", err)
	}
}

// never is the time of a file whose host has not heard of anybody.
func never() time.Time { return time.Unix(0, 0) }
