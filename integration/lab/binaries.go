package lab

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// moduleRoot finds the project's directory from the working directory, which for
// a test is its package's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		b, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module github.com/carrick-net/carrick\n") {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside the project's tree", dir)
		}
	}
}

// tool returns the path of a program that is not part of Debian, built from one
// of the modules under tools/: CARRICK_NAME if set, else what tools/install.sh
// prints.
func tool(ctx context.Context, root, name string) (string, error) {
	key := variable(name)
	if p := os.Getenv(key); p != "" {
		return p, checkProgram(p, key)
	}
	script := filepath.Join(root, "tools", "install.sh")
	if _, err := os.Stat(script); err != nil {
		return "", fmt.Errorf("no %s: set %s, or have tools/install.sh build it: %w", name, key, err)
	}
	cmd := exec.CommandContext(ctx, script, name)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			return "", fmt.Errorf("tools/install.sh %s: %w\n%s", name, err, ee.Stderr)
		}
		return "", fmt.Errorf("tools/install.sh %s: %w", name, err)
	}
	// A module may have several programs, one a line; its own comes first.
	p, _, _ := strings.Cut(string(out), "\n")
	return p, checkProgram(p, "tools/install.sh "+name)
}

func checkProgram(p, from string) error {
	st, err := os.Stat(p)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s: %s is not a program", from, p)
	}
	return nil
}

// debianProgram returns a program of a Debian package, or says which is missing.
func debianProgram(path, pkg string) (string, error) {
	if err := checkProgram(path, "package "+pkg); err != nil {
		return "", fmt.Errorf("%w (apt-get install --no-install-recommends %s)", err, pkg)
	}
	return path, nil
}

// Programs makes what labs are made of in a directory, once and for all, and returns the
// variables of the environment, by name, with which a lab takes it from there: for a
// machine that has no compiler, such as a virtual one.
func Programs(ctx context.Context, dir string) (map[string]string, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, name := range []string{"consul", "dockerd", "runc"} {
		if env[variable(name)], err = tool(ctx, root, name); err != nil {
			return nil, err
		}
	}
	for name, pkg := range map[string]string{"labinit": pkgLabinit, "probe": pkgProbe, "bin": pkgCarrick} {
		out := filepath.Join(dir, name)
		if err := provide(ctx, root, pkg, name, out, false); err != nil {
			return nil, err
		}
		env[variable(name)] = out
	}
	return env, nil
}

// The project's own commands that a lab has.
const (
	pkgLabinit = "./integration/cmd/labinit"
	pkgProbe   = "./integration/lab/probe"
	pkgCarrick = "./cmd/carrick"
)

// variable is the variable of the environment that says where a program is.
func variable(name string) string {
	return "CARRICK_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// provide puts one of the project's commands at out: a link to what its variable says,
// or built from the tree.
func provide(ctx context.Context, root, pkg, name, out string, race bool) error {
	if p := os.Getenv(variable(name)); p != "" {
		return errors.Join(checkProgram(p, variable(name)), os.Symlink(p, out))
	}
	return build(ctx, root, pkg, out, race)
}

// build compiles one of the project's commands to out. Static unless race, which
// needs cgo.
func build(ctx context.Context, root, pkg, out string, race bool) error {
	args := []string{"build", "-o", out}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir, cmd.Env = root, env
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

// isStatic says whether a program runs without a dynamic linker.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}
