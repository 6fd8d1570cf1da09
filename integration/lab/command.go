package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// commandLimit bounds a command whose context has no deadline, so that a hung
// engine fails a test with a message instead of hanging it.
const commandLimit = 3 * time.Minute

// CommandError is a command that could not be run or did not exit with 0.
type CommandError struct {
	Where  string // the host, or "" for the machine itself
	Args   []string
	Stdout string
	Stderr string
	Err    error // an *exec.ExitError, a context's error, or why it did not start
}

func (e *CommandError) Error() string {
	var b strings.Builder
	if e.Where != "" {
		b.WriteString(e.Where + ": ")
	}
	fmt.Fprintf(&b, "%s: %v", strings.Join(e.Args, " "), e.Err)
	for _, s := range []string{e.Stdout, e.Stderr} {
		if s = strings.TrimSpace(s); s != "" {
			b.WriteString("\n" + s)
		}
	}
	return b.String()
}

func (e *CommandError) Unwrap() error { return e.Err }

// environment of everything run in a lab: the machine's own settings (proxies,
// DOCKER_HOST) must not leak in. Extra entries come last and win.
func environment(extra ...string) []string {
	env := []string{"PATH=" + searchPath, "HOME=/root", "LANG=C.UTF-8"}
	for _, k := range []string{"GORACE", "GOCOVERDIR", "GOTRACEBACK"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return append(env, extra...)
}

const searchPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds a program in the directories a host's programs are in. A
// name with a slash is returned as it is.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, d := range filepath.SplitList(searchPath) {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, searchPath)
}

// newCommand prepares args with the lab's environment. The context's end kills
// it.
func newCommand(ctx context.Context, env []string, args ...string) (*exec.Cmd, error) {
	p, err := lookPath(args[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, p, args[1:]...)
	cmd.Env = environment(env...)
	// A killed command's children may keep its output open.
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// run starts cmd with start, waits, and returns its standard output.
func run(ctx context.Context, where string, env []string, stdin []byte, start func(*exec.Cmd) error, args ...string) (string, error) {
	if _, ok := ctx.Deadline(); !ok {
		c, cancel := context.WithTimeout(ctx, commandLimit)
		defer cancel()
		ctx = c
	}
	cmd, err := newCommand(ctx, env, args...)
	if err != nil {
		return "", &CommandError{Where: where, Args: args, Err: err}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	err = start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
		return stdout.String(), &CommandError{Where: where, Args: args, Stdout: stdout.String(), Stderr: stderr.String(), Err: err}
	}
	return stdout.String(), nil
}

// startHere starts a command in the namespaces of this process.
func startHere(cmd *exec.Cmd) error { return cmd.Start() }
