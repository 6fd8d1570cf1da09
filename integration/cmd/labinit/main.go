// Command labinit is pid 1 of a simulated host; see the package hostinit. It is
// started by the lab with its configuration as its argument, a pipe that says
// "ready" on descriptor 3, and a pipe on its standard input whose other end the
// lab holds: when that closes, because the lab ended or died, labinit exits, and
// the kernel kills every process of the host with it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/integration/lab/hostinit"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "labinit:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 || os.Getpid() != 1 {
		return fmt.Errorf("this is the first process of a simulated host and is started by the lab only")
	}
	var c hostinit.Config
	if err := json.Unmarshal([]byte(os.Args[1]), &c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	// Before anything can die in here.
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)

	if err := hostinit.Setup(c); err != nil {
		return err
	}
	ready := os.NewFile(3, "ready")
	if _, err := ready.WriteString("ready\n"); err != nil {
		return fmt.Errorf("report ready: %w", err)
	}
	if err := ready.Close(); err != nil {
		return fmt.Errorf("report ready: %w", err)
	}

	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	for {
		select {
		case <-gone:
			return nil
		case <-children:
			reap()
		}
	}
}

// reap collects every child that has ended; one SIGCHLD may stand for many.
func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
