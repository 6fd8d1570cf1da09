package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
)

// A publisher makes room for as many hosts as it saw writing within a second, and
// for itself.
func TestContentionCountsWhoWrites(t *testing.T) {
	t.Parallel()
	host := func(i int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", i)) }
	var head headRecord
	write := func(hosts ...int) {
		for _, h := range hosts {
			if err := head.push(1, change{Host: host(h), Reread: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1, 2, 3)
	var k contention
	now := time.Now()
	room := func(want int, when string) {
		t.Helper()
		k.saw(&head, host(9), now)
		if got := k.window(len(k.others) + 1); got != time.Duration(want)*firstSlot {
			t.Errorf("%s: room of %s, want that of %d hosts", when, got, want)
		}
	}
	room(1, "what was written before anybody looked is of no particular time")
	write(1, 9, 2)
	room(3, "two others, twice as many changes")
	write(1, 3)
	now = now.Add(contentionSpan)
	room(4, "a third")
	now = now.Add(contentionSpan + 1)
	write(3)
	room(2, "two have written no more")
	now = now.Add(contentionSpan + 1)
	room(1, "nobody has")
	if p := k.afterCommit(); p != gather {
		t.Errorf("a host alone leaves the head for %s", p)
	}
	k.took(20 * time.Millisecond)
	write(1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12)
	k.saw(&head, host(9), now)
	for range 100 {
		if p := k.afterCommit(); p < 12*20*time.Millisecond || p > 24*20*time.Millisecond {
			t.Fatalf("one of twelve leaves the head for %s", p)
		}
		if p := k.afterConflict(1); p > 12*20*time.Millisecond {
			t.Fatalf("waits for %s after a conflict", p)
		}
		if p := k.afterConflict(4); p > 3*20*time.Millisecond {
			t.Fatalf("waits for %s after many", p)
		}
	}
}
