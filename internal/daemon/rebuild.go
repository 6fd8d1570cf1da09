package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/mirror"
)

// rebuildLimit bounds how long a start waits for the store, and for the lease of
// this host's lost agent to run out. After it registration says what is wrong.
const rebuildLimit = time.Minute

// rebuild gives a host whose state directory was lost its identity and its
// memory back, before anything else asks who it is.
func rebuild(ctx context.Context, cfg cluster.Config, engine *mirror.Engine, log *slog.Logger) error {
	if cfg.Journal.Meta().Registered {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, rebuildLimit)
	defer cancel()
	var ask func(context.Context) ([]check.Container, error)
	if engine != nil {
		ask = func(ctx context.Context) ([]check.Container, error) { return runningContainers(ctx, engine) }
	}
	told := false
	for {
		cctx, done := context.WithTimeout(ctx, 5*time.Second)
		got, err := cluster.Rebuild(cctx, cfg, ask)
		done()
		switch {
		case errors.Is(err, cluster.ErrAlive), errors.Is(err, cluster.ErrRecovering):
		case cluster.IsUnavailable(err):
			log.Warn("whether this host lost its state directory cannot be seen: the store does not answer", "err", err)
			return nil
		case err != nil:
			return err
		case got == nil:
			return nil
		default:
			log.Warn("the state directory was lost; this host's memory was read back from the store and the engine",
				"host", got.Host, "networks", got.Networks, "blocks", got.Blocks, "endpoints", got.Endpoints, "unpublished", got.Unpublished)
			if got.EngineErr != nil {
				log.Warn("the engine could not be asked: containers that were never published are missing; restart them", "err", got.EngineErr)
			}
			return nil
		}
		if !told {
			told = true
			log.Warn("this host seems to have lost its state directory", "err", err)
		}
		t := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil // registration says it better
		case <-t.C:
		}
	}
}

// runningContainers is what the engine says runs.
func runningContainers(ctx context.Context, engine *mirror.Engine) ([]check.Container, error) {
	all, err := engine.Containers(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]check.Container, 0, len(all))
	for ep, c := range all {
		out = append(out, check.Container{Endpoint: ep, Network: c.Network, Name: c.Name, Addrs: c.Addrs, MAC: c.MAC})
	}
	return out, nil
}
