package carrick

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
)

// MAC is an Ethernet address. The zero value means "none".
type MAC [6]byte

// ParseMAC reads the colon-separated form Docker and ip print.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q is not an Ethernet address: want six hex octets like 02:42:0a:2a:00:02", s)
	}
	return MAC(hw), nil
}

// String prints the form ip and bridge print.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsZero says whether no address is set.
func (m MAC) IsZero() bool { return m == MAC{} }

// IsUnicast says whether the address may name one station: neither zero nor a
// group address (IEEE 802.3 §3.2.3, the lowest bit of the first octet).
func (m MAC) IsUnicast() bool { return !m.IsZero() && m[0]&1 == 0 }

// LinkLocal is the IPv6 link-local address that a kernel gives an interface of
// this MAC unless it is told otherwise (RFC 4291 appendix A, modified EUI-64).
func (m MAC) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// MarshalText makes a MAC a JSON string.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText reads what MarshalText wrote; empty text is the zero MAC.
func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*m = MAC{}
		return nil
	}
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// MACFor derives an endpoint's MAC from its network's VNI and its address, so
// that a container which keeps its address keeps its MAC and its neighbours'
// caches stay right. IPv4: 02, one hash byte of the VNI, the four octets of
// the address: unique within a network by construction. IPv6: 06 and the last
// five octets of the address, disguised by a hash of the VNI and the first
// eleven: unique among the addresses of a /88, from which all come that nobody
// asked for; beyond it collisions are possible, and the caller refuses a known
// one. Both are locally administered unicast addresses.
func MACFor(vni VNI, addr netip.Addr) MAC {
	addr = addr.Unmap()
	if addr.Is4() {
		a := addr.As4()
		return MAC{0x02, byte(vniHash(vni)), a[0], a[1], a[2], a[3]}
	}
	a := addr.As16()
	h := sha256.Sum256(append([]byte{byte(vni >> 16), byte(vni >> 8), byte(vni)}, a[:11]...))
	m := MAC{0x06}
	for i, b := range a[11:] {
		m[1+i] = b ^ h[i]
	}
	return m
}

// vniHash is FNV-1a over the VNI. It, like all of MACFor, is part of the protocol
// between hosts: changing it changes every container's MAC.
func vniHash(vni VNI) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte{byte(vni >> 16), byte(vni >> 8), byte(vni)})
	s := h.Sum64()
	// Fold: FNV's low bits alone mix the last input bytes best.
	return s ^ s>>40
}

// deviceSuffix is the part of a device name that stands for an endpoint: 11 hex
// digits of its id, so that "ck" + suffix and "p" + suffix fit the kernel's 15
// characters (IFNAMSIZ 16 with its NUL).
func deviceSuffix(id EndpointID) string {
	s := string(id)
	if len(s) >= 11 {
		return s[:11]
	}
	return hex.EncodeToString([]byte(s))
}
