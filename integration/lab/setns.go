package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// allNamespaces of a node, in the order they are entered.
func allNamespaces() []string { return []string{"ipc", "uts", "net", "pid", "mnt"} }

// netOnly leaves a command on the machine but for its network, so that it sees
// the machine's process ids.
func netOnly() []string { return []string{"net"} }

// startIn starts cmd inside namespaces of the process pid. The command is a
// child of this process in every respect: its pid here is the one to signal, and
// it must be waited for.
//
// setns(2) works on a thread, and a child inherits the namespaces of the thread
// that forks it. So a thread is spent per command: locked, moved, and, as it can
// never be moved back (a shared fs_struct forbids joining a mount namespace, so
// it was unshared), left locked for the runtime to terminate.
func startIn(pid int, namespaces []string, cmd *exec.Cmd) error {
	files := make([]*os.File, 0, len(namespaces))
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, n := range namespaces {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + n)
		if err != nil {
			return fmt.Errorf("enter namespaces of process %d: %w", pid, err)
		}
		files = append(files, f)
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- fmt.Errorf("unshare the thread's file system attributes: %w", err)
			return
		}
		for i, f := range files {
			if err := unix.Setns(int(f.Fd()), 0); err != nil {
				result <- fmt.Errorf("enter %s namespace of process %d: %w", namespaces[i], pid, err)
				return
			}
		}
		result <- cmd.Start()
	}()
	return <-result
}
