package journal

import (
	"net/netip"

	"github.com/carrick-net/carrick"
)

// QueueLen is how long the queue of resting addresses is, with what no longer
// counts.
func QueueLen(j *Journal, id carrick.NetworkID, pool netip.Prefix) int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return len(j.durable.usages[usageKey{id, pool}].queue)
}
