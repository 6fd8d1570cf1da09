package consultest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cluster is several Consul servers that make one store: what one of them wrote
// is on the disks of most of them. Its methods may be called from many goroutines.
type Cluster struct {
	servers []*Server
}

// StartCluster starts n servers, usually three, which end with the test.
func StartCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	binary, err := find()
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{}
	dir := t.TempDir()
	for range 5 { // see launch
		if c.servers, err = newServers(binary, dir, n, opts...); err != nil {
			t.Fatal(err)
		}
		if err = c.run(); err == nil || !errors.Is(err, errEnded) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

// newServers prepares servers that know each other.
func newServers(binary, dir string, n int, opts ...Option) ([]*Server, error) {
	out := make([]*Server, n)
	var peers []string
	for i := range out {
		s := newServer(binary, filepath.Join(dir, strconv.Itoa(i+1)), opts...)
		s.node = nodeName + strconv.Itoa(i+1)
		var err error
		if s.ports, err = freePorts(); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return nil, err
		}
		peers = append(peers, fmt.Sprintf("127.0.0.1:%d", s.ports.Serf))
		out[i] = s
	}
	for i, s := range out {
		s.peers = append(append([]string{}, peers[:i]...), peers[i+1:]...)
	}
	return out, nil
}

// run starts all servers and waits until each of them serves.
func (c *Cluster) run() error {
	errs := make([]error, len(c.servers))
	var all sync.WaitGroup
	for i, s := range c.servers {
		all.Go(func() { errs[i] = s.run() })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		c.stop()
		return err
	}
	return nil
}

func (c *Cluster) stop() {
	for _, s := range c.servers {
		s.Stop()
	}
}

// Servers returns the servers in order; the slice is the caller's.
func (c *Cluster) Servers() []*Server { return append([]*Server{}, c.servers...) }

// Addrs returns the host:port of every server's HTTP API, that of server n, from
// 0 and counted round, first: a client that is told of them talks to that one.
func (c *Cluster) Addrs(n int) []string {
	var out []string
	for i := range c.servers {
		out = append(out, c.servers[(n+i)%len(c.servers)].Addr())
	}
	return out
}

// CPU is the processor time that all servers have used so far, in steps of 10 ms
// for each.
func (c *Cluster) CPU() (time.Duration, error) {
	var total time.Duration
	for _, s := range c.servers {
		d, err := s.CPU()
		if err != nil {
			return 0, err
		}
		total += d
	}
	return total, nil
}

// clockTick is the unit of times in /proc (proc(5); USER_HZ is 100 wherever Go
// runs on Linux).
const clockTick = 10 * time.Millisecond

// CPU is the processor time that the server has used since it was started, in
// steps of 10 ms.
func (s *Server) CPU() (time.Duration, error) {
	f, err := s.proc.stat()
	if err != nil {
		return 0, err
	}
	return time.Duration(f[utime]+f[stime]) * clockTick, nil
}

// Memory is what the server has in memory now, in bytes.
func (s *Server) Memory() (int64, error) {
	f, err := s.proc.stat()
	if err != nil {
		return 0, err
	}
	return f[rss] * int64(os.Getpagesize()), nil
}

// Places of numbers in /proc/PID/stat after the state, which is field 3 of
// proc(5).
const (
	utime = 14 - 4
	stime = 15 - 4
	rss   = 24 - 4
)

// stat reads the numbers of /proc/PID/stat.
func (p *process) stat() ([]int64, error) {
	if p == nil {
		return nil, errEnded
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	// "pid (name) state numbers...": the name may hold anything.
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) <= rss+1 {
		return nil, fmt.Errorf("consultest: %q is no /proc/PID/stat", b)
	}
	var out []int64
	for _, f := range fields[1 : rss+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("consultest: /proc/PID/stat: %w", err)
		}
		out = append(out, n)
	}
	return out, nil
}
