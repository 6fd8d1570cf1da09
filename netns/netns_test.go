package netns_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

func TestANamespaceLivesAsLongAsItsName(t *testing.T) {
	t.Parallel()
	d, dir := store(t)
	ctx := t.Context()

	ns, err := d.Create(ctx, "carrick-a")
	if err != nil {
		t.Fatal(err)
	}
	id := ns.ID()
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}

	// A new agent, which has never seen it, finds it by name.
	again := netns.NewDir(netns.Config{Dir: dir})
	ns = open(t, again, "carrick-a")
	if ns.ID() != id {
		t.Errorf("opened %s, made %s", ns.ID(), id)
	}
	if _, err := again.Create(ctx, "carrick-a"); !errors.Is(err, netns.ErrExists) {
		t.Errorf("second Create: %v, want ErrExists", err)
	}

	if err := again.Delete(ctx, "carrick-a"); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Open(ctx, "carrick-a"); !errors.Is(err, netns.ErrNotFound) {
		t.Errorf("Open after Delete: %v, want ErrNotFound", err)
	}
	if err := again.Delete(ctx, "carrick-a"); err != nil {
		t.Errorf("second Delete: %v", err)
	}
}

func TestACrashBetweenFileAndMountIsRepaired(t *testing.T) {
	t.Parallel()
	d, dir := store(t)
	ctx := t.Context()
	// What a power cut leaves: the file on disk, nothing mounted on it.
	if err := os.WriteFile(filepath.Join(dir, "carrick-half"), nil, 0o444); err != nil {
		t.Fatal(err)
	}

	if _, err := d.Open(ctx, "carrick-half"); !errors.Is(err, netns.ErrNotFound) {
		t.Errorf("Open of a half-made namespace: %v, want ErrNotFound", err)
	}
	names, err := d.List(ctx, "carrick-")
	if err != nil || !slices.Equal(names, []string{"carrick-half"}) {
		t.Errorf("List = %v, %v; a sweep must see leftovers", names, err)
	}
	ns, err := d.Create(ctx, "carrick-half")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if got := open(t, d, "carrick-half"); got.ID() != ns.ID() {
		t.Errorf("the name leads to %s, made %s", got.ID(), ns.ID())
	}

	// And half-removed: unmounted, file still there.
	if err := unix.Unmount(filepath.Join(dir, "carrick-half"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(ctx, "carrick-half"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "carrick-half")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestPinGivesALivingNamespaceItsNameBack(t *testing.T) {
	t.Parallel()
	d, dir := store(t)
	ctx := t.Context()
	ns, err := d.Create(ctx, "carrick-p")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()

	// Somebody runs `ip netns del`.
	if err := d.Delete(ctx, "carrick-p"); err != nil {
		t.Fatal(err)
	}
	if err := d.Pin(ctx, ns, "carrick-p"); err != nil {
		t.Fatal(err)
	}
	if got := open(t, d, "carrick-p"); got.ID() != ns.ID() {
		t.Errorf("pinned %s, the name leads to %s", ns.ID(), got.ID())
	}

	// Somebody even puts another one in its place, twice over.
	other, err := d.Create(ctx, "carrick-other")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for range 2 {
		if err := unix.Mount(filepath.Join(dir, "carrick-other"), filepath.Join(dir, "carrick-p"), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Pin(ctx, ns, "carrick-p"); err != nil {
		t.Fatal(err)
	}
	if got := open(t, d, "carrick-p"); got.ID() != ns.ID() {
		t.Errorf("pinned %s, the name leads to %s", ns.ID(), got.ID())
	}
}

func TestListKnowsOurs(t *testing.T) {
	t.Parallel()
	d, _ := store(t)
	ctx := t.Context()
	fresh := netns.NewDir(netns.Config{Dir: filepath.Join(t.TempDir(), "none")})
	if names, err := fresh.List(ctx, ""); err != nil || len(names) != 0 {
		t.Errorf("List of a missing directory = %v, %v", names, err)
	}
	for _, n := range []string{"carrick-b", "docker", "carrick-a"} {
		ns, err := d.Create(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
	}
	names, err := d.List(ctx, "carrick-")
	if want := []string{"carrick-a", "carrick-b"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("List = %v, %v; want %v", names, err, want)
	}
}

func TestDoRunsInsideAndLeavesNoThreadBehind(t *testing.T) {
	t.Parallel()
	d, _ := store(t)
	ctx := t.Context()
	host, err := d.Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	ns, err := d.Create(ctx, "carrick-do")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()

	want := errors.New("fn's own")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			var links []net.Interface
			err := netns.Do(ns, func() error {
				var err error
				links, err = net.Interfaces()
				return errors.Join(err, want)
			})
			if !errors.Is(err, want) {
				t.Errorf("Do returned %v", err)
			}
			if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp != 0 {
				t.Errorf("links inside: %v, want lo, down", links)
			}
		})
		wg.Go(func() {
			h, err := d.Host(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Close()
			if h.ID() != host.ID() {
				t.Errorf("a thread came back dirty: it is in %s, the host is %s", h.ID(), host.ID())
			}
		})
	}
	wg.Wait()
}

func TestTwoStoresMakeOneNamespace(t *testing.T) {
	t.Parallel()
	d, dir := store(t)
	ctx := t.Context()
	stores := []*netns.Dir{d, netns.NewDir(netns.Config{Dir: dir})}
	var made [8]netns.Namespace
	var wg sync.WaitGroup
	for i := range made {
		wg.Go(func() {
			ns, err := stores[i%2].Create(ctx, "carrick-race")
			switch {
			case err == nil:
				made[i] = ns
			case !errors.Is(err, netns.ErrExists):
				t.Errorf("Create: %v", err)
			}
		})
	}
	wg.Wait()
	n := 0
	for _, ns := range made {
		if ns != nil {
			n++
			ns.Close()
		}
	}
	if n != 1 {
		t.Errorf("%d of %d concurrent Creates made it, want 1", n, len(made))
	}
}

func TestNamesThatLeaveTheDirectoryAreRefused(t *testing.T) {
	t.Parallel()
	d := netns.NewDir(netns.Config{Dir: t.TempDir()})
	ctx := t.Context()
	for _, name := range []string{"", ".", "..", "a/b", "../x", "a\x00b", string(make([]byte, 300))} {
		if _, err := d.Create(ctx, name); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Create(%q): %v", name, err)
		}
		if err := d.Delete(ctx, name); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Delete(%q): %v", name, err)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := d.Create(done, "carrick-x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Create after cancel: %v", err)
	}
}

// store is a store in a directory of the test's own.
func store(t *testing.T) (*netns.Dir, string) {
	t.Helper()
	nstest.RequireRoot(t)
	dir := nstest.Dir(t)
	return netns.NewDir(netns.Config{Dir: dir}), dir
}

func open(t *testing.T, d *netns.Dir, name string) netns.Namespace {
	t.Helper()
	ns, err := d.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}
