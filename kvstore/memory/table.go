package memory

import (
	"maps"
	"slices"
	"strings"

	"github.com/carrick-net/carrick/kvstore"
)

// table is a sorted map of entries. Values in it are never changed in place, so
// a clone shares them. It implements local.Table.
type table struct {
	entries map[string]kvstore.Entry
	keys    []string // of entries, sorted

	recording bool
	before    []previous // what was written over while recording, in its order
}

func newTable() *table { return &table{entries: make(map[string]kvstore.Entry)} }

func (t *table) clone() *table {
	return &table{entries: maps.Clone(t.entries), keys: slices.Clone(t.keys)}
}

// record makes the table keep what is written over, or no longer.
func (t *table) record(on bool) { t.recording, t.before = on, nil }

// overwrites says that key is about to be written.
func (t *table) overwrites(key string) {
	if t.recording {
		e, ok := t.entries[key]
		t.before = append(t.before, previous{key, e, ok})
	}
}

// taken returns what was written over since the last call.
func (t *table) taken() []previous {
	b := t.before
	t.before = nil
	return b
}

func (t *table) Get(key string) (kvstore.Entry, bool, error) {
	e, ok := t.entries[key]
	return e, ok, nil
}

func (t *table) Put(e kvstore.Entry) error {
	t.overwrites(e.Key)
	if i, ok := slices.BinarySearch(t.keys, e.Key); !ok {
		t.keys = slices.Insert(t.keys, i, e.Key)
	}
	e.Value = slices.Clone(e.Value)
	t.entries[e.Key] = e
	return nil
}

func (t *table) Delete(key string) error {
	if i, ok := slices.BinarySearch(t.keys, key); ok {
		t.overwrites(key)
		t.keys = slices.Delete(t.keys, i, i+1)
		delete(t.entries, key)
	}
	return nil
}

func (t *table) Keys(prefix string) ([]string, error) {
	from, _ := slices.BinarySearch(t.keys, prefix)
	to := from
	for to < len(t.keys) && strings.HasPrefix(t.keys[to], prefix) {
		to++
	}
	return slices.Clone(t.keys[from:to]), nil
}

// sel returns copies of the selected entries, sorted.
func (t *table) sel(s kvstore.Selector) []kvstore.Entry {
	var keys []string
	if s.Prefix {
		keys, _ = t.Keys(s.Key)
	} else if _, ok := t.entries[s.Key]; ok {
		keys = []string{s.Key}
	}
	out := make([]kvstore.Entry, 0, len(keys))
	for _, k := range keys {
		out = append(out, copyEntry(t.entries[k]))
	}
	return out
}

func copyEntry(e kvstore.Entry) kvstore.Entry {
	e.Value = slices.Clone(e.Value)
	return e
}
