package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
)

// agreement bounds the wait for all sides to agree: a container that its engine
// forgot is collected after two looks, and the kernel is audited once a minute.
const agreement = 3 * time.Minute

// Check fails the test unless all sides of all hosts that have power come to
// agree: their engines and kernels, their agents' journals, and the store. No
// address of a network is held twice, each running container has exactly the facts
// that it should have, in its own namespace as well, and nothing else exists.
//
// It is for a quiet moment: no fault is in the way, and every host that has power
// has its agent and its engine.
func (l *Lab) Check(t testing.TB) {
	t.Helper()
	if err := l.Agree(t.Context()); err != nil {
		t.Error(err)
	}
}

// Agree is Check for whoever has no test, or one whose context has ended.
func (l *Lab) Agree(ctx context.Context) error {
	return Wait(ctx, agreement, "all sides to agree", func() error { return l.Disagreement(ctx) })
}

// Disagreement compares all sides once. While anything is under way they differ.
func (l *Lab) Disagreement(ctx context.Context) error {
	facts, err := l.Facts(ctx)
	if err != nil {
		return err
	}
	running, err := l.Running(ctx)
	if err != nil {
		return err
	}
	var wrong []string
	for _, f := range check.Only(check.Run(facts), check.Wrong, check.Transient) {
		wrong = append(wrong, f.String())
	}
	wrong = append(wrong, compareContainers(facts, running)...)
	if len(wrong) > 0 {
		return errors.New("\n" + strings.Join(wrong, "\n"))
	}
	return nil
}

// HeldTwice returns the addresses and MACs that two endpoints of a network hold
// right now, as far as the hosts that can be asked know, whatever else is under
// way: there is no moment at which there may be one.
func (l *Lab) HeldTwice(ctx context.Context) ([]string, error) {
	facts, err := l.gather(ctx, false)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range check.Run(facts) {
		if f.Rule == check.HeldTwice {
			out = append(out, f.String())
		}
	}
	return out, nil
}

// Facts asks the agents of all hosts that have power what all sides say, and puts
// it together. A side that could not be looked at is an error.
func (l *Lab) Facts(ctx context.Context) (check.Facts, error) { return l.gather(ctx, true) }

// gather is Facts; without all, what cannot be seen is left out.
func (l *Lab) gather(ctx context.Context, all bool) (check.Facts, error) {
	seen := make([]hostFacts, len(l.hosts))
	g, gctx := errgroup.WithContext(ctx)
	for i, h := range l.hosts {
		if !h.On() || !all && !h.AgentRunning() {
			continue
		}
		g.Go(func() error {
			var err error
			seen[i], err = h.facts(gctx)
			if !all {
				return nil
			}
			return errors.Join(err, seen[i].unseen())
		})
	}
	if err := g.Wait(); err != nil {
		return check.Facts{}, err
	}
	out := check.Facts{Hosts: map[carrick.HostID]check.Host{}}
	for _, f := range seen {
		for id, h := range f.Hosts {
			if other, twice := out.Hosts[id]; twice {
				return out, fmt.Errorf("%s and %s have one identity, %s", other.Name, h.Name, id)
			}
			out.Hosts[id] = h
		}
		if f.Store != nil && (out.Store == nil || later(f.Store.Epoch, out.Store.Epoch)) {
			out.Store = f.Store
		}
	}
	return out, nil
}

// later says whether one state of the store is later than another.
func later(a, b check.Epoch) bool { return a.Num > b.Num || a.Num == b.Num && a.Seq > b.Seq }

// hostFacts is what `carrick ipam check --facts` prints, too.
type hostFacts struct {
	Node  string `json:"node"`
	Sides []struct {
		Name  string `json:"name"`
		Error string `json:"error"`
	} `json:"sides"`
	check.Facts
}

// unseen names the sides that could not be looked at.
func (f hostFacts) unseen() error {
	var errs []error
	for _, s := range f.Sides {
		if s.Error != "" {
			errs = append(errs, fmt.Errorf("%s's %s: %s", f.Node, s.Name, s.Error))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) facts(ctx context.Context) (hostFacts, error) {
	var f hostFacts
	b, err := h.request(ctx, APISocket, http.MethodGet, "/v1/facts", time.Minute)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return hostFacts{}, fmt.Errorf("%s: ask the agent for its facts: %w", h.name, err)
	}
	return f, nil
}
