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
// apart by chance, over a time that suits their number.
type contention struct {
	seen []headSeen    // the oldest first
	slot time.Duration // how long a commit takes, smoothed; 0: not known yet
}

// headSeen is a head that the publisher began from.
type headSeen struct {
	when time.Time
	at   stamp
}

const (
	// contentionSpan is how far back a publisher counts the others: whoever is busy
	// writes more often.
	contentionSpan = time.Second
	// Bounds of a slot, and what it is before the first commit.
	leastSlot, firstSlot, mostSlot = 2 * time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond
	// mostWindow bounds the wait after a conflict.
	mostWindow = time.Second
	// gather is the least time from one publication of a host in a network to the
	// next: what changes meanwhile goes together. A first change never waits.
	gather = 20 * time.Millisecond
)

// saw notes a head that a publication begins from.
func (k *contention) saw(now time.Time, at stamp) {
	k.seen = append(k.seen, headSeen{now, at})
	for len(k.seen) > 1 && now.Sub(k.seen[0].when) > contentionSpan {
		k.seen = k.seen[1:]
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

// others counts the hosts that wrote the head of late, as far as its ring tells.
func (k *contention) others(head *headRecord, self carrick.HostID) int {
	if len(k.seen) == 0 {
		return 0
	}
	hosts := map[carrick.HostID]bool{}
	for _, ch := range head.Ring {
		if k.seen[0].at.before(stamp{head.Num, ch.Seq}) && ch.Host != self {
			hosts[ch.Host] = true
		}
	}
	return len(hosts)
}

// window is the time over which the others' next commits and this host's are
// spread: one slot for each, and more after conflicts in a row, which say that
// there are more of them than were counted.
func (k *contention) window(others, conflicts int) time.Duration {
	slot := k.slot
	if slot == 0 {
		slot = firstSlot
	}
	return min(max(slot*time.Duration(others+1), slot<<min(conflicts, 6)), mostWindow)
}

// afterConflict is how long to wait before trying again.
func (k *contention) afterConflict(others, conflicts int) time.Duration {
	return rand.N(k.window(others, conflicts))
}

// afterCommit is how long to leave the head to the others.
func (k *contention) afterCommit(others int) time.Duration {
	if others == 0 {
		return gather
	}
	w := k.window(others, 0)
	return max(gather, w/2+rand.N(w))
}
