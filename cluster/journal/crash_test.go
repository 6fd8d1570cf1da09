package journal_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/carrick-net/carrick/cluster/journal"
)

// A host dies at each of its writes in turn, before it or after it, and comes
// back with exactly what was written until then.
func TestCrashAtAnyWrite(t *testing.T) {
	t.Parallel()
	addrs := []netip.Addr{netip.MustParseAddr("10.42.0.3"), netip.MustParseAddr("10.42.0.4"), netip.MustParseAddr("10.42.0.5")}
	for at := range 2 * (len(addrs) + 2) { // Open's write, fill's, one per address
		dir := t.TempDir()
		n := -1
		hook := func() error {
			if n++; n == at {
				return journal.ErrDead
			}
			return nil
		}
		j, err := journal.OpenWith(dir, "machine-1", journal.Options{BeforeWrite: hook, AfterWrite: hook})
		written := 0
		if err == nil {
			t.Cleanup(func() { _ = j.Close() })
			put := func(fn func(*journal.Tx) error) {
				uerr := j.Update(fn)
				if dead := n >= at; dead != errors.Is(uerr, journal.ErrDead) {
					t.Fatalf("death at %d, now at %d: %v", at, n, uerr)
				}
			}
			put(fillTx)
			for _, a := range addrs {
				put(func(tx *journal.Tx) error { tx.PutLease(journal.Lease{Network: netID, Addr: a}); return nil })
			}
			if n != at {
				t.Fatalf("%d hooks were called, the death at %d was not the last", n, at)
			}
			_ = j.Close()
			written = max(0, (at+1)/2-2) // of the addresses: every second hook is after its write
		} else if !errors.Is(err, journal.ErrDead) || at > 1 {
			t.Fatalf("death at %d: %v", at, err)
		}
		j = open(t, dir)
		if fresh := at < 1; j.Fresh() != fresh {
			t.Errorf("death at %d: fresh is %t", at, j.Fresh())
		}
		for i, a := range addrs {
			if _, ok := j.Leases(netID)[a]; ok != (i < written) {
				t.Errorf("death at %d: address %s is there: %t", at, a, ok)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that refuses one write refuses one write.
func TestOneWriteFails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	var fail error
	j, err := journal.OpenWith(t.TempDir(), "machine-1", journal.Options{BeforeWrite: func() error { return fail }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	fail = full
	if err := j.Update(fillTx); !errors.Is(err, full) {
		t.Fatal(err)
	}
	if _, err := j.Network(netID); !errors.Is(err, journal.ErrNotFound) {
		t.Error("memory has what the disk refused")
	}
	fail = nil
	if err := j.Update(fillTx); err != nil {
		t.Fatal(err)
	}
}
