package memory_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

func TestLateWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.put(w.a, "k", "1"))
	at := w.srv.Revision()
	w.a.DelayTxns(2)
	value := []byte("late")
	_, err := w.a.Txn(w.ctx, new(kvstore.Txn).Version("k", at).Put("k", value))
	w.want(err, kvstore.ErrUnavailable)
	copy(value, "gone") // the caller's again
	w.want(w.put(w.a, "l", "late"), kvstore.ErrUnavailable)
	w.must(w.put(w.a, "m", "in time"))
	w.holds("k \"1\"\nm \"in time\"\n")
	w.must(w.a.Close()) // whoever sent it may be gone by then
	if n := w.srv.Deliver(); n != 2 {
		t.Errorf("%d were late, want 2", n)
	}
	w.holds("k \"late\"\nl \"late\"\nm \"in time\"\n")

	// One whose conditions fail when it comes changes nothing.
	e, err := w.b.Get(w.ctx, "k")
	w.must(err)
	w.srv.DelayTxns(1)
	_, err = w.b.Txn(w.ctx, new(kvstore.Txn).Version("k", e.Version).Put("k", []byte("too late")))
	w.want(err, kvstore.ErrUnavailable)
	w.must(w.put(w.b, "k", "2"))
	w.srv.Deliver()
	w.holds("k \"2\"\nl \"late\"\nm \"in time\"\n")
}

// A write that is late meets a store that was restored meanwhile.
func TestLateWriteAfterARestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backup := w.srv.Snapshot()
	w.must(w.put(w.a, "epoch", "1"))
	e, err := w.a.Get(w.ctx, "epoch")
	w.must(err)
	w.srv.DelayTxns(1)
	_, err = w.a.Txn(w.ctx, new(kvstore.Txn).Version("epoch", e.Version).Put("block", []byte("a")))
	w.want(err, kvstore.ErrUnavailable)
	w.srv.RestoreInPlace(backup)
	w.must(w.put(w.b, "epoch", "2"))
	w.srv.Deliver()
	w.holds("epoch \"2\"\n") // a version is not used twice

	// Into a new server it is: the same write as the first has the same number.
	w.srv.Restore(backup)
	w.must(w.put(w.a, "epoch", "1"))
	w.srv.DelayTxns(1)
	_, err = w.a.Txn(w.ctx, new(kvstore.Txn).Version("epoch", w.srv.Revision()).Put("block", []byte("a")))
	w.want(err, kvstore.ErrUnavailable)
	w.srv.Restore(backup)
	w.must(w.put(w.b, "epoch", "2"))
	w.srv.Deliver()
	w.holds("block \"a\"\nepoch \"2\"\n")
}

// trace makes the same calls against a server with chaos and says what came of
// each.
func trace(t *testing.T, seed uint64) string {
	w := newWorld(t)
	w.srv.Chaos(seed, memory.Chaos{Refuse: 0.2, LoseReply: 0.2, Late: 0.2, LateBy: 5, Idle: 0.5, Behind: 0.5})
	var b strings.Builder
	var since kvstore.Revision
	for i := range 100 {
		c := w.a
		if i%3 == 0 {
			c = w.b
		}
		fmt.Fprintln(&b, w.put(c, fmt.Sprint("k", i%7), fmt.Sprint(i)))
		v, err := w.a.Watch(w.ctx, kvstore.Under(""), 0)
		if err == nil {
			since = v.Revision - min(v.Revision-1, 3)
		}
		v, err = w.b.Watch(w.ctx, kvstore.Under(""), since)
		fmt.Fprintln(&b, v, err)
	}
	w.srv.Calm()
	return b.String() + w.srv.Dump()
}

func TestChaosIsItsSeed(t *testing.T) {
	t.Parallel()
	one := trace(t, 1)
	if again := trace(t, 1); again != one {
		t.Errorf("one seed, two histories:\n%s\nand\n%s", one, again)
	}
	if trace(t, 2) == one {
		t.Error("another seed changes nothing")
	}
}

// Views may be late, never older than what was asked from, always whole, and the
// last one comes.
func TestWatchesBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.srv.Chaos(1, memory.Chaos{Behind: 0.7, Idle: 0.3})
	i := 0
	write := func() {
		v := fmt.Append(nil, i)
		tx := new(kvstore.Txn).Put("pair/a", v).Put("pair/b", v)
		if i%5 == 0 {
			tx.Put(fmt.Sprint("pair/extra-", i%25), v)
		} else if i%7 == 0 {
			tx.DeletePrefix("pair/extra-")
		}
		i++
		_, err := w.a.Txn(w.ctx, tx)
		w.must(err)
	}
	var since kvstore.Revision
	behind, same := 0, 0
	for since < w.srv.Revision() || i < 500 {
		for range i % 4 {
			if i < 500 {
				write()
			}
		}
		if i < 500 {
			write() // or there may be nothing to wait for
		}
		v, err := w.b.Watch(w.ctx, kvstore.Under(""), since)
		w.must(err)
		if v.Revision < since {
			t.Fatalf("a view at %d since %d", v.Revision, since)
		}
		if v.Revision == since {
			same++
		}
		state := map[string]string{}
		for i, e := range v.Entries {
			state[e.Key] = string(e.Value)
			if e.Version > v.Revision || i > 0 && v.Entries[i-1].Key >= e.Key {
				t.Fatalf("at %d: %+v", v.Revision, v.Entries)
			}
		}
		if state["pair/a"] != state["pair/b"] {
			t.Fatalf("half a transaction: %v", state)
		}
		if v.Revision < w.srv.Revision() {
			behind++
		}
		since = v.Revision // and so on to the last one, also when no more is written
	}
	if behind == 0 || same == 0 {
		t.Errorf("%d views were behind, %d told nothing: no chaos", behind, same)
	}
}

// A state that has passed is the one that was.
func TestWhatIsBehindWasOnceTrue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.srv.Chaos(3, memory.Chaos{Behind: 1})
	was := map[kvstore.Revision]string{w.srv.Revision(): ""}
	note := func() {
		v, err := w.a.List(w.ctx, kvstore.Under("n/"))
		w.must(err)
		was[v.Revision] = fmt.Sprint(v.Entries)
	}
	first := kvstore.Revision(0)
	lease := w.lease(w.b, "n/lease")
	for i := range 60 {
		_, err := w.a.Txn(w.ctx, new(kvstore.Txn).Put(fmt.Sprint("n/", i%4), fmt.Append(nil, i)).Delete(fmt.Sprint("n/", (i+1)%4)).Put("other", nil))
		w.must(err)
		note()
		if i == 40 {
			first = w.srv.Revision()
		}
	}
	w.srv.ExpireLease(lease.ID())
	note()
	seen := map[kvstore.Revision]bool{}
	for range 300 {
		v, err := w.b.Watch(w.ctx, kvstore.Under("n/"), first)
		w.must(err)
		want, ok := was[v.Revision]
		if !ok || fmt.Sprint(v.Entries) != want {
			t.Fatalf("at %d:\n%v\nbut it was\n%s", v.Revision, v.Entries, want)
		}
		seen[v.Revision] = true
	}
	if len(seen) < 15 {
		t.Errorf("only %d different states of 20", len(seen))
	}
	// With nothing seen before, a watch is as fresh as a list.
	for range 50 {
		v, err := w.b.Watch(w.ctx, kvstore.Under("n/"), 0)
		w.must(err)
		if v.Revision != w.srv.Revision() {
			t.Fatalf("since 0 is %d behind", w.srv.Revision()-v.Revision)
		}
	}
}

// Under all of it at once conditions still guard what they guard: nothing that
// was confirmed is lost, nothing refused is written, nothing is done twice.
func TestChaosKeepsTheContract(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.srv.Chaos(1, memory.Chaos{Refuse: 0.1, LoseReply: 0.1, Late: 0.1, Idle: 0.2, Behind: 0.5})
	const hosts, each = 8, 100
	type outcome struct{ done, unknown, refused map[string]bool }
	outcomes := make([]outcome, hosts)
	var wg sync.WaitGroup
	for h := range hosts {
		o := outcome{map[string]bool{}, map[string]bool{}, map[string]bool{}}
		outcomes[h] = o
		wg.Go(func() {
			c := w.srv.Client(fmt.Sprint("h", h))
			for i := range each {
				key := fmt.Sprintf("log/%d-%d", h, i)
				e, err := c.Get(w.ctx, "counter")
				if err != nil && !errors.Is(err, kvstore.ErrNotFound) {
					continue
				}
				_, err = c.Txn(w.ctx, new(kvstore.Txn).Version("counter", e.Version).Absent(key).Put("counter", []byte(key)).Put(key, nil))
				switch {
				case err == nil:
					o.done[key] = true
				case errors.Is(err, kvstore.ErrConflict):
					o.refused[key] = true
				case errors.Is(err, kvstore.ErrUnavailable):
					o.unknown[key] = true
				default:
					t.Errorf("host %d: %v", h, err)
				}
			}
		})
	}
	wg.Wait()
	w.srv.Calm()
	v, err := w.a.List(w.ctx, kvstore.Under("log/"))
	w.must(err)
	there := map[string]bool{}
	for _, e := range v.Entries {
		there[e.Key] = true
	}
	var done, unknown, happened int
	for _, o := range outcomes {
		for key := range o.done {
			done++
			if !there[key] {
				t.Errorf("%s was confirmed and is not there", key)
			}
		}
		for key := range o.refused {
			if there[key] {
				t.Errorf("%s was refused and is there", key)
			}
		}
		for key := range o.unknown {
			unknown++
			if there[key] {
				happened++
			}
		}
	}
	if done == 0 || happened == 0 || happened == unknown {
		t.Errorf("%d confirmed, %d unknown of which %d happened: no chaos", done, unknown, happened)
	}
	if n := w.srv.Deliver(); n != 0 {
		t.Errorf("%d writes are late after the calm", n)
	}
	for range 100 {
		w.must(w.put(w.a, "k", "v"))
	}
}

// Consul's restore into a running server, as seen on 1.22: what is shown goes
// back, the next write is numbered above all there ever were, and sessions are
// those of the backup.
func TestRestoreInPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	both := w.lease(w.b, "node/b")
	w.must(w.put(w.a, "k", "old"))
	w.must(w.put(w.a, "quiet", "old"))
	backup := w.srv.Snapshot()
	old := w.srv.Revision()
	since := w.lease(w.a, "node/a")
	w.must(w.put(w.a, "k", "new"))
	w.must(w.put(w.a, "quiet", "new"))
	highest := w.srv.Revision()
	under := w.watch(w.a, highest)
	w.srv.RestoreInPlace(backup)
	if got := <-under; got.err != nil || got.v.Revision != old || len(got.v.Entries) != 3 {
		t.Errorf("a watch over a restore: %+v", got)
	}
	w.holds("k \"old\"\nnode/b \"up\" lease\nquiet \"old\"\n")
	w.must(w.put(w.b, "k", "newer"))
	if now := w.srv.Revision(); now <= highest {
		t.Errorf("revision %d was used before: the highest was %d", now, highest)
	}
	// Who was away sees no revision go back, but is told of what it watches, also
	// of what nobody wrote since.
	for _, was := range []kvstore.Revision{highest, highest - 1} {
		v, err := w.a.Watch(w.ctx, kvstore.OneKey("quiet"), was)
		w.must(err)
		if v.Revision <= was || string(v.Entries[0].Value) != "old" {
			t.Errorf("since %d: %+v", was, v)
		}
	}
	w.clock.Advance(time.Hour)
	if isLost(both) || !isLost(since) {
		t.Errorf("lost: %t for a lease of before the backup, %t for one of after it", isLost(both), isLost(since))
	}
	w.holds("k \"newer\"\nnode/b \"up\" lease\nquiet \"old\"\n")
}

// A server that was wiped, and so counts from the start, goes on above the backup
// that is restored into it.
func TestRestoreInPlaceOfAWipedServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 5 {
		w.must(w.put(w.a, "k", "old"))
	}
	backup := w.srv.Snapshot()
	old := w.srv.Revision()
	w.srv.Wipe()
	w.srv.RestoreInPlace(backup)
	w.must(w.put(w.a, "l", "new"))
	if now := w.srv.Revision(); now <= old {
		t.Errorf("revision %d after a backup of revision %d", now, old)
	}
	e, err := w.a.Get(w.ctx, "l")
	w.must(err)
	if e.Version != w.srv.Revision() {
		t.Errorf("version %d at revision %d", e.Version, w.srv.Revision())
	}
	if got, ok := w.srv.Peek("l"); !ok || string(got) != "new" {
		t.Errorf("peeked %q %t", got, ok)
	}
}

// A watch from a revision that is still good waits, also after a restore in
// place: it does not spin.
func TestWatchAfterARestoreWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.put(w.a, "k", "1"))
	backup := w.srv.Snapshot()
	w.must(w.put(w.a, "k", "2"))
	w.srv.RestoreInPlace(backup)
	v, err := w.a.Watch(w.ctx, kvstore.Under(""), 0)
	w.must(err)
	under := w.watch(w.a, v.Revision)
	w.must(w.put(w.b, "k", "3"))
	if got := <-under; got.err != nil || string(got.v.Entries[0].Value) != "3" {
		t.Errorf("%+v", got)
	}
	under = w.watch(w.a, w.srv.Revision())
	w.must(w.put(w.b, "k", "4"))
	if got := <-under; got.err != nil || string(got.v.Entries[0].Value) != "4" {
		t.Errorf("%+v", got)
	}
}

// The clock jumps over the life of a lease: the store has ended it before its
// holder, who could reach it all the time, renews it.
func TestClockJump(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.lease(w.a, "node/a")
	w.clock.Jump(14 * time.Second)
	w.clock.Advance(time.Minute)
	if isLost(l) {
		t.Fatal("lost by a jump shorter than its ttl")
	}
	w.clock.Jump(time.Hour)
	if !isLost(l) {
		t.Error("not lost by an hour without a renewal")
	}
	w.holds("")
	l = w.lease(w.a, "node/a")
	w.clock.Advance(time.Hour)
	if isLost(l) {
		t.Error("the next lease is lost as well")
	}
}

// Chaos goes on over a wipe and a restore, and then shows nothing from before it.
func TestChaosOverALoss(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*memory.Server, memory.Snapshot){
		"wipe":             func(s *memory.Server, _ memory.Snapshot) { s.Wipe() },
		"restore":          func(s *memory.Server, b memory.Snapshot) { s.Restore(b) },
		"restore in place": func(s *memory.Server, b memory.Snapshot) { s.RestoreInPlace(b) },
	} {
		w := newWorld(t)
		w.srv.Chaos(5, memory.Chaos{Behind: 1})
		w.must(w.put(w.a, "k", "backup"))
		backup := w.srv.Snapshot()
		for range 9 {
			w.must(w.put(w.a, "k", "lost"))
		}
		lose(w.srv, backup)
		since := w.srv.Revision()
		was := map[kvstore.Revision]string{since: w.srv.Dump()}
		for i := range 9 {
			w.must(w.put(w.a, "k", fmt.Sprint(i)))
			was[w.srv.Revision()] = w.srv.Dump()
		}
		seen := map[kvstore.Revision]bool{}
		for range 100 {
			v, err := w.b.Watch(w.ctx, kvstore.Under(""), since)
			w.must(err)
			got := ""
			for _, e := range v.Entries {
				got += fmt.Sprintf("%s %q\n", e.Key, e.Value)
			}
			if want, ok := was[v.Revision]; !ok || got != want {
				t.Fatalf("%s: at %d: %q, but it was %q", name, v.Revision, got, want)
			}
			seen[v.Revision] = true
		}
		if len(seen) < 9 {
			t.Errorf("%s: only %d different states of 10", name, len(seen))
		}
	}
}

// What is late when chaos ends has happened when it has ended.
func TestCalm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.srv.Chaos(1, memory.Chaos{Late: 1, LateBy: 1 << 20})
	w.want(w.put(w.a, "k", "late"), kvstore.ErrUnavailable)
	w.holds("")
	w.srv.Calm()
	w.holds("k \"late\"\n")
	w.must(w.put(w.a, "k", "in time"))
}

// A watcher that asks again only after the store was restored and has grown past
// what it knows is told: the last state is never skipped.
func TestRestoreBetweenTwoWatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backup := w.srv.Snapshot()
	for range 10 {
		w.must(w.put(w.a, "k", "lost"))
	}
	v, err := w.b.Watch(w.ctx, kvstore.OneKey("k"), 0)
	w.must(err)
	w.srv.Restore(backup)
	w.must(w.put(w.a, "k", "after"))
	for range 20 {
		w.must(w.put(w.a, "other", "x"))
	}
	for v.Revision != w.srv.Revision() {
		v, err = w.b.Watch(w.ctx, kvstore.OneKey("k"), v.Revision)
		w.must(err)
	}
	if string(v.Entries[0].Value) != "after" {
		t.Errorf("%+v", v)
	}
	// And then it waits again.
	under := w.watch(w.b, v.Revision)
	w.must(w.put(w.a, "k", "later"))
	if got := <-under; got.err != nil || string(got.v.Entries[0].Value) != "later" {
		t.Errorf("%+v", got)
	}
}
