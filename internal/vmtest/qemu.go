package vmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kernelArgs are what every guest's kernel is told.
func kernelArgs() []string {
	return []string{
		"console=ttyS0", "loglevel=4",
		// A panic ends QEMU, which is told not to reboot.
		"panic=-1", "oops=panic",
		// What costs time and says nothing in an emulated machine.
		"mitigations=off", "no5lvl", "nokaslr", "cryptomgr.notests", "random.trust_cpu=on",
		// Namespaces and links go away in milliseconds: nobody else needs the CPU.
		"rcupdate.rcu_expedited=1",
	}
}

// qemuArgs are QEMU's arguments for a guest whose own directory, shared with it,
// is run.
func (m Machine) qemuArgs(run string) ([]string, error) {
	modules, err := m.modules()
	if err != nil {
		return nil, err
	}
	memory, cpus := m.Memory, m.CPUs
	if memory == 0 {
		memory = defaultMemory
	}
	if cpus == 0 {
		cpus = defaultCPUs
	}
	words := append(kernelArgs(), "carrick.modules="+modules)
	words = append(words, m.KernelArgs...)
	args := []string{
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(m.Dir, "vmlinux"),
		"-initrd", filepath.Join(m.Dir, "initramfs"),
		"-append", strings.Join(words, " "),
		// The command's output is QEMU's; the kernel's log is a file.
		"-chardev", "stdio,id=out,signal=off",
		"-device", "virtio-serial-pci", "-device", "virtconsole,chardev=out",
		"-serial", "file:" + run + "/console",
	}
	args = append(args, share("host", "/", ",readonly=on")...)
	args = append(args, share("run", run, "")...)
	for i, dir := range m.Writable {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("writable directory %q is not absolute", dir)
		}
		args = append(args, share(tag(i), dir, "")...)
	}
	return append(args, m.QEMUArgs...), nil
}

// share gives the guest a directory of the host under a tag. Inode numbers of
// several file systems below it are told apart.
func share(tag, dir, more string) []string {
	return []string{
		"-fsdev", "local,id=" + tag + ",path=" + strings.ReplaceAll(dir, ",", ",,") + ",security_model=none,multidevs=remap" + more,
		"-device", "virtio-9p-pci,fsdev=" + tag + ",mount_tag=" + tag,
	}
}

func tag(i int) string { return "writable" + strconv.Itoa(i) }

// modules finds the directory of the kernel's modules.
func (m Machine) modules() (string, error) {
	parent := filepath.Join(m.Dir, "lib", "modules")
	list, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s: %w: tools/install.sh vm makes and prints such a directory", parent, ErrNotInstalled)
	}
	if err != nil {
		return "", err
	}
	if len(list) != 1 {
		return "", fmt.Errorf("%s has %d versions and should have one", parent, len(list))
	}
	dir := filepath.Join(parent, list[0].Name())
	if strings.ContainsAny(dir, " \t\"") {
		return "", fmt.Errorf("%q cannot be told to the kernel: its command line has spaces between words", dir)
	}
	return dir, nil
}

// prepare is the script that a guest runs before the command. If it fails, there
// is no report, and what it says is in the kernel's log.
func (m Machine) prepare() string {
	var b strings.Builder
	b.WriteString("set -e\n")
	for i, dir := range m.Writable {
		fmt.Fprintf(&b, "mkdir -p %s\n", quote(dir))
		fmt.Fprintf(&b, "mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none %s %s\n", tag(i), quote(dir))
	}
	for _, name := range m.Modules {
		fmt.Fprintf(&b, "modprobe %s\n", quote(name))
	}
	return b.String()
}

// script is the command for the guest's shell.
func (c Command) script() string {
	var b strings.Builder
	for _, kv := range c.Env {
		key, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "export %s=%s\n", key, quote(value))
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	fmt.Fprintf(&b, "cd %s || exit 126\nexec", quote(dir))
	for _, arg := range c.Args {
		b.WriteString(" " + quote(arg))
	}
	b.WriteString("\n")
	return b.String()
}

// quote makes one word of a POSIX shell of any string.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
