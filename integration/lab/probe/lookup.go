package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// lookup prints what names, or addresses, resolve to, a line each: the name and what it
// leads to, sorted. One that leads nowhere stands alone, with why on standard error.
func lookup(ctx context.Context, names []string, tcp bool, wait time.Duration) error {
	for _, name := range names {
		rctx, cancel := context.WithTimeout(ctx, wait)
		got, err := resolve(rctx, name, tcp)
		cancel()
		if err != nil { // of the resolver behind ours as well, which may have nobody to ask
			fmt.Fprintln(os.Stderr, err)
		}
		slices.Sort(got)
		if _, err := fmt.Fprintln(os.Stdout, strings.Join(append([]string{name}, got...), " ")); err != nil {
			return err
		}
	}
	return nil
}

// resolve asks the container's resolver, as programs do.
func resolve(ctx context.Context, name string, tcp bool) ([]string, error) {
	r := net.Resolver{PreferGo: true}
	if tcp {
		r.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if net.ParseIP(name) != nil {
		return r.LookupAddr(ctx, name)
	}
	return r.LookupHost(ctx, name)
}

// tolerance is for how long the name of a container that stopped may lead to who has
// its address since.
const tolerance = time.Second

// watcher resolves names again and again and asks whoever it is led to for his name.
type watcher struct {
	client *http.Client

	mu                          sync.Mutex // guards what follows, and lines
	right, stale, wrong, silent int
	unknown                     int
}

// watch resolves names until it is ended, each at its own pace, and asks whoever it is
// led to for his name. It prints where each leads when that changes, with the moment
// before it was asked,
//
//	MILLIS NAME leads BOOL ADDR...
//
// and in the end how many answers were right, led to nobody who answers, and were none. An
// answer that leads to somebody else is followed up: a container can be replaced between
// the answer and the question. If it is given no more it was stale, and the line has
// the moment before it was last asked for; and if it is still given after the
// tolerance, it was wrong, and the program fails.
//
//	MILLIS STALE NAME ADDR WHO
//	MILLIS WRONG NAME ADDR WHO
func watch(ctx context.Context, names []string, every time.Duration) error {
	w := &watcher{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() { w.follow(ctx, name, every) })
	}
	all.Wait()
	fmt.Fprintf(os.Stdout, "right %d wrong %d stale %d silent %d unknown %d\n", w.right, w.wrong, w.stale, w.silent, w.unknown)
	if w.wrong > 0 {
		return errors.New("a name led to somebody else")
	}
	return nil
}

func (w *watcher) count(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

func (w *watcher) say(at time.Time, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(os.Stdout, "%d %s\n", at.UnixMilli(), fmt.Sprintf(format, args...))
}

// follow watches one name.
func (w *watcher) follow(ctx context.Context, name string, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := ""
	for ctx.Err() == nil {
		before := time.Now()
		addrs := resolveSoon(ctx, name)
		if ctx.Err() != nil {
			return
		}
		if now := strings.Join(addrs, " "); now != last {
			last = now
			w.say(before, "%s leads %v %s", name, len(addrs) > 0, now)
		}
		if len(addrs) == 0 {
			w.count(&w.unknown)
		}
		for _, a := range addrs {
			w.look(ctx, name, a, before)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// look asks who is at an address that a name led to when it was asked for.
func (w *watcher) look(ctx context.Context, name, addr string, asked time.Time) {
	first := time.Time{}
	for other := ""; ; {
		who, err := askName(ctx, w.client, addr)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && who == name && other == "":
			w.count(&w.right)
			return
		case err != nil && other == "":
			w.count(&w.silent)
			return
		case err == nil && who != name:
			if other = who; first.IsZero() {
				first = time.Now()
			}
			if asked.Sub(first) > tolerance {
				w.count(&w.wrong)
				w.say(asked, "WRONG %s %s %s", name, addr, other)
				return
			}
		}
		before := time.Now()
		again := slices.Contains(resolveSoon(ctx, name), addr)
		if ctx.Err() != nil {
			return
		}
		if !again || err == nil && who == name {
			w.count(&w.stale)
			w.say(asked, "STALE %s %s %s", name, addr, other)
			return
		}
		asked = before
	}
}

// resolveSoon returns where a name leads, sorted; none: nowhere, or nobody knows.
func resolveSoon(ctx context.Context, name string) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs, _ := resolve(ctx, name, false)
	slices.Sort(addrs)
	return addrs
}

// askName asks who has an address.
func askName(ctx context.Context, client *http.Client, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(addr, httpPort)+"/name", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}
