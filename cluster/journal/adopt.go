package journal

import (
	"encoding/json"

	"go.etcd.io/bbolt"

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
	id := j.id
	id.Host = host
	raw, err := json.Marshal(id)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.write(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyIdentity, raw) }); err != nil {
		return err
	}
	j.id, j.registered = id, true
	return nil
}
