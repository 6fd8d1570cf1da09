package dockerapi

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/docker/go-connections/sockets"
	"golang.org/x/sys/unix"
)

// ErrInUse says that a live process answers on a socket already.
var ErrInUse = errors.New("another agent serves it")

// Listen makes the plugin socket at path, readable and writable by its owner
// only, with parent directories as needed. A socket nobody listens on is
// replaced; one that is served is left alone ([ErrInUse]), and so is a file that
// is no socket. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen on docker plugin socket %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path must be absolute")
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// Two agents started at once would both find the socket stale, and the
	// slower one would remove the faster one's. The lock is the directory's own
	// and goes with the file descriptor: nothing is left behind to clean up.
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w, or is about to: it holds a lock on %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	// It removes a stale socket and sets the permissions before the socket can
	// be connected to.
	return sockets.NewUnixSocketWithOpts(path, sockets.WithChmod(0o600))
}

// checkStale makes sure that nothing of value is at path: nothing at all, or a
// socket whose process is gone.
func checkStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("a file that is no socket (%s) is there: move it away", fi.Mode())
	}
	// Connecting tells a live socket from a dead one even if its process is
	// stuck, as the kernel completes the connection. Nothing is sent.
	// It never waits: a full queue is EAGAIN.
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("%w: stop it, or choose another --plugin-socket", ErrInUse)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EAGAIN): // its queue is full
		return ErrInUse
	default:
		return fmt.Errorf("cannot tell whether it is in use: %w", err)
	}
}

// ListenOrInherit is [Listen], unless systemd passed sockets to this process
// (systemd.socket(5)): then the one at path is used, and closing it leaves the
// file to systemd, so that engines queue up instead of being refused while the
// agent restarts. Any other socket among those passed is an error, as the unit
// and the flag would contradict each other.
func ListenOrInherit(path string) (net.Listener, error) {
	return inheritOrListen(path, activation.Files(true))
}

func inheritOrListen(path string, passed []*os.File) (net.Listener, error) {
	if len(passed) == 0 {
		return Listen(path)
	}
	var found net.Listener
	var others []string
	for _, f := range passed {
		// FileListener duplicates the descriptor, without the close-on-exec flag
		// lost and without taking over the duty to unlink the path.
		l, err := net.FileListener(f)
		_ = f.Close()
		switch {
		case err != nil:
			others = append(others, fmt.Sprintf("%s (%v)", f.Name(), err))
		case found == nil && l.Addr().Network() == "unix" && l.Addr().String() == path:
			found = l
		default:
			others = append(others, l.Addr().String())
			_ = l.Close()
		}
	}
	if found != nil && len(others) == 0 {
		return found, nil
	}
	if found != nil {
		_ = found.Close()
	}
	return nil, fmt.Errorf("listen on docker plugin socket %s: systemd passed %s: ListenStream= of the socket unit must be this path and nothing else", path, strings.Join(others, ", "))
}
