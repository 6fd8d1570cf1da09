package nl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// SetSysctl gives a setting of the namespace a value. It is the one change that
// is no netlink message: the kernel takes it by /proc/sys alone.
type SetSysctl struct {
	Name  string // as sysctl(8) has it: net.ipv6.conf.vxlan0.disable_ipv6
	Value string
}

func (SetSysctl) isChange() {}

// Command is `sysctl -w NAME=VALUE`.
func (c SetSysctl) Command(ns string) string {
	if ns == "" {
		return fmt.Sprintf("sysctl -w %s=%s", c.Name, c.Value)
	}
	return fmt.Sprintf("ip netns exec %s sysctl -w %s=%s", ns, c.Name, c.Value)
}

// procSys shows the settings of the namespace that the calling thread is in
// (proc_sys_lookup, by current->nsproxy->net_ns).
const procSys = "/proc/sys"

// sysctlPath is a setting's file. Names come from plans; one that would leave
// the tree is nobody's.
func sysctlPath(name string) (string, error) {
	p := strings.ReplaceAll(name, ".", "/")
	if !strings.HasPrefix(p, "net/") || path.Clean(p) != p {
		return "", fmt.Errorf("sysctl %q: %w", name, unix.EINVAL)
	}
	return path.Join(procSys, p), nil
}

func (h *handle) Sysctls(ctx context.Context, names ...string) (map[string]string, error) {
	out := make(map[string]string, len(names))
	if len(names) == 0 {
		return out, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err := netns.Do(h.ns, func() error {
		for _, n := range names {
			file, err := sysctlPath(n)
			if err != nil {
				return err
			}
			v, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read sysctl %s: %w", n, err)
			}
			out[n] = strings.TrimSpace(string(v))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// setSysctl writes one. The file is never made: an unknown name is ErrNotFound.
func (h *handle) setSysctl(ctx context.Context, c SetSysctl) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	op := c.Command(h.ns.Name())
	file, err := sysctlPath(c.Name)
	if err != nil {
		return err
	}
	err = netns.Do(h.ns, func() error {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(c.Value)
		return errors.Join(err, f.Close())
	})
	var errno unix.Errno
	if errors.As(err, &errno) {
		return NewOpError(op, errno, "", "")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// Send sends netlink messages in batches, and writes settings in between where
// the order says so.
func (h *handle) Send(ctx context.Context, changes ...Change) []error {
	var errs []error
	fail := func(i int, err error) {
		if err == nil {
			return
		}
		if errs == nil {
			errs = make([]error, len(changes))
		}
		errs[i] = err
	}
	from := 0
	flush := func(to int) {
		if from < to {
			for i, err := range h.sock.send(ctx, changes[from:to]) {
				fail(from+i, err)
			}
		}
		from = to + 1
	}
	for i, c := range changes {
		if s, ok := c.(SetSysctl); ok {
			flush(i)
			fail(i, h.setSysctl(ctx, s))
		}
	}
	flush(len(changes))
	return errs
}
