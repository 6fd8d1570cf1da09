package nstest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/carrick-net/carrick/netns"
)

// Bulk sends bytes over TCP from one namespace to an address of another and waits
// until the other end has them all.
func Bulk(t testing.TB, from, to netns.Namespace, at netip.AddrPort, bytes int64) {
	t.Helper()
	if err := TryBulk(from, to, at, bytes, patience); err != nil {
		t.Fatal(err)
	}
}

// TryBulk is Bulk for transfers that may hang.
func TryBulk(from, to netns.Namespace, at netip.AddrPort, bytes int64, within time.Duration) error {
	end := time.Now().Add(within)
	var l *net.TCPListener
	err := netns.Do(to, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return fmt.Errorf("bulk at %s: %w", at, err)
	}
	defer l.Close()
	_ = l.SetDeadline(end)
	got := make(chan error, 1)
	go func() {
		c, err := l.AcceptTCP()
		if err != nil {
			got <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(end)
		n, err := io.Copy(io.Discard, c)
		if err == nil && n != bytes {
			err = fmt.Errorf("%d of %d bytes arrived", n, bytes)
		}
		got <- err
	}()
	var c *net.TCPConn
	// The dial is inside: it needs the namespace only when the socket is made, and
	// that is when the connection is.
	err = netns.Do(from, func() (err error) {
		d := net.Dialer{Deadline: end}
		conn, err := d.Dial("tcp", at.String())
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("bulk to %s: %w", at, err), <-got)
	}
	defer c.Close()
	_ = c.SetDeadline(end)
	_, err = io.CopyN(c, zeros{}, bytes)
	if err == nil {
		err = c.CloseWrite()
	}
	if err = errors.Join(err, <-got); err != nil {
		return fmt.Errorf("bulk of %d bytes to %s: %w", bytes, at, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
