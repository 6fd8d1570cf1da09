package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// envDir names a directory to boot instead of what tools/install.sh prints.
const envDir = "CARRICK_VM"

// bootDir is the directory that guests boot, made if it is not there. dir is within
// the project's tree.
func bootDir(ctx context.Context, dir string) (string, error) {
	return installed(ctx, dir, "vm", envDir)
}

// installed is what tools/install.sh prints for a tool, which it makes if it is not
// there; or what an environment variable says instead.
func installed(ctx context.Context, dir, tool, env string) (string, error) {
	if d := os.Getenv(env); d != "" {
		return d, nil
	}
	for d := dir; ; d = filepath.Dir(d) {
		script := filepath.Join(d, "tools", "install.sh")
		if _, err := os.Stat(script); err == nil {
			return install(ctx, script, tool)
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("a virtual machine's files are %w: there is no tools/install.sh above %s; set %s to what its %s prints", ErrNotInstalled, dir, env, tool)
		}
	}
}

func install(ctx context.Context, script, tool string) (string, error) {
	out, err := exec.CommandContext(ctx, script, tool).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("a virtual machine's files are %w: %s %s: %w\n%s", ErrNotInstalled, script, tool, err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", script, tool, err)
	}
	return strings.TrimSpace(string(out)), nil
}
