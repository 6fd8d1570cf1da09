package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	// ErrPanic says that the guest's kernel panicked before the command ended. An oops
	// is a panic there.
	ErrPanic = errors.New("the guest's kernel panicked")
	// ErrNoReport says that the guest ended in another way without saying how the
	// command did: it was switched off, did not boot, or QEMU refused its arguments.
	ErrNoReport = errors.New("the guest ended without a report")
	// ErrNotInstalled says that QEMU, or what a guest boots, is not there.
	ErrNotInstalled = errors.New("not installed")
)

const (
	defaultQEMU   = "qemu-system-x86_64"
	defaultMemory = 1024
	defaultCPUs   = 2

	// waitDelay is how long a killed QEMU may keep its output open.
	waitDelay = 5 * time.Second
	// logLines is how much of the kernel's log an error shows.
	logLines = 40
)

// Machine says what a guest is made of. Its files are the host's: it reads all of
// them, at the same paths, and what it writes stays in its memory and is lost, but for
// the directories in Writable. It has no network but what the command makes.
//
// A Machine is a value; every call of Run boots a guest of its own, so it may be
// used from several goroutines.
type Machine struct {
	Dir        string   // what the guest boots, as printed by tools/install.sh vm
	QEMU       string   // program; qemu-system-x86_64 in PATH unless given
	QEMUArgs   []string // more arguments, for instance devices
	KernelArgs []string // more words for the kernel's command line
	Memory     int      // MiB, 160 and more; 1024 unless given
	CPUs       int      // 2 unless given
	Writable   []string // directories of the host that the guest may write to; absolute
	Modules    []string // to load before the command; the kernel loads most when they are needed
}

// Command is what a guest runs, as root.
type Command struct {
	Args []string  // program, an absolute path or in PATH, and its arguments
	Dir  string    // working directory; the host's / unless given
	Env  []string  // KEY=value, added to PATH and HOME
	Out  io.Writer // gets both streams as they come, in order; none unless given
}

// Result is how a command ended.
type Result struct {
	Code int    // exit code, 0 to 255; 128+N if signal N ended it
	Log  string // the kernel's warnings and worse, with time stamps
}

// Run boots a guest, runs the command in it and waits for its end. The guest does
// not outlive Run, nor this process, however that ends.
//
// A command that fails is not an error. The error wraps ErrPanic or ErrNoReport if
// the guest ended without it, with the end of the kernel's log; ErrNotInstalled if
// something is missing; and ctx's cause if that ended first. A boot takes
// seconds and the guest is some 15 times slower than the host, so deadlines are in
// minutes.
func (m Machine) Run(ctx context.Context, c Command) (Result, error) {
	run, err := os.MkdirTemp("", "carrick-vm-")
	if err != nil {
		return Result{}, fmt.Errorf("run in a virtual machine: %w", err)
	}
	defer func() { _ = os.RemoveAll(run) }()
	res, err := m.run(ctx, c, run)
	if err != nil {
		return Result{}, fmt.Errorf("run %s in a virtual machine: %w", strings.Join(c.Args, " "), err)
	}
	return res, nil
}

func (m Machine) run(ctx context.Context, c Command, run string) (Result, error) {
	args, err := m.qemuArgs(run)
	if err != nil {
		return Result{}, err
	}
	for name, text := range map[string]string{"prepare": m.prepare(), "command": c.script()} {
		if err := os.WriteFile(filepath.Join(run, name), []byte(text), 0o600); err != nil {
			return Result{}, err
		}
	}
	name := m.QEMU
	if name == "" {
		name = defaultQEMU
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w: apt-get install qemu-system-x86 (make deps)", name, ErrNotInstalled)
	}
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = c.Out, &complaints, waitDelay
	// The kernel sends it when the thread that started QEMU ends, which without the
	// lock could be long before the process does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	qemuErr := cmd.Run()

	console, _ := os.ReadFile(filepath.Join(run, "console"))
	log := strings.ToValidUTF8(strings.ReplaceAll(string(console), "\r", ""), "?")
	status, err := os.ReadFile(filepath.Join(run, "status"))
	if err == nil {
		code, err := strconv.Atoi(strings.TrimSpace(string(status)))
		if err != nil {
			return Result{}, fmt.Errorf("%w: %w", ErrNoReport, err)
		}
		return Result{Code: code, Log: log}, nil
	}
	why := ErrNoReport
	switch {
	case ctx.Err() != nil:
		why = context.Cause(ctx)
	case panicked(log):
		why = ErrPanic
	case qemuErr != nil:
		why = fmt.Errorf("%w: %s: %w: %s", ErrNoReport, program, qemuErr, bytes.TrimSpace(complaints.Bytes()))
	}
	return Result{}, fmt.Errorf("%w; its kernel said last:\n%s", why, end(log))
}

// end is what is worth reading of a kernel's log: what led to the first panic and the
// beginning of its trace, which can be of any length, or else the last lines.
func end(log string) string {
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	from := len(lines) - logLines
	if i := slices.IndexFunc(lines, panicked); i >= 0 {
		from = i - logLines/2
	}
	from = max(0, from)
	return strings.Join(lines[from:min(len(lines), from+logLines)], "\n")
}

func panicked(line string) bool { return strings.Contains(line, "Kernel panic") }
