package dockerapi

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListenOnAFreshHost: directories are made, only root may connect, and
// nothing stays behind.
func TestListenOnAFreshHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "docker", "plugins", "carrick.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %s", fi.Mode())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody listens: %v", err)
	}
	_ = c.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestListenAfterACrash: the socket of an agent that was killed is replaced. A
// stale one costs every engine's call 15 s, so refusing would be no kindness.
func TestListenAfterACrash(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "carrick.sock")
	leaveStale(t, path)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// leaveStale makes a socket that nobody listens on.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
}

// TestListenBesideAnotherAgent: it keeps its socket, even if it does not accept.
func TestListenBesideAnotherAgent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "carrick.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	_, err = Listen(path)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, want ErrInUse naming the path", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the first agent lost its socket: %v", err)
	}
	_ = c.Close()
}

// TestListenBesideAFullAgent: its queue of connections being full is life too.
func TestListenBesideAFullAgent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "carrick.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for { // fill it
		c, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
}

// TestAgentsStartedAtOnce: exactly one gets the socket, and keeps it.
func TestAgentsStartedAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "carrick.sock")
	leaveStale(t, path)
	const n = 16
	var wg sync.WaitGroup
	start := make(chan struct{})
	got := make([]net.Listener, n)
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			<-start
			got[i], errs[i] = Listen(path)
		})
	}
	close(start)
	wg.Wait()
	won := 0
	for i := range n {
		if errs[i] == nil {
			won++
			defer func() { _ = got[i].Close() }()
		} else if !errors.Is(errs[i], ErrInUse) {
			t.Errorf("agent %d: %v", i, errs[i])
		}
	}
	if won != 1 {
		t.Fatalf("%d agents got the socket", won)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the winner's socket is gone: %v", err)
	}
	_ = c.Close()
}

// TestListenNeverRemovesAFile that is no socket: somebody's mistake in a flag
// must not cost data.
func TestListenNeverRemovesAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "data" {
		t.Errorf("the file has %q now, %v", b, err)
	}
	if _, err := Listen("carrick.sock"); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("relative path: %v", err)
	}
}

// TestPassedSockets: what systemd passes is used if it is the flag's, and named
// if it is not.
func TestPassedSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, other := filepath.Join(dir, "carrick.sock"), filepath.Join(dir, "other.sock")
	pass := func(path string) *os.File {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	ours, notOurs := pass(path), pass(other)

	if _, err := inheritOrListen(path, []*os.File{notOurs}); err == nil || !strings.Contains(err.Error(), other) {
		t.Errorf("another socket: %v", err)
	}
	notSocket, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inheritOrListen(path, []*os.File{notSocket}); err == nil {
		t.Error("a directory was taken for a socket")
	}
	l, err := inheritOrListen(path, []*os.File{ours})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}

// TestSocketActivation passes a socket to a process as systemd does: descriptor
// 3, LISTEN_FDS and LISTEN_PID. The process is this test again.
func TestSocketActivation(t *testing.T) {
	const env = "CARRICK_TEST_SOCKET"
	if path := os.Getenv(env); path != "" {
		l, err := ListenOrInherit(path)
		if err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte("inherited"))
			_ = c.Close()
		}
		_ = l.Close()
		if err != nil || os.Getenv("LISTEN_FDS") != "" {
			fmt.Println("child:", err, os.Getenv("LISTEN_FDS"))
			os.Exit(1)
		}
		os.Exit(0)
	}
	path := filepath.Join(t.TempDir(), "carrick.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	// The engine connects before anybody is there to accept.
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -test.run '^TestSocketActivation$'`, os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+path)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != "inherited" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the process removed systemd's socket: %v", err)
	}
}
