package nl

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// The tests below put the faults of a socket between a handle and the real
// kernel.

// faults is what goes wrong with the next calls; each is used once.
type faults struct {
	dials    int
	send     []error
	receive  []receiveFault
	answered int // datagrams that arrived
}

// receiveFault is what happens to one datagram: an error in its place or before
// it, or something else than was sent.
type receiveFault struct {
	err   error
	lose  bool // the datagram is dropped, as the kernel does when it says ENOBUFS
	alter func(b []byte, n int) int
}

type faultyConn struct {
	conn
	f *faults
}

func (c faultyConn) send(b []byte) error {
	if len(c.f.send) > 0 {
		err := c.f.send[0]
		c.f.send = c.f.send[1:]
		if err != nil {
			return err
		}
	}
	return c.conn.send(b)
}

func (c faultyConn) receive(b []byte) (int, bool, error) {
	var f receiveFault
	if len(c.f.receive) > 0 {
		f, c.f.receive = c.f.receive[0], c.f.receive[1:]
	}
	if f.err != nil && !f.lose {
		return 0, false, f.err
	}
	n, kernel, err := c.conn.receive(b)
	if err != nil {
		return n, kernel, err
	}
	c.f.answered++
	if f.lose {
		return 0, false, f.err
	}
	if f.alter != nil {
		n = f.alter(b, n)
	}
	return n, kernel, nil
}

// faulty is a network's namespace with br0, vxlan0, a port and rows, seen through
// a socket with faults and through one without.
type faulty struct {
	ns         netns.Namespace
	host       Handle
	h, good    *handle
	f          *faults
	br, vx, pt Ref
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	nstest.RequireRoot(t)
	d := netns.NewDir(netns.Config{Dir: nstest.Dir(t)})
	open := func(name string) (netns.Namespace, *handle) {
		ns, err := d.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		h, err := Linux{}.Open(t.Context(), ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close(); ns.Close() })
		return ns, h.(*handle)
	}
	x := &faulty{f: &faults{}}
	_, x.host = open("host")
	x.ns, x.good = open("net")
	sock, err := openSocket("net", func() (conn, error) {
		x.f.dials++
		c, err := dial(x.ns, nil)
		return faultyConn{c, x.f}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	x.h = &handle{ns: x.ns, sock: sock}
	t.Cleanup(func() { x.h.Close() })
	x.must(t, x.good, AddBridge{Name: "br0"})
	x.br = x.ref(t, "br0")
	x.must(t, x.host, AddVXLAN{Name: "vxlan0", Target: x.ns, Master: x.br, MTU: 1400, VNI: 7, Port: 4789, Local: netip.MustParseAddr("127.0.0.1")})
	x.vx = x.ref(t, "vxlan0")
	x.must(t, x.host, AddVeth{Name: "p1", Target: x.ns, Master: x.br, MTU: 1400, Outer: "ck1", OuterMAC: carrick.MAC{2, 0, 0, 0, 0, 1}})
	x.pt = x.ref(t, "p1")
	return x
}

func (x *faulty) must(t *testing.T, h Handle, c Change) {
	t.Helper()
	if err := errors.Join(h.Send(t.Context(), c)...); err != nil {
		t.Fatal(err)
	}
}

func (x *faulty) ref(t *testing.T, name string) Ref {
	t.Helper()
	l, err := x.good.Link(t.Context(), Ref{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return l.Ref
}

// listings are the requests that only read.
func (x *faulty) listings() map[string]func(context.Context, Handle) (string, error) {
	text := func(v any, err error) (string, error) {
		b, jerr := json.Marshal(v) // follows pointers
		return string(b), errors.Join(err, jerr)
	}
	return map[string]func(context.Context, Handle) (string, error){
		"Links":      func(ctx context.Context, h Handle) (string, error) { return text(h.Links(ctx)) },
		"FDB":        func(ctx context.Context, h Handle) (string, error) { return text(h.FDB(ctx)) },
		"Neighbours": func(ctx context.Context, h Handle) (string, error) { return text(h.Neighbours(ctx, x.vx)) },
		"Link": func(ctx context.Context, h Handle) (string, error) {
			return text(h.Link(ctx, x.br))
		},
		"NSID": func(ctx context.Context, h Handle) (string, error) { return text(h.NSID(ctx, x.ns)) },
	}
}

// rewrite changes the flags of every message of a datagram.
func rewrite(fn func(typ, flags uint16) uint16) func(b []byte, n int) int {
	return func(b []byte, n int) int {
		for at := 0; at+unix.NLMSG_HDRLEN <= n; {
			typ := binary.NativeEndian.Uint16(b[at+4:])
			binary.NativeEndian.PutUint16(b[at+6:], fn(typ, binary.NativeEndian.Uint16(b[at+6:])))
			at += align(int(binary.NativeEndian.Uint32(b[at:])))
		}
		return n
	}
}

var interrupt = rewrite(func(_, flags uint16) uint16 { return flags | unix.NLM_F_DUMP_INTR })

// refuse makes an answer an error message with an errno.
func refuse(errno unix.Errno) func(b []byte, n int) int {
	return func(b []byte, _ int) int {
		binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_ERROR)
		binary.NativeEndian.PutUint16(b[6:], 0)
		binary.NativeEndian.PutUint32(b[unix.NLMSG_HDRLEN:], uint32(-int32(errno)))
		binary.NativeEndian.PutUint32(b, unix.NLMSG_HDRLEN+4)
		return unix.NLMSG_HDRLEN + 4
	}
}

func repeat[T any](v T, n int) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func TestAListingSurvivesEveryFaultOfItsSocket(t *testing.T) {
	t.Parallel()
	x := newFaulty(t)
	for i := range 2000 { // a listing of several datagrams
		x.must(t, x.good, SetFDB{Link: x.vx, MAC: carrick.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}, VTEP: netip.MustParseAddr("192.0.2.9")})
		x.must(t, x.good, SetNeigh{Link: x.vx, Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), MAC: carrick.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}})
	}
	lost := receiveFault{err: unix.ENOBUFS, lose: true}
	cut := receiveFault{alter: func(b []byte, _ int) int { return len(b) + 4096 }}
	for name, f := range map[string]faults{
		"a signal while sending":               {send: repeat[error](unix.EINTR, 20)},
		"a signal while receiving":             {receive: repeat(receiveFault{err: unix.EINTR}, 20)},
		"no memory for the request":            {send: repeat[error](unix.ENOBUFS, lossTries)},
		"the first answer lost":                {receive: []receiveFault{lost}},
		"the second answer lost":               {receive: []receiveFault{{}, lost}},
		"answers lost again and again":         {receive: repeat(lost, lossTries)},
		"no answer in time":                    {receive: []receiveFault{{err: unix.EAGAIN}}},
		"an answer cut off":                    {receive: []receiveFault{cut}},
		"interrupted by changes":               {receive: []receiveFault{{alter: interrupt}}},
		"interrupted again and again":          {receive: repeat(receiveFault{alter: interrupt}, dumpTries-1)},
		"broken off by the kernel":             {receive: []receiveFault{{alter: refuse(unix.EINTR)}}},
		"refused because another is under way": {receive: []receiveFault{{alter: refuse(unix.EBUSY)}}},
	} {
		for what, list := range x.listings() {
			if strings.HasPrefix(name, "interrupted again") && (what == "FDB" || what == "Neighbours") {
				continue // its datagrams are more than the faults
			}
			want, err := list(t.Context(), x.good)
			if err != nil {
				t.Fatal(err)
			}
			*x.f = faults{send: f.send, receive: f.receive}
			got, err := list(t.Context(), x.h)
			if err != nil || got != want {
				t.Errorf("%s, %s: %v; %d of %d bytes", what, name, err, len(got), len(want))
			}
		}
	}
}

func TestAFaultThatStaysIsAnErrorAndTheNextRequestWorks(t *testing.T) {
	t.Parallel()
	x := newFaulty(t)
	for name, y := range map[string]struct {
		faults
		want error
	}{
		"interrupted for ever":    {faults{receive: repeat(receiveFault{alter: interrupt}, 20*dumpTries)}, ErrDumpInterrupted},
		"answers lost for ever":   {faults{receive: repeat(receiveFault{err: unix.ENOBUFS, lose: true}, lossTries+1)}, unix.ENOBUFS},
		"no memory for ever":      {faults{send: repeat[error](unix.ENOBUFS, (lossTries+1)*(lossTries+1))}, unix.ENOBUFS},
		"a broken socket":         {faults{send: []error{unix.EBADF}}, unix.EBADF},
		"an answer without sense": {faults{receive: []receiveFault{{alter: func(b []byte, n int) int { clear(b[:4]); return n }}}}, errMalformed},
		"refused":                 {faults{receive: []receiveFault{{alter: refuse(unix.EPERM)}}}, unix.EPERM},
	} {
		for what, list := range x.listings() {
			*x.f = faults{send: y.send, receive: y.receive}
			if got, err := list(t.Context(), x.h); !errors.Is(err, y.want) {
				t.Errorf("%s, %s: %v, %s", what, name, err, got)
			}
			*x.f = faults{}
			want, err := list(t.Context(), x.good)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := list(t.Context(), x.h); err != nil || got != want {
				t.Errorf("%s after %s: %v", what, name, err)
			}
		}
	}
}

// changes is one of every kind that can be sent twice.
func (x *faulty) changes() []Change {
	m, a := carrick.MAC{2, 3, 0, 0, 0, 1}, netip.MustParseAddr("192.0.2.9")
	return []Change{
		SetLink{Link: x.pt, Alias: "a port"}, SetLink{Link: x.br, Up: On}, SetBridge{Link: x.br, Off: BridgeInfo{STP: true}},
		SetFDB{Link: x.vx, MAC: m, VTEP: a}, SetFDB{Link: x.vx, VTEP: a}, SetBridged{Link: x.pt, MAC: m}, SetNeigh{Link: x.vx, Addr: a, MAC: m},
	}
}

func TestAChangeWhoseAnswerIsLostIsNotTakenForDone(t *testing.T) {
	t.Parallel()
	x := newFaulty(t)
	for _, c := range x.changes() {
		for name, f := range map[string]receiveFault{
			"lost":              {err: unix.ENOBUFS, lose: true},
			"not in time":       {err: unix.EAGAIN},
			"cut off":           {alter: func(b []byte, _ int) int { return len(b) + 1 }},
			"not to understand": {alter: func(b []byte, n int) int { clear(b[:4]); return n }},
		} {
			*x.f = faults{receive: []receiveFault{f}}
			errs := x.h.Send(t.Context(), c, SetLink{Link: x.br, MTU: 1399})
			if len(errs) != 2 || errs[0] == nil || errs[1] == nil || !strings.Contains(errs[0].Error(), c.Command("net")) {
				t.Errorf("%T, answer %s: %v", c, name, errs)
			}
			// The answer that comes late is nobody's.
			*x.f = faults{}
			if errs := x.h.Send(t.Context(), DelLink{Link: Ref{Index: 999}}, c); len(errs) != 2 || !errors.Is(errs[0], ErrNotFound) || errs[1] != nil {
				t.Errorf("%T again: %v", c, errs)
			}
		}
		*x.f = faults{send: []error{unix.EINTR, unix.ENOBUFS, unix.EINTR}, receive: repeat(receiveFault{err: unix.EINTR}, 5)}
		if errs := x.h.Send(t.Context(), c); errs != nil || x.f.answered != 1 {
			t.Errorf("%T among signals: %v, %d answers", c, errs, x.f.answered)
		}
	}
}

func TestAnAnswerOfSomebodyElseIsNotListenedTo(t *testing.T) {
	t.Parallel()
	x := newFaulty(t)
	// Another process sends to the socket's port: an acknowledgement that it made
	// up, of the sequence number it guessed.
	forged := make([]byte, unix.NLMSG_HDRLEN+4)
	binary.NativeEndian.PutUint32(forged, uint32(len(forged)))
	binary.NativeEndian.PutUint16(forged[4:], unix.NLMSG_ERROR)
	for i := range 4 {
		binary.NativeEndian.PutUint32(forged[8:], uint32(i))
		sender, err := dial(x.ns, nil)
		if err != nil {
			t.Fatal(err)
		}
		real := x.h.sock.conn.(faultyConn).conn.(socketConn).fd
		to, err := unix.Getsockname(real)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(sender.(socketConn).fd, forged, 0, to); err != nil {
			t.Fatal(err)
		}
		_ = sender.close()
	}
	if errs := x.h.Send(t.Context(), DelLink{Link: Ref{Index: 999}}); len(errs) != 1 || !errors.Is(errs[0], ErrNotFound) {
		t.Errorf("%v", errs)
	}
}

// While the queue of a subscription overflows the kernel drops events without a
// further word. Whoever has been told of a loss must hear of all that follows.
func TestNoEventIsLostAfterALossWasReported(t *testing.T) {
	t.Parallel()
	x := newFaulty(t)
	e, err := subscribe(x.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	raw, err := e.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { // room for a few
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8192)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		x.must(t, x.good, SetLink{Link: x.br, MTU: 1400 + i})
	}
	if err := e.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Poll(); !errors.Is(err, ErrOverrun) {
		t.Fatalf("a hundred events for a queue of few: %v", err)
	}
	x.must(t, x.good, SetLink{Link: x.br, MTU: 1300})
	if got, err := e.Poll(); err != nil || len(got) == 0 || got[len(got)-1].Link.MTU != 1300 {
		t.Errorf("after the loss: %+v, %v", got, err)
	}
	if got, err := e.Poll(); err != nil || len(got) != 0 {
		t.Errorf("the loss was told twice: %+v, %v", got, err)
	}
}
