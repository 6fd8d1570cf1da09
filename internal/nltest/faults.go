package nltest

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrCrashed is what everything returns after CrashAfter's messages: the agent
// is dead, and whatever it still tries does not happen.
var ErrCrashed = errors.New("nltest: the agent has crashed")

type faults struct {
	sent    int // messages so far
	at      map[int]unix.Errno
	named   map[string]unix.Errno
	limit   int // crash after that many; 0 = never
	crashed bool
}

// FailMessage makes the nth message from now (1 is the next) fail with errno.
// Messages are changes: of links and rows, and of namespaces' names.
func (k *Kernel) FailMessage(n int, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.faults.at == nil {
		k.faults.at = map[int]unix.Errno{}
	}
	k.faults.at[k.faults.sent+n] = errno
}

// FailNext makes the next operation of that name fail: the name of a change's
// type (AddVXLAN), of a handle's listing (Links, FDB, Neighbours, NSID,
// Subscribe, OpenHandle) or of a store's method (Create, Open, Pin, List,
// Delete, Host).
func (k *Kernel) FailNext(op string, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.faults.named == nil {
		k.faults.named = map[string]unix.Errno{}
	}
	k.faults.named[op] = errno
}

// CrashAfter lets n more messages through; from then on everything fails.
func (k *Kernel) CrashAfter(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.limit = k.faults.sent + n + 1
}

// Recover ends a crash and forgets all faults not yet met: a new agent starts.
// What the dead one had open is closed, as the kernel does.
func (k *Kernel) Recover() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.faults.crashed {
		for r := range k.opened {
			k.drop(r)
		}
	}
	k.faults = faults{sent: k.faults.sent}
}

// Messages is how many messages there have been, failed ones included.
func (k *Kernel) Messages() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.faults.sent
}

// Without takes a module out of the kernel: bridge, vxlan or veth.
func (k *Kernel) Without(module string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.missing[module] = true
}

// TakePort lets another program hold a UDP port, or let it go.
func (k *Kernel) TakePort(port uint16, taken bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ports[port] = taken
}

// TakeLog is the messages that were sent since the last TakeLog, as commands;
// failed ones with their error behind a #.
func (k *Kernel) TakeLog() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.log
	k.log = nil
	return out
}

// message counts a message and says whether it may go through. Called with mu
// held, as read is.
func (k *Kernel) message(ctx context.Context, name, op string) error {
	if k.faults.limit != 0 && k.faults.sent+1 >= k.faults.limit {
		k.faults.crashed = true
	}
	err := k.read(ctx, name)
	if errors.Is(err, ErrCrashed) {
		return err
	}
	k.faults.sent++
	if e, ok := k.faults.at[k.faults.sent]; ok && err == nil {
		err = e
	}
	if err != nil {
		var e unix.Errno
		if errors.As(err, &e) {
			err = errno(op, e, "injected", nil)
		}
		k.log = append(k.log, fmt.Sprintf("%s # %v", op, err))
		return err
	}
	k.log = append(k.log, op)
	return nil
}

// read says whether an operation that changes nothing may go through.
func (k *Kernel) read(ctx context.Context, name string) error {
	if k.faults.crashed {
		return ErrCrashed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if e, ok := k.faults.named[name]; ok {
		delete(k.faults.named, name)
		return errno(name, e, "injected", nil)
	}
	return nil
}
