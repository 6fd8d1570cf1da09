package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Compose runs docker compose on the host, with a project file that is at this path
// on the machine and on every host. It returns what a user's terminal shows, standard
// error included: that is where compose tells what it does to networks.
func (h *Host) Compose(ctx context.Context, file string, args ...string) (string, error) {
	l := h.lab
	l.composeOnce.Do(func() {
		// Everybody's: one caller's end must not spoil it.
		l.compose, l.composeErr = tool(context.WithoutCancel(ctx), l.root, "compose")
	})
	if l.composeErr != nil {
		return "", l.composeErr
	}
	home := filepath.Join(h.dir, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return "", err
	}
	env := []string{"HOME=" + home, "DOCKER_HOST=unix:///var/run/docker.sock"}
	both := []string{"/bin/sh", "-c", `exec "$@" 2>&1`, "sh", l.compose, "--progress", "plain", "--file", file}
	out, err := run(ctx, h.name, env, nil, h.start, append(both, args...)...)
	return strings.TrimSpace(out), err
}

// MustCompose is Compose that fails the test.
func (h *Host) MustCompose(t testing.TB, file string, args ...string) string {
	t.Helper()
	out, err := h.Compose(t.Context(), file, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
