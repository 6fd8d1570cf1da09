package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/internal/vmtest"
)

// machine is one that boots.
func machine(t *testing.T) vmtest.Machine {
	t.Helper()
	nstest.RequireRoot(t)
	out, err := exec.CommandContext(t.Context(), "../../tools/install.sh", "vm").Output()
	if err != nil {
		t.Fatalf("tools/install.sh vm: %v", err)
	}
	return vmtest.Machine{Dir: strings.TrimSpace(string(out)), Memory: 512}
}

func shell(script string) vmtest.Command {
	return vmtest.Command{Args: []string{"sh", "-c", script}}
}

// A command in the guest finds the host's files, writes where it may, and its output
// and exit code come back as they are.
func TestACommandRunsAsOnTheHost(t *testing.T) {
	t.Parallel()
	m := machine(t)
	kept, lost, started := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(lost, "read"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Writable, m.Modules = []string{kept}, []string{"ipvlan"}
	var out bytes.Buffer
	c := shell(`pwd
		cat "$LOST/read"
		echo kept >"$KEPT/file" && echo lost >"$LOST/read" && cat "$LOST/read"
		test -d /sys/module/ipvlan && echo 'a module'
		echo 'and errors' >&2
		exit 37`)
	c.Dir, c.Env, c.Out = started, []string{"KEPT=" + kept, "LOST=" + lost}, &out
	res, err := m.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if res.Code != 37 {
		t.Errorf("exit code %d, not 37; the kernel said:\n%s", res.Code, res.Log)
	}
	if want := started + "\nof the host\nlost\na module\nand errors\n"; out.String() != want {
		t.Errorf("output %q, not %q", out.String(), want)
	}
	for file, want := range map[string]string{filepath.Join(kept, "file"): "kept\n", filepath.Join(lost, "read"): "of the host\n"} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s on the host: %q, %v; not %q", file, b, err, want)
		}
	}
}

// A guest that ends without its command's exit code is not taken for one that failed.
func TestAGuestThatDoesNotReport(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		modules      []string
		want         error
		says         string
	}{
		{"the kernel panics", "echo c >/proc/sysrq-trigger", nil, vmtest.ErrPanic, "sysrq triggered crash"},
		{"it is switched off", "echo o >/proc/sysrq-trigger; read -r never </dev/zero", nil, vmtest.ErrNoReport, "Power down"},
		{"it cannot be prepared", "exit 0", []string{"nosuchmodule"}, vmtest.ErrNoReport, "nosuchmodule"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := machine(t)
			m.Modules = c.modules
			_, err := m.Run(t.Context(), shell(c.script))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v\nis not %q with %q", err, c.want, c.says)
			}
			if errors.Is(err, vmtest.ErrPanic) && errors.Is(err, vmtest.ErrNoReport) {
				t.Errorf("%v is two things at once", err)
			}
		})
	}
}

// onOutput calls itself when something is written.
type onOutput func()

func (f onOutput) Write(b []byte) (int, error) {
	f()
	return len(b), nil
}

// A command that hangs ends with the context, and its guest with it.
func TestAGuestThatHangs(t *testing.T) {
	t.Parallel()
	m := machine(t)
	late := errors.New("the time is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	c := shell("echo running; exec sleep 1000000")
	c.Out = onOutput(func() { cancel(late) })
	if _, err := m.Run(ctx, c); !errors.Is(err, late) || errors.Is(err, vmtest.ErrNoReport) {
		t.Errorf("%v is not %q alone", err, late)
	}
}

// What is missing is told from a guest that fails.
func TestWhatIsNotInstalled(t *testing.T) {
	t.Parallel()
	m := machine(t)
	m.QEMU = "no-such-qemu"
	empty := vmtest.Machine{Dir: t.TempDir()}
	for _, m := range []vmtest.Machine{m, empty} {
		if _, err := m.Run(t.Context(), shell("exit 0")); !errors.Is(err, vmtest.ErrNotInstalled) {
			t.Errorf("%+v: %v is not %q", m, err, vmtest.ErrNotInstalled)
		}
	}
	m = machine(t)
	m.QEMUArgs = []string{"-device", "no-such-device"}
	_, err := m.Run(t.Context(), shell("exit 0"))
	if !errors.Is(err, vmtest.ErrNoReport) || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("%v does not say that QEMU refused no-such-device", err)
	}
}
