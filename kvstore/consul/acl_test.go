package consul_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
)

// token makes a token with these rules.
func token(t *testing.T, srv *consultest.Server, rules string) string {
	t.Helper()
	acl := raw(t, srv).ACL()
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	policy, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: fmt.Sprintf("%s-%x", name, len(rules)), Rules: rules}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Not TokenCreate: this client sends a field that this server does not know.
	var made struct{ SecretID string }
	body := map[string]any{"Policies": []map[string]string{{"ID": policy.ID}}}
	if _, err := raw(t, srv).Raw().Write("/v1/acl/token", body, &made, nil); err != nil {
		t.Fatal(err)
	}
	return made.SecretID
}

const enough = `key_prefix "carrick/" { policy = "write" } session_prefix "" { policy = "write" }`

// Access is refused as that, and never by pretending that there is nothing.
func TestAccessControl(t *testing.T) {
	t.Parallel()
	srv := consultest.Start(t, consultest.WithACL())
	admin := client(t, consul.Config{Addresses: []string{srv.Addr()}, Token: consul.Secret(srv.Token())})
	put(t, admin, "net/a", "1")
	put(t, admin, "net/b", "1")
	ctx := within(t)

	t.Run("no token", func(t *testing.T) {
		allAre(t, everyCall(ctx, client(t, consul.Config{Addresses: []string{srv.Addr()}})), kvstore.ErrDenied)
	})
	t.Run("a token that does not exist", func(t *testing.T) {
		s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Token: "11111111-2222-3333-4444-555555555555"})
		allAre(t, everyCall(ctx, s), kvstore.ErrDenied)
	})
	t.Run("enough rights", func(t *testing.T) {
		s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Token: consul.Secret(token(t, srv, enough))})
		v, err := s.List(ctx, kvstore.Under(""))
		if err != nil || len(v.Entries) != 2 {
			t.Errorf("list: %+v, %v", v, err)
		}
		l, err := s.Lease(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Txn(ctx, new(kvstore.Txn).Version("net/a", v.Entries[0].Version).PutLeased("node/x", nil, l.ID())); err != nil {
			t.Error(err)
		}
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("rights to a part", func(t *testing.T) {
		s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Token: consul.Secret(token(t, srv, `key "carrick/net/a" { policy = "write" }`))})
		if v, err := s.List(ctx, kvstore.Under("net/")); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("a list of which a half is hidden: %+v, %v", v, err)
		}
		if v, err := s.Watch(ctx, kvstore.Under("net/"), 1); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("a watch of which a half is hidden: %+v, %v", v, err)
		}
		if _, err := s.Get(ctx, "net/a"); err != nil {
			t.Errorf("what is allowed: %v", err)
		}
		if _, err := s.Get(ctx, "net/b"); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("what is not: %v", err)
		}
		if _, err := s.Txn(ctx, new(kvstore.Txn).Put("net/a", nil).Put("net/b", nil)); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("half a transaction: %v", err)
		}
		if _, err := s.Txn(ctx, new(kvstore.Txn).Absent("net/b").Put("net/a", nil)); !errors.Is(err, kvstore.ErrDenied) || errors.Is(err, kvstore.ErrConflict) {
			t.Errorf("a condition on what may not be read: %v", err)
		}
	})
	t.Run("reading only", func(t *testing.T) {
		s := client(t, consul.Config{Addresses: []string{srv.Addr()}, Token: consul.Secret(token(t, srv, `key_prefix "carrick/" { policy = "read" }`))})
		if v, err := s.List(ctx, kvstore.Under("")); err != nil || len(v.Entries) != 2 {
			t.Errorf("list: %+v, %v", v, err)
		}
		if _, err := s.Txn(ctx, new(kvstore.Txn).Put("net/a", nil)); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("a write: %v", err)
		}
	})
	t.Run("a token file that changes", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "token")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		write("11111111-2222-3333-4444-555555555555\n")
		var log lockedBuffer
		s := client(t, consul.Config{Addresses: []string{srv.Addr()}, TokenFile: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if _, err := s.Get(ctx, "net/a"); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("with the wrong token: %v", err)
		}
		write(srv.Token() + "\n")
		if _, err := s.Get(ctx, "net/a"); err != nil {
			t.Errorf("with the right one: %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(ctx, "net/a"); err != nil {
			t.Errorf("with the file gone: %v", err)
		}
		if got := log.String(); !strings.Contains(got, "token file") || strings.Contains(got, srv.Token()) {
			t.Errorf("the log says %q", got)
		}
	})
}

// lockedBuffer is a log to look into.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
