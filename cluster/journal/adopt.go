package journal

import (
	"github.com/carrick-net/carrick"
)

// Registered says whether the cluster had known this host when the journal was
// opened, or Adopt has made it that host since. One that was not is either on its
// first start or has lost its state directory.
func (j *Journal) Registered() bool {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.registered
}

// Adopt makes the journal that of a host which the cluster knows and whose own
// journal was lost. It comes before anything else is written, and before anybody
// asks who this host is.
func (j *Journal) Adopt(host carrick.HostID) error {
	id := j.Identity()
	id.Host = host
	if err := j.Update(func(tx *Tx) error { tx.changes.identity = &id; return nil }); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.registered = true
	return nil
}
