package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// ErrRecovering: the store lost its past and the hosts are writing it again.
// Until all have, nothing is claimed, granted, created or removed; what hosts
// have goes on.
var ErrRecovering = errors.New("the cluster is recovering a store that lost its past")

// judgement is what an epoch read from the store means to a host that knows an
// older one.
type judgement int

const (
	epochFine    judgement = iota // the one known, or later
	epochNew                      // nothing was known: a host's first
	epochForeign                  // another, later incarnation: others recovered, or do so now
	epochLost                     // the store lost its past
)

// judge compares what the store says with what was known before it was asked.
// version 0 means that the key is missing.
func judge(known journal.Epoch, r epochRecord, version kvstore.Revision) judgement {
	switch {
	case version == 0 && known == (journal.Epoch{}):
		return epochNew
	case version == 0:
		return epochLost
	case known == (journal.Epoch{}):
		return epochNew
	case r.Inc == known.Inc && (r.Seq > known.Seq || r.Seq == known.Seq && r.Nonce == known.Nonce):
		return epochFine
	case r.Inc != known.Inc && r.Num > known.Num:
		return epochForeign
	}
	return epochLost
}

func (r epochRecord) epoch() journal.Epoch {
	return journal.Epoch{Inc: r.Inc, Num: r.Num, Seq: r.Seq, Nonce: r.Nonce}
}

// next is the epoch after one more structural change.
func (r epochRecord) next() epochRecord {
	r.envelope = envelope{schema}
	r.Seq++
	r.Nonce = string(carrick.NewHostID())
	return r
}

// seenEpoch returns the newest epoch this host knows of.
func (c *Cluster) seenEpoch() journal.Epoch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// sawEpoch remembers a later state of the incarnation this host takes part in.
// The journal hears of it soon (see keepEpoch): older knowledge there only means
// that less of a loss is noticed after a restart.
func (c *Cluster) sawEpoch(r epochRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Inc != c.epoch.Inc || r.Seq < c.epoch.Seq {
		return
	}
	c.epoch = r.epoch()
	c.setRecovering(r.Recovering)
}

// restartWatches makes every watch begin anew. It needs c.mu.
func (c *Cluster) restartWatches() {
	c.endIncarnation()
	c.incarnation, c.endIncarnation = context.WithCancel(context.Background())
}

// setRecovering needs c.mu.
func (c *Cluster) setRecovering(since time.Time) {
	if !c.recovering.IsZero() && since.IsZero() {
		c.restartWatches()
		c.settleSoon()
	}
	c.recovering = since
}

// settleSoon has everything read and compared again: only then does absence count.
func (c *Cluster) settleSoon() {
	select {
	case c.settleAgain <- struct{}{}:
	default:
	}
}

// enterEpoch makes this host take part in an incarnation, durably: its facts are
// in the store under it.
func (c *Cluster) enterEpoch(r epochRecord) error {
	err := c.jr.Update(func(tx *journal.Tx) error {
		m := tx.Meta()
		m.Epoch = r.epoch()
		tx.SetMeta(m)
		return nil
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch.Inc != r.Inc {
		c.restartWatches()
		if r.Recovering.IsZero() {
			c.settleSoon() // what was heard of it before was not believed
		}
	}
	c.epoch, c.writeNum = r.epoch(), r.Num
	c.setRecovering(r.Recovering)
	return nil
}

// keepEpoch writes the newest epoch seen into the journal, at most once a second:
// a busy cluster has many, and each costs a sync of the disk.
func (c *Cluster) keepEpoch(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		seen := c.seenEpoch()
		if seen == c.jr.Meta().Epoch || seen == (journal.Epoch{}) {
			continue
		}
		err := c.jr.Update(func(tx *journal.Tx) error {
			if m := tx.Meta(); m.Epoch.Inc == seen.Inc && m.Epoch.Seq < seen.Seq {
				m.Epoch = seen
				tx.SetMeta(m)
			}
			return nil
		})
		if err != nil {
			c.log.Debug("epoch not kept", "err", err)
		}
	}
}

// readEpoch reads the epoch for a structural change: [ErrRecovering] unless it is
// one this host takes part in, and normal.
func (c *Cluster) readEpoch(ctx context.Context) (epochRecord, kvstore.Revision, error) {
	known := c.seenEpoch() // before the read begins, or a change of ours could look like a loss
	r, v, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil {
		return epochRecord{}, 0, err
	}
	switch j := judge(known, r, v); {
	case j != epochFine:
		c.suspect()
		return epochRecord{}, 0, fmt.Errorf("%w: it was just noticed", ErrRecovering)
	case !r.Recovering.IsZero():
		c.sawEpoch(r)
		return epochRecord{}, 0, c.whyRecovering(ctx, r)
	}
	c.sawEpoch(r)
	return r, v, nil
}

// whyRecovering names the hosts a recovery waits for.
func (c *Cluster) whyRecovering(ctx context.Context, r epochRecord) error {
	waiting, err := c.awaited(ctx, r.Inc)
	switch {
	case err != nil:
		return errors.Join(ErrRecovering, err)
	case len(waiting) == 0:
		return fmt.Errorf("%w: it is about to end, try again", ErrRecovering)
	}
	names := make([]string, 0, len(waiting))
	for _, h := range waiting {
		names = append(names, c.HostName(h))
	}
	return fmt.Errorf("%w since %s: it waits for %s: start their agents, or name those that are gone for good with carrick node rm",
		ErrRecovering, r.Recovering.Format(time.DateTime), strings.Join(names, ", "))
}

// suspect asks for a look at the epoch: something in the store is not as it was.
func (c *Cluster) suspect() {
	select {
	case c.suspicion <- struct{}{}:
	default:
	}
}

// structural commits a structural change. build adds its conditions and
// operations, from reads it makes itself, and is called again after a conflict,
// at most structuralTries times; conflicts on the epoch alone are expected, since
// the whole cluster's changes meet there. The change is remembered as seen.
func (c *Cluster) structural(ctx context.Context, build func(ctx context.Context, t *kvstore.Txn, num uint32) error) (kvstore.Revision, error) {
	for attempt := 1; ; attempt++ {
		began := time.Now()
		rev, err := c.tryStructural(ctx, build)
		if !errors.Is(err, kvstore.ErrConflict) || attempt > structuralTries {
			return rev, err
		}
		c.forgetAliases(err)
		// The others' attempts take about as long as this one did. How many there are
		// nobody can tell.
		took := min(max(time.Since(began), leastSlot), mostSlot)
		if err := wait(ctx, rand.N(took<<min(attempt, 4))); err != nil {
			return 0, err
		}
	}
}

// structuralTries bounds the races one change may lose.
const structuralTries = 200

func (c *Cluster) tryStructural(ctx context.Context, build func(ctx context.Context, t *kvstore.Txn, num uint32) error) (kvstore.Revision, error) {
	r, v, err := c.readEpoch(ctx)
	if err != nil {
		return 0, err
	}
	next := r.next()
	t := (&kvstore.Txn{}).Version(keyEpoch, v)
	if err := build(ctx, t, r.Num); err != nil {
		return 0, err
	}
	if len(t.Ops) == 0 {
		return 0, nil // it is so already
	}
	var encErr error
	put(t, &encErr, keyEpoch, &next)
	if encErr != nil {
		return 0, encErr
	}
	rev, err := c.commit(ctx, t)
	if err != nil {
		return 0, err
	}
	c.sawEpoch(next)
	return rev, nil
}

// watchEpoch looks at the epoch whenever it changes or somebody suspects it, until
// ctx ends. The one error is [ErrIdentity], from registering again.
func (c *Cluster) watchEpoch(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	c.spawn(func() error {
		return c.watch(ctx, kvstore.OneKey(keyEpoch), func(v kvstore.View) error {
			if c.ordinary(v) {
				return nil
			}
			select {
			case wake <- struct{}{}:
			default:
			}
			return nil
		})
	})
	poll := time.NewTicker(epochPoll)
	defer poll.Stop()
	for attempt := 0; ; {
		again, err := c.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var retry <-chan time.Time
		switch {
		case errors.Is(err, ErrIdentity):
			return c.lastWords(ctx, err)
		case err != nil:
			if attempt == 0 {
				c.log.Warn("epoch of the store not settled yet", "err", err)
			}
			attempt++
			retry = time.After(min(50*time.Millisecond<<min(attempt, 8), 2*time.Second))
		case again:
			attempt = 0
			// Everybody looks at what all have written: the more hosts, the less often.
			c.mu.Lock()
			hosts := len(c.hosts)
			c.mu.Unlock()
			retry = time.After(time.Second + time.Duration(hosts)*20*time.Millisecond)
		default:
			attempt = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-c.suspicion:
		case <-retry:
		case <-poll.C:
		}
	}
}

// epochPoll is how often the epoch is looked at without being told of a change: a
// watch that was between two calls when the store lost its past, and whose
// revision the store has reached again, hears nothing.
const epochPoll = 5 * time.Second

// ordinary says whether the epoch as it was told is one more structural change of
// others, and takes note of it. Every host hears of every such change, so it costs
// no question; whatever asks for more than a note is looked at.
func (c *Cluster) ordinary(v kvstore.View) bool {
	if len(v.Entries) != 1 {
		return false
	}
	e := v.Entries[0]
	r, err := decode[epochRecord](e.Key, e.Value)
	c.mu.Lock()
	known, calm := c.epoch, c.recovering.IsZero()
	c.mu.Unlock()
	if err != nil || !calm || !r.Recovering.IsZero() || c.jr.Meta().Fenced || judge(known, r, e.Version) != epochFine {
		return false
	}
	c.sawEpoch(r)
	return true
}

// look reads the epoch and does what it asks of this host. again means that it
// should be looked at again soon without being told.
func (c *Cluster) look(ctx context.Context) (again bool, err error) {
	known := c.seenEpoch()
	r, v, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil {
		return false, err
	}
	removed, err := c.isRemoved(ctx)
	if err != nil {
		return false, err
	}
	if removed {
		if err := c.register(ctx); err != nil { // which cuts it off first
			return false, err
		}
	}
	switch judge(known, r, v) {
	case epochNew:
		if v == 0 {
			return true, nil // registration makes it
		}
		return false, c.enterEpoch(r)
	case epochLost:
		c.log.Error("the store lost its past: it was wiped or restored from a backup; every host writes its part again",
			"known", known.Num, "seq", known.Seq, "now", r.Num, "nowseq", r.Seq)
		if err := c.startRecovery(ctx, known, r, v); err != nil && !errors.Is(err, kvstore.ErrConflict) {
			return false, err
		}
		return c.look(ctx)
	case epochForeign:
		if r.Recovering.IsZero() {
			c.log.Warn("the cluster recovered its store while this host was away; comparing", "incarnation", r.Num)
			return false, c.comeLate(ctx, r)
		}
		if err := c.takePart(ctx, r); err != nil {
			return false, err
		}
		return true, nil
	case epochFine:
	}
	c.sawEpoch(r)
	if !r.Recovering.IsZero() {
		return true, c.endRecovery(ctx, r, v)
	}
	c.mu.Lock()
	c.writeNum = r.Num // a recovery that was taken part in may have been of another store
	c.mu.Unlock()
	if c.jr.Meta().Fenced {
		return c.regain(ctx)
	}
	return false, nil
}
