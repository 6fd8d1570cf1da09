package lab

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/vmtest"
)

const (
	// guestMemory is for a lab of three hosts and its disks, MiB.
	guestMemory = 6144
	// guestDisk is where such a lab is: what else a guest writes is an overlay, on which
	// no engine can keep its layers.
	guestDisk = "/mnt"
	// guestSlowness is how much longer a wait is there: each instruction is emulated.
	guestSlowness = 6
)

// OnKernelWith runs a test on a kernel that has what it needs: this machine's, or that
// of a virtual machine, which then has the whole lab. It is called by a test first of
// all, as [vmtest.Run] is. The guest has no compiler: the lab's programs are made before.
func OnKernelWith(t *testing.T, feature vmtest.Feature, body func(t *testing.T)) {
	t.Helper()
	if why := Unable(); why != "" {
		t.Skip(why)
	}
	if !vmtest.InGuest() && len(vmtest.Missing(t, feature)) > 0 {
		env, err := Programs(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range env {
			t.Setenv(k, v)
		}
	}
	vmtest.Run(t, vmtest.Needs{Features: []vmtest.Feature{feature}, Memory: guestMemory}, func(t *testing.T) {
		if vmtest.InGuest() {
			if err := unix.Mount("tmpfs", guestDisk, "tmpfs", 0, "size=75%"); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", guestDisk)
		}
		body(t)
	})
}
