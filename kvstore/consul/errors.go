package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/kvstore"
)

// sentinel wraps what a call ended with in one of the contract's errors. ctx is
// the caller's.
func (s *Store) sentinel(ctx context.Context, err error) error {
	var se *statusError
	switch {
	case known(err): // first: a definite answer is worth more than how it was waited for
		return err
	case errors.As(err, &se):
		return fmt.Errorf("%w: %w", se.sentinel(), se)
	case s.ctx.Err() != nil:
		return kvstore.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	var ue *url.Error
	if errors.As(err, &ue) { // says the URL and the verb; the caller says better ones
		err = ue.Err
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// Our own time limit, which must not pass for the caller's.
		return fmt.Errorf("%w: no answer in time: %v", kvstore.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", kvstore.ErrUnavailable, err)
}

func known(err error) bool {
	for _, k := range []error{
		kvstore.ErrNotFound, kvstore.ErrConflict, kvstore.ErrUnavailable, kvstore.ErrDenied,
		kvstore.ErrTooLarge, kvstore.ErrLeaseLost, kvstore.ErrInvalid,
	} {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

func (e *statusError) sentinel() error {
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return kvstore.ErrDenied
	case http.StatusRequestEntityTooLarge:
		return kvstore.ErrTooLarge
	default: // 429, 500 "No cluster leader", a proxy's 502 to 504, not Consul at all, TLS expected
		return kvstore.ErrUnavailable
	}
}

// neverSent says that a request did not reach any server, so that even a write
// may be tried at another.
func neverSent(err error) bool {
	var oe *net.OpError
	return errors.As(err, &oe) && oe.Op == "dial"
}

// txnError is what a refused transaction means. Consul applies none of it then.
// steps tell what each of its operations was for.
func txnError(steps []step, errs api.TxnErrors) error {
	var failed []string
	var other error
	for _, e := range errs {
		if e.OpIndex < 0 || e.OpIndex >= len(steps) {
			other = errors.Join(other, fmt.Errorf("operation %d: %s: %w", e.OpIndex, e.What, kvstore.ErrUnavailable))
			continue
		}
		st := steps[e.OpIndex]
		switch {
		// The answer carries texts only. This one is acl.PermissionDeniedError's,
		// which Consul itself tells by it.
		case strings.Contains(e.What, "Permission denied"):
			return fmt.Errorf("%s: %s: %w", st.key, e.What, kvstore.ErrDenied)
		case st.cond:
			if !slices.Contains(failed, st.key) {
				failed = append(failed, st.key)
			}
		case st.lock && strings.Contains(e.What, "invalid session"):
			other = errors.Join(other, fmt.Errorf("put %s with lease %s: %w", st.key, st.lease, kvstore.ErrLeaseLost))
		default: // a lock-delay left by somebody else's session, or a text we do not know
			other = errors.Join(other, fmt.Errorf("%s: %s: %w", st.key, e.What, kvstore.ErrUnavailable))
		}
	}
	switch {
	case failed != nil:
		return &kvstore.ConflictError{Keys: failed}
	case other != nil:
		return other
	default:
		return fmt.Errorf("refused without a reason: %w", kvstore.ErrUnavailable)
	}
}
