// Package hostinit is the first process of a simulated host: it turns a set of
// fresh namespaces into something a Docker engine and an agent take for a
// machine of their own, and then does what a pid 1 must do, namely outlive
// everybody and reap the orphans (containerd's shims are reparented to it).
//
// It knows nothing of networks, engines or labs: it mounts what [Config] says.
// It is linked into its own small binary, because a pid 1 that reaps every child
// must not share a process with code that waits for children.
package hostinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Config is what the first process of a host is told, as JSON in its only
// argument.
type Config struct {
	// Hostname is the host's name in its own UTS namespace.
	Hostname string
	// Scratch is an existing directory of the host's own, used while mounting.
	Scratch string
	// Overlays make a directory of the machine private to the host: reads fall
	// through to the machine's, writes go to Upper.
	Overlays []Overlay
	// Binds are mounted after the overlays; the target is made if it is missing.
	Binds []Bind
}

// Overlay is one overlayfs mount over At, whose lower layer is At itself. Upper
// and Work are existing directories on one filesystem.
type Overlay struct{ At, Upper, Work string }

// Bind mounts the directory From on the directory At.
type Bind struct{ From, At string }

// Setup makes the calling process's mount namespace that of a host. The process
// must be alone in fresh mount, pid, uts, ipc and network namespaces. The
// result, seen from inside: /proc of the pid namespace, /sys of the network
// namespace with the machine's cgroup tree, an empty /run, and every mount
// shared among the host's own mount namespaces, as on a machine run by systemd
// (managed plugins and agents in namespaces of their own rely on it).
func Setup(c Config) error {
	// Cut off first: whatever is mounted here must not appear on the machine,
	// nor the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make every mount private: %w", err)
	}
	if err := detachForeign(); err != nil {
		return err
	}
	if c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", c.Hostname, err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := mountSys(c.Scratch); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, d := range []string{"/run/lock", "/run/docker/plugins"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, o := range c.Overlays {
		opts := "lowerdir=" + o.At + ",upperdir=" + o.Upper + ",workdir=" + o.Work
		if err := unix.Mount("overlay", o.At, "overlay", 0, opts); err != nil {
			return fmt.Errorf("mount overlay on %s: %w", o.At, err)
		}
	}
	for _, b := range c.Binds {
		if err := os.MkdirAll(b.At, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(b.From, b.At, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on %s: %w", b.From, b.At, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make every mount shared: %w", err)
	}
	return nil
}

// detachForeign drops the namespace files that were inherited with the mount
// table: held here, they would keep other people's network namespaces alive
// after they were deleted.
func detachForeign() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(b), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		if !ok || !strings.HasPrefix(after, "nsfs ") {
			continue
		}
		f := strings.Fields(before)
		if len(f) < 5 {
			continue
		}
		if err := unix.Unmount(unescape(f[4]), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach %s: %w", f[4], err)
		}
	}
	return nil
}

// unescape undoes the octal escapes of proc(5)'s mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mountSys replaces /sys by one that shows this network namespace, and puts the
// machine's cgroup tree back into it.
func mountSys(scratch string) error {
	keep := filepath.Join(scratch, "cgroup")
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", keep, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep the cgroup tree: %w", err)
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount(keep, "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("put the cgroup tree back: %w", err)
	}
	if err := unix.Unmount(keep, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", keep, err)
	}
	return nil
}
