package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick"
)

const self = carrick.HostID("00000000000000ff")

func host(n int) carrick.HostID { return carrick.HostID(fmt.Sprintf("%016x", n)) }

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }

func TestWhatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	good := Config{Self: self, Addr: addr(9)}
	for name, change := range map[string]func(*Config){
		"no id":           func(c *Config) { c.Self = "h1" },
		"no address":      func(c *Config) { c.Addr = netip.Addr{} },
		"any address":     func(c *Config) { c.Addr = netip.IPv6Unspecified() },
		"a key too short": func(c *Config) { c.Key = make([]byte, 16) },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	d, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if h := d.Health(); h.Err == nil || len(d.Down()) != 0 {
		t.Errorf("before it starts: %+v", h)
	}
}

func TestErrorsAreJudged(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for err, want := range map[error]answer{
		nil:                          something,
		wrap(syscall.ECONNREFUSED):   something,
		wrap(syscall.ECONNRESET):     something,
		wrap(syscall.EHOSTUNREACH):   nothing,
		wrap(syscall.ETIMEDOUT):      nothing,
		wrap(os.ErrDeadlineExceeded): nothing,
		wrap(syscall.ENETUNREACH):    unasked,
		wrap(syscall.EADDRNOTAVAIL):  unasked,
		wrap(syscall.EMFILE):         unasked,
		wrap(syscall.EPERM):          unasked,
		errors.New("another"):        unasked,
	} {
		if got := judge(err); got != want {
			t.Errorf("%v is %d, want %d", err, got, want)
		}
	}
}

// RFC 1071 §3 has these bytes; their sum is ddf2.
func TestChecksum(t *testing.T) {
	t.Parallel()
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("%04x", got)
	}
}

// What is found of a host is one step of its story; told is how often somebody hears.
func TestFindings(t *testing.T) {
	t.Parallel()
	quiet := found{said: nothing, vouched: true}
	alone := found{said: nothing}
	alive := found{said: something}
	could := found{said: unasked}
	for name, c := range map[string]struct {
		found []found
		down  bool
	}{
		"silent":                         {[]found{quiet}, true},
		"silent, and it answers":         {[]found{quiet, alive}, false},
		"it answers, and is silent":      {[]found{alive, quiet}, true},
		"cut off":                        {[]found{alone, alone, alone}, false},
		"just back on the network":       {[]found{alone, quiet, quiet}, false},
		"back, and silent for good":      {[]found{alone, quiet, quiet, quiet}, true},
		"silent, then cut off":           {[]found{quiet, alone}, true},
		"could not ask":                  {[]found{could, could}, false},
		"could not ask, then just back":  {[]found{could, quiet, alive, quiet, quiet}, false},
		"silent, then could not ask":     {[]found{quiet, could}, true},
		"down while it could not answer": {[]found{quiet, could, alive}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d, _ := New(Config{Self: self, Addr: addr(9)})
				d.SetPeers(map[carrick.HostID]netip.Addr{host(1): addr(1)})
				d.joined(host(1), addr(1))
				d.left(host(1))
				p := d.peers[host(1)]
				for _, f := range c.found {
					f.began = time.Now()
					<-time.After(time.Second)
					d.settle(host(1), p, p.lost, f)
				}
				if got := d.Down()[host(1)]; got != c.down {
					t.Errorf("down: %v, want %v", got, c.down)
				}
			})
		})
	}
}

// What was asked before a host was back says nothing of now, nor does what was asked
// of another address.
func TestOldNewsIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _ := New(Config{Self: self, Addr: addr(9)})
		d.SetPeers(map[carrick.HostID]netip.Addr{host(1): addr(1)})
		lose := func() (*peer, time.Time) {
			d.joined(host(1), d.peers[host(1)].addr)
			<-time.After(time.Second)
			d.left(host(1))
			return d.peers[host(1)], d.peers[host(1)].lost
		}
		p, lost := lose()
		d.joined(host(1), addr(1))
		d.settle(host(1), p, lost, found{said: nothing, vouched: true})
		if len(d.Down()) > 0 {
			t.Error("a member is down")
		}
		p, lost = lose()
		d.SetPeers(map[carrick.HostID]netip.Addr{host(1): addr(2)})
		d.settle(host(1), p, lost, found{said: nothing, vouched: true})
		if len(d.Down()) > 0 {
			t.Error("a host is down for what its old address does")
		}
		if h := d.Health(); len(h.Missing) != 1 {
			t.Errorf("want it not to have been seen: %+v", h)
		}
		// A host that gossip knows already, of which the store tells late.
		d.joined(host(3), addr(3))
		d.SetPeers(map[carrick.HostID]netip.Addr{host(3): addr(3)})
		if h := d.Health(); len(h.Members) != 1 || len(h.Missing) != 0 {
			t.Errorf("want a member: %+v", h)
		}
	})
}

// Whoever sends rubbish fills no log.
func TestTheLogIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		l := log.New(&lines{log: logger}, "", 0)
		for range 3 {
			for i := range 1000 {
				l.Printf("[ERR] memberlist: Decrypt packet failed: %d", i)
			}
			<-time.After(time.Second)
		}
		if n := strings.Count(out.String(), "\n"); n != 3*perSecond+2 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
		if !strings.Contains(out.String(), "lines=990") || strings.Contains(out.String(), "memberlist") {
			t.Errorf("%s", out.String())
		}
		out.Reset()
		d, _ := New(Config{Self: self, Addr: addr(9), Log: logger})
		for range 1000 {
			if d.admits(addr(66)) {
				t.Fatal("a stranger is heard")
			}
		}
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
	})
}

// An agent ends while it waits for its port, which its address does not have here.
func TestItEndsWithoutAPort(t *testing.T) {
	t.Parallel()
	d, err := New(Config{Self: self, Addr: addr(9)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	limit := time.After(time.Minute)
	for !strings.Contains(fmt.Sprint(d.Health().Err), "cannot assign") {
		select {
		case <-limit:
			t.Fatalf("%+v", d.Health())
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
