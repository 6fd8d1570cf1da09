package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// huntEvery is how often a file is looked at on which a namespace is about to be
	// mounted: nobody tells of mounts.
	huntEvery = time.Millisecond / 2
	// huntFor bounds that. Docker mounts right after it made the file, in the same
	// call (libnetwork, GetSandboxForExternalKey); a file that is older is what it
	// left behind, and is looked at every second.
	huntFor = 2 * time.Second
)

// watch attaches sandboxes as soon as their namespaces are there: the engine makes the
// file, and the container's first process starts some milliseconds later.
func (s *Service) watch(ctx context.Context) {
	events := make(chan struct{}, 1)
	w, err := newWatcher()
	if err != nil {
		// They are still found by the refreshes, up to a second late.
		s.log.Warn("containers may ask before names are answered", "error", err)
	} else {
		var wg sync.WaitGroup
		wg.Go(func() { w.read(events) })
		defer wg.Wait()
		defer w.close()
	}
	for {
		waiting := s.waiting()
		if w != nil {
			// First the watch, then the look: what comes in between is seen twice.
			w.watch(dirs(waiting))
		}
		if s.hunt(ctx, waiting) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(huntEvery):
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-s.kick:
		}
	}
}

// waiting returns the sandboxes without a namespace.
func (s *Service) waiting() []*sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*sandbox
	for _, b := range s.sandboxes {
		if b.waiting() {
			list = append(list, b)
		}
	}
	return list
}

// hunt attaches those whose namespaces are there, and says whether one is about to be.
func (s *Service) hunt(ctx context.Context, waiting []*sandbox) (again bool) {
	var there []*sandbox
	for _, b := range waiting {
		switch mounted, young := look(b.path); {
		case mounted:
			there = append(there, b)
		case young:
			again = true
		}
	}
	_ = each(there, func(b *sandbox) error { return b.attach(ctx) }) // it is in the report
	return again
}

// look says of a file whether a namespace is mounted on it, and if not, whether it was
// made just now.
func look(path string) (mounted, young bool) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, false
	}
	if int64(fs.Type) == unix.NSFS_MAGIC {
		return true, false
	}
	st, err := os.Stat(path)
	return false, err == nil && time.Since(st.ModTime()) < huntFor
}

func dirs(list []*sandbox) map[string]bool {
	m := map[string]bool{}
	for _, b := range list {
		m[filepath.Dir(b.path)] = true
	}
	return m
}

// watcher tells when something appears in some directories (inotify(7)).
type watcher struct {
	file *os.File
	fd   int

	watched map[string]int // directory to watch; of who calls watch
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return &watcher{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, watched: map[string]int{}}, nil
}

// read says that something happened, never what: who is told looks at everything.
func (w *watcher) read(events chan<- struct{}) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := w.file.Read(buf); err != nil {
			return // closed
		}
		select {
		case events <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) close() { _ = w.file.Close() }

// watch makes these the directories that are watched. Of one that is not there yet the
// nearest one above is.
func (w *watcher) watch(dirs map[string]bool) {
	want := map[string]int{}
	for dir := range dirs {
		for {
			// Again for those that are watched: a directory may be another one by now.
			wd, err := unix.InotifyAddWatch(w.fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
			if err == nil {
				want[dir] = wd
				break
			}
			up := filepath.Dir(dir)
			if up == dir || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
				break
			}
			dir = up
		}
	}
	inUse := map[int]bool{}
	for _, wd := range want {
		inUse[wd] = true
	}
	for _, wd := range w.watched {
		if !inUse[wd] {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // it may be gone with its directory
		}
	}
	w.watched = want
}
