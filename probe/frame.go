package probe

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"github.com/carrick-net/carrick"
)

// A probe is what a container would send: Ethernet, IPv4 and TCP, so that network
// cards and what is between them treat it alike. It is answered by the other agent,
// not by a TCP: the acknowledgment number says which probe it is, the window how
// many bytes of payload it has, the sequence number which of them are in this
// frame, since the card or the kernel may cut it in pieces.
//
//	0        14           34          54
//	Ethernet | IPv4 (DF)  | TCP       | payload
const (
	sizeEthernet = 14
	sizeIP       = 20
	sizeTCP      = 20
	sizeHeaders  = sizeEthernet + sizeIP + sizeTCP

	// Ports tell probes from answers. The answer's window is a verdict.
	probePort  = 4790
	answerPort = 4791

	verdictWhole   = 1
	verdictCorrupt = 2
)

// The addresses within are for documentation (RFC 5737): nobody has them.
var (
	innerFrom = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	innerTo   = netip.AddrFrom4([4]byte{192, 0, 2, 2})
)

// frame is what is said by one.
type frame struct {
	to, from carrick.MAC
	port     uint16 // probePort or answerPort
	id       uint32
	offset   int    // of the payload in the whole
	window   uint16 // the whole payload's bytes, or a verdict
	payload  []byte
}

// macOf is the MAC that stands for a VTEP.
func macOf(vtep netip.Addr) carrick.MAC {
	vtep = vtep.Unmap()
	if vtep.Is4() {
		b := vtep.As4()
		return carrick.MAC{0x02, 0xcc, b[0], b[1], b[2], b[3]}
	}
	h := fnv.New64a()
	b := vtep.As16()
	_, _ = h.Write(b[:])
	sum := h.Sum64()
	sum ^= sum >> 40
	return carrick.MAC{0x06, byte(sum >> 32), byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

// encode makes the frame. With partial, TCP's checksum is left to whoever sends it
// on, as the kernel leaves it to a card: the field has the sum of the pseudo header.
func (f frame) encode(partial bool) []byte {
	b := make([]byte, sizeHeaders+len(f.payload))
	copy(b, f.to[:])
	copy(b[6:], f.from[:])
	binary.BigEndian.PutUint16(b[12:], 0x0800)

	ip := b[sizeEthernet:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(sizeIP+sizeTCP+len(f.payload)))
	ip[6] = 0x40 // do not fragment
	ip[8], ip[9] = 1, 6
	from, to := innerFrom.As4(), innerTo.As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip[:sizeIP])))

	tcp := ip[sizeIP:]
	binary.BigEndian.PutUint16(tcp, f.port)
	binary.BigEndian.PutUint16(tcp[2:], f.port)
	binary.BigEndian.PutUint32(tcp[4:], uint32(f.offset))
	binary.BigEndian.PutUint32(tcp[8:], f.id)
	tcp[12], tcp[13] = sizeTCP/4<<4, 0x10 // ACK alone: what GRO and cards merge
	binary.BigEndian.PutUint16(tcp[14:], f.window)
	copy(tcp[sizeTCP:], f.payload)
	check := pseudo(ip, sizeTCP+len(f.payload))
	if partial {
		binary.BigEndian.PutUint16(tcp[16:], fold(check))
	} else {
		binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(check, tcp)))
	}
	return b
}

// decode reads a frame of another agent; ok is false if it is anything else. whole
// says that its TCP checksum is right.
func decode(b []byte) (f frame, whole, ok bool) {
	if len(b) < sizeHeaders || binary.BigEndian.Uint16(b[12:]) != 0x0800 {
		return frame{}, false, false
	}
	ip := b[sizeEthernet:]
	length := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0] != 0x45 || ip[9] != 6 || length < sizeIP+sizeTCP || length > len(ip) ||
		netip.AddrFrom4([4]byte(ip[12:])) != innerFrom || netip.AddrFrom4([4]byte(ip[16:])) != innerTo {
		return frame{}, false, false
	}
	tcp := ip[sizeIP:length]
	f = frame{
		to: carrick.MAC(b[:6]), from: carrick.MAC(b[6:12]),
		port:    binary.BigEndian.Uint16(tcp[2:]),
		id:      binary.BigEndian.Uint32(tcp[8:]),
		offset:  int(binary.BigEndian.Uint32(tcp[4:])),
		window:  binary.BigEndian.Uint16(tcp[14:]),
		payload: tcp[sizeTCP:],
	}
	if tcp[12] != sizeTCP/4<<4 || f.port != probePort && f.port != answerPort {
		return frame{}, false, false
	}
	return f, fold(sum(pseudo(ip, len(tcp)), tcp)) == 0xffff, true
}

// filler is a payload that says where each byte belongs.
func filler(id uint32, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = fill(id, i)
	}
	return b
}

func fill(id uint32, i int) byte { return byte(uint32(i)*7 + uint32(i)>>8 + id) }

// filled says whether a piece of a payload is as it was made.
func filled(f frame) bool {
	for i, x := range f.payload {
		if x != fill(f.id, f.offset+i) {
			return false
		}
	}
	return true
}

// pseudo is the sum of TCP's pseudo header (RFC 9293 §3.1).
func pseudo(ip []byte, length int) uint32 {
	return sum(uint32(6)+uint32(length), ip[12:20])
}

// sum adds up 16-bit words (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return uint32(fold(s))
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
