package history

import (
	"encoding/json"
	"time"

	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// epoch is the store's, as far as a history needs it.
type epoch struct {
	Inc        string
	Seq        uint64
	Recovering bool
}

// epoch reads the store's epoch past all faults.
func (w *world) epoch() epoch {
	var r struct {
		Inc        string    `json:"inc"`
		Seq        uint64    `json:"seq"`
		Recovering time.Time `json:"recovering"`
	}
	raw, ok := w.server.Peek("v1/epoch")
	if ok {
		if err := json.Unmarshal(raw, &r); err != nil {
			w.fail("v1/epoch: %v", err)
		}
	}
	return epoch{r.Inc, r.Seq, !r.Recovering.IsZero()}
}

func (w *world) partition(o op) {
	if h := w.hostThat(o.a, func(h *sim.Host) bool { return !w.cut[h] }); h != nil {
		w.say("%s: cut from the store", h.Name)
		h.CutStore()
		w.cut[h] = true
	}
}

func (w *world) blind(o op) {
	if h := w.hostThat(o.a, func(h *sim.Host) bool { return !w.blinded[h] }); h != nil {
		w.say("%s: watches bring nothing", h.Name)
		h.BlindStore()
		w.blinded[h] = true
	}
}

func (w *world) heal(o op) {
	if h := w.hostThat(o.a, func(h *sim.Host) bool { return w.cut[h] || w.blinded[h] || w.lossy[h] }); h != nil {
		w.healHost(h)
	}
}

func (w *world) healHost(h *sim.Host) {
	w.say("%s: connected", h.Name)
	h.HealStore()
	h.Store.LoseReplies(0)
	h.Store.DelayTxns(0)
	delete(w.cut, h)
	delete(w.blinded, h)
	delete(w.lossy, h)
}

func (w *world) storeCut(op) {
	w.say("store away")
	w.server.Cut()
	w.away = true
}

func (w *world) storeBack(op) {
	if w.away {
		w.say("store back")
		w.server.Heal()
		w.away = false
	}
}

func (w *world) loseReplies(o op) {
	h := w.host(o.a)
	w.say("%s: %d replies will be lost", h.Name, 1+o.b%3)
	h.Store.LoseReplies(int(1 + o.b%3))
	w.lossy[h] = true
}

// lateWrites keeps writes back until deliver.
func (w *world) lateWrites(o op) {
	h := w.host(o.a)
	w.say("%s: %d writes will be late", h.Name, 1+o.b%3)
	h.Store.DelayTxns(int(1 + o.b%3))
	w.lossy[h] = true
}

func (w *world) deliver(op) {
	if n := w.server.Deliver(); n > 0 {
		w.say("%d late writes delivered", n)
	}
}

func (w *world) chaos(o op) {
	rate := func(n uint32) float64 { return float64(n%8) / 100 }
	c := memory.Chaos{
		Refuse: rate(o.b), LoseReply: rate(o.b >> 8), Late: rate(o.b >> 16), LateBy: int(1 + o.c%100),
		Idle: rate(o.b >> 24), Behind: float64(o.c>>8%60) / 100,
	}
	w.say("chaos %+v", c)
	w.server.Chaos(uint64(o.a), c)
	w.unruly = true
}

func (w *world) calm(op) {
	if w.unruly {
		w.say("calm")
		w.server.Calm()
		w.unruly = false
	}
}

// backup is a copy of the store.
type backup struct {
	snap  memory.Snapshot
	epoch epoch
}

func (w *world) backup(op) {
	if w.epoch().Inc == "" {
		return
	}
	w.say("backup")
	w.backups = append(w.backups, backup{w.server.Snapshot(), w.epoch()})
	if len(w.backups) > 3 {
		w.backups = w.backups[1:]
	}
}

// witness looks for a host that will notice that the store is behind an epoch.
// Without one a loss is not noticed before somebody who knows better is connected,
// and what is claimed until then may be claimed twice: see docs/adr/0004.
func (w *world) witness(e epoch) bool {
	return w.hostThat(0, func(h *sim.Host) bool {
		if !w.fine(h) {
			return false
		}
		seen := h.Cluster.InspectJournal().Epoch
		return seen.Inc != "" && (seen.Inc != e.Inc || seen.Seq > e.Seq)
	}) != nil
}

func (w *world) restore(o op) {
	if len(w.backups) == 0 || w.away {
		return
	}
	b := w.backups[int(o.a)%len(w.backups)]
	if o.c%3 == 0 {
		b = w.backups[len(w.backups)-1]
	}
	// A backup as new as every structural change cannot be told from the store; what
	// is lost are publications.
	same := b.epoch == w.epoch()
	if !same && !w.witness(b.epoch) {
		return
	}
	w.say("restore of a backup, of the same epoch: %t", same)
	if o.b%2 == 0 {
		w.server.Restore(b.snap)
	} else {
		w.server.RestoreInPlace(b.snap)
	}
	if same {
		w.count("restore", "of the same epoch")
		return
	}
	w.noticed(b.epoch)
	w.count("restore", "ok")
}

func (w *world) wipe(op) {
	if w.away || !w.witness(epoch{}) {
		return
	}
	w.say("wipe")
	w.server.Wipe()
	w.noticed(epoch{})
	w.count("wipe", "ok")
}

// noticed waits until somebody has noticed that the store went back to an epoch.
func (w *world) noticed(lost epoch) {
	w.losses++
	for h := range w.gone {
		w.revived[h] = true
	}
	for range 100 {
		w.sleep(100 * time.Millisecond)
		if e := w.epoch(); e.Inc != lost.Inc && e.Inc != "" {
			return
		}
	}
	w.fail("nobody noticed within 10 s that the store lost its past")
}

// wait lets time pass: a moment, a lease, a rest, seldom the patience of a mirror.
func (w *world) wait(o op) {
	d := []time.Duration{time.Second, 3 * time.Second, 8 * time.Second, 20 * time.Second, 45 * time.Second}[o.a%5]
	if o.b%12 == 0 {
		d = 3 * time.Minute
	}
	w.say("%s pass", d)
	w.sleep(d)
}
