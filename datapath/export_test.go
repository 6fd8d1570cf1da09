package datapath

import "context"

// Audit is what the agent does when it is time: it queues a resync and applies
// the plan again.
func (a *Applier) Audit(ctx context.Context) (Report, error) {
	a.mu.Lock()
	last := a.last
	a.mu.Unlock()
	if last == nil {
		return Report{Network: a.id}, nil
	}
	a.QueueResync("audit")
	return a.Apply(ctx, *last)
}
