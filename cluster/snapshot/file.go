package snapshot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
)

// file is the log and where in it the records are that count.
type file struct {
	path  string
	f     *os.File
	size  int64 // up to which it is good
	live  int64 // bytes of the frames in index
	tried int64 // size at the last failed attempt to write it anew
	index map[carrick.NetworkID]map[carrick.HostID]place
	asOf  time.Time // the file's when it was opened; zero: see never
}

// place is where a frame is.
type place struct {
	off int64
	n   int64 // bytes, with the frame's head
}

// errDamaged: the file is none of this package's, or was damaged.
var errDamaged = errors.New("cache is damaged")

// openFile opens or makes the file. One that cannot be used is moved aside.
func openFile(path string, log *slog.Logger) (*file, error) {
	f, err := readFile(path, log)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	aside := path + ".damaged"
	if rerr := os.Rename(path, aside); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		return nil, fmt.Errorf("open cache %s: %w", path, errors.Join(err, rerr))
	}
	log.Warn("what was known of other hosts cannot be read and is moved aside; the store will tell it again", "file", aside, "err", err)
	return readFile(path, log)
}

func readFile(path string, log *slog.Logger) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c := &file{path: path, f: f, index: map[carrick.NetworkID]map[carrick.HostID]place{}}
	if err := c.scan(log); err != nil {
		return nil, fmt.Errorf("open cache %s: %w", path, errors.Join(err, f.Close()))
	}
	return c, nil
}

// scan reads the log from its beginning to its end, or to the first frame that
// is not good.
func (c *file) scan(log *slog.Logger) error {
	info, err := c.f.Stat()
	if err != nil {
		return err
	}
	total := info.Size()
	if total == 0 {
		if _, err := c.f.WriteAt([]byte(magic), 0); err != nil {
			return err
		}
		c.size = int64(len(magic))
		return nil
	}
	if t := info.ModTime(); t.After(never()) {
		c.asOf = t
	}
	r := bufio.NewReader(c.f)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(r, head); err != nil || string(head) != magic {
		return errors.Join(errDamaged, err)
	}
	c.size = int64(len(magic))
	for c.size < total {
		fr, n, err := readFrame(r, total-c.size)
		if errors.Is(err, errDamaged) {
			log.Warn("the end of what was known of other hosts is damaged and left out", "file", c.path, "bytes", total-c.size)
			return c.f.Truncate(c.size)
		}
		if err != nil {
			return err
		}
		c.note(fr, place{c.size, n})
		c.size += n
	}
	return nil
}

// note brings the index up to date with a frame.
func (c *file) note(fr frame, at place) {
	hosts := c.index[fr.net]
	if fr.host == "" {
		for _, p := range hosts {
			c.live -= p.n
		}
		delete(c.index, fr.net)
		return
	}
	c.live -= hosts[fr.host].n
	if len(fr.value) == 0 {
		delete(hosts, fr.host)
		if len(hosts) == 0 {
			delete(c.index, fr.net)
		}
		return
	}
	if hosts == nil {
		hosts = map[carrick.HostID]place{}
		c.index[fr.net] = hosts
	}
	hosts[fr.host] = at
	c.live += at.n
}

// record reads one record back.
func (c *file) record(at place) (Record, error) {
	fr, _, err := readFrame(io.NewSectionReader(c.f, at.off, at.n), at.n)
	if err != nil {
		return Record{}, err
	}
	return decode(fr.value)
}

// write appends a batch, or nothing of it.
func (c *file) write(b batch) error {
	var (
		raw    []byte
		frames []frame
		at     []place
	)
	add := func(fr frame) error {
		begin := len(raw)
		var err error
		if raw, err = appendFrame(raw, fr); err != nil {
			return err
		}
		frames, at = append(frames, fr), append(at, place{c.size + int64(begin), int64(len(raw) - begin)})
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(b.drop)) {
		if c.index[id] != nil {
			if err := add(frame{net: id}); err != nil {
				return err
			}
		}
	}
	for _, k := range sortedKeys(b.put) {
		fr := frame{net: k.net, host: k.host}
		if r := b.put[k]; len(r.Endpoints) > 0 {
			var err error
			if fr.value, err = encode(r); err != nil {
				return err
			}
		} else if c.index[k.net][k.host].n == 0 {
			continue
		}
		if err := add(fr); err != nil {
			return err
		}
	}
	if _, err := c.f.WriteAt(raw, c.size); err != nil {
		return fmt.Errorf("write cache: %w", errors.Join(err, c.f.Truncate(c.size)))
	}
	c.size += int64(len(raw))
	for i, fr := range frames {
		c.note(fr, at[i])
	}
	return nil
}

// tolerated is the size in bytes below which a log is not worth writing anew.
const tolerated = 1 << 20

// wasteful says whether so little of the log counts that it should be written
// anew: each change pays for a few others at most.
func (c *file) wasteful() bool {
	return c.size > tolerated && c.size > 4*c.live && c.size > 2*c.tried
}

// compact writes the log anew with what counts. Until that is done the old one
// goes on.
func (c *file) compact() (err error) {
	c.tried = c.size
	path := c.path + ".new"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write cache anew: %w", err)
	}
	next := &file{path: c.path, f: f, index: map[carrick.NetworkID]map[carrick.HostID]place{}}
	err = c.copyTo(next)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path, c.path)
	}
	if err != nil {
		return fmt.Errorf("write cache anew: %w", errors.Join(err, f.Close(), os.Remove(path)))
	}
	old := c.f
	*c = *next
	return old.Close()
}

func (c *file) copyTo(next *file) error {
	w := bufio.NewWriter(next.f)
	if _, err := w.WriteString(magic); err != nil {
		return err
	}
	next.size = int64(len(magic))
	for _, id := range slices.Sorted(maps.Keys(c.index)) {
		for host, at := range c.index[id] {
			if _, err := io.Copy(w, io.NewSectionReader(c.f, at.off, at.n)); err != nil {
				return err
			}
			next.note(frame{net: id, host: host, value: []byte{0}}, place{next.size, at.n})
			next.size += at.n
		}
	}
	return w.Flush()
}

func (c *file) close() error {
	if err := c.f.Close(); err != nil {
		return fmt.Errorf("close cache: %w", err)
	}
	return nil
}
