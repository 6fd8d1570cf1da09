package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dfping sends one UDP packet of exactly size bytes, IP header included, that
// may not be fragmented, and waits for the echo. It prints "reply", or
// "EMSGSIZE" if this very machine refused it, or "timeout" if
// three of them were not answered within wait each.
func dfping(to string, size int, wait time.Duration) error {
	v6 := net.ParseIP(to) != nil && net.ParseIP(to).To4() == nil
	header := 20 + 8
	network, level, option, do := "udp4", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if v6 {
		header = 40 + 8
		network, level, option, do = "udp6", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	if size < header {
		return fmt.Errorf("-size %d: the headers alone are %d bytes", size, header)
	}
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, do) }); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := d.Dial(network, net.JoinHostPort(to, echoPort))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	b := make([]byte, size-header)
	for range 3 {
		if _, err := conn.Write(b); errors.Is(err, unix.EMSGSIZE) {
			fmt.Println("EMSGSIZE")
			return nil
		} else if err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		in := make([]byte, size)
		n, err := conn.Read(in)
		if err == nil && n == len(b) {
			fmt.Println("reply")
			return nil
		}
		if errors.Is(err, unix.EMSGSIZE) { // an ICMP "fragmentation needed" from the path
			return fmt.Errorf("a router on the path refused %d bytes", size)
		}
	}
	fmt.Println("timeout")
	return nil
}

// summary is what flow prints at its end, as one line of JSON.
type summary struct {
	Sent       int    `json:"sent"`
	Received   int    `json:"received"`   // different packets that came back
	Duplicates int    `json:"duplicates"` // of them, that came back again
	Lost       int    `json:"lost"`
	Broken     string `json:"broken,omitempty"` // why the connection ended before its time
}

// arrivals counts the packets that came back.
type arrivals struct {
	mu   sync.Mutex // guards what follows
	seen map[uint64]bool
	dup  int
}

func (a *arrivals) note(n uint64) (count int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[n] {
		a.dup++
	}
	a.seen[n] = true
	return len(a.seen)
}

func (a *arrivals) counts() (seen, dup int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen), a.dup
}

// flow sends numbered packets at a steady pace to an echo server until ctx ends
// or count is reached, waits for the last ones, and prints a summary. It prints
// "flowing" when the first has come back.
func flow(ctx context.Context, to string, tcp bool, every time.Duration, count int) error {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, network, net.JoinHostPort(to, echoPort))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	got := &arrivals{seen: make(map[uint64]bool)}
	broken := make(chan error, 1)
	go func() {
		var b [8]byte
		for {
			if _, err := io.ReadFull(conn, b[:]); err != nil {
				if !tcp && !errors.Is(err, net.ErrClosed) {
					continue // an ICMP error; the packet counts as lost
				}
				broken <- err
				return
			}
			if got.note(binary.BigEndian.Uint64(b[:])) == 1 {
				fmt.Println("flowing")
			}
		}
	}()
	var s summary
	tick := time.NewTicker(every)
	defer tick.Stop()
send:
	for count == 0 || s.Sent < count {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(s.Sent))
		s.Sent++
		if _, err := conn.Write(b[:]); err != nil && tcp {
			s.Broken = err.Error()
			break
		}
		select {
		case <-ctx.Done():
			break send
		case err := <-broken:
			s.Broken = err.Error()
			break send
		case <-tick.C:
		}
	}
	// The last packets are still on their way.
	deadline := time.NewTimer(2 * time.Second)
	defer deadline.Stop()
	for {
		s.Received, s.Duplicates = got.counts()
		if s.Received == s.Sent || s.Broken != "" {
			break
		}
		select {
		case <-deadline.C:
		case <-tick.C:
			continue
		}
		break
	}
	s.Lost = s.Sent - s.Received
	return json.NewEncoder(os.Stdout).Encode(s)
}
