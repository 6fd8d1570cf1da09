package consul_test

import (
	"crypto/rand"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
	"github.com/carrick-net/carrick/kvstore/storetest"
)

// pool is the server of all tests that do nothing to the server as a whole.
var pool consultest.Pool

func TestMain(m *testing.M) { pool.Main(m) }

// client opens a store that ends with the test.
func client(t *testing.T, cfg consul.Config) *consul.Store {
	t.Helper()
	if cfg.Getenv == nil {
		cfg.Getenv = func(string) string { return "" }
	}
	s, err := consul.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// raw is Consul's own client, for what an operator would do.
func raw(t *testing.T, srv *consultest.Server) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: srv.Addr(), Token: srv.Token()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStore(t *testing.T) {
	t.Parallel()
	srv := pool.Get(t)
	storetest.Run(t, func(t *testing.T) storetest.Cluster {
		cfg := consul.Config{Addresses: []string{srv.Addr()}, Prefix: "suite/" + rand.Text()}
		return storetest.Cluster{
			Open: func(t *testing.T) kvstore.Store { return client(t, cfg) },
			Expire: func(t *testing.T, id kvstore.LeaseID) {
				if _, err := raw(t, srv).Session().Destroy(string(id), nil); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
