package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/carrick-net/carrick"
)

// Options are the places where a test can make the disk fail or the process die.
//
// A hook that returns [ErrDead] ends the journal as a crash at that moment would
// end the process: the call fails with ErrDead, as does every later one that
// writes, and the file is not touched any more. What a new [Open] finds is
// what the crash left. Any other error fails that one write.
//
// Both are called by one goroutine at a time, and by Open if it makes the file.
// Several calls of Update may share one write.
type Options struct {
	// BeforeWrite is called before each write, of which nothing happens if it
	// returns an error.
	BeforeWrite func() error
	// AfterWrite is called when a write is on disk, which its caller does not hear
	// of if it returns an error. It is how a failed fsync looks.
	AfterWrite func() error
}

// Open opens or makes the journal in dir and binds it to the machine. The
// directory is made with mode 0700 if missing. Errors: [ErrLocked], [ErrForeign],
// [ErrCorrupt], or the disk's own; their texts say what to do.
func Open(dir, machine string) (*Journal, error) { return OpenWith(dir, machine, Options{}) }

// OpenWith is [Open] with hooks.
func OpenWith(dir, machine string, o Options) (*Journal, error) {
	j := &Journal{path: inDirectory(dir), opts: o}
	err := j.start(dir, machine)
	if err == nil {
		return j, nil
	}
	if j.file != nil {
		_ = j.file.close()
	}
	if j.lock != nil {
		_ = j.lock.Close()
	}
	return nil, explain("open", j.path, err)
}

func (j *Journal) start(dir, machine string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var err error
	if j.lock, err = lockDir(dir); err != nil {
		return err
	}
	j.file, j.durable, err = openFile(j.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		j.fresh = true
		j.durable = newTables()
		j.durable.identity = Identity{Schema: schema, Host: carrick.NewHostID(), Machine: machine}
	case err != nil:
		return err
	}
	if id := j.durable.identity; id.Machine != machine {
		return fmt.Errorf("%w: host %s was made on machine-id %s, this is %s: on a cloned machine remove the directory, so that it becomes a host of its own",
			ErrForeign, id.Host, id.Machine, machine)
	}
	if err := j.settle(); err != nil {
		return err
	}
	j.sum = j.file.sum
	j.latest = j.durable.clone()
	j.registered = j.durable.meta.Registered
	return nil
}

// settle writes a file that is not there, or is of an older schema.
func (j *Journal) settle() error {
	if j.durable.identity.Schema == schema && j.file != nil {
		return nil
	}
	if err := j.hook(j.opts.BeforeWrite); err != nil {
		return err
	}
	if j.file != nil {
		if err := j.file.close(); err != nil {
			return err
		}
		j.file = nil
	}
	j.durable.identity.Schema = schema
	f, err := createFile(j.path, j.durable)
	if err != nil {
		return err
	}
	j.file = f
	return j.hook(j.opts.AfterWrite)
}

// lockDir takes the lock of a state directory, which lasts until the file it
// returns is closed. It is the directory's and not the journal's, since that one
// may be replaced by another file.
func lockDir(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	patience := time.NewTimer(lockWait)
	defer patience.Stop()
	again := time.NewTicker(lockWait / 20)
	defer again.Stop()
	for {
		err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = d.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-again.C:
		case <-patience.C:
			_ = d.Close()
			return nil, ErrLocked
		}
	}
}

// explain says what was done to which file, why it failed, and what to do.
func explain(op, path string, err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = ErrLocked // by an agent that locks the file only
	}
	var pe *fs.PathError
	if errors.As(err, &pe) && filepath.Dir(pe.Path) == filepath.Dir(path) {
		err = pe.Err // the path is said already
	}
	advice := ""
	switch {
	case errors.Is(err, ErrLocked):
		advice = ": stop it, or give this one a --state-dir and --plugin-socket of its own"
	case errors.Is(err, ErrCorrupt):
		advice = fmt.Sprintf(": move the file aside (mv %s %s.damaged) and start the agent again: it rebuilds what it can from the store and the engine", path, path)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		advice = ": make room on its file system; nothing was changed"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		advice = ": the agent must be able to write its state directory"
	case errors.Is(err, errFault):
		advice = ": was it changed? It is written anew from memory with the next call"
	case errors.Is(err, syscall.EIO):
		advice = ": look for the disk's errors in the kernel's log"
	}
	return fmt.Errorf("%s journal %s: %w%s", op, path, err, advice)
}
