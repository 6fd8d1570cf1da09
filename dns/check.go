package dns

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/miekg/dns"

	"github.com/carrick-net/carrick/netns"
)

// checkPatience is how long an answer of our own may take.
const checkPatience = 2 * time.Second

// Check asks as a process in the sandbox would, over UDP and TCP, for a name that only
// we answer. nil: we did. The error says by whom, if at all, it was answered.
// ErrUnknownSandbox, ErrNoNamespace: there is nobody to ask for.
func (s *Service) Check(ctx context.Context, key string) error {
	s.mu.Lock()
	b := s.sandboxes[key]
	s.mu.Unlock()
	if b == nil {
		return fmt.Errorf("check sandbox %s: %w", key, ErrUnknownSandbox)
	}
	dir, name := filepath.Split(b.path)
	ns, err := netns.NewDir(netns.Config{Dir: dir}).Open(ctx, name)
	if errors.Is(err, netns.ErrNotFound) {
		err = ErrNoNamespace
	}
	if err != nil {
		return fmt.Errorf("check sandbox %s: %w", key, err)
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	var errs []error
	for _, by := range []struct {
		name string
		ask  func(context.Context, netns.Namespace, uint32, []byte) ([]byte, error)
	}{{"UDP", exchangeUDP}, {"TCP", exchangeTCP}} {
		if err := probe(ctx, ns, by.ask); err != nil {
			errs = append(errs, fmt.Errorf("check sandbox %s over %s: %w", key, by.name, err))
		}
	}
	return errors.Join(errs...)
}

// probe asks one question.
func probe(ctx context.Context, ns netns.Namespace, ask func(context.Context, netns.Namespace, uint32, []byte) ([]byte, error)) error {
	var q, a dns.Msg
	q.SetQuestion(checkName+".", dns.TypeTXT)
	packet, err := q.Pack()
	if err != nil {
		return err
	}
	got, err := ask(ctx, ns, 0, packet)
	if err != nil {
		return fmt.Errorf("nobody answered at %s: %w", resolver(), err)
	}
	if err := a.Unpack(got); err != nil {
		return fmt.Errorf("what came is no message: %w", err)
	}
	if len(a.Answer) == 1 {
		if txt, ok := a.Answer[0].(*dns.TXT); ok && len(txt.Txt) == 1 && txt.Txt[0] == checkReply {
			return nil
		}
	}
	return fmt.Errorf("another resolver answered, with %s: the names of other hosts' containers are not known there", dns.RcodeToString[a.Rcode])
}

// exchangeUDP asks over UDP from within a namespace, once.
func exchangeUDP(ctx context.Context, ns netns.Namespace, mark uint32, packet []byte) ([]byte, error) {
	c, err := dialUDP(ctx, ns, mark)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write(packet); err != nil {
		return nil, err
	}
	buf := make([]byte, maxQuery)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], packet) {
			return buf[:n], nil
		}
	}
}
