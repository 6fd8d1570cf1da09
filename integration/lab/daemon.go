package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// daemon is a long-running program of a node with a log file of its own, which
// grows over the restarts.
type daemon struct {
	node *node
	name string // "dockerd"

	mu   sync.Mutex // guards what follows
	proc *process   // of the last start; nil before the first
}

// process is one run of a daemon.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // of its end; read after done
}

// logPath is on the machine.
func (d *daemon) logPath() string { return filepath.Join(d.node.dir, d.name+".log") }

// start starts the program. It fails if the last one is still running.
func (d *daemon) start(env []string, args ...string) (*process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc != nil && !d.proc.ended() {
		return nil, fmt.Errorf("%s: %s is running already", d.node.name, d.name)
	}
	logf, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = logf.Close() }()
	_, _ = fmt.Fprintf(logf, "--- %s: %s\n", time.Now().Format(time.RFC3339Nano), strings.Join(args, " "))
	cmd, err := newCommand(context.Background(), env, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", d.node.name, d.name, err)
	}
	cmd.Stdout, cmd.Stderr = logf, logf
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := d.node.start(cmd); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", d.node.name, d.name, err)
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	d.proc = p
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// errNoFailure is how a process ended that exited with 0.
var errNoFailure = errors.New("exit status 0")

// wait is [Wait] that is over when the process has ended.
func (p *process) wait(ctx context.Context, limit time.Duration, what string, cond func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := Wait(ctx, limit, what, cond)
	if err != nil && p.ended() {
		err = fmt.Errorf("%w; its process has ended: %w", err, cmp.Or(p.err, errNoFailure))
	}
	return err
}

// running returns the current process, or nil.
func (d *daemon) running() *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc == nil || d.proc.ended() {
		return nil
	}
	return d.proc
}

// signal sends sig and waits for the program's end. That it does not run is an
// error.
func (d *daemon) signal(ctx context.Context, sig unix.Signal) error {
	p := d.running()
	if p == nil {
		return fmt.Errorf("%s: stop %s: it is not running", d.node.name, d.name)
	}
	if err := unix.Kill(p.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s: signal %s: %w", d.node.name, d.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %s did not end on %s: %w\n%s", d.node.name, d.name, unix.SignalName(sig), context.Cause(ctx), d.tail(0, 20))
	}
}

// logSize is the log's length so far, to read from later.
func (d *daemon) logSize() int64 {
	st, err := os.Stat(d.logPath())
	if err != nil {
		return 0
	}
	return st.Size()
}

// log returns the log from an offset.
func (d *daemon) log(from int64) string { return readFrom(d.logPath(), from) }

// tail returns the last lines of the log after an offset, without those that
// skip, if given, is true for.
func (d *daemon) tail(from int64, lines int, skip ...func(string) bool) string {
	return tail(d.logPath(), from, lines, skip...)
}

func readFrom(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return ""
	}
	b, _ := io.ReadAll(f)
	return string(b)
}

// maxLine is how much of a line tail shows.
const maxLine = 400

func tail(path string, from int64, lines int, skip ...func(string) bool) string {
	all := strings.Split(strings.TrimRight(readFrom(path, from), "\n"), "\n")
	for _, s := range skip {
		all = slices.DeleteFunc(all, s)
	}
	all = all[max(0, len(all)-lines):]
	for i, l := range all {
		if len(l) > maxLine {
			all[i] = l[:maxLine] + "…"
		}
	}
	return strings.Join(all, "\n")
}
