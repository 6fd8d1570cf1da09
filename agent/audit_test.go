package agent

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick"
)

// A hundred networks are each read once in a period, never two at a time, and
// spread over the period; networks that come and go change the pace.
func TestAuditsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const every = time.Minute
		var mu sync.Mutex // guards what follows
		var networks []carrick.NetworkID
		for i := range 100 {
			networks = append(networks, carrick.NetworkID(fmt.Sprintf("%016x", i)))
		}
		last := map[carrick.NetworkID]time.Time{}
		var before time.Time
		gap, hosts, audits := every/100, 0, 0
		begin := time.Now()
		a := auditor{
			every: every,
			networks: func() []carrick.NetworkID {
				mu.Lock()
				defer mu.Unlock()
				return networks
			},
			host: func(context.Context) {
				mu.Lock()
				defer mu.Unlock()
				hosts++
			},
			audit: func(_ context.Context, id carrick.NetworkID) {
				mu.Lock()
				defer mu.Unlock()
				now := time.Now()
				if !before.IsZero() && now.Sub(before) != gap {
					t.Errorf("%s is audited %v after the one before, want %v", id, now.Sub(before), gap)
				}
				if l, again := last[id]; again && now.Sub(l) > every {
					t.Errorf("%s was audited %v ago", id, now.Sub(l))
				}
				last[id], before = now, now
				audits++
				<-time.After(gap / 3) // it takes a while
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { a.run(ctx); close(done) }()
		wait := func(d time.Duration) {
			mu.Unlock()
			<-time.After(d)
			synctest.Wait()
			mu.Lock()
		}
		mu.Lock()
		wait(3*every + gap/2)
		if audits != 300 || len(last) != 100 {
			t.Errorf("%d audits of %d networks in three periods", audits, len(last))
		}
		if hosts < 3 || hosts > 4 {
			t.Errorf("the host was looked at %d times in three periods", hosts)
		}
		// All but two go.
		networks, gap, before, audits = networks[:2], every/2, time.Time{}, 0
		clear(last)
		wait(4 * every)
		if len(last) != 2 || audits < 7 || audits > 9 {
			t.Errorf("%d audits of %d networks in four periods", audits, len(last))
		}
		// And all: nothing is read, and it goes on when one comes.
		none := networks
		networks, before = nil, time.Time{}
		wait(every)
		audits = 0
		wait(5 * every)
		if audits != 0 {
			t.Errorf("%d audits of no network", audits)
		}
		networks, gap = none[:1], every
		clear(last)
		wait(2*every + gap/2)
		if len(last) != 1 {
			t.Errorf("a network that came was not audited after %v", time.Since(begin))
		}
		mu.Unlock()
		cancel()
		<-done
	})
}

// Audits that take longer than there is time for follow one another, and what was
// missed is not caught up with in a burst.
func TestSlowAuditsDoNotPileUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards what follows
		slow, running, starts := true, 0, []time.Duration{}
		begin := time.Now()
		a := auditor{
			every:    time.Second,
			networks: func() []carrick.NetworkID { return []carrick.NetworkID{"a", "b"} },
			host:     func(context.Context) {},
			audit: func(context.Context, carrick.NetworkID) {
				mu.Lock()
				if running++; running != 1 {
					t.Errorf("%d audits at once", running)
				}
				starts = append(starts, time.Since(begin))
				lasts := slow
				mu.Unlock()
				if lasts {
					<-time.After(10 * time.Second)
				}
				mu.Lock()
				running--
				mu.Unlock()
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { a.run(ctx); close(done) }()
		<-time.After(35 * time.Second)
		synctest.Wait()
		mu.Lock()
		if len(starts) != 4 {
			t.Errorf("slow audits began at %v", starts)
		}
		slow = false
		mu.Unlock()
		<-time.After(11 * time.Second) // the slow one ends on the way
		synctest.Wait()
		mu.Lock()
		if n := len(starts) - 4; n < 10 || n > 14 {
			t.Errorf("then %d more, at %v", n, starts[4:])
		}
		mu.Unlock()
		cancel()
		<-done
	})
}
