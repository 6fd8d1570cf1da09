package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
)

// sizeVnet is struct virtio_net_hdr of linux/virtio_net.h, which a packet socket with
// PACKET_VNET_HDR puts before each frame.
const sizeVnet = 10

const (
	vnetNeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	vnetTCP4          = 1 // VIRTIO_NET_HDR_GSO_TCPV4
)

const (
	// maxAnswers bounds what a flood of probes makes this host send, each second.
	maxAnswers = 500
	// maxPieces bounds how many probes can be half there.
	maxPieces = 64
)

// exchange sends probes by one device, and answers those of others.
type exchange struct {
	file *os.File
	self carrick.MAC

	mu      sync.Mutex // guards all below
	waiting map[waiting]chan uint16
	pieces  map[waiting]*pieces
	second  int64 // of the answers
	answers int
}

// waiting is a probe: whose answer is waited for, or whose pieces arrive.
type waiting struct {
	peer carrick.MAC
	id   uint32
}

type pieces struct {
	bytes   int
	corrupt bool
}

func newExchange(file *os.File, self carrick.MAC) *exchange {
	return &exchange{file: file, self: self, waiting: map[waiting]chan uint16{}, pieces: map[waiting]*pieces{}}
}

// serve reads until the file is closed.
func (x *exchange) serve() {
	buf := make([]byte, sizeVnet+maxFrame)
	for {
		n, err := x.file.Read(buf)
		switch {
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return
		case n > sizeVnet:
			x.frame(buf[:sizeVnet], buf[sizeVnet:n])
		}
	}
}

// frame handles what arrived. What the kernel put together of several frames it has
// checked, and what it has not finished never was on a wire.
func (x *exchange) frame(vnet, b []byte) {
	f, whole, ok := decode(b)
	if !ok || f.to != x.self {
		return
	}
	whole = whole || vnet[0]&vnetNeedsChecksum != 0 || vnet[1] != 0
	key := waiting{f.from, f.id}
	if f.port == answerPort {
		x.mu.Lock()
		answer := x.waiting[key]
		x.mu.Unlock()
		if answer != nil && whole {
			select {
			case answer <- f.window:
			default: // it has one
			}
		}
		return
	}
	if verdict := x.judge(key, f, whole && filled(f)); verdict != 0 {
		_, _ = x.file.Write(append(make([]byte, sizeVnet), frame{to: f.from, from: x.self, port: answerPort, id: f.id, window: verdict}.encode(false)...))
	}
}

// judge adds a piece of a probe to those before it and returns a verdict when there
// is one to be told.
func (x *exchange) judge(key waiting, f frame, whole bool) uint16 {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.pieces[key]
	if p == nil {
		if len(x.pieces) >= maxPieces {
			clear(x.pieces) // of the past, or of somebody who means no good
		}
		p = &pieces{}
		x.pieces[key] = p
	}
	p.bytes += len(f.payload)
	p.corrupt = p.corrupt || !whole
	verdict := uint16(0)
	switch {
	case p.corrupt:
		verdict = verdictCorrupt
	case p.bytes >= int(f.window):
		verdict = verdictWhole
	default:
		return 0
	}
	delete(x.pieces, key)
	now := time.Now().Unix()
	if now != x.second {
		x.second, x.answers = now, 0
	}
	if x.answers++; x.answers > maxAnswers {
		return 0
	}
	return verdict
}

// kind is how a probe is sent.
type kind int

const (
	finished kind = iota // with its checksum, in one piece
	unsummed             // the checksum is left to the network card
	uncut                // and so is the cutting into pieces
)

// try sends one probe of size bytes, inner IP header included, and waits for the
// answer; 0 if none came.
func (x *exchange) try(ctx context.Context, to carrick.MAC, k kind, size, mtu int, wait time.Duration) uint16 {
	id := rand.Uint32()
	key := waiting{to, id}
	answer := make(chan uint16, 1)
	x.mu.Lock()
	x.waiting[key] = answer
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		delete(x.waiting, key)
		x.mu.Unlock()
	}()
	n := size - sizeIP - sizeTCP
	f := frame{to: to, from: x.self, port: probePort, id: id, window: uint16(n), payload: filler(id, n)}
	out := make([]byte, sizeVnet, sizeVnet+sizeHeaders+n)
	if k != finished {
		out[0] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(out[6:], sizeEthernet+sizeIP) // where the checksum begins
		binary.NativeEndian.PutUint16(out[8:], 16)                  // and where in it it goes
	}
	if k == uncut {
		out[1] = vnetTCP4
		binary.NativeEndian.PutUint16(out[2:], sizeHeaders)
		binary.NativeEndian.PutUint16(out[4:], uint16(mtu-sizeIP-sizeTCP))
	}
	if _, err := x.file.Write(append(out, f.encode(k != finished)...)); err != nil {
		return 0
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case v := <-answer:
		return v
	case <-t.C:
	case <-ctx.Done():
	}
	return 0
}
