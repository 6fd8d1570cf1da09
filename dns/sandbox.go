package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/netns"
)

// retryMax is how long at most a sandbox waits that cannot be attached.
const retryMax = 30 * time.Second

// sandbox is one namespace, from when somebody names it to when nobody does any more.
type sandbox struct {
	key, path string
	mark      uint32
	log       *slog.Logger
	after     *sandbox      // of the same key, which must be detached first; nil: none
	done      chan struct{} // closed once it is detached for good
	respond   responder
	counters

	networks []carrick.NetworkID // guarded by Service.mu, and so are the next two
	listed   bool                // by an Apply
	keep     time.Time           // until then it need not be listed: an Ensure named it

	busy atomic.Bool // a refresh is under way

	op   sync.Mutex // held while it is attached, refreshed or detached; guards what follows
	ns   netns.Namespace
	sw   *nft.NamesSwitch
	srv  *server
	want nft.Names
	gone bool          // it is not to be attached any more
	next time.Time     // not to be tried before
	wait time.Duration // between the last two tries

	stat      sync.Mutex // guards what follows
	state     State
	since     time.Time
	refreshed time.Time
	err       error
}

func newSandbox(key string, cfg Config, log *slog.Logger) *sandbox {
	b := &sandbox{key: key, path: cfg.Root(key), mark: cfg.Mark, log: log.With("sandbox", key), done: make(chan struct{}), since: time.Now()}
	b.respond.shuffle = cfg.Shuffle
	return b
}

// attach makes questions be answered in the namespace, if it is there. It does
// nothing if they are already.
func (b *sandbox) attach(ctx context.Context) error {
	if b.after != nil {
		select {
		case <-b.after.done:
		case <-ctx.Done():
			return fmt.Errorf("answer in sandbox %s: %w", b.key, ctx.Err())
		}
	}
	b.op.Lock()
	defer b.op.Unlock()
	return b.attachLocked(ctx)
}

func (b *sandbox) attachLocked(ctx context.Context) error {
	switch {
	case b.gone:
		return fmt.Errorf("answer in sandbox %s: %w", b.key, ErrStopped)
	case b.ns != nil && b.there():
		return nil
	case b.ns != nil: // its file is another namespace's by now
		b.release(context.WithoutCancel(ctx))
	}
	err := b.open(ctx)
	switch {
	case err == nil:
		b.wait = 0
		b.report(Attached, nil)
		return nil
	case errors.Is(err, netns.ErrNotFound):
		b.wait = 0
		b.report(Waiting, nil)
		return fmt.Errorf("answer in sandbox %s: %w", b.key, ErrNoNamespace)
	}
	err = fmt.Errorf("answer in sandbox %s: %w", b.key, err)
	b.wait = min(max(2*b.wait, time.Second), retryMax)
	b.next = time.Now().Add(b.wait)
	b.report(Failed, err)
	return err
}

// open makes sockets and table. The old table of an agent that is gone is replaced
// by the same transaction that makes the new one. Called with op held.
func (b *sandbox) open(ctx context.Context) (err error) {
	dir, name := filepath.Split(b.path)
	dirs := netns.NewDir(netns.Config{Dir: dir})
	ns, err := dirs.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = ns.Close()
		}
	}()
	host, err := dirs.Host(ctx)
	if err != nil {
		return err
	}
	same := host.ID() == ns.ID()
	if err := host.Close(); err != nil {
		return err
	}
	if same {
		return errors.New("it is this host's own network namespace")
	}
	srv, err := serve(ctx, ns, &b.respond, &b.counters, b.mark)
	if err != nil {
		return err
	}
	want := nft.Names{Mark: b.mark}
	want.UDP, want.TCP = srv.ports()
	sw := nft.OpenNames(ns)
	if err := sw.Set(ctx, want); err != nil {
		return errors.Join(err, sw.Close(), srv.close())
	}
	b.ns, b.srv, b.sw, b.want = ns, srv, sw, want
	return nil
}

// refresh makes the switch work for another while, or attaches. It is called every
// second.
func (b *sandbox) refresh(ctx context.Context) {
	b.op.Lock()
	defer b.op.Unlock()
	if b.gone || b.ns == nil && time.Now().Before(b.next) {
		return
	}
	if b.ns == nil || !b.there() {
		_ = b.attachLocked(ctx) // it is in the report
		return
	}
	err := b.srv.check()
	if err != nil {
		// Until they are answered again, Docker's resolver is asked.
		b.log.Warn("names are not answered: sockets are opened anew", "error", err)
		b.release(context.WithoutCancel(ctx))
		_ = b.attachLocked(ctx)
		return
	}
	if err = b.sw.Refresh(ctx); errors.Is(err, nft.ErrNamesChanged) {
		err = b.audit(ctx)
	}
	if err != nil && ctx.Err() == nil {
		// Whatever it was: all of it anew.
		b.log.Warn("the redirection of a container's questions is made again", "error", err)
		err = b.sw.Set(ctx, b.want)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		err = fmt.Errorf("answer in sandbox %s: %w", b.key, err)
	}
	b.report(Attached, err)
}

// audit looks at a table that somebody may have changed. An error asks for a new one.
// Called with op held.
func (b *sandbox) audit(ctx context.Context) error {
	got, err := b.sw.Read(ctx)
	if err != nil {
		return err
	}
	if got.Damaged || got.Names != b.want {
		return errors.New("the table was changed")
	}
	return b.sw.Refresh(ctx)
}

// there says whether the file still is the namespace. Called with op held.
func (b *sandbox) there() bool {
	var st unix.Stat_t
	if err := unix.Stat(b.path, &st); err != nil {
		return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)
	}
	return netns.ID{Dev: uint64(st.Dev), Ino: st.Ino} == b.ns.ID()
}

// detach leaves nothing of ours in the namespace, and does not hold it any more.
func (b *sandbox) detach(ctx context.Context) {
	b.op.Lock()
	defer b.op.Unlock()
	if b.gone {
		return
	}
	b.gone = true
	b.release(ctx)
	close(b.done)
}

// release takes the table away first, so that what is asked meanwhile is answered by
// Docker's resolver. Called with op held.
func (b *sandbox) release(ctx context.Context) {
	if b.ns == nil {
		return
	}
	err := errors.Join(b.sw.Set(ctx, nft.Names{}), b.sw.Close(), b.srv.close(), b.ns.Close())
	b.ns, b.sw, b.srv, b.want = nil, nil, nil, nft.Names{}
	b.report(Waiting, err)
}

// report says how it is.
func (b *sandbox) report(s State, err error) {
	b.stat.Lock()
	defer b.stat.Unlock()
	now := time.Now()
	if b.state != s {
		b.state, b.since = s, now
		b.log.Debug("answering names", "state", s)
	}
	if err != nil && (b.err == nil || b.err.Error() != err.Error()) {
		b.log.Warn("names are answered by Docker's resolver alone", "error", err)
	}
	b.err = err
	if s == Attached && err == nil {
		b.refreshed = now
	}
}

// health is for people. networks is the caller's to guard.
func (b *sandbox) health() Health {
	b.stat.Lock()
	defer b.stat.Unlock()
	h := Health{Key: b.key, Networks: slices.Clone(b.networks), State: b.state, Since: b.since, Refreshed: b.refreshed, Err: b.err,
		Answered: b.answered.Load(), Forwarded: b.forwarded.Load(), Failed: b.failed.Load()}
	return h
}

// waiting says whether its namespace has not been seen.
func (b *sandbox) waiting() bool {
	b.stat.Lock()
	defer b.stat.Unlock()
	return b.state == Waiting
}
