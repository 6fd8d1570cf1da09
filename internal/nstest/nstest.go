// Package nstest makes throwaway hosts for tests on the real kernel: network
// namespaces joined by an underlay, each with a directory of named namespaces
// of its own, so that tests run in parallel and leave nothing behind.
//
// Only tests import it.
package nstest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// EnvRequireRoot set to 1 makes a test that needs root fail without it, so that
// the tier which promises to run such tests cannot pass by skipping them.
const EnvRequireRoot = "CARRICK_REQUIRE_ROOT"

// RequireRoot skips the test, saying why, if the process is not root; with
// CARRICK_REQUIRE_ROOT=1 it fails instead. As root nothing is ever skipped:
// what is missing then is a failure.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv(EnvRequireRoot) == "1" {
		t.Fatalf("needs root: %s=1, but the effective user is %d", EnvRequireRoot, os.Geteuid())
	}
	t.Skipf("needs root to make network namespaces; effective user is %d", os.Geteuid())
}

// Dir is a directory for named namespaces. When the test ends, everything
// mounted in it is unmounted.
func Dir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Errorf("clean up %s: %v", dir, err)
		}
		for _, e := range entries {
			detach(t, filepath.Join(dir, e.Name()))
		}
		detach(t, dir)
	})
	return dir
}

// detach unmounts all that lies on path.
func detach(t testing.TB, path string) {
	t.Helper()
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) {
			return
		}
		if err != nil {
			t.Errorf("unmount %s: %v", path, err)
			return
		}
	}
}
