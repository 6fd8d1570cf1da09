package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// State is what another process needs to look into a running lab. It is a
// picture taken when the lab was up: a host that was booted since has another
// first process.
type State struct {
	Owner   int // process that owns the lab: it ends with it
	Dir     string
	Hosts   []Place
	Consuls []Place
}

// Place is one machine of a lab.
type Place struct {
	Name string
	Addr string // on the underlay
	PID  int    // its first process, as the machine numbers it
}

// SaveState writes the lab's state for [LoadState].
func (l *Lab) SaveState(path string) error {
	s := State{Owner: os.Getpid(), Dir: l.dir.path}
	for _, h := range l.hosts {
		pid, err := h.initPID()
		if err != nil {
			return err
		}
		s.Hosts = append(s.Hosts, Place{Name: h.name, Addr: h.addr.String(), PID: pid})
	}
	for _, c := range l.consuls {
		pid, err := c.initPID()
		if err != nil {
			return err
		}
		s.Consuls = append(s.Consuls, Place{Name: c.name, Addr: c.addr.String(), PID: pid})
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	// Whoever finds the file finds all of it.
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// LoadState reads what [Lab.SaveState] wrote. The error wraps fs.ErrNotExist if
// there is none.
func LoadState(path string) (State, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return State{}, err
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// Alive says whether the lab's owner lives: whether somebody holds the lock of
// its directory.
func (s State) Alive() bool {
	if _, err := os.Stat(filepath.Join(s.Dir, "lock")); err != nil {
		return false
	}
	f, err := lockDir(s.Dir)
	if err != nil {
		return errors.Is(err, unix.EWOULDBLOCK)
	}
	_ = f.Close()
	return false
}

// Host finds a host by name.
func (s State) Host(name string) (Place, error) {
	for _, h := range append(append([]Place{}, s.Hosts...), s.Consuls...) {
		if h.Name == name {
			return h, nil
		}
	}
	return Place{}, fmt.Errorf("there is no %s in this lab", name)
}

// Exec runs a command on a host, on this process's terminal. The lab's programs
// (carrick, probe) are in its path.
func (s State) Exec(ctx context.Context, h Place, args ...string) error {
	cmd, err := s.command(ctx, args)
	if err != nil {
		return err
	}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := startIn(h.PID, allNamespaces(), cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Docker runs the docker command against a host's engine, on this process's
// terminal and in its directory.
func (s State) Docker(ctx context.Context, h Place, args ...string) error {
	cmd, err := s.command(ctx, append([]string{"/usr/bin/docker"}, args...))
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "DOCKER_HOST=unix:///proc/"+strconv.Itoa(h.PID)+"/root/run/docker.sock")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// Output runs a command on a host and returns what it prints.
func (s State) Output(ctx context.Context, h Place, args ...string) (string, error) {
	start := func(cmd *exec.Cmd) error {
		cmd.Dir = "/"
		return startIn(h.PID, allNamespaces(), cmd)
	}
	return run(ctx, h.Name, nil, nil, start, args...)
}

// command prepares a command that may also be one of the lab's programs.
func (s State) command(ctx context.Context, args []string) (*exec.Cmd, error) {
	own := filepath.Join(s.Dir, "bin", filepath.Base(args[0]))
	if _, err := os.Stat(own); err == nil {
		args = append([]string{own}, args[1:]...)
	}
	return newCommand(ctx, []string{
		"PATH=" + filepath.Join(s.Dir, "bin") + ":" + searchPath,
		"TERM=" + os.Getenv("TERM"),
		"DOCKER_CONFIG=" + filepath.Join(s.Dir, "docker-config"),
	}, args...)
}
