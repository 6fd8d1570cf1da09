package agent

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Task is a part of the agent that runs for as long as the agent does.
type Task interface {
	// Run works until ctx ends, and then returns nil. An error ends the agent.
	Run(ctx context.Context) error
	fmt.Stringer
}

// Func makes a Task of a function.
func Func(name string, run func(context.Context) error) Task { return funcTask{name, run} }

type funcTask struct {
	name string
	run  func(context.Context) error
}

func (t funcTask) Run(ctx context.Context) error { return t.run(ctx) }
func (t funcTask) String() string                { return t.name }

// Run runs tasks until ctx ends or one of them fails, and returns when all have
// ended, with the first failure.
func Run(ctx context.Context, tasks ...Task) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
	return g.Wait()
}
