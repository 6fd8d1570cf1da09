package bolt

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/carrick-net/carrick/kvstore"
)

// A record is what is stored under a key:
//
//	version  8 bytes, big endian, never 0
//	length   2 bytes, big endian, of the lease
//	lease    the lease's id, or nothing
//	value    the rest
const recordHeader = 10

// encodeRecord fails only for a lease id that no lease of ours can have.
func encodeRecord(e kvstore.Entry) ([]byte, error) {
	if len(e.Lease) > math.MaxUint16 {
		return nil, fmt.Errorf("lease id of %d bytes on %s: %w", len(e.Lease), e.Key, kvstore.ErrInvalid)
	}
	b := make([]byte, 0, recordHeader+len(e.Lease)+len(e.Value))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Version))
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Lease)))
	b = append(b, e.Lease...)
	return append(b, e.Value...), nil
}

// decodeRecord copies what it returns: bolt's memory is only valid inside its
// transaction. A damaged record wraps [kvstore.ErrUnavailable].
func decodeRecord(key, b []byte) (kvstore.Entry, error) {
	if len(b) < recordHeader {
		return kvstore.Entry{}, damaged(key, "shorter than its header")
	}
	version := binary.BigEndian.Uint64(b)
	if version == 0 {
		return kvstore.Entry{}, damaged(key, "has version 0")
	}
	n := int(binary.BigEndian.Uint16(b[8:]))
	rest := b[recordHeader:]
	if n > len(rest) {
		return kvstore.Entry{}, damaged(key, "shorter than its lease")
	}
	return kvstore.Entry{
		Key:     string(key),
		Version: kvstore.Revision(version),
		Lease:   kvstore.LeaseID(rest[:n]),
		Value:   append([]byte{}, rest[n:]...),
	}, nil
}

func damaged(key []byte, what string) error {
	return fmt.Errorf("damaged record of %q: %s: %w", key, what, kvstore.ErrUnavailable)
}
