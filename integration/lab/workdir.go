package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prefix begins the name of a lab's directory and of its cgroup.
const prefix = "carrick-lab-"

// workdir is a lab's directory. Its lock file is held, by flock(2), as long as
// the process that made it lives: that is how a sweep tells a dead lab from a
// living one without trusting process ids.
type workdir struct {
	name string // carrick-lab-ID
	path string
	lock *os.File
}

// newWorkdir sweeps what dead labs left and makes a directory.
func newWorkdir() (*workdir, error) {
	base := os.TempDir()
	// A directory that is made but not locked yet looks dead, so making and
	// sweeping exclude each other.
	gate, err := os.OpenFile(filepath.Join(base, prefix+"gate"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a lab: %w", err)
	}
	defer func() { _ = gate.Close() }()
	if err := unix.Flock(int(gate.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", gate.Name(), err)
	}
	if err := sweep(base); err != nil {
		return nil, fmt.Errorf("sweep what an earlier lab left: %w", err)
	}
	var id [3]byte
	_, _ = rand.Read(id[:])
	w := &workdir{name: prefix + hex.EncodeToString(id[:])}
	w.path = filepath.Join(base, w.name)
	if err := os.Mkdir(w.path, 0o755); err != nil {
		return nil, fmt.Errorf("make a lab: %w", err)
	}
	w.lock, err = lockDir(w.path)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// lockDir takes a lab directory's lock without waiting for it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// sweep removes the directories and cgroups of labs in base whose process is
// gone.
func sweep(base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, prefix+"*", "lock"))
	if err != nil {
		return err
	}
	for _, l := range dirs {
		dir := filepath.Dir(l)
		f, err := lockDir(dir)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		}
		w := &workdir{name: filepath.Base(dir), path: dir, lock: f}
		if err := w.remove(); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes the cgroup and then the directory. Every process of the lab
// must have ended.
func (w *workdir) remove() error {
	// The kernel lets go of a killed process's cgroup a moment after its parent
	// has been told of its end.
	err := Wait(context.Background(), 10*time.Second, "the processes of "+w.name+" to be gone", func() error {
		return removeCgroups(w.name)
	})
	if err != nil {
		return err
	}
	// The lock file goes last: a directory without one would never be swept.
	entries, err := os.ReadDir(w.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(w.path, e.Name())); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(w.path); err != nil {
		return err
	}
	return w.lock.Close()
}

// removeCgroups removes the tree called name from every hierarchy, leaves first.
func removeCgroups(name string) error {
	tops, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", "*", name))
	if err != nil {
		return err
	}
	tops = append(tops, filepath.Join("/sys/fs/cgroup", name)) // the unified hierarchy, where it is the only one
	for _, top := range tops {
		var dirs []string
		err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			if d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove cgroup %s: %w", strings.TrimPrefix(dirs[i], "/sys/fs/cgroup/"), err)
			}
		}
	}
	return nil
}
