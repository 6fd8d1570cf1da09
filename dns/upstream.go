package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/carrick-net/carrick/netns"
)

const (
	// patience is how long Docker's resolver may take. Resolvers in containers wait for
	// 5 s, unless told otherwise (resolv.conf(5)), and are to have the error before.
	patience = 4500 * time.Millisecond
	// maxForwarded is how many of a container's questions may wait for it. Docker's
	// own bound is 1024 (libnetwork, resolver.go), and more than that it drops.
	maxForwarded = 512
	// flowIdle is how long a socket is kept that nobody waits for.
	flowIdle = 10 * time.Second
)

var (
	errBusy     = fmt.Errorf("more than %d questions wait for Docker's resolver", maxForwarded)
	errUpstream = errors.New("no answer from Docker's resolver")
)

// upstream asks Docker's resolver of a namespace, past the table that redirects what
// the container asks. Safe for concurrent use.
//
// Questions over UDP share a socket, so that they cost neither a thread's visit to
// the namespace nor an entry of conntrack each. It is left as soon as one of them
// fails: conntrack would hold it to a resolver that is gone, dockerd having been
// restarted.
type upstream struct {
	ctx  context.Context // ends with close
	stop context.CancelFunc
	ns   netns.Namespace
	mark uint32
	wg   sync.WaitGroup // readers, and questions over TCP

	mu     sync.Mutex // guards what follows, and all queries and flows
	slots  int        // questions under way
	flow   *flow      // where the next question goes; nil: to a new one
	flows  map[*flow]struct{}
	closed bool
}

// query is a question under way over UDP.
type query struct {
	packet []byte // as it came
	id     uint16 // as it went
	flow   *flow
	again  bool // it was sent before
	timer  *time.Timer
	done   func(answer []byte, err error) // called once, without a lock held
}

// flow is one socket.
type flow struct {
	conn    *net.UDPConn
	pending map[uint16]*query
}

func newUpstream(ns netns.Namespace, mark uint32) *upstream {
	u := &upstream{ns: ns, mark: mark, flows: map[*flow]struct{}{}}
	u.ctx, u.stop = context.WithCancel(context.Background())
	return u
}

// ask asks over UDP. done is called once, at most patience later, with the answer
// under the question's own id, unless the upstream is closed before. The packet is
// kept until then.
func (u *upstream) ask(packet []byte, done func(answer []byte, err error)) {
	q := &query{packet: packet, done: done}
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return
	}
	if u.slots >= maxForwarded {
		u.mu.Unlock()
		done(nil, errBusy)
		return
	}
	u.slots++
	q.timer = time.AfterFunc(patience, func() { u.expire(q) })
	err := u.send(q)
	u.mu.Unlock()
	if err != nil {
		done(nil, err)
	}
}

// send sends a question, at most twice. An error is its end. Called with mu held.
func (u *upstream) send(q *query) error {
	for {
		f, err := u.current()
		if err != nil {
			u.end(q)
			return err
		}
		for q.id = uint16(rand.Uint32()); f.pending[q.id] != nil; q.id++ { //nolint:gosec // all bits of it are wanted
		}
		out := append([]byte(nil), q.packet...)
		binary.BigEndian.PutUint16(out, q.id)
		q.flow = f
		f.pending[q.id] = q
		if _, err = f.conn.Write(out); err == nil {
			return nil
		}
		delete(f.pending, q.id)
		u.retire(f)
		if q.again {
			u.end(q)
			return err
		}
		q.again = true
	}
}

// current is the flow to send by. Called with mu held.
func (u *upstream) current() (*flow, error) {
	if u.flow != nil {
		return u.flow, nil
	}
	conn, err := dialUDP(u.ctx, u.ns, u.mark)
	if err != nil {
		return nil, fmt.Errorf("socket to Docker's resolver: %w", err)
	}
	f := &flow{conn: conn, pending: map[uint16]*query{}}
	u.flow = f
	u.flows[f] = struct{}{}
	u.wg.Go(func() { u.read(f) })
	return f, nil
}

// retire makes a flow the last of those that wait on it. Called with mu held.
func (u *upstream) retire(f *flow) {
	if u.flow == f {
		u.flow = nil
	}
	if len(f.pending) == 0 {
		_ = f.conn.Close() // its reader ends
		delete(u.flows, f)
	}
}

// end ends a question that is not pending any more. Called with mu held.
func (u *upstream) end(q *query) {
	q.timer.Stop()
	q.flow = nil
	u.slots--
}

// take ends a pending question, and says whether it was one. Called with mu held.
func (u *upstream) take(q *query) bool {
	f := q.flow
	if f == nil || f.pending[q.id] != q {
		return false
	}
	delete(f.pending, q.id)
	u.end(q)
	if u.flow != f {
		u.retire(f)
	}
	return true
}

// expire ends a question that was not answered.
func (u *upstream) expire(q *query) {
	u.mu.Lock()
	if u.flow != nil && u.flow == q.flow {
		u.flow = nil // who waits on it goes on waiting
	}
	ok := u.take(q)
	u.mu.Unlock()
	if ok {
		q.done(nil, errUpstream)
	}
}

// read takes the answers of a flow until it is closed.
func (u *upstream) read(f *flow) {
	buf := make([]byte, 64<<10)
	for {
		_ = f.conn.SetReadDeadline(soon(flowIdle))
		n, err := f.conn.Read(buf)
		switch {
		case err == nil:
			u.answered(f, buf[:n])
		case errors.Is(err, os.ErrDeadlineExceeded):
			u.mu.Lock()
			if len(f.pending) == 0 {
				u.retire(f)
			}
			u.mu.Unlock()
		case errors.Is(err, net.ErrClosed):
			return
		default: // refused: nobody is at Docker's port
			u.broken(f, err)
		}
	}
}

// answered gives an answer to who waits for it.
func (u *upstream) answered(f *flow, packet []byte) {
	if len(packet) < headerSize {
		return
	}
	u.mu.Lock()
	q := f.pending[binary.BigEndian.Uint16(packet)]
	ok := false
	if q != nil {
		asked := q.packet
		id := [2]byte(asked[:2])
		copy(packet, id[:])
		ok = answers(packet, asked) && u.take(q)
	}
	u.mu.Unlock()
	if ok {
		q.done(append([]byte(nil), packet...), nil)
	}
}

// broken sends what waits on a flow by another one, once.
func (u *upstream) broken(f *flow, err error) {
	var failed []*query
	u.mu.Lock()
	if u.flow == f {
		u.flow = nil
	}
	for id, q := range f.pending {
		delete(f.pending, id)
		if q.again {
			u.end(q)
			failed = append(failed, q)
			continue
		}
		q.again = true
		if u.send(q) != nil {
			failed = append(failed, q)
		}
	}
	u.retire(f)
	u.mu.Unlock()
	for _, q := range failed {
		q.done(nil, fmt.Errorf("%w: %w", errUpstream, err))
	}
}

// askTCP asks over TCP, on a connection of its own.
func (u *upstream) askTCP(packet []byte) ([]byte, error) {
	u.mu.Lock()
	if u.closed || u.slots >= maxForwarded {
		u.mu.Unlock()
		return nil, errBusy
	}
	u.slots++
	u.wg.Add(1)
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		u.slots--
		u.mu.Unlock()
		u.wg.Done()
	}()
	ctx, cancel := context.WithTimeout(u.ctx, patience)
	defer cancel()
	got, err := exchangeTCP(ctx, u.ns, u.mark, packet)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUpstream, err)
	}
	return got, nil
}

// exchangeTCP asks the resolver over TCP from within a namespace.
func exchangeTCP(ctx context.Context, ns netns.Namespace, mark uint32, packet []byte) ([]byte, error) {
	c, err := dial(ctx, ns, "tcp4", mark)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err := writeTCP(c, packet); err != nil {
		return nil, err
	}
	got, err := readTCP(c)
	if err == nil && !answers(got, packet) {
		err = errors.New("what came is no answer to what was asked")
	}
	return got, err
}

// writeTCP writes a message with its length (RFC 1035 §4.2.2), in one piece.
func writeTCP(w io.Writer, packet []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(packet)), uint16(len(packet)))
	_, err := w.Write(append(b, packet...))
	return err
}

// readTCP reads one.
func readTCP(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// close drops all questions without an answer and closes the sockets. It returns when
// nothing of the upstream is left.
func (u *upstream) close() {
	u.mu.Lock()
	u.closed = true
	for f := range u.flows {
		for id, q := range f.pending {
			delete(f.pending, id)
			u.end(q)
		}
		u.retire(f)
	}
	u.mu.Unlock()
	u.stop()
	u.wg.Wait()
}
