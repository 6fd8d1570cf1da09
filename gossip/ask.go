package gossip

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// answer is what a question to a kernel brought.
type answer int

const (
	unasked   answer = iota // nothing was sent, or we were not there to hear
	nothing                 // no answer in the time there was
	something               // it lives
)

// tries is how often a kernel is asked in the time it has: a lost packet is no silence.
const tries = 3

// ask asks the kernel at addr whether it lives: by an ICMP echo, and if that is not
// answered at once by a TCP connection to the gossip port, too, where it makes no
// difference whether that is taken or refused. Both need a kernel there and nothing
// else; but a connection that is taken is work for an agent, which may be slow already.
func (d *Detector) ask(ctx context.Context, addr netip.Addr) answer {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Wait)
	defer cancel()
	var (
		all  sync.WaitGroup
		mu   sync.Mutex // guards best
		best answer
	)
	take := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		best = max(best, a)
		if a == something {
			cancel()
		}
	}
	again := time.NewTicker(d.cfg.Wait / tries)
	defer again.Stop()
	for i := range tries {
		if ctx.Err() != nil {
			break
		}
		all.Go(func() {
			a := d.echo(ctx, addr)
			take(a)
			if i == 0 && a == unasked {
				take(d.connect(ctx, addr))
			}
		})
		if i > 0 {
			all.Go(func() { take(d.connect(ctx, addr)) })
		}
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
	<-ctx.Done()
	all.Wait()
	if best == nothing && time.Since(began) > d.cfg.Wait*3/2 {
		// We stood still ourselves, and may have thrown the answer away with the
		// question.
		return unasked
	}
	return best
}

// judge says what an error of a socket tells of the other host. What says that we could
// not ask tells nothing: no route, no such address here, no sockets left.
func judge(err error) answer {
	var timeout net.Error
	switch {
	case err == nil, errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return something
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN),
		errors.As(err, &timeout) && timeout.Timeout():
		return nothing
	}
	return unasked
}

func (d *Detector) connect(ctx context.Context, addr netip.Addr) answer {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.cfg.Addr, 0))}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, d.cfg.Port).String())
	if err == nil {
		_ = conn.Close()
	}
	return judge(err)
}

// echo sends an ICMP echo request and waits for its reply. Without CAP_NET_RAW nothing
// is asked.
func (d *Detector) echo(ctx context.Context, addr netip.Addr) answer {
	network, request, reply := "ip4:icmp", byte(8), byte(0) // RFC 792
	if addr.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129 // RFC 4443 §4
	}
	dialer := net.Dialer{LocalAddr: &net.IPAddr{IP: d.cfg.Addr.AsSlice()}}
	dialed, err := dialer.DialContext(ctx, network, addr.String())
	if err != nil {
		if judge(err) == something {
			return unasked // of a socket that sends nothing yet
		}
		return judge(err)
	}
	conn, ok := dialed.(*net.IPConn)
	if !ok {
		_ = dialed.Close()
		return unasked
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	msg := make([]byte, 16) // type, code, checksum, id and sequence, data
	_, _ = rand.Read(msg[4:])
	msg[0] = request
	if addr.Is4() { // of ICMPv6 the kernel does it: RFC 3542 §3.1
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	if _, err := conn.Write(msg); err != nil {
		return judge(err)
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFromIP(buf)
		if err != nil {
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue
			}
			return judge(err)
		}
		if n >= len(msg) && buf[0] == reply && string(buf[4:len(msg)]) == string(msg[4:]) {
			return something
		}
	}
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
