package bolt_test

import (
	"path/filepath"
	"testing"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/bolt"
	"github.com/carrick-net/carrick/kvstore/storetest"
)

func open(t *testing.T, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Cluster {
		path := filepath.Join(t.TempDir(), "store.db")
		return storetest.Cluster{
			Single: true,
			Open:   func(t *testing.T) kvstore.Store { return open(t, path) },
		}
	})
}
