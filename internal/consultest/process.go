package consultest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// errEnded: the server ended by itself before it served.
var errEnded = errors.New("consul ended")

// process is a running server.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// spawn starts a process that dies with this one. The kernel sends the death
// signal when the thread that started the process ends, not the process of that
// thread (prctl(2), PR_SET_PDEATHSIG), so the thread is kept until the child is
// gone.
func spawn(log, name string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = clean(os.Environ())
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // until the goroutine, and with it the thread, ends
		err := p.cmd.Start()
		_ = out.Close()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("consultest: start %s: %w", name, err)
	}
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.ended
}

// stopped waits until every thread of the process has stopped. A signal is only
// on its way when kill(2) returns.
func (p *process) stopped(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		if err != nil || len(stats) == 0 {
			return fmt.Errorf("consultest: no threads of process %d: %w", p.cmd.Process.Pid, errEnded)
		}
		running := 0
		for _, path := range stats {
			b, err := os.ReadFile(path)
			// "pid (name) state ...", proc(5); a thread may be gone by now.
			if i := bytes.LastIndexByte(b, ')'); err == nil && i >= 0 && !bytes.HasPrefix(b[i:], []byte(") T")) {
				running++
			}
		}
		if running == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// clean drops what would configure the server behind the test's back.
func clean(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "CONSUL_") {
			out = append(out, e)
		}
	}
	return out
}

// ready waits until the server reads consistently, has its node in the catalog
// (without which it makes no session), and writes.
func (s *Server) ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		if err = s.serves(ctx); err == nil {
			return nil
		}
		select {
		case <-s.proc.ended:
			return fmt.Errorf("%w before it served", errEnded)
		case <-ctx.Done():
			return fmt.Errorf("consul at %s does not serve: %w", s.Addr(), err)
		case <-tick.C:
		}
	}
}

// tryLimit bounds one try to be served. A question that a server passes on to a leader that
// goes away at this moment may never be answered, and the next one is.
const tryLimit = 10 * time.Second

func (s *Server) serves(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	if err := s.inCatalog(ctx); err != nil {
		return err
	}
	var ok bool
	if err := s.ask(ctx, http.MethodPut, "/v1/kv/consultest/ready-"+s.node, &ok); err != nil {
		return err
	}
	if !ok {
		return errors.New("a write was refused")
	}
	return s.ask(ctx, http.MethodDelete, "/v1/kv/consultest/ready-"+s.node, &ok)
}

// inCatalog says whether this server and all of its cluster are in the catalog.
func (s *Server) inCatalog(ctx context.Context) error {
	var nodes []struct{ Node string }
	if err := s.ask(ctx, http.MethodGet, "/v1/catalog/nodes?consistent", &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Node == s.node && len(nodes) == len(s.peers)+1 {
			return nil
		}
	}
	return fmt.Errorf("catalog has %v", nodes)
}

// ask makes one request of the HTTP API.
func (s *Server) ask(ctx context.Context, method, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Addr()+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Consul-Token", s.Token())
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// find returns the consul executable: CARRICK_CONSUL, or what tools/install.sh
// has built.
func find() (string, error) {
	if exe := os.Getenv("CARRICK_CONSUL"); exe != "" {
		if _, err := exec.LookPath(exe); err != nil {
			return "", fmt.Errorf("consultest: CARRICK_CONSUL: %w", err)
		}
		return exe, nil
	}
	root, err := repository()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "tools", "install.sh"), "--path", "consul")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return "", fmt.Errorf("consultest: this test needs a Consul server, and there is none built: "+
			"run make tools (or tools/install.sh consul, the first time about 10 minutes), or set CARRICK_CONSUL to an executable: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// repository returns the module's root, above the directory the test runs in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "tools", "install.sh")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("consultest: tools/install.sh is in no directory above the test: set CARRICK_CONSUL to a consul executable")
		}
		dir = parent
	}
}

// tail returns the end of a log.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}
