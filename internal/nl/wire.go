package nl

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// encoder appends netlink messages to one buffer: header, fixed part, and
// attributes of type, length, value, padded to four bytes (netlink(7)). Numbers
// are in host order except where the kernel's uapi says __be16.
type encoder struct {
	buf   []byte
	start int // of the message under way
}

// begin starts a message. seq comes back in the kernel's answer.
func (e *encoder) begin(typ, flags uint16, seq uint32) {
	e.start = len(e.buf)
	e.buf = binary.NativeEndian.AppendUint32(e.buf, 0) // length, set by end
	e.buf = binary.NativeEndian.AppendUint16(e.buf, typ)
	e.buf = binary.NativeEndian.AppendUint16(e.buf, unix.NLM_F_REQUEST|flags)
	e.buf = binary.NativeEndian.AppendUint32(e.buf, seq)
	e.buf = binary.NativeEndian.AppendUint32(e.buf, 0) // port id: the kernel knows
}

// end finishes the message under way.
func (e *encoder) end() {
	binary.NativeEndian.PutUint32(e.buf[e.start:], uint32(len(e.buf)-e.start))
}

// or sets flags in the header of the message under way.
func (e *encoder) or(flags uint16) {
	at := e.buf[e.start+6:]
	binary.NativeEndian.PutUint16(at, binary.NativeEndian.Uint16(at)|flags)
}

// ifinfo is struct ifinfomsg.
func (e *encoder) ifinfo(family uint8, index int, flags, change uint32) {
	e.buf = append(e.buf, family, 0, 0, 0)
	e.u32(uint32(index), flags, change)
}

// ndmsg is struct ndmsg.
func (e *encoder) ndmsg(family uint8, index int, state NeighState, flags uint8) {
	e.buf = append(e.buf, family, 0, 0, 0)
	e.u32(uint32(index))
	e.buf = binary.NativeEndian.AppendUint16(e.buf, uint16(state))
	e.buf = append(e.buf, flags, 0)
}

// ifaddr is struct ifaddrmsg.
func (e *encoder) ifaddr(family uint8, bits, index int) {
	e.buf = append(e.buf, family, uint8(bits), 0, 0)
	e.u32(uint32(index))
}

func (e *encoder) u32(vs ...uint32) {
	for _, v := range vs {
		e.buf = binary.NativeEndian.AppendUint32(e.buf, v)
	}
}

// attr appends one attribute.
func (e *encoder) attr(typ uint16, value []byte) {
	e.buf = binary.NativeEndian.AppendUint16(e.buf, uint16(unix.SizeofRtAttr+len(value)))
	e.buf = binary.NativeEndian.AppendUint16(e.buf, typ)
	e.buf = append(e.buf, value...)
	for len(e.buf)%unix.NLMSG_ALIGNTO != 0 {
		e.buf = append(e.buf, 0)
	}
}

func (e *encoder) attrU8(typ uint16, v uint8) { e.attr(typ, []byte{v}) }

func (e *encoder) attrU16(typ, v uint16) {
	e.attr(typ, binary.NativeEndian.AppendUint16(nil, v))
}

func (e *encoder) attrU32(typ uint16, v uint32) {
	e.attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func (e *encoder) attrU64(typ uint16, v uint64) {
	e.attr(typ, binary.NativeEndian.AppendUint64(nil, v))
}

func (e *encoder) attrBool(typ uint16, v bool) {
	if v {
		e.attrU8(typ, 1)
	} else {
		e.attrU8(typ, 0)
	}
}

// attrString appends a string with its NUL, as NLA_NUL_STRING and, by custom,
// NLA_STRING have it.
func (e *encoder) attrString(typ uint16, s string) {
	e.attr(typ, append([]byte(s), 0))
}

// nest appends an attribute whose value is what fn appends.
func (e *encoder) nest(typ uint16, fn func()) {
	at := len(e.buf)
	e.attr(typ, nil)
	fn()
	binary.NativeEndian.PutUint16(e.buf[at:], uint16(len(e.buf)-at))
}

// errMalformed is an answer that is not what the kernel sends.
var errMalformed = errors.New("malformed netlink message")

// header is struct nlmsghdr.
type header struct {
	typ, flags uint16
	seq, pid   uint32
}

// messages calls fn for each message in b; body excludes the header and is only
// good during the call.
func messages(b []byte, fn func(h header, body []byte) error) error {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return errMalformed
		}
		h := header{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			pid:   binary.NativeEndian.Uint32(b[12:]),
		}
		if err := fn(h, b[unix.NLMSG_HDRLEN:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	if len(b) != 0 {
		return errMalformed
	}
	return nil
}

// attrs calls fn for each attribute in b, with the flag bits of the type
// (NLA_F_NESTED, NLA_F_NET_BYTEORDER) taken off.
func attrs(b []byte, fn func(typ uint16, value []byte) error) error {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return errMalformed
		}
		typ := binary.NativeEndian.Uint16(b[2:]) & nlaTypeMask
		if err := fn(typ, b[unix.SizeofRtAttr:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// The readers below are lenient: a value of an unexpected length is zero, as an
// attribute that is missing would be.

func readU8(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}

func readU16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}

func readU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func readU64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.NativeEndian.Uint64(b)
}

func readString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// nlaTypeMask is NLA_TYPE_MASK of linux/netlink.h.
const nlaTypeMask = 0x3fff
