package journal

import (
	"errors"
	"fmt"
)

// batch is the changes of the transactions that came while the one before was
// written. They reach the disk together, or fail together.
type batch struct {
	changes *changes      // guarded by Journal.mu until it flies, then nobody's to change
	done    chan struct{} // closed when err is final
	err     error         // guarded by Journal.mu until done is closed
}

// Update runs fn and returns when its changes are on disk, and all that fn saw.
// If fn fails nothing has changed. If the disk fails, for this transaction or
// for one whose changes fn saw, nothing has changed either, but see the
// package's text for what a restart may find.
//
// Transactions run one after another; those that come while a write is under way
// share the next one. fn must not call the journal's other methods.
func (j *Journal) Update(fn func(*Tx) error) error {
	b, first, err := j.run(fn)
	if b == nil {
		return err // fn saw only what is on disk
	}
	if first {
		j.fly(b)
	}
	<-b.done
	if b.err != nil {
		return b.err
	}
	return err
}

// run runs a transaction on top of all before it. It returns the batch that fn
// depends on, nil for none, and whether the caller has to write it.
func (j *Journal) run(fn func(*Tx) error) (b *batch, first bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	tx := newTx(j.latest)
	if err = fn(tx); err == nil {
		err = tx.changes.check()
	}
	if c := tx.done(); err == nil && !c.none() {
		if first = j.open == nil; first {
			j.open = &batch{changes: newChanges(), done: make(chan struct{})}
		}
		j.open.changes.add(c)
		j.latest.apply(c)
	}
	if j.open != nil {
		return j.open, first, err
	}
	return j.flying, false, err
}

// fly writes a batch when the one before is written.
func (j *Journal) fly(b *batch) {
	j.disk.Lock()
	defer j.disk.Unlock()
	defer close(b.done)
	if !j.takeOff(b) {
		return
	}
	err := j.commit(b.changes)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flying, b.err = nil, err
	if err == nil {
		j.durable.apply(b.changes)
		return
	}
	// What came meanwhile saw changes that are not on disk.
	j.latest = j.durable.clone()
	if j.open != nil {
		j.open.err, j.open = err, nil
	}
}

// takeOff closes a batch to further changes. It is false if the batch has failed
// with the one before.
func (j *Journal) takeOff(b *batch) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b.err != nil {
		return false
	}
	j.open, j.flying = nil, b
	return true
}

// commit makes changes durable. The caller holds disk.
func (j *Journal) commit(c *changes) error {
	err := j.hook(j.opts.BeforeWrite)
	if err == nil {
		err = j.ready()
	}
	if err == nil {
		if err = j.file.write(c); err == nil {
			err = j.hook(j.opts.AfterWrite)
		}
		if err != nil {
			j.distrust()
		} else {
			j.sum = j.file.sum
		}
	}
	if err != nil {
		return explain("write", j.path, err)
	}
	return nil
}

// hook calls a hook, unless the journal has ended.
func (j *Journal) hook(h func() error) error {
	switch {
	case j.closed:
		return ErrClosed
	case j.dead:
		return ErrDead
	case h == nil:
		return nil
	}
	err := h()
	j.dead = errors.Is(err, ErrDead)
	return err
}

// distrust gives the file up after a write that failed. Nobody knows how much of
// it is on disk: after a failed fsync the kernel shows what the disk may not have
// and does not say so again.
func (j *Journal) distrust() {
	_ = j.file.close() // what it says is of no use
	j.file = nil
}

// ready makes sure that the file holds what memory does: it opens the file
// again, or if that holds anything else, or is not there, replaces it by a new
// one, written from memory, which has exactly what was reported as written. The
// caller holds disk, so that durable stays as it is.
func (j *Journal) ready() error {
	if j.file != nil && j.file.isAt(j.path) {
		return nil
	}
	if j.file != nil { // somebody moved it away, and what is written to it is lost at the next start
		j.distrust()
	}
	if !j.stale {
		f, t, err := openFile(j.path)
		switch {
		case err == nil && f.sum == j.sum && t.identity == j.durable.identity:
			j.file = f
			return nil
		case err == nil:
			_ = f.close()
		}
		j.stale = true
	}
	f, err := createFile(j.path, j.durable)
	if err != nil {
		return fmt.Errorf("write it anew: %w", err)
	}
	j.file, j.sum, j.stale = f, f.sum, false
	return nil
}
