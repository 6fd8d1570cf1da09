package kvstore_test

import (
	"errors"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carrick-net/carrick/kvstore"
)

func TestCheckPrefix(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"", "a", "a/", "a/b", "a b/", "a /", ".a", "a/.b", "..."} {
		if err := kvstore.CheckPrefix(ok); err != nil {
			t.Errorf("prefix %q is refused: %v", ok, err)
		}
	}
	for _, bad := range []string{"/", "//", "/a", "a//", ".", "./", "a/..", "a/../b", " a", "a ", "a%", "a\x00", "\xff"} {
		if err := kvstore.CheckPrefix(bad); !errors.Is(err, kvstore.ErrInvalid) {
			t.Errorf("prefix %q: %v, want ErrInvalid", bad, err)
		}
	}
	if err := kvstore.CheckPrefix(strings.Repeat("x", kvstore.MaxKey+1)); !errors.Is(err, kvstore.ErrTooLarge) {
		t.Errorf("a long prefix: %v, want ErrTooLarge", err)
	}
}

// What is a key survives everything that a server does to a path, and everything
// it begins with is a prefix, but for the ends that a prefix may not have.
func FuzzCheckKey(f *testing.F) {
	for _, s := range []string{"a", "a/b", "a//b", "a/../b", "a/. /b", "%2e", "é/世", " a", "a\n", "\xff", "..."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if kvstore.CheckKey(key) != nil {
			return
		}
		if !utf8.ValidString(key) || path.Clean("/"+key) != "/"+key || strings.TrimSpace(key) != key || len(key) > kvstore.MaxKey {
			t.Errorf("key %q is let through", key)
		}
		for i := range key {
			p := key[:i]
			if strings.HasSuffix(p, " ") || path.Base(p) == "." && p != "" || path.Base(p) == ".." {
				continue
			}
			if err := kvstore.CheckPrefix(p); err != nil {
				t.Errorf("key %q begins with %q: %v", key, p, err)
			}
		}
	})
}

// A version of 0 is the absence of the key, wherever it comes from.
func TestVersionZeroIsAbsence(t *testing.T) {
	t.Parallel()
	txn := new(kvstore.Txn).Version("a", 0)
	if len(txn.Conds) != 1 || txn.Conds[0].Kind != kvstore.IfAbsent {
		t.Errorf("got %+v", txn.Conds)
	}
}
