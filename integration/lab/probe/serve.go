package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// serve runs every server until the context ends.
func serve(ctx context.Context) error {
	var lc net.ListenConfig
	web, err := lc.Listen(ctx, "tcp", ":"+httpPort)
	if err != nil {
		return err
	}
	sink, err := lc.Listen(ctx, "tcp", ":"+sinkPort)
	if err != nil {
		return err
	}
	echo, err := lc.Listen(ctx, "tcp", ":"+echoPort)
	if err != nil {
		return err
	}
	packets, err := lc.ListenPacket(ctx, "udp", ":"+echoPort)
	if err != nil {
		return err
	}
	said, err := lc.ListenPacket(ctx, "udp", ":"+earPort)
	if err != nil {
		return err
	}
	failed := make(chan error, 5)
	var ear ear
	page := http.NewServeMux()
	page.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, host+"\n")
	})
	page.HandleFunc("/heard", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, ear.heard()) })
	page.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) {
		name, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, name+"\n")
	})
	go func() { failed <- (&http.Server{Handler: page, ReadHeaderTimeout: patience}).Serve(web) }()
	go func() { failed <- each(sink, swallow) }()
	go func() { failed <- each(echo, func(c net.Conn) { _, _ = io.Copy(c, c) }) }()
	go func() { failed <- sayBack(packets) }()
	go func() { failed <- ear.listen(said) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// each serves every connection.
func each(l net.Listener, serve func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			serve(c)
		}()
	}
}

// swallow reads to the end and answers with what it read.
func swallow(c net.Conn) {
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "%x %d\n", h.Sum(nil), n)
}

func sayBack(p net.PacketConn) error {
	b := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return err
		}
		_, _ = p.WriteTo(b[:n], from)
	}
}

// ear keeps what it heard, one packet a line.
type ear struct {
	mu  sync.Mutex // guards all
	all strings.Builder
}

func (e *ear) listen(p net.PacketConn) error {
	b := make([]byte, 1<<16)
	for {
		n, _, err := p.ReadFrom(b)
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.all.Write(append(b[:n:n], '\n'))
		e.mu.Unlock()
	}
}

func (e *ear) heard() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all.String()
}

// send streams random bytes to a sink and compares what it says it got.
func send(ctx context.Context, to string, mb int) error {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", net.JoinHostPort(to, sinkPort))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// A stalled transfer must end; a slow one may take its time.
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	h := sha256.New()
	seed := [32]byte{0: 'c', 1: 'k'}
	random := rand.NewChaCha8(seed)
	n, err := io.CopyN(io.MultiWriter(conn, h), random, int64(mb)<<20)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.New("not a TCP connection")
	}
	if err := tcp.CloseWrite(); err != nil {
		return err
	}
	reply, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	want := fmt.Sprintf("%x %d\n", h.Sum(nil), n)
	if string(reply) != want {
		return fmt.Errorf("the other end got %q, sent was %q", reply, want)
	}
	fmt.Print(want)
	return nil
}
