package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// Without a clock of the test's, leases live by package time, which in a bubble
// is the bubble's.
func TestRealTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := memory.NewServer()
		a := srv.Client("a")
		l, err := a.Lease(t.Context(), 15*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Txn(t.Context(), new(kvstore.Txn).PutLeased("node/a", nil, l.ID())); err != nil {
			t.Fatal(err)
		}
		a.Cut()
		<-l.Lost()
		if srv.Dump() == "" {
			t.Error("the server noticed before the holder")
		}
		a.Heal()
		v, err := a.Watch(t.Context(), kvstore.Under(""), srv.Revision())
		if err != nil || len(v.Entries) != 0 {
			t.Errorf("got %+v, %v", v, err)
		}
	})
}
