// Package carrick is the project's vocabulary: the words every other package
// uses for networks, hosts, endpoints and addresses, as types that cannot be
// mixed up.
//
// It imports the standard library only, does no I/O and knows nothing of
// Docker's wire format, of the store's keys or of the kernel. All types are
// plain values: copying one is cheap unless it holds a slice or a map, and
// nothing here is safe to mutate from two goroutines at once.
package carrick

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
)

// NetworkID is a network's cluster-wide identity: 16 lower-case hex digits,
// random, given once at creation. It is not Docker's NetworkID, which differs
// on every host (see [DockerNetworkID]).
type NetworkID string

// HostID is a host's identity: 16 lower-case hex digits, random, kept in the
// host's state directory. A host's name is for people and may change.
type HostID string

// EndpointID is Docker's EndpointID, 64 hex digits, new at each container
// start.
type EndpointID string

// DockerNetworkID is one engine's own id of a network, 64 hex digits: a local
// alias of a [NetworkID].
type DockerNetworkID string

// Short returns the first 12 characters, as docker prints ids.
func (id EndpointID) Short() string { return short(string(id)) }

// Short returns the first 12 characters, as docker prints ids.
func (id DockerNetworkID) Short() string { return short(string(id)) }

func short(s string) string {
	if len(s) > 12 {
		return s[:12]
	}
	return s
}

// NewNetworkID returns a random id.
func NewNetworkID() NetworkID { return NetworkID(randomHex(8)) }

// NewHostID returns a random id.
func NewHostID() HostID { return HostID(randomHex(8)) }

// randomHex returns 2n hex digits. crypto/rand.Read never fails (Go 1.24).
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// ValidID says whether s has the form of a NetworkID or HostID. Ids from the
// store or a user become file and key names, so everything that decodes one
// checks it.
func ValidID(s string) bool { return isHex(s, 16) }

// ValidDockerID says whether s has the form of an EndpointID or
// DockerNetworkID.
func ValidDockerID(s string) bool { return isHex(s, 64) }

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// VNI is a VXLAN network identifier, 1 to 16777215 (24 bits, RFC 7348 §5).
// Zero means "not chosen".
type VNI uint32

// MaxVNI is the largest VNI a VXLAN header can carry.
const MaxVNI VNI = 1<<24 - 1

// ProbeVNI is kept for probes between hosts: no network has it.
const ProbeVNI = MaxVNI

// ParseVNI reads a network's VNI in decimal: it refuses what a VXLAN header cannot
// carry, and [ProbeVNI].
func ParseVNI(s string) (VNI, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n >= uint64(ProbeVNI) {
		return 0, fmt.Errorf("%q is not a network's VNI: want a number from 1 to %d (%d is what hosts probe each other with)", s, ProbeVNI-1, ProbeVNI)
	}
	return VNI(n), nil
}

// Mode is what carries a network's frames between hosts: see parent.go for the others.
type Mode string

const (
	// ModeVXLAN is the default: a bridge and a vxlan device per network.
	ModeVXLAN Mode = "vxlan"
	// ModeRouted is the one whose hosts route between containers, which are on no segment.
	ModeRouted Mode = "routed"
)

// DefaultPort is VXLAN's UDP port (RFC 7348 §5, IANA 4789).
const DefaultPort uint16 = 4789

// DefaultTenant is the tenant of networks that name none. Prefixes may overlap
// between tenants, never within one.
const DefaultTenant = "default"
