package vmtest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/vmtest"
)

// envFail makes TestThatFails do so.
const envFail = "CARRICK_VMTEST_FAIL"

// The guest has all that a test can ask for: else this fails in there.
func TestTheGuestHasEveryFeature(t *testing.T) {
	t.Parallel()
	vmtest.Run(t, vmtest.Needs{Features: vmtest.Features()}, func(t *testing.T) {
		kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("on Linux %s", kernel)
	})
}

// TestThatFails is run by TestAFailureInTheGuest.
func TestThatFails(t *testing.T) {
	if os.Getenv(envFail) == "" {
		return
	}
	vmtest.Run(t, vmtest.Needs{Features: vmtest.Features()}, func(t *testing.T) {
		t.Run("good", func(t *testing.T) { t.Log("nothing is wrong") })
		t.Run("bad", func(t *testing.T) {
			t.Run("worse", func(t *testing.T) { t.Fatal("a fact is not one") })
		})
		t.Run("skipped", func(t *testing.T) { t.Skip("no frobnication") })
	})
}

// What fails in the guest fails here, under the same name and with what it said.
func TestAFailureInTheGuest(t *testing.T) {
	t.Parallel()
	nstest.RequireRoot(t)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run=^TestThatFails$")
	cmd.Env = append(os.Environ(), envFail+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("it passed")
	}
	for _, want := range []string{
		"--- FAIL: TestThatFails (", "--- PASS: TestThatFails/good (", "--- FAIL: TestThatFails/bad/worse (", "--- SKIP: TestThatFails/skipped (",
		"nothing is wrong", "a fact is not one", "no frobnication",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in its output:\n%s", want, out)
		}
	}
}
