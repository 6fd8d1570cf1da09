// Package journal is a host's own memory: who it is, which networks it has
// aliases of, which addresses it gave out and which endpoints run here, in one
// file that is synced to disk before a plugin call is answered.
//
// It is the truth about this host; the shared store holds a copy for the
// others. It knows the vocabulary and the disk, neither the store nor Docker
// nor the kernel.
//
// # What can be relied on
//
// [Journal.Update] returns nil when what it did, and what it saw, is on disk.
// If it returns an error nothing of it is in memory, nor on disk once another
// Update has succeeded; a process that dies before that may find it done.
//
// All other methods show what is on disk and nothing else.
//
// The file is what it was when it was written, or opening it is [ErrCorrupt]: its
// structure is walked and its records are summed up, so that a bit that flipped, a
// page that was not written and a record that is missing are all found. There is
// no partial journal.
package journal

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/carrick-net/carrick"
)

// Sentinel errors.
var (
	// ErrLocked: another process has the state directory open.
	ErrLocked = errors.New("state directory in use by another agent")
	// ErrForeign: the state directory was made on another machine.
	ErrForeign = errors.New("state directory belongs to another machine")
	// ErrNotFound: no such record.
	ErrNotFound = errors.New("not in the journal")
	// ErrCorrupt: the file is there and is not what was written.
	ErrCorrupt = errors.New("journal is damaged")
	// ErrInvalid: a record that no Open would take. It is a caller's mistake.
	ErrInvalid = errors.New("not a record of the journal")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal is closed")
	// ErrDead: a hook of [Options] said that the process has died.
	ErrDead = errors.New("journal is dead")
)

// Journal is an open journal. It is safe for concurrent use.
//
// Two locks order it. disk is held over each write, mu never is: transactions
// run, one at a time under mu, while those before them are written, and all that
// came meanwhile is the next write. A transaction sees what those before it did,
// be it on disk or not, and answers when it is. disk is taken before mu.
type Journal struct {
	path string
	opts Options
	lock *os.File // the directory, locked

	disk sync.Mutex // guards what follows, and with mu the writing of durable
	file *file      // nil: to be opened again before the next write
	sum  uint64     // of what durable holds
	// stale: the file does not hold what durable does, and is to be replaced.
	stale  bool
	dead   bool // a hook said so
	closed bool

	mu sync.RWMutex // guards all below
	// durable is what is on disk, and what is shown. Written with disk held as well.
	durable *tables
	// latest is durable with the changes of flying and open.
	latest *tables
	open   *batch // of changes that no write has taken up; nil if there are none
	flying *batch // of the changes that are being written; nil if there are none
	// registered: see Registered.
	registered bool
	fresh      bool
}

// Close releases the file. What is under way is finished first.
func (j *Journal) Close() error {
	j.disk.Lock()
	defer j.disk.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	var err error
	if j.file != nil {
		err = j.file.close()
		j.file = nil
	}
	return errors.Join(err, j.lock.Close())
}

// Fresh says whether Open made the journal: this host remembers nothing, which
// is either its first start or the loss of its state directory.
func (j *Journal) Fresh() bool { return j.fresh }

// Identity returns who this host is.
func (j *Journal) Identity() Identity {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.durable.identity
}

// Strangers are networks that were in the kernel when the journal was made, so
// that it cannot say whether anything of theirs still runs.
func (j *Journal) Strangers() []carrick.NetworkID {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return slices.Clone(j.durable.strangers)
}

// SetStrangers replaces the list, durably.
func (j *Journal) SetStrangers(ids []carrick.NetworkID) error {
	return j.Update(func(tx *Tx) error {
		ids := slices.Clone(ids)
		tx.changes.strangers = &ids
		return nil
	})
}

// Network returns a network's record, or [ErrNotFound].
func (j *Journal) Network(id carrick.NetworkID) (Network, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	n, ok := j.durable.networks[id]
	if !ok {
		return Network{}, fmt.Errorf("network %s: %w", id, ErrNotFound)
	}
	return n.clone(), nil
}

// ByAlias returns the network an engine's id stands for, or [ErrNotFound].
func (j *Journal) ByAlias(id carrick.DockerNetworkID) (Network, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	n, ok := j.durable.networks[j.durable.aliases[id]]
	if !ok {
		return Network{}, fmt.Errorf("docker network %s: %w", id.Short(), ErrNotFound)
	}
	return n.clone(), nil
}

// Networks returns every network's record, sorted by id.
func (j *Journal) Networks() []Network {
	j.mu.RLock()
	defer j.mu.RUnlock()
	out := make([]Network, 0, len(j.durable.networks))
	for _, id := range slices.Sorted(maps.Keys(j.durable.networks)) {
		out = append(out, j.durable.networks[id].clone())
	}
	return out
}

// Endpoint returns an endpoint's record, or [ErrNotFound].
func (j *Journal) Endpoint(id carrick.EndpointID) (Endpoint, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	e, ok := j.durable.endpoint(id)
	if !ok {
		return Endpoint{}, fmt.Errorf("endpoint %s: %w", id.Short(), ErrNotFound)
	}
	return e.clone(), nil
}

// Endpoints returns a network's local endpoints, sorted by id.
func (j *Journal) Endpoints(id carrick.NetworkID) []Endpoint {
	j.mu.RLock()
	defer j.mu.RUnlock()
	out := make([]Endpoint, 0, len(j.durable.endpoints[id]))
	for _, e := range j.durable.endpoints[id] {
		out = append(out, e.clone())
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// Leases returns every address of a network this host remembers.
func (j *Journal) Leases(id carrick.NetworkID) map[netip.Addr]Lease {
	j.mu.RLock()
	defer j.mu.RUnlock()
	out := make(map[netip.Addr]Lease, len(j.durable.leases[id]))
	maps.Copy(out, j.durable.leases[id])
	return out
}

// Meta returns what the journal remembers besides networks.
func (j *Journal) Meta() Meta {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.durable.meta
}

// Hosts returns every host this one has heard of and that was not removed.
func (j *Journal) Hosts() map[carrick.HostID]carrick.Host {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.durable.members(false)
}

// Removed returns every host that was removed from the cluster, as it was then, and
// has not been heard of since.
func (j *Journal) Removed() map[carrick.HostID]carrick.Host {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.durable.members(true)
}

// inDirectory is the journal's file.
func inDirectory(dir string) string { return filepath.Join(dir, "state.db") }
