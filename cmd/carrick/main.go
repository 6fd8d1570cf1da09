// Command carrick gives plain Docker engines networks that span hosts. `carrick
// agent` runs on every host; every other verb asks the agent of this host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// Exit codes, part of the user's surface.
const (
	exitFine    = 0
	exitProblem = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var problem problemError
	switch {
	case err == nil:
		return exitFine
	case errors.As(err, &problem):
		if problem.err != nil {
			_, _ = fmt.Fprintln(stderr, "carrick:", problem.err)
		}
		return exitProblem
	default:
		_, _ = fmt.Fprintf(stderr, "carrick: %v\nSee 'carrick --help'.\n", err)
		return exitUsage
	}
}

// problemError is an error of doing, not of asking. Without an inner error the
// problem has been printed already.
type problemError struct{ err error }

func (e problemError) Error() string {
	if e.err == nil {
		return "a problem was found"
	}
	return e.err.Error()
}

func (e problemError) Unwrap() error { return e.err }

// doing makes every error of a command's work a problem; what cobra itself
// returns stays an error of usage.
func doing(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := fn(cmd, args)
		var usage usageError
		var problem problemError
		if err == nil || errors.As(err, &usage) || errors.As(err, &problem) {
			return err
		}
		return problemError{err}
	}
}

// usageError is a wrong word from the user.
type usageError struct{ error }

func rootCommand(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "carrick",
		Short:         "Networks across hosts for plain Docker engines",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(agentCommand(), statusCommand(), networkCommand(), endpointCommand(), nodeCommand(), ipamCommand(), doctorCommand(), versionCommand())
	return root
}
