package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// lock prepares the directory and makes the caller the only one to change it.
func (d *Dir) lock() (unlock func(), err error) {
	d.mu.Lock()
	f, err := d.lockDir()
	if err != nil {
		d.mu.Unlock()
		return nil, err
	}
	return func() {
		_ = f.Close() // drops the flock
		d.mu.Unlock()
	}, nil
}

// lockDir takes the lock before the directory is bound onto itself: the bind
// covers the name but is the same inode, so that lock stays the one lock.
// Called with mu held.
func (d *Dir) lockDir() (*os.File, error) {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(d.dir)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err == nil && !d.prepared {
		err = shareMount(d.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", d.dir, err), f.Close())
	}
	d.prepared = true
	return f, nil
}

// shareMount makes dir a mount point whose mounts are seen in every mount
// namespace that has a copy of it. Without that, a namespace mounted here would
// be invisible to processes whose mount namespace is older, and could not be
// removed because they pin it (iproute2's ip/ipnetns.c does the same).
func shareMount(dir string) error {
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return wrap("make shared", err)
	}
	// EINVAL: not a mount point yet.
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrap("bind onto itself", err)
	}
	return wrap("make shared", unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, ""))
}

func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}

// unmount takes everything off path: several may lie on one another after a
// crash. MNT_DETACH, because a process that looks at the file must not keep it.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		switch {
		case err == nil || errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist):
			return nil // not a mount point (any more)
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
