package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// handle is an open namespace.
type handle struct {
	name string
	id   ID
	file *os.File
	once sync.Once
}

func (h *handle) Name() string { return h.name }
func (h *handle) ID() ID       { return h.id }
func (h *handle) FD() int      { return int(h.file.Fd()) }

func (h *handle) Close() error {
	var err error
	h.once.Do(func() { err = h.file.Close() })
	return err
}

// openFile opens a namespace's file. A file that is not a namespace is
// ErrNotFound: somebody died between making and mounting it. So is a namespace
// of another kind.
func openFile(path, name string) (*handle, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	h, err := newHandle(f, name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

// newHandle takes over f if it is a namespace's.
func newHandle(f *os.File, name string) (*handle, error) {
	var fsinfo unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fsinfo); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	if int64(fsinfo.Type) != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%w: %s is a plain file", ErrNotFound, f.Name())
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE) // since 4.11
	if err != nil {
		return nil, fmt.Errorf("kind of namespace %s: %w", f.Name(), err)
	}
	if kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%w: %s is a namespace of another kind", ErrNotFound, f.Name())
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return &handle{name: name, id: ID{Dev: uint64(st.Dev), Ino: st.Ino}, file: f}, nil
}
