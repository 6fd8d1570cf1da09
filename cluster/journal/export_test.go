package journal

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/carrick-net/carrick"
)

// QueueLen is how long the queue of resting addresses is, with what no longer
// counts.
func QueueLen(j *Journal, id carrick.NetworkID, pool netip.Prefix) int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return len(j.durable.usages[usageKey{id, pool}].queue)
}

// CheckPages is checkPages.
func CheckPages(file []byte) error { return checkPages(file) }

// Dump is everything the journal shows, as text.
func Dump(j *Journal) string {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.durable.dump()
}

func (t *tables) dump() string {
	c := t.all()
	lines := []string{
		line("identity", c.identity), line("meta", c.meta), line("strangers", c.strangers),
	}
	for id, v := range c.hosts {
		lines = append(lines, line("host "+string(id), v))
	}
	for id, v := range c.networks {
		lines = append(lines, line("network "+string(id), v))
	}
	for id, v := range c.endpoints {
		lines = append(lines, line("endpoint "+string(id), v))
	}
	for k, v := range c.leases {
		lines = append(lines, line("lease "+k.String(), v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func line(name string, v any) string {
	raw, err := json.Marshal(v)
	return fmt.Sprintf("%s %s %v", name, raw, err)
}

// Drift says how the journal's parts disagree with each other, when nothing is
// under way: what transactions see with what is shown, and what was kept beside
// the records with what follows from them.
func Drift(j *Journal) string {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if d, l := j.durable.dump(), j.latest.dump(); d != l {
		return "durable:\n" + d + "\nlatest:\n" + l
	}
	for name, t := range map[string]*tables{"durable": j.durable, "latest": j.latest} {
		anew := t.clone()
		switch {
		case !reflect.DeepEqual(t.aliases, anew.aliases):
			return fmt.Sprintf("%s: aliases %v, want %v", name, t.aliases, anew.aliases)
		case !reflect.DeepEqual(t.homes, anew.homes):
			return fmt.Sprintf("%s: homes %v, want %v", name, t.homes, anew.homes)
		case len(t.endpoints) != len(anew.endpoints) || len(t.leases) != len(anew.leases):
			return name + ": empty maps are left"
		}
		for k, u := range anew.usages {
			if got := t.usages[k]; got == nil || got.taken != u.taken || got.resting != u.resting || !reflect.DeepEqual(got.known, u.known) {
				return fmt.Sprintf("%s: usage of %v is %+v, want %+v", name, k, got, u)
			}
		}
	}
	return ""
}

// Seal makes the sum in a file be that of its records, whatever they are.
func Seal(tx *bbolt.Tx) error {
	sum := uint64(0)
	err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if string(name) != string(bucketMeta) || string(k) != string(keySum) {
				sum += sumOf(name, k, v)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(keySum, sealOf(tx, sum))
}
