package datapath

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// RaiseLimits raises the host's limits to what the plan says, and returns what it
// found below that. What is as high already stays; a host that does not
// have them, such as a container that plays one, has nothing to raise. An error is
// about what could not be raised, and nothing depends on it.
func (o *Overlay) RaiseLimits(ctx context.Context) ([]Finding, error) {
	limits := plan.HostLimits()
	names := make([]string, 0, len(limits))
	for _, l := range limits {
		names = append(names, l.Name)
	}
	held, err := o.hostH.Sysctls(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("limits of the host's neighbour tables: %w", err)
	}
	var raised []Finding
	var errs []error
	for _, l := range limits {
		is, err := strconv.Atoi(held[l.Name])
		if err != nil || is >= l.Least {
			continue // none, or enough
		}
		if err := one(ctx, o.hostH, nl.SetSysctl{Name: l.Name, Value: strconv.Itoa(l.Least)}); err != nil {
			errs = append(errs, err)
			continue
		}
		raised = append(raised, Finding{Kind: KindSysctl, Object: l.Name, Found: strconv.Itoa(is), Want: strconv.Itoa(l.Least)})
	}
	return raised, errors.Join(errs...)
}
