// Package kvstore is what Carrick needs of a shared store, and no more: five
// verbs with their guarantees written down, and sentinel errors. One package
// below it per client library; storetest is the suite that holds all of them to
// this text.
//
// It must not know what is stored: keys and values are opaque here.
package kvstore

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Sentinel errors. Every error a [Store] returns wraps one of them or is a
// context's error.
var (
	// ErrNotFound: Get of a key that does not exist.
	ErrNotFound = errors.New("key not found")
	// ErrConflict: a condition of a transaction did not hold; nothing was
	// written. See [ConflictError] for which.
	ErrConflict = errors.New("condition failed")
	// ErrUnavailable: the store could not be reached, has no leader, or did not
	// answer in time. A write that ends so may have happened, or not, or may yet
	// happen: a request that waits in a slow server is carried out after later
	// ones. Read before trying again, and write with conditions, so that a late
	// write finds them failed.
	ErrUnavailable = errors.New("store unavailable")
	// ErrDenied: the store knows us and says no (ACL), or does not know us.
	ErrDenied = errors.New("permission denied by the store")
	// ErrTooLarge: a value or a transaction above the store's limits. Nothing
	// was written.
	ErrTooLarge = errors.New("too large for the store")
	// ErrLeaseLost: a lease that a transaction or a caller relied on is gone.
	ErrLeaseLost = errors.New("lease lost")
	// ErrClosed: the store was closed by its owner.
	ErrClosed = errors.New("store closed")
	// ErrInvalid: a call outside this contract (a key of another form, two
	// operations on one key, a condition on no version): the caller's mistake,
	// refused before anything is sent. Nothing was written.
	ErrInvalid = errors.New("not a valid call of the store")
)

// Limits that every backend honours, so that a caller never depends on which
// one is behind it. Consul's are the tightest: 128 operations per transaction,
// 512 KiB per value and per transaction body after base64 (measured on 1.22).
const (
	MaxTxnOps   = 120       // conditions plus operations; a leased put counts as two
	MaxTxnBytes = 320 << 10 // keys plus values of one transaction, raw
	MaxValue    = 256 << 10 // one value, raw
	MaxKey      = 512       // one key, bytes
)

// Revision orders the writes of one store. It grows with each write to
// anything; only comparison for equality is meaningful across a store's reset,
// when it may go backwards. Zero is before everything.
type Revision uint64

// LeaseID names a lease in the store; "" is no lease.
type LeaseID string

// Entry is one key's state.
type Entry struct {
	Key     string
	Value   []byte   // the caller's to keep; never shared
	Version Revision // revision of the last write to this key; never 0
	Lease   LeaseID  // the lease it vanishes with, or ""
}

// Selector says what a List or a Watch covers: one key, or every key that
// starts with a prefix.
type Selector struct {
	Key    string
	Prefix bool
}

// OneKey selects exactly key.
func OneKey(key string) Selector { return Selector{Key: key} }

// Under selects every key starting with prefix.
func Under(prefix string) Selector { return Selector{Key: prefix, Prefix: true} }

// Match says whether a key is selected.
func (s Selector) Match(key string) bool {
	if s.Prefix {
		return strings.HasPrefix(key, s.Key)
	}
	return key == s.Key
}

func (s Selector) String() string {
	if s.Prefix {
		return s.Key + "*"
	}
	return s.Key
}

// View is the whole state of a selection at one moment.
type View struct {
	Entries  []Entry  // sorted by key; empty if nothing is selected
	Revision Revision // of the selection, for the next Watch; never 0
}

// CondKind is what a condition asks.
type CondKind int

// The conditions of a transaction.
const (
	IfVersion CondKind = iota + 1 // the key exists with exactly this version
	IfAbsent                      // the key does not exist
	IfLease                       // the key exists and is held by this lease
)

// Cond is one condition.
type Cond struct {
	Kind    CondKind
	Key     string
	Version Revision // IfVersion
	Lease   LeaseID  // IfLease
}

// OpKind is what an operation does.
type OpKind int

// The operations of a transaction.
const (
	OpPut          OpKind = iota + 1 // create or replace
	OpDelete                         // deleting what is not there is not an error
	OpDeletePrefix                   // the same for every key starting with Key
)

// Op is one write.
type Op struct {
	Kind  OpKind
	Key   string
	Value []byte
	// Lease binds a Put to a lease: the key vanishes with it. A key bound to
	// another lease changes over to this one (guard with a condition if it must
	// not). A put without a lease of a key that has one is [ErrDenied] in some
	// stores and keeps or drops the lease in others; do not mix.
	Lease LeaseID
}

// Txn is an atomic "if all of these, then all of those". At most one operation
// per key (a DeletePrefix counts for every key below it). Build it with the
// chaining methods.
type Txn struct {
	Conds []Cond
	Ops   []Op
}

// Version requires key to exist at version v, or to be absent if v is 0.
func (t *Txn) Version(key string, v Revision) *Txn {
	if v == 0 {
		return t.Absent(key)
	}
	t.Conds = append(t.Conds, Cond{Kind: IfVersion, Key: key, Version: v})
	return t
}

// Absent requires that key does not exist.
func (t *Txn) Absent(key string) *Txn {
	t.Conds = append(t.Conds, Cond{Kind: IfAbsent, Key: key})
	return t
}

// Held requires that key exists bound to lease.
func (t *Txn) Held(key string, lease LeaseID) *Txn {
	t.Conds = append(t.Conds, Cond{Kind: IfLease, Key: key, Lease: lease})
	return t
}

// Put writes key.
func (t *Txn) Put(key string, value []byte) *Txn {
	t.Ops = append(t.Ops, Op{Kind: OpPut, Key: key, Value: value})
	return t
}

// PutLeased writes key bound to lease. With lease "" it is Put.
func (t *Txn) PutLeased(key string, value []byte, lease LeaseID) *Txn {
	t.Ops = append(t.Ops, Op{Kind: OpPut, Key: key, Value: value, Lease: lease})
	return t
}

// Delete removes key if it exists.
func (t *Txn) Delete(key string) *Txn {
	t.Ops = append(t.Ops, Op{Kind: OpDelete, Key: key})
	return t
}

// DeletePrefix removes every key starting with prefix.
func (t *Txn) DeletePrefix(prefix string) *Txn {
	t.Ops = append(t.Ops, Op{Kind: OpDeletePrefix, Key: prefix})
	return t
}

// ConflictError says which conditions of a transaction failed; it wraps
// [ErrConflict]. Keys has at least one of them; a backend that cannot tell
// names all the keys it asked about.
type ConflictError struct{ Keys []string }

func (e *ConflictError) Error() string {
	return "condition failed on " + strings.Join(e.Keys, ", ")
}

// Unwrap makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Unwrap() error { return ErrConflict }

// Store is a shared key-value store. All methods are safe for concurrent use,
// honour their context, and see a linearizable history unless they say
// otherwise. Keys are what [CheckKey] accepts: slash-separated printable UTF-8
// without a leading slash; anything else is [ErrInvalid]. No method keeps or
// changes a slice it is given, and none returns one that anybody else holds.
//
// A context that ends is returned as its error, wrapped; for a write that
// leaves it as unknown as [ErrUnavailable] does. After Close every method
// returns [ErrClosed].
type Store interface {
	// Get reads one key. Error: [ErrNotFound], [ErrUnavailable], [ErrDenied].
	Get(ctx context.Context, key string) (Entry, error)

	// List reads a selection, whole and consistent. Nothing selected is an
	// empty view, not an error.
	List(ctx context.Context, sel Selector) (View, error)

	// Watch returns the selection's whole state as soon as its revision differs
	// from since; with since 0 at once. It may also return without any change
	// (a bounded wait ended): the caller compares revisions and calls again. It
	// is level-triggered: states between two calls may be skipped, the last one
	// never is. With since 0 the view is as fresh as List's; otherwise it may be
	// a moment behind a write that has ended, but never older than since.
	// A revision lower than since means that the store lost its past (restored,
	// replaced); the view is nonetheless whole. The reverse does not hold: a
	// store that lost its past and grew again may show any revision.
	Watch(ctx context.Context, sel Selector, since Revision) (View, error)

	// Txn applies all operations if all conditions hold, and returns the
	// revision that every key it put now has, or 0 if it put none. A put gives
	// its key a new version even if the value is the old one. Errors:
	// [ErrConflict] (as a *[ConflictError], nothing written), [ErrTooLarge]
	// (nothing written), [ErrLeaseLost] (all conditions hold, but an operation
	// names a lease that is gone; nothing written), [ErrUnavailable] (unknown
	// whether written).
	Txn(ctx context.Context, t *Txn) (Revision, error)

	// Lease starts a lease and keeps it alive until it is closed or lost. Keys
	// bound to it vanish between one and two ttl after the last renewal that
	// the store saw (Consul: about 2x ttl), at once when it is closed. ttl is
	// at least 10 s on Consul.
	Lease(ctx context.Context, ttl time.Duration) (Lease, error)

	// Close ends everything that is under way with [ErrClosed] and stops
	// renewing leases without revoking them.
	Close() error

	// String names the store for people, without secrets.
	String() string
}

// Lease is a kept-alive lease.
type Lease interface {
	ID() LeaseID
	// Lost is closed when the lease ended: revoked, expired, or not renewed for
	// so long that it must be presumed expired; also when its store was closed,
	// since nobody renews it then. It tells the holder; what guards a write is a
	// condition ([Txn.Held]).
	Lost() <-chan struct{}
	// Close revokes the lease: its keys vanish at once. Lost is closed even if
	// the store could not be told ([ErrUnavailable]; [ErrClosed] after the
	// store's Close): the keys then vanish when the lease runs out. Closing twice
	// is not an error.
	Close(ctx context.Context) error
}
