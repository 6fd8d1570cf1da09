package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

const (
	// maxConns is how many connections of a container are open at a time. What comes
	// above it is closed at once.
	maxConns = 64
	// connIdle is how long one is kept on which nothing is asked.
	connIdle = 10 * time.Second
	// maxErrors in a row are a socket that does not work.
	maxErrors = 100
)

// counters of a sandbox. They outlive its servers.
type counters struct {
	answered, forwarded, failed atomic.Uint64
}

// server answers one namespace's questions. It ends with close.
type server struct {
	*responder
	*counters
	up  *upstream
	udp *net.UDPConn
	tcp *net.TCPListener
	wg  sync.WaitGroup // the loops and the connections

	from []byte // the control message that says where answers come from

	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]struct{}
	closed bool
	err    error // why it does not work any more
}

// serve begins to answer in a namespace, which must stay open until close has
// returned.
func serve(ctx context.Context, ns netns.Namespace, r *responder, c *counters, mark uint32) (*server, error) {
	udp, tcp, err := listen(ctx, ns)
	if err != nil {
		return nil, fmt.Errorf("sockets in network namespace %s: %w", ns.Name(), err)
	}
	s := &server{responder: r, counters: c, up: newUpstream(ns, mark), udp: udp, tcp: tcp, conns: map[net.Conn]struct{}{},
		from: unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: resolver().Addr().As4()})}
	s.wg.Go(s.datagrams)
	s.wg.Go(s.accept)
	return s, nil
}

// ports are those it answers on.
func (s *server) ports() (udp, tcp uint16) {
	return s.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(), s.tcp.Addr().(*net.TCPAddr).AddrPort().Port()
}

// check says why it does not answer. It does what a question does, so that it waits
// for what a question would wait for.
func (s *server) check() error {
	var q dns.Msg
	q.SetQuestion(checkName+".", dns.TypeTXT)
	b, err := q.Pack()
	if err != nil {
		return err
	}
	if _, v := s.respond(b, false); v != answer {
		return errors.New("questions are not answered")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// close ends it. It returns when nothing of it is left.
func (s *server) close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.up.close()
	s.wg.Wait()
	return err
}

// broken is the end of a loop.
func (s *server) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.err = errors.Join(s.err, err)
	}
}

// datagrams answers what comes over UDP, one after the other: an answer of ours takes
// microseconds, and one of Docker's resolver is not waited for.
func (s *server) datagrams() {
	buf := make([]byte, maxQuery+1)
	for bad := 0; ; {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if bad++; bad == maxErrors || errors.Is(err, net.ErrClosed) {
				s.broken(fmt.Errorf("receive over UDP: %w", err))
				return
			}
			continue
		}
		bad = 0
		if n > maxQuery {
			continue // and what is missing of it is lost
		}
		out, v := s.respond(buf[:n], false)
		switch v {
		case answer:
			s.answered.Add(1)
			s.send(out, from)
		case forward:
			s.forwarded.Add(1)
			packet := append([]byte(nil), buf[:n]...)
			s.up.ask(packet, func(out []byte, err error) {
				if err != nil {
					s.failed.Add(1)
					out = failure(packet)
				}
				s.send(out, from)
			})
		}
	}
}

// send sends an answer from the address that was asked. A socket that was bound
// before there was any address in the namespace has no source of its own
// (__inet_bind, where inet_addr_type says broadcast).
func (s *server) send(packet []byte, to netip.AddrPort) {
	_, _, _ = s.udp.WriteMsgUDPAddrPort(packet, s.from, to) // who is not answered asks again
}

// accept takes connections.
func (s *server) accept() {
	for bad := 0; ; {
		c, err := s.tcp.AcceptTCP()
		if err != nil {
			if bad++; bad == maxErrors || errors.Is(err, net.ErrClosed) {
				s.broken(fmt.Errorf("accept TCP: %w", err))
				return
			}
			continue
		}
		bad = 0
		s.mu.Lock()
		ok := !s.closed && len(s.conns) < maxConns
		if ok {
			s.conns[c] = struct{}{}
			s.wg.Go(func() { s.converse(c) })
		}
		s.mu.Unlock()
		if !ok {
			_ = c.Close()
		}
	}
}

// converse answers what comes by a connection, in the order in which it came.
func (s *server) converse(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	for {
		_ = c.SetDeadline(soon(connIdle))
		packet, err := readTCP(c)
		if err != nil {
			return
		}
		out, v := s.respond(packet, true)
		switch v {
		case drop:
			return
		case answer:
			s.answered.Add(1)
		case forward:
			s.forwarded.Add(1)
			if out, err = s.up.askTCP(packet); err != nil {
				s.failed.Add(1)
				out = failure(packet)
			}
		}
		_ = c.SetDeadline(soon(connIdle))
		if err := writeTCP(c, out); err != nil {
			return
		}
	}
}
