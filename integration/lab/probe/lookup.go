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

// watch resolves names again and again until it is ended, and asks whoever it is led to
// for his name. It prints every answer by somebody else, and in the end how often each
// name led to its holder, to nobody, and was not known. since and until of a name are
// printed as they change: when it began to lead to its holder, and when it last did.
func watch(ctx context.Context, names []string, every time.Duration) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var right, wrong, silent, unknown int
	led := map[string]bool{}
	for ctx.Err() == nil {
		for _, name := range names {
			before := time.Now()
			rctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			addrs, err := resolve(rctx, name, false)
			cancel()
			leads := err == nil && len(addrs) > 0
			if leads != led[name] && ctx.Err() == nil {
				led[name] = leads
				fmt.Fprintf(os.Stdout, "%d %s leads %v\n", before.UnixMilli(), name, leads)
			}
			if !leads {
				unknown++
				continue
			}
			for _, a := range addrs {
				who, err := askName(ctx, client, a)
				switch {
				case err != nil:
					silent++
				case who != name:
					wrong++
					fmt.Fprintf(os.Stdout, "%d WRONG %s led to %s, which is %s\n", time.Now().UnixMilli(), name, a, who)
				default:
					right++
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	fmt.Fprintf(os.Stdout, "right %d wrong %d silent %d unknown %d\n", right, wrong, silent, unknown)
	if wrong > 0 {
		return errors.New("a name led to somebody else")
	}
	return nil
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
