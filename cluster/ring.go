package cluster

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/carrick-net/carrick"
)

// headRecord is the one key of a network that watchers block on.
type headRecord struct {
	envelope
	Num  uint32   `json:"num,omitempty"`  // incarnation of Seq, which begins again with each
	Seq  uint64   `json:"seq"`            // of the last change
	Base uint32   `json:"base,omitempty"` // mark of the change before the ring's first
	Ring []change `json:"ring,omitempty"`
}

// change is what one commit did to one host's record.
type change struct {
	Seq  uint64               `json:"s"`
	Host carrick.HostID       `json:"h"`
	Put  []carrick.Endpoint   `json:"p,omitempty"`
	Del  []carrick.EndpointID `json:"d,omitempty"`
	// Reread: too large to be told inline, read the host's record.
	Reread bool `json:"r,omitempty"`
	// Mark is random. A store that was restored from a backup has other changes
	// under the numbers of those it forgot.
	Mark uint32 `json:"m,omitempty"`
}

func (r *headRecord) validate() error {
	last := uint64(0)
	for i, c := range r.Ring {
		if !carrick.ValidID(string(c.Host)) {
			return fmt.Errorf("change %d of host %q", c.Seq, c.Host)
		}
		if i > 0 && c.Seq != last+1 {
			return fmt.Errorf("change %d follows change %d", c.Seq, last)
		}
		last = c.Seq
		if err := validEndpoints(c.Put); err != nil {
			return err
		}
	}
	if len(r.Ring) > 0 && last != r.Seq {
		return fmt.Errorf("head at %d, ring ends at %d", r.Seq, last)
	}
	return nil
}

func (r *headRecord) at() stamp { return stamp{r.Num, r.Seq} }

// since returns the changes after have, or false if the ring does not reach back
// that far, or have is of another incarnation.
func (r *headRecord) since(have stamp) ([]change, bool) {
	if r.Num != have.num || r.Seq < have.seq || r.Seq-have.seq > uint64(len(r.Ring)) {
		return nil, false
	}
	return r.Ring[uint64(len(r.Ring))-(r.Seq-have.seq):], true
}

// marked returns the mark of the change with a number of this incarnation, or false
// if the ring does not reach back that far. There is none before the first.
func (r *headRecord) marked(seq uint64) (mark uint32, ok bool) {
	n := uint64(len(r.Ring))
	switch {
	case seq > r.Seq || r.Seq-seq > n:
		return 0, false
	case r.Seq-seq == n:
		return r.Base, true
	}
	return r.Ring[n-1-(r.Seq-seq)].Mark, true
}

// forks says whether a head has another past than that in which mark was the change
// at have.
func (r *headRecord) forks(have stamp, mark uint32) bool {
	if r.Num != have.num {
		return false
	}
	m, ok := r.marked(have.seq)
	return r.Seq < have.seq || ok && m != mark
}

// Bounds of the ring: a watcher wakes for each change and receives the whole
// head, so its size is the price of a change per watcher.
const (
	ringChanges = 24
	// ringBytes is how much of the last changes is told inline: about ten of one
	// endpoint each. What is older is only told as Reread: a watcher that comes late
	// then reads the records of the hosts that changed, and not the whole network.
	ringBytes = 2 << 10
	// inlineBytes bounds the newest change, which is told inline whatever else is:
	// about thirty endpoints. It is less than their host's record would cost each of
	// the watchers.
	inlineBytes = 6 << 10
)

// push appends a change made in an incarnation and shortens the ring to its
// bounds. A new incarnation counts from the beginning.
func (r *headRecord) push(num uint32, c change) error {
	if r.Num < num {
		*r = headRecord{Num: num}
	}
	r.V = schema
	r.Seq++
	c.Seq, c.Mark = r.Seq, rand.Uint32()
	ring := append(slices.Clone(r.Ring), c)
	if drop := len(ring) - ringChanges; drop > 0 {
		r.Base, ring = ring[drop-1].Mark, ring[drop:]
	}
	room := ringBytes
	for i := len(ring) - 1; i >= 0; i-- {
		raw, err := json.Marshal(ring[i])
		if err != nil {
			return fmt.Errorf("encode change: %w", err)
		}
		newest := i == len(ring)-1
		if newest && len(raw) <= inlineBytes || !newest && len(raw) <= room {
			room -= len(raw)
			continue
		}
		ring[i] = change{Seq: ring[i].Seq, Host: ring[i].Host, Reread: true, Mark: ring[i].Mark}
		if !newest {
			room = 0 // nothing older than what is only mentioned is of use
		}
	}
	r.Ring = ring
	return nil
}
