package memory_test

import (
	"testing"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
	"github.com/carrick-net/carrick/kvstore/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Cluster { return cluster(memory.NewServer()) })
}

// What chaos does to watches is within the contract.
func TestStoreUnderChaos(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Cluster {
		srv := memory.NewServer()
		srv.Chaos(1, memory.Chaos{Idle: 0.3, Behind: 0.5})
		c := cluster(srv)
		c.Restless = true
		return c
	})
}

func cluster(srv *memory.Server) storetest.Cluster {
	return storetest.Cluster{
		Open: func(t *testing.T) kvstore.Store {
			c := srv.Client(t.Name())
			t.Cleanup(func() { _ = c.Close() })
			return c
		},
		Expire: func(_ *testing.T, id kvstore.LeaseID) { srv.ExpireLease(id) },
	}
}
