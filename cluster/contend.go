package cluster

import (
	"math/rand/v2"
	"time"

	"github.com/carrick-net/carrick"
)

// contention is what a publisher knows about the other hosts that write the same
// head. All hosts of a network meet there, and only one of them can be the next:
// whoever comes between another's look at the head and its commit makes that
// commit fail, which costs the store as much as one that succeeds. So they keep
// apart by chance, over a time that suits their number. Who has failed often goes
// before who has just been served; the other way round, which is what a growing
// backoff does, a few wait for seconds while the others take turns.
type contention struct {
	others map[carrick.HostID]time.Time // when each was last seen to have written
	at     stamp                        // of the newest head looked at
	slot   time.Duration                // how long a commit takes, smoothed; 0: not known yet
}

const (
	// contentionSpan is how long a host that wrote counts as one that will again.
	contentionSpan = time.Second
	// Bounds of a slot, and what it is before the first commit.
	leastSlot, firstSlot, mostSlot = 2 * time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond
	// fewest hosts that are made room for after a conflict: those that begin at the
	// same time do not know of each other yet.
	fewest = 8
	// mostWindow bounds every wait, roughly.
	mostWindow = time.Second
	// gather is the least time from one publication of a host in a network to the
	// next: what changes meanwhile goes together. A first change never waits.
	gather = 20 * time.Millisecond
)

// saw counts who wrote the head since the last look at it.
func (k *contention) saw(head *headRecord, self carrick.HostID, now time.Time) {
	if k.others == nil {
		// What the ring has from before is of no particular time.
		k.others, k.at = map[carrick.HostID]time.Time{}, head.at()
	}
	for _, ch := range head.Ring {
		if k.at.before(stamp{head.Num, ch.Seq}) && ch.Host != self {
			k.others[ch.Host] = now
		}
	}
	k.at = later(k.at, head.at())
	for h, when := range k.others {
		if now.Sub(when) > contentionSpan {
			delete(k.others, h)
		}
	}
}

// took notes how long a commit took, be it refused.
func (k *contention) took(d time.Duration) {
	d = min(max(d, leastSlot), mostSlot)
	if k.slot == 0 {
		k.slot = d
		return
	}
	k.slot += (d - k.slot) / 4
}

// window is the time over which the next commits of so many hosts are spread: one
// slot for each.
func (k *contention) window(hosts int) time.Duration {
	slot := k.slot
	if slot == 0 {
		slot = firstSlot
	}
	return min(slot*time.Duration(hosts), mostWindow)
}

// afterConflict is how long to wait after so many conflicts in a row, from 1.
func (k *contention) afterConflict(conflicts int) time.Duration {
	w := k.window(max(len(k.others)+1, fewest)) / time.Duration(min(conflicts, 4))
	return rand.N(max(w, k.window(2)))
}

// afterCommit is how long to leave the head to the others, from a commit's
// beginning.
func (k *contention) afterCommit() time.Duration {
	if len(k.others) == 0 {
		return gather
	}
	w := k.window(len(k.others) + 1)
	return max(gather, w+rand.N(w))
}
