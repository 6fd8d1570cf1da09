package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Box is a container as its user sees it: stopping and starting it keeps what was
// said when it was made. One goroutine at a time uses a box.
type Box struct {
	Name   string
	Always bool // --restart always: it comes back with its engine

	host  *Host
	wants []want       // in the order of connecting
	parts []*Container // while it runs; guarded by host.mu
}

// want is a network that a box is connected to when it runs.
type want struct {
	network *Network
	run     Run
}

// RunBox makes and starts a container. One that does not start is not kept.
func (h *Host) RunBox(name string, always bool, n *Network, r Run) (*Box, error) {
	b := &Box{Name: name, Always: always, host: h, wants: []want{{n, r}}}
	if err := b.Start(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.boxes[name] = b
	h.mu.Unlock()
	return b, nil
}

// Boxes returns the host's containers, those that are stopped included, by name.
func (h *Host) Boxes() []*Box {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*Box
	for _, name := range slices.Sorted(maps.Keys(h.boxes)) {
		out = append(out, h.boxes[name])
	}
	return out
}

// Up says whether the container runs.
func (b *Box) Up() bool { return len(b.Parts()) > 0 }

// Parts are the container's endpoints while it runs.
func (b *Box) Parts() []*Container {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	return slices.Clone(b.parts)
}

// In says whether the container is connected to a network, now or when it runs.
func (b *Box) In(n *Network) bool {
	return slices.ContainsFunc(b.wants, func(w want) bool { return w.network == n })
}

// Networks are those the container is connected to.
func (b *Box) Networks() []*Network {
	var out []*Network
	for _, w := range b.wants {
		out = append(out, w.network)
	}
	return out
}

// Wants are the networks the container is connected to, with what --ip said.
func (b *Box) Wants() map[*Network]string {
	out := map[*Network]string{}
	for _, w := range b.wants {
		out[w.network] = w.run.IP
	}
	return out
}

// Start is docker start: it runs in all of its networks or not at all.
func (b *Box) Start() error {
	if b.Up() {
		return nil
	}
	h := b.host
	life := h.now()
	var parts []*Container
	for _, w := range b.wants {
		c, err := h.attach(w.network, w.run, b.Name)
		if err != nil {
			for _, c := range parts {
				_ = h.detach(life, c)
			}
			return fmt.Errorf("start %s: %w", b.Name, err)
		}
		parts = append(parts, c)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.off || h.life != life {
		return ErrOff
	}
	b.parts = parts
	return nil
}

// Stop is docker stop. Errors are the plugin's, and the container is stopped
// nonetheless.
func (b *Box) Stop() error {
	h := b.host
	h.mu.Lock()
	parts, life := b.parts, h.life
	b.parts = nil
	h.mu.Unlock()
	var errs []error
	for _, c := range parts {
		errs = append(errs, h.detach(life, c))
	}
	return errors.Join(errs...)
}

// Remove is docker rm -f.
func (b *Box) Remove() error {
	err := b.Stop()
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	delete(b.host.boxes, b.Name)
	return err
}

// Connect is docker network connect.
func (b *Box) Connect(n *Network, r Run) error {
	if b.In(n) {
		return fmt.Errorf("%s is in network %s", b.Name, n.Name)
	}
	h := b.host
	if b.Up() {
		life := h.now()
		c, err := h.attach(n, r, b.Name)
		if err != nil {
			return fmt.Errorf("connect %s: %w", b.Name, err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.off || h.life != life {
			return ErrOff
		}
		b.parts = append(b.parts, c)
	}
	b.wants = append(b.wants, want{n, r})
	return nil
}

// Disconnect is docker network disconnect. Errors are the plugin's.
func (b *Box) Disconnect(n *Network) error {
	h := b.host
	b.wants = slices.DeleteFunc(b.wants, func(w want) bool { return w.network == n })
	h.mu.Lock()
	var c *Container
	if i := slices.IndexFunc(b.parts, func(c *Container) bool { return c.Network == n }); i >= 0 {
		c = b.parts[i]
		b.parts = slices.Delete(slices.Clone(b.parts), i, i+1)
	}
	life := h.life
	h.mu.Unlock()
	if c == nil {
		return nil
	}
	return h.detach(life, c)
}

// EngineStop is dockerd's sudden end: all containers die and nobody is told.
func (h *Host) EngineStop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.die()
}

// die ends the engine's life. h.mu must be held.
func (h *Host) die() {
	h.life++
	clear(h.live)
	for _, b := range h.boxes {
		b.parts = nil
	}
}

// EngineStart is dockerd's start after that: it ends the endpoints that its
// database still has, and then starts containers that are to run always. It
// returns why some did not.
func (h *Host) EngineStart() error {
	h.mu.Lock()
	life := h.life
	var stale []*Container
	for _, id := range slices.Sorted(maps.Keys(h.stored)) {
		stale = append(stale, h.stored[id])
	}
	h.mu.Unlock()
	for _, c := range stale {
		_ = h.detach(life, c)
	}
	var errs []error
	for _, b := range h.Boxes() {
		if b.Always {
			errs = append(errs, b.Start())
		}
	}
	return errors.Join(errs...)
}

// PowerOff ends everything on the host; what is on disk stays.
func (h *Host) PowerOff() {
	h.mu.Lock()
	h.off = true
	h.die()
	h.mu.Unlock()
	h.Kill()
}

// PowerOn lets the host have power again; agent and engine are started with
// StartCut and EngineStart.
func (h *Host) PowerOn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.off = false
	h.boot++
	h.booted = time.Now()
}

// On says whether the host has power.
func (h *Host) On() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.off
}

// WipeEngine has the engine lose its data: it knows no network and no container, and
// tells nobody.
func (h *Host) WipeEngine() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.life++
	clear(h.networks)
	clear(h.stored)
	clear(h.live)
	clear(h.boxes)
}
