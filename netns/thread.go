package netns

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// offMain runs fn on a goroutine locked to an OS thread that is not the
// process's first, and returns when fn has. fn says whether the thread is clean
// and may be used again; else it ends with the goroutine.
//
// The first thread cannot end: the runtime parks it for ever, in whatever
// namespace it is in, which would keep that namespace alive, and would make
// /proc/self/ns/net show the wrong one.
func offMain(fn func() (clean bool)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// This goroutine holds the first thread, so the next gets another.
			offMain(fn)
			runtime.UnlockOSThread()
			return
		}
		if fn() {
			runtime.UnlockOSThread()
		}
	}()
	<-done
}

// newNamespace makes a namespace without a name.
func newNamespace(name string) (h *handle, err error) {
	offMain(func() bool {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("unshare: %w", err)
			return true
		}
		h, err = openFile(selfPath, name)
		return false
	})
	return h, err
}

// Do runs fn with the calling thread inside ns, and returns fn's error.
//
// fn runs on a goroutine and OS thread of its own, which is given back to the
// Go runtime only after it has returned to the namespace it came from;
// otherwise the thread ends. Goroutines that fn starts do not run inside ns. fn
// must not call runtime.Goexit (so not t.Fatal), and a panic in it ends the
// program.
func Do(ns Namespace, fn func() error) (err error) {
	offMain(func() bool {
		home, oerr := openFile(selfPath, "")
		if oerr != nil {
			err = fmt.Errorf("enter network namespace %s: %w", ns.ID(), oerr)
			return true
		}
		defer home.Close()
		if serr := unix.Setns(ns.FD(), unix.CLONE_NEWNET); serr != nil {
			err = fmt.Errorf("enter network namespace %s: %w", ns.ID(), serr)
			return true
		}
		err = fn()
		return unix.Setns(home.FD(), unix.CLONE_NEWNET) == nil
	})
	return err
}
