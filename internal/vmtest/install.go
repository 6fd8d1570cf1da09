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
	if d := os.Getenv(envDir); d != "" {
		return d, nil
	}
	for d := dir; ; d = filepath.Dir(d) {
		script := filepath.Join(d, "tools", "install.sh")
		if _, err := os.Stat(script); err == nil {
			return install(ctx, script)
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("a virtual machine's files are %w: there is no tools/install.sh above %s; set %s to a directory it made", ErrNotInstalled, dir, envDir)
		}
	}
}

func install(ctx context.Context, script string) (string, error) {
	out, err := exec.CommandContext(ctx, script, "vm").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("a virtual machine's files are %w: %s vm: %w\n%s", ErrNotInstalled, script, err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("%s vm: %w", script, err)
	}
	return strings.TrimSpace(string(out)), nil
}
