package datapath_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// life is what is left of an agent: it dies after a number of effects on the
// kernel. An effect is one netlink message, also in the middle of a batch, or one
// step of giving or taking a namespace's name. From its death on nothing that it
// tries happens.
type life struct {
	mu     sync.Mutex
	left   int // < 0: for ever
	dead   bool
	effect int // so far
}

var errDead = errors.New("the agent is dead")

// spend says whether the agent lives to see one more effect.
func (l *life) spend() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == 0 {
		l.dead = true
	}
	if l.dead {
		return false
	}
	l.left--
	l.effect++
	return true
}

func (l *life) set(left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left, l.effect = left, 0
}

func (l *life) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// mortalKernel is the real kernel as long as the agent lives.
type mortalKernel struct{ *life }

func (k mortalKernel) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	if k.over() {
		return nil, errDead
	}
	h, err := nl.Linux{}.Open(ctx, ns)
	return mortalHandle{h, k.life}, err
}

type mortalHandle struct {
	nl.Handle
	*life
}

func (h mortalHandle) Send(ctx context.Context, changes ...nl.Change) []error {
	var errs []error
	for i, c := range changes {
		err := errDead
		if h.spend() {
			err = errors.Join(h.Handle.Send(ctx, c)...)
		}
		if err == nil {
			continue
		}
		if errs == nil {
			errs = make([]error, len(changes))
		}
		errs[i] = err
	}
	return errs
}

// mortalStore is a directory of namespaces. Each of its verbs is taken apart into
// the steps that netns.Dir makes of it.
type mortalStore struct {
	*netns.Dir
	*life
	path string
}

func (s mortalStore) file(name string) string { return filepath.Join(s.path, name) }

// Create makes a file and mounts the new namespace on it.
func (s mortalStore) Create(ctx context.Context, name string) (netns.Namespace, error) {
	if !s.spend() {
		return nil, errDead
	}
	if err := touch(s.file(name)); err != nil {
		return nil, err
	}
	if !s.spend() {
		return nil, errDead
	}
	return s.Dir.Create(ctx, name)
}

// Pin takes away what has the name, makes a file and mounts the namespace on it.
func (s mortalStore) Pin(ctx context.Context, ns netns.Namespace, name string) error {
	if !s.spend() {
		return errDead
	}
	_ = unix.Unmount(s.file(name), unix.MNT_DETACH) // which may not be there
	if !s.spend() {
		return errDead
	}
	if err := touch(s.file(name)); err != nil {
		return err
	}
	if !s.spend() {
		return errDead
	}
	return s.Dir.Pin(ctx, ns, name)
}

// Delete unmounts the namespace and removes the file.
func (s mortalStore) Delete(ctx context.Context, name string) error {
	if !s.spend() {
		return errDead
	}
	_ = unix.Unmount(s.file(name), unix.MNT_DETACH)
	if !s.spend() {
		return errDead
	}
	return s.Dir.Delete(ctx, name)
}

// mortalFilter is the real packet filter. Each call that changes it is one
// transaction of the kernel's.
type mortalFilter struct {
	nft.Filter
	*life
}

func (f mortalFilter) Set(ctx context.Context, ns netns.Namespace, c nft.Clamp) error {
	if !f.spend() {
		return errDead
	}
	return f.Filter.Set(ctx, ns, c)
}

func (f mortalFilter) Remove(ctx context.Context, ns netns.Namespace, t nft.Table) error {
	if !f.spend() {
		return errDead
	}
	return f.Filter.Remove(ctx, ns, t)
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}
