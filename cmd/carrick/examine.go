package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick/plan"
	"github.com/carrick-net/carrick/status"
)

// examine looks at what only the host itself can tell, and changes nothing. root
// is where /proc, /sys and /lib are.
func examine(root string) []status.Checked {
	return []status.Checked{examineModules(root), examineNamespaces(root), examineLimits(root)}
}

// examineModules says whether the kernel has what Carrick makes: loaded, built in,
// or on the disk to be loaded.
func examineModules(root string) status.Checked {
	const what = "kernel"
	release := strings.TrimSpace(read(root, "proc/sys/kernel/osrelease"))
	onDisk := read(root, filepath.Join("lib/modules", release, "modules.builtin")) + read(root, filepath.Join("lib/modules", release, "modules.dep"))
	loaded := read(root, "proc/modules")
	var missing []string
	for _, m := range []string{"bridge", "vxlan", "veth"} {
		_, err := os.Stat(filepath.Join(root, "sys/module", m))
		if err != nil && !strings.HasPrefix(loaded, m+" ") && !strings.Contains(loaded, "\n"+m+" ") && !strings.Contains(onDisk, "/"+m+".ko") {
			missing = append(missing, m)
		}
	}
	switch {
	case len(missing) == 0:
		return status.OK(what, "%s has bridge, vxlan and veth", release)
	case onDisk == "":
		return status.Note(what, "cannot tell whether %s has %s: nothing says what is built into it", release, strings.Join(missing, ", "))
	}
	return status.Bad(what, "install the distribution's whole kernel package (linux-modules-extra on cloud images), then modprobe "+strings.Join(missing, " "),
		"%s has no %s", release, strings.Join(missing, ", "))
}

// examineNamespaces says whether namespaces mounted in /run/netns are seen by all.
func examineNamespaces(root string) status.Checked {
	const what, dir = "namespaces", "/run/netns"
	s := bufio.NewScanner(strings.NewReader(read(root, "proc/self/mountinfo")))
	for s.Scan() {
		// 36 35 98:0 /root /mount/point options shared:1 - type source super
		f := strings.Fields(s.Text())
		if len(f) < 7 || f[4] != dir {
			continue
		}
		if slices.ContainsFunc(f[6:], func(x string) bool { return strings.HasPrefix(x, "shared:") }) {
			return status.OK(what, "%s is a shared mount", dir)
		}
		return status.Bad(what, "mount --make-shared "+dir, "%s is mounted and not shared: namespaces made there are not seen by all", dir)
	}
	return status.OK(what, "%s is not there yet: the first container's network makes it", dir)
}

// examineLimits looks at the limits that the agent raises: it may not be allowed
// to.
func examineLimits(root string) status.Checked {
	const what = "limits"
	var low []string
	known := false
	for _, l := range plan.HostLimits() {
		is, err := strconv.Atoi(strings.TrimSpace(read(root, filepath.Join("proc/sys", strings.ReplaceAll(l.Name, ".", "/")))))
		if err != nil {
			continue
		}
		known = true
		if is < l.Least {
			low = append(low, l.Name+"="+strconv.Itoa(l.Least))
		}
	}
	switch {
	case !known:
		return status.OK(what, "of the neighbour tables are another namespace's: nothing to look at here")
	case len(low) > 0:
		return status.Note(what, "of the neighbour tables, which all containers share, are low for many containers that talk to many: sysctl -w %s", strings.Join(low, " "))
	}
	return status.OK(what, "of the neighbour tables are high enough")
}

// read is a file's content, "" if there is none.
func read(root, name string) string {
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return ""
	}
	return string(b)
}
