// Command lab keeps simulated hosts running to play with.
//
//	lab up [-hosts N] [-consuls N] [-agents=false]   start a lab and leave it running
//	lab status                                       what runs where
//	lab exec hN command...                           run a command on a host
//	lab docker hN arguments...                       run docker against a host's engine
//	lab down                                         end it and remove all traces
//
// One lab of this command runs at a time; tests make their own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/integration/lab"
)

var errUsage = errors.New("usage: lab up [-hosts N] [-consuls N] [-agents=false] | status | exec hN COMMAND... | docker hN ARGUMENT... | down")

func main() {
	err := run(context.Background(), os.Args[1:])
	var failed *exec.ExitError
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case errors.As(err, &failed):
		os.Exit(max(1, failed.ExitCode()))
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "up":
		return up(ctx, args)
	case "serve": // what up leaves running
		return serve(ctx, args)
	case "down":
		return down(ctx)
	case "status":
		return status(ctx)
	case "exec", "docker":
		if len(args) < 2 {
			return errUsage
		}
		s, err := lab.LoadState(stateFile())
		if err != nil {
			return noLab(err)
		}
		h, err := s.Host(args[0])
		if err != nil {
			return err
		}
		if verb == "docker" {
			return s.Docker(ctx, h, args[1:]...)
		}
		return s.Exec(ctx, h, args[1:]...)
	}
	return errUsage
}

func stateFile() string { return filepath.Join(os.TempDir(), "carrick-lab.json") }
func logFile() string   { return filepath.Join(os.TempDir(), "carrick-lab.log") }

func noLab(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("no lab is running; start one with: make lab")
	}
	return err
}

// up starts this program again in the background as the lab's owner.
func up(ctx context.Context, args []string) error {
	if _, err := flags(args); err != nil {
		return err
	}
	if s, err := lab.LoadState(stateFile()); err == nil && s.Alive() {
		fmt.Println("a lab is running already")
		return status(ctx)
	}
	_ = os.Remove(stateFile())
	out, err := os.Create(logFile())
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"serve"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err = lab.Wait(ctx, 5*time.Minute, "the lab to be up", func() error {
		select {
		case err := <-ended:
			ended <- err
			return nil
		default:
		}
		_, err := os.Stat(stateFile())
		return err
	})
	if err != nil {
		return err
	}
	if _, err := os.Stat(stateFile()); err != nil {
		b, _ := os.ReadFile(logFile())
		return fmt.Errorf("the lab did not start:\n%s", b)
	}
	if err := status(ctx); err != nil {
		return err
	}
	fmt.Printf(`
Each host has a Docker engine and, unless turned off, a Carrick agent. Try:

  %[1]s docker h1 network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 app
  %[1]s docker h1 run -d --network app --name web %[2]s
  %[1]s docker h2 run --rm --network app %[2]s probe get http://web
  %[1]s exec h1 carrick status
  make lab-down
`, os.Args[0], lab.Image)
	return nil
}

func flags(args []string) (lab.Options, error) {
	f := flag.NewFlagSet("lab up", flag.ContinueOnError)
	hosts := f.Int("hosts", 3, "number of hosts")
	consuls := f.Int("consuls", 1, "Consul servers: 1 or 3, or -1 for the embedded store")
	agents := f.Bool("agents", true, "start an agent on every host")
	if err := f.Parse(args); err != nil || f.NArg() > 0 {
		return lab.Options{}, errUsage
	}
	return lab.Options{Hosts: *hosts, Consuls: *consuls, Agents: *agents}, nil
}

// serve owns the lab until it is told to end.
func serve(ctx context.Context, args []string) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	o, err := flags(args)
	if err != nil {
		return err
	}
	l, err := lab.Start(ctx, o)
	if err != nil {
		return err
	}
	if err := l.SaveState(stateFile()); err != nil {
		return errors.Join(err, l.Close())
	}
	<-ctx.Done()
	return errors.Join(os.Remove(stateFile()), l.Close(), os.Remove(logFile()))
}

func down(ctx context.Context) error {
	s, err := lab.LoadState(stateFile())
	if err != nil {
		return noLab(err)
	}
	if s.Alive() {
		if err := unix.Kill(s.Owner, unix.SIGTERM); err != nil {
			return fmt.Errorf("end the lab's process %d: %w", s.Owner, err)
		}
		return lab.Wait(ctx, time.Minute, "the lab to end", func() error {
			if s.Alive() {
				return fmt.Errorf("process %d is still there", s.Owner)
			}
			return nil
		})
	}
	// It was killed; the next lab sweeps its directory.
	return os.Remove(stateFile())
}

func status(ctx context.Context) error {
	s, err := lab.LoadState(stateFile())
	if err != nil {
		return noLab(err)
	}
	if !s.Alive() {
		return errors.New("the lab's process was killed; start a new one with: make lab")
	}
	fmt.Printf("lab in %s, process %d\n", s.Dir, s.Owner)
	for _, c := range s.Consuls {
		fmt.Printf("  %-4s %-14s consul\n", c.Name, c.Addr)
	}
	for _, h := range s.Hosts {
		version, err := s.Output(ctx, h, "docker", "version", "--format", "{{.Server.Version}}")
		if err != nil {
			version = "no engine"
		}
		agent := "agent"
		if _, err := s.Output(ctx, h, "test", "-S", lab.PluginSocket); err != nil {
			agent = "no agent"
		}
		fmt.Printf("  %-4s %-14s docker %s, %s; logs in %s\n", h.Name, h.Addr, strings.TrimSpace(version), agent,
			filepath.Join(s.Dir, h.Name)+", pid 1 is "+strconv.Itoa(h.PID))
	}
	return nil
}
