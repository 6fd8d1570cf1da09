package snapshot

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/carrick-net/carrick"
)

// magic begins the file and names the version of its layout.
const magic = "carrick cache 1\n"

// frame is one entry of the log: the length of what follows the head and
// its CRC-32 (IEEE), four bytes each and little-endian; then the network's id,
// the host's id, and the value.
// A frame that ends after the host's id forgets the host's record, one that ends
// after the network's id the network.
type frame struct {
	net   carrick.NetworkID
	host  carrick.HostID // "" = the whole network
	value []byte         // nil = forget
}

const (
	headLen  = 8
	idLen    = 16
	maxFrame = 64 << 20 // of 100,000 endpoints on one host, twice
)

// appendFrame encodes a frame.
func appendFrame(raw []byte, fr frame) ([]byte, error) {
	n := len(fr.net) + len(fr.host) + len(fr.value)
	if !carrick.ValidID(string(fr.net)) || fr.host != "" && !carrick.ValidID(string(fr.host)) || n > maxFrame {
		return nil, fmt.Errorf("network %q host %q with %d bytes", fr.net, fr.host, n)
	}
	raw = binary.LittleEndian.AppendUint32(raw, uint32(n))
	begin := len(raw)
	raw = append(raw, 0, 0, 0, 0)
	raw = append(raw, fr.net...)
	raw = append(raw, fr.host...)
	raw = append(raw, fr.value...)
	binary.LittleEndian.PutUint32(raw[begin:], crc32.ChecksumIEEE(raw[begin+4:]))
	return raw, nil
}

// readFrame decodes a frame of at most most bytes, and says how many it has.
// The error is errDamaged for bytes that are none, else the reader's.
func readFrame(r io.Reader, most int64) (frame, int64, error) {
	var head [headLen]byte
	if most < headLen {
		return frame{}, 0, errDamaged
	}
	if err := readFull(r, head[:]); err != nil {
		return frame{}, 0, err
	}
	n := int64(binary.LittleEndian.Uint32(head[:]))
	if n < idLen || n > maxFrame || n > most-headLen {
		return frame{}, 0, errDamaged
	}
	body := make([]byte, n)
	if err := readFull(r, body); err != nil {
		return frame{}, 0, err
	}
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(head[4:]) {
		return frame{}, 0, errDamaged
	}
	fr := frame{net: carrick.NetworkID(body[:idLen])}
	ok := carrick.ValidID(string(fr.net))
	if body = body[idLen:]; len(body) >= idLen {
		fr.host, fr.value = carrick.HostID(body[:idLen]), body[idLen:]
		ok = ok && carrick.ValidID(string(fr.host))
	} else if len(body) > 0 {
		ok = false
	}
	if !ok {
		return frame{}, 0, errDamaged
	}
	return fr, headLen + n, nil
}

// readFull takes the end of a file that became shorter for damage.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errDamaged
	}
	return err
}

func encode(r Record) ([]byte, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", r, err)
	}
	return raw, nil
}

// decode reads a value. It never panics whatever the bytes are, and refuses what
// the rest of the program must not see.
func decode(raw []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if len(r.Endpoints) == 0 {
		return Record{}, fmt.Errorf("%w: no endpoints", errDamaged)
	}
	for _, e := range r.Endpoints {
		ok := carrick.ValidDockerID(string(e.ID)) && len(e.Addrs) > 0 && e.MAC.IsUnicast()
		for _, a := range e.Addrs {
			ok = ok && a.IsValid() && a.Zone() == ""
		}
		if !ok {
			return Record{}, fmt.Errorf("%w: endpoint %q with addresses %v MAC %s", errDamaged, e.ID, e.Addrs, e.MAC)
		}
	}
	return r, nil
}
