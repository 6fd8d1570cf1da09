package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/integration/lab/hostinit"
)

// node is a set of namespaces with a first process: the body of a host, of a
// Consul server and of the underlay.
type node struct {
	name string
	dir  string // on the machine: its disk, its logs
	init string // the labinit binary

	mu   sync.Mutex // guards what follows
	cmd  *exec.Cmd  // the first process; nil = powered off
	pid  int
	life io.Closer     // closing it ends the node
	gone chan struct{} // closed when the first process has been waited for
}

// errOff is what everything asked of a node without power returns.
var errOff = errors.New("powered off")

// disk is where a node's private part of /etc, /var/lib and so on is kept.
func (n *node) disk(name string) string { return filepath.Join(n.dir, "disk", name) }

// powerOn makes the namespaces and waits until the first process has set them
// up. The network namespace has nothing but a loopback device that is down.
func (n *node) powerOn(ctx context.Context, c hostinit.Config) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return fmt.Errorf("%s: power on: is on already", n.name)
	}
	c.Scratch = filepath.Join(n.dir, "scratch")
	dirs := []string{c.Scratch}
	for _, o := range c.Overlays {
		dirs = append(dirs, o.Upper, o.Work)
	}
	for _, b := range c.Binds {
		dirs = append(dirs, b.From)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	arg, err := json.Marshal(c)
	if err != nil {
		return err
	}
	logf, err := os.OpenFile(filepath.Join(n.dir, "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = logf.Close() }()
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = lifeR.Close() }()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		_ = lifeW.Close()
		return err
	}
	defer func() { _ = readyR.Close() }()

	cmd := exec.Command(n.init, string(arg))
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = lifeR, logf, logf
	cmd.ExtraFiles = []*os.File{readyW}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		// A terminal's Ctrl-C is the lab's to handle, not the hosts'.
		Setsid: true,
	}
	err = cmd.Start()
	_ = readyW.Close()
	if err != nil {
		_ = lifeW.Close()
		return fmt.Errorf("%s: start the first process: %w", n.name, err)
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	stop := context.AfterFunc(ctx, func() { _ = readyR.Close() })
	defer stop()
	if line, err := bufio.NewReader(readyR).ReadString('\n'); err != nil || line != "ready\n" {
		_ = lifeW.Close()
		_ = cmd.Process.Kill()
		<-gone
		return fmt.Errorf("%s: power on failed: %s", n.name, tail(logf.Name(), 0, 10))
	}
	n.cmd, n.pid, n.life, n.gone = cmd, cmd.Process.Pid, lifeW, gone
	return nil
}

// powerOff kills the first process and thereby, at once, all others. It returns
// when they are gone; off already is fine.
func (n *node) powerOff() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	// The kernel reports the end of a pid namespace's first process after it
	// has killed and reaped all the others.
	<-n.gone
	_ = n.life.Close()
	n.cmd, n.pid, n.life, n.gone = nil, 0, nil, nil
}

// initPID returns the first process's id on the machine, or errOff.
func (n *node) initPID() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid == 0 {
		return 0, fmt.Errorf("%s: %w", n.name, errOff)
	}
	return n.pid, nil
}

// start starts cmd in the node's namespaces.
func (n *node) start(cmd *exec.Cmd) error {
	pid, err := n.initPID()
	if err != nil {
		return err
	}
	cmd.Dir = "/"
	return startIn(pid, allNamespaces(), cmd)
}

// startNet starts cmd in the node's network namespace only.
func (n *node) startNet(cmd *exec.Cmd) error {
	pid, err := n.initPID()
	if err != nil {
		return err
	}
	return startIn(pid, netOnly(), cmd)
}

// exec runs a command in the node and returns its standard output. The error is
// a *CommandError with everything it printed.
func (n *node) exec(ctx context.Context, args ...string) (string, error) {
	return run(ctx, n.name, nil, nil, n.start, args...)
}

// feed is exec with standard input.
func (n *node) feed(ctx context.Context, stdin string, args ...string) (string, error) {
	return run(ctx, n.name, nil, []byte(stdin), n.start, args...)
}

// path returns where a file of the node is seen from the machine. Sockets can be
// dialled there as well.
func (n *node) path(p string) (string, error) {
	pid, err := n.initPID()
	if err != nil {
		return "", err
	}
	return "/proc/" + strconv.Itoa(pid) + "/root" + p, nil
}
