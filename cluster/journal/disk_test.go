package journal_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/carrick-net/carrick/cluster/journal"
)

// A disk that says after a write that it may not have it: the caller is told so,
// nobody sees it, and the next write makes the file be what was reported.
func TestSyncFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var fail error
	j, err := journal.OpenWith(dir, "machine-1", journal.Options{AfterWrite: func() error { return fail }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	fill(t, j)
	want := journal.Dump(j)
	fail = syscall.EIO
	err = putLease(j, 1)
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), filepath.Join(dir, "state.db")) {
		t.Fatalf("got %v", err)
	}
	if journal.Dump(j) != want {
		t.Error("memory claims what the disk may not have")
	}
	// The process dies here: the host finds the state before it or after it.
	raw, rerr := os.ReadFile(filepath.Join(dir, "state.db"))
	if rerr != nil {
		t.Fatal(rerr)
	}
	if _, err := reopened(t, raw); err != nil {
		t.Errorf("a restart now: %v", err)
	}
	// It fails once more, and then the disk is well.
	if err := putLease(j, 2); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	fail = nil
	if err := putLease(j, 3); err != nil {
		t.Fatal(err)
	}
	leases := again(t, j, dir).Leases(netID)
	for i, there := range map[int]bool{1: false, 2: false, 3: true} {
		if _, ok := leases[lease(i).Addr]; ok != there {
			t.Errorf("lease %d is there: %t", i, ok)
		}
	}
}

// The file is cut off, emptied or taken away under a running agent, which has all
// of it in memory: a caller may be told of an error, no call takes the process
// down, and then everything is there again.
func TestFileSpoiltUnderneath(t *testing.T) {
	t.Parallel()
	page := os.Getpagesize()
	for name, spoil := range map[string]func(path string) error{
		"emptied":        func(p string) error { return os.Truncate(p, 0) },
		"two pages left": func(p string) error { return os.Truncate(p, int64(2*page)) },
		"cut off":        func(p string) error { return os.Truncate(p, int64(5*page)) },
		"removed":        os.Remove,
		"moved aside":    func(p string) error { return os.Rename(p, p+".damaged") },
		"replaced":       func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, []byte("x"), 0o600)) },
		"overwritten": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(make([]byte, 6*page), 0)
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			j := open(t, dir)
			fill(t, j)
			for i := range 60 {
				if err := putLease(j, i); err != nil {
					t.Fatal(err)
				}
			}
			want := journal.Dump(j)
			if err := spoil(filepath.Join(dir, "state.db")); err != nil {
				t.Fatal(err)
			}
			var err error
			for range 3 {
				if err = putLease(j, 100); err == nil {
					break
				}
				t.Logf("told: %v", err)
				if journal.Dump(j) != want {
					t.Fatal("memory has changed")
				}
			}
			if err != nil {
				t.Fatalf("not mended: %v", err)
			}
			want = journal.Dump(j)
			if got := journal.Dump(again(t, j, dir)); got != want {
				t.Errorf("after a restart:\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// A directory that cannot be written, or is none.
func TestNoDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), "/proc/self/carrick"} {
		_, err := journal.Open(dir, "machine-1")
		if err == nil || errors.Is(err, journal.ErrCorrupt) || !strings.Contains(err.Error(), "open journal "+filepath.Join(dir, "state.db")) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "state.db"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(dir, "machine-1"); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a directory for a journal: %v", err)
	}
}

// On real file systems that are full or read-only. They are made in a mount
// namespace, and a user namespace if need be, of a process of its own.
func TestRealDisks(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("JOURNAL_DISKS"); dir != "" { // this is that process
		onDisks(t, dir)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestRealDisks$", "-test.v")
	cmd.Env = append(os.Environ(), "JOURNAL_DISKS="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Errorf("%v:\n%s", err, out)
	case err != nil && os.Geteuid() != 0:
		t.Skipf("no namespaces without root here: %v", err)
	case err != nil:
		t.Fatal(err)
	case !strings.Contains(string(out), "--- PASS: TestRealDisks"):
		t.Errorf("nothing was tested:\n%s", out)
	}
	t.Logf("%s", out)
}

func onDisks(t *testing.T, dir string) {
	mount := func(source, fs string, flags uintptr, data string) {
		t.Helper()
		if err := syscall.Mount(source, dir, fs, flags, data); err != nil {
			t.Fatalf("mount %s: %v", fs, err)
		}
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	mount("carrick", "tmpfs", 0, "size=256k")
	filler := filepath.Join(dir, "filler")
	state := filepath.Join(dir, "state")

	// No room for a first start: nothing is left behind, and then it starts.
	takeUp(t, filler)
	_, err := journal.Open(state, "machine-1")
	saysFull(t, err, filepath.Join(state, "state.db"))
	if left, err := os.ReadDir(state); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	j := open(t, state)
	fill(t, j)

	// The disk fills up under a running agent.
	takeUp(t, filler)
	given := 0
	for err = nil; err == nil; {
		if err = putLease(j, given); err == nil {
			given++
		}
	}
	saysFull(t, err, filepath.Join(state, "state.db"))
	t.Logf("told after %d addresses: %v", given, err)
	want := journal.Dump(j)
	saysFull(t, putLease(j, 200), filepath.Join(state, "state.db")) // still
	if journal.Dump(j) != want {
		t.Error("a write that failed is shown")
	}
	// A restart with a full disk finds what was given out, and starts.
	if j = again(t, j, state); journal.Dump(j) != want {
		t.Errorf("after a restart:\n%s\nwant\n%s", journal.Dump(j), want)
	}
	// There is room again, without a restart.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := putLease(j, 201); err != nil {
		t.Errorf("with room: %v", err)
	}
	want = journal.Dump(j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	// The file system is read-only, as after an error.
	mount("", "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	for _, d := range []string{state, filepath.Join(dir, "other")} {
		_, err := journal.Open(d, "machine-1")
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "open journal "+d) || !strings.Contains(err.Error(), "must be able to write") {
			t.Errorf("read-only: %v", err)
		}
	}
	mount("", "", syscall.MS_REMOUNT, "size=256k")
	if j = open(t, state); journal.Dump(j) != want {
		t.Errorf("after all: %s", journal.Dump(j))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// takeUp fills a file system up.
func takeUp(t *testing.T, filler string) {
	t.Helper()
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func saysFull(t *testing.T, err error, path string) {
	t.Helper()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	if want := fmt.Sprintf("journal %s: no space left on device: make room", path); !strings.Contains(err.Error(), want) {
		t.Errorf("%q does not say %q", err, want)
	}
}
