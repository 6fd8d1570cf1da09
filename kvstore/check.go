package kvstore

import (
	"cmp"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CheckKey says whether key has the form that every backend can store, with
// [ErrInvalid] or, above [MaxKey], [ErrTooLarge].
//
// A key is one or more segments separated by single slashes, without a space at
// its ends. A segment is printable UTF-8 without percent signs and neither
// empty, "." nor "..". Consul 1.22 cleans or refuses paths with such segments and
// ends, unescapes percent signs before it does so, and refuses unprintable
// characters; ZooKeeper refuses most of that as well.
func CheckKey(key string) error {
	if key == "" {
		return fmt.Errorf("empty key: %w", ErrInvalid)
	}
	if strings.HasSuffix(key, "/") {
		return fmt.Errorf("key %q ends in a slash: %w", key, ErrInvalid)
	}
	return cmp.Or(checkEnds("key", key), checkPath("key", key))
}

// CheckPrefix is [CheckKey] for a prefix: what some valid key begins with,
// including "" and a trailing slash. A prefix that ends in a segment "." or
// "..", or in a space, is refused.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return cmp.Or(checkEnds("prefix", prefix), checkPath("prefix", strings.TrimSuffix(prefix, "/")))
}

func checkEnds(what, s string) error {
	if strings.HasPrefix(s, " ") || strings.HasSuffix(s, " ") {
		return fmt.Errorf("%s %q begins or ends with a space: %w", what, s, ErrInvalid)
	}
	return nil
}

func checkPath(what, s string) error {
	if len(s) > MaxKey {
		return fmt.Errorf("%s of %d bytes (at most %d): %w", what, len(s), MaxKey, ErrTooLarge)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %q is not UTF-8: %w", what, s, ErrInvalid)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == '%' }) >= 0 {
		return fmt.Errorf("%s %q has a percent sign or an unprintable character: %w", what, s, ErrInvalid)
	}
	for seg := range strings.SplitSeq(s, "/") {
		if seg == "" || seg == "." || seg == ".." {
			return fmt.Errorf("%s %q has a segment %q: %w", what, s, seg, ErrInvalid)
		}
	}
	return nil
}

// Check is [CheckKey] or [CheckPrefix], whichever applies.
func (s Selector) Check() error {
	if s.Prefix {
		return CheckPrefix(s.Key)
	}
	return CheckKey(s.Key)
}

// Check refuses, before anything is sent, what no store may accept: a
// transaction above the limits with [ErrTooLarge]; a key of another form, a
// condition that names no version or lease, or two operations on one key with
// [ErrInvalid]. Every backend calls it first.
func (t *Txn) Check() error {
	n, total := len(t.Conds)+len(t.Ops), 0
	for _, c := range t.Conds {
		if err := c.check(); err != nil {
			return err
		}
		total += len(c.Key)
	}
	for _, o := range t.Ops {
		if err := o.check(); err != nil {
			return err
		}
		total += len(o.Key) + len(o.Value)
		if o.Lease != "" {
			n++
		}
	}
	if n > MaxTxnOps {
		return fmt.Errorf("transaction of %d conditions and operations (at most %d): %w", n, MaxTxnOps, ErrTooLarge)
	}
	if total > MaxTxnBytes {
		return fmt.Errorf("transaction of %d bytes (at most %d): %w", total, MaxTxnBytes, ErrTooLarge)
	}
	return t.checkOverlap()
}

func (c Cond) check() error {
	switch c.Kind {
	case IfVersion:
		if c.Version == 0 {
			return fmt.Errorf("condition on version 0 of %s: %w", c.Key, ErrInvalid)
		}
	case IfLease:
		if c.Lease == "" {
			return fmt.Errorf("condition on no lease of %s: %w", c.Key, ErrInvalid)
		}
	case IfAbsent:
	default:
		return fmt.Errorf("condition of unknown kind %d on %s: %w", c.Kind, c.Key, ErrInvalid)
	}
	return CheckKey(c.Key)
}

func (o Op) check() error {
	if o.Kind != OpPut && (o.Value != nil || o.Lease != "") {
		return fmt.Errorf("delete of %s with a value or a lease: %w", o.Key, ErrInvalid)
	}
	switch o.Kind {
	case OpPut:
		if len(o.Value) > MaxValue {
			return fmt.Errorf("value of %s is %d bytes (at most %d): %w", o.Key, len(o.Value), MaxValue, ErrTooLarge)
		}
	case OpDelete:
	case OpDeletePrefix:
		return CheckPrefix(o.Key)
	default:
		return fmt.Errorf("operation of unknown kind %d on %s: %w", o.Kind, o.Key, ErrInvalid)
	}
	return CheckKey(o.Key)
}

// checkOverlap refuses two operations that touch one key. There are at most
// MaxTxnOps of them, so every prefix is compared with every operation.
func (t *Txn) checkOverlap() error {
	seen := make(map[string]bool, len(t.Ops))
	for i, o := range t.Ops {
		if o.Kind != OpDeletePrefix {
			if seen[o.Key] {
				return fmt.Errorf("two operations on %s: %w", o.Key, ErrInvalid)
			}
			seen[o.Key] = true
			continue
		}
		for j, other := range t.Ops {
			if i != j && strings.HasPrefix(other.Key, o.Key) {
				return fmt.Errorf("delete of everything below %q and another operation on %s: %w", o.Key, other.Key, ErrInvalid)
			}
		}
	}
	return nil
}
