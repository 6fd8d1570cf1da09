package cluster_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// Stories that random histories (internal/history) told first. Minutes pass in
// them, in no time.

// pass lets time go by in a bubble.
func pass(d time.Duration) {
	t := time.NewTimer(d)
	<-t.C
	synctest.Wait()
}

// A question whose write was late, so that whoever asked has given up, is answered
// for nobody; it does not stay in the store.
func TestQuestionThatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memory.NewServer()
		hs, ns := trio(t, s, "10.42.0.0/24")
		c := hs[0].MustRun(ns[0], sim.Run{})
		pass(time.Second)
		hs[1].Store.DelayTxns(2) // the claim of the block, which is another's, asks nothing
		if _, err := hs[1].Run(ns[1], sim.Run{IP: c.Addr.Addr().String()}); err == nil {
			t.Fatal("an address in use was given out")
		}
		hs[1].Store.DelayTxns(0)
		if s.Deliver() == 0 {
			t.Fatal("nothing was late, so this shows nothing")
		}
		pass(5 * time.Second)
		if !strings.Contains(s.Dump(), "asks") {
			t.Fatal("the question did not reach the store")
		}
		pass(2 * time.Minute)
		if strings.Contains(s.Dump(), "asks") {
			t.Errorf("it is still there:\n%s", s.Dump())
		}
	})
}
