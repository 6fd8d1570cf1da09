package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
)

// miscount is how long an engine may say that a network is in use which no container
// is in.
const miscount = 2 * time.Second

// objections is how long a host that does not use a network waits for those that do to
// refuse its removal.
const objections = 500 * time.Millisecond

// Removing says whether mirror itself is having an engine's network removed, or is
// having it made and the engine gives up (its disk is full): the driver's
// DeleteNetwork is not a user's wish.
func (m *Mirror) Removing(id carrick.DockerNetworkID) bool {
	n, err := m.cfg.Facts.Journal().ByAlias(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removing[id] || err == nil && m.making[n.Conf.ID]
}

// removed says whether a create was refused because the network is on its way out:
// that came between. An engine passes the driver's error on as text.
func removed(err error) bool {
	return strings.Contains(err.Error(), cluster.ErrRemoving.Error()) || strings.Contains(err.Error(), cluster.ErrUnknownNetwork.Error())
}

// takeAway removes a Docker network that somebody wants gone everywhere. If the
// engine refuses, it stays everywhere.
func (m *Mirror) takeAway(ctx context.Context, s cluster.Spec, a journal.Alias, listed bool) string {
	if len(m.cfg.Facts.Journal().Endpoints(s.Network.ID)) == 0 {
		// Whoever uses it refuses at once. A Docker network that is made again has another
		// id, by which containers that are stopped do not find it: better that it stays.
		objections := time.NewTimer(m.cfg.Objections)
		defer objections.Stop()
		select {
		case <-objections.C:
		case <-ctx.Done():
			return ""
		}
	}
	if now, err := m.specNow(ctx, s.Network.ID); err != nil || now.Removal == nil {
		m.cfg.Log.Debug("network not removed", "network", s.Name, "err", err)
		m.retrySoon()
		return ""
	}
	if !listed {
		if time.Since(a.Created) < m.cfg.Patience {
			m.retrySoon() // its create may not have ended
			return ""
		}
		if len(m.cfg.Facts.Journal().Endpoints(s.Network.ID)) > 0 {
			return "" // the other look asks the kernel
		}
		if err := m.cfg.Facts.DropAlias(ctx, a.Docker); err != nil {
			m.cfg.Log.Debug("alias of a removed network not dropped yet", "network", s.Name, "err", err)
		}
		return ""
	}
	err := m.removeIdle(ctx, s.Network.ID, a.Docker)
	switch {
	case err == nil:
		m.cfg.Log.Info("network removed, as on host "+m.cfg.Facts.HostName(s.Removal.Host), "name", s.Name, "network", s.Network.ID)
	case errors.Is(err, ErrInUse):
		m.cfg.Log.Warn("network was removed on host "+m.cfg.Facts.HostName(s.Removal.Host)+" and stays: it is in use here", "name", s.Name, "network", s.Network.ID, "err", err)
		if err := m.cfg.Facts.KeepNetwork(ctx, s.Network.ID, err.Error()); err != nil {
			m.cfg.Log.Debug("the others do not know yet that a network stays", "network", s.Name, "err", err)
			m.retrySoon()
		}
	default:
		return fmt.Sprintf("network %s was removed on host %s and is still on this one: %v", s.Name, m.cfg.Facts.HostName(s.Removal.Host), err)
	}
	return ""
}

// end removes a Docker network that the cluster ended while this host was removed from
// it.
func (m *Mirror) end(ctx context.Context, id carrick.DockerNetworkID, at Network, listed bool) string {
	if err := m.remove(ctx, id); err != nil {
		return fmt.Sprintf("network %s was removed while this host was no part of the cluster, and is still on its engine: docker network rm %s: %v", at.Name, id.Short(), err)
	}
	if listed {
		m.cfg.Log.Info("network removed: it was on no other host any more when this one came back", "name", at.Name, "docker", id.Short())
	}
	if err := m.cfg.Facts.ForgetEnded(id); err != nil {
		m.cfg.Log.Warn("a network that is gone is not forgotten", "docker", id.Short(), "err", err)
	}
	m.networksSoon()
	return ""
}

// removeIdle removes a Docker network that has no container as far as the journal
// knows, and is patient with an engine that counts an endpoint for a moment after its
// driver's last call (libnetwork, atomicIncDecEpCnt).
func (m *Mirror) removeIdle(ctx context.Context, id carrick.NetworkID, docker carrick.DockerNetworkID) error {
	wait, cancel := context.WithTimeout(ctx, miscount)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := m.remove(ctx, docker)
		if !errors.Is(err, ErrInUse) || len(m.cfg.Facts.Journal().Endpoints(id)) > 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-wait.Done():
			return fmt.Errorf("%w; no container of this host is in it as far as Carrick knows: if docker network inspect lists none either, "+
				"the engine has miscounted, as those of 20.10 can when many start or end at once, and counts anew when it is restarted", err)
		}
	}
}

// giveWay removes a Docker network whose name another of the cluster had first, if
// nobody uses it; the other is made in its place.
func (m *Mirror) giveWay(ctx context.Context, s, first cluster.Spec, a journal.Alias) string {
	if now, err := m.specNow(ctx, first.Network.ID); err != nil || now.Removal != nil {
		m.cfg.Log.Debug("network does not give way", "network", s.Name, "err", err)
		m.retrySoon()
		return ""
	}
	err := m.removeIdle(ctx, s.Network.ID, a.Docker)
	if err != nil && !errors.Is(err, ErrInUse) {
		return fmt.Sprintf("network %s is %s on this host and %s on others, which was there first, and cannot be replaced yet: %v",
			s.Name, s.Network.Subnets(), first.Network.Subnets(), err)
	}
	if err == nil {
		m.cfg.Log.Warn("network removed: another of the same name was there first, and takes its place", "name", s.Name, "removed", s.Network.Subnets(), "first", first.Network.Subnets())
		m.networksSoon()
		return ""
	}
	return fmt.Sprintf("network %s is %s on this host and %s on others, which was there first: stop its containers here, and it is replaced: %v",
		s.Name, s.Network.Subnets(), first.Network.Subnets(), err)
}

// remove has the engine remove a network, and the driver know that no user did.
func (m *Mirror) remove(ctx context.Context, id carrick.DockerNetworkID) error {
	m.mu.Lock()
	m.removing[id] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.removing, id)
		m.mu.Unlock()
	}()
	return m.cfg.Engine.RemoveNetwork(ctx, id)
}

// Remove removes a network for an operator, as docker network rm does on this host.
// It must not be called from within a plugin call.
func (m *Mirror) Remove(ctx context.Context, id carrick.DockerNetworkID) error {
	return m.cfg.Engine.RemoveNetwork(ctx, id)
}
