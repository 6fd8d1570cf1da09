package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/status"
)

// lately is how far back an audit tells what was repaired before it.
const lately = 10 * time.Minute

// Audit implements [status.Source]: each network is asked for a pass that reads,
// the same as when it is time for it.
func (s *source) Audit(ctx context.Context, ref string) (status.Audit, error) {
	out := status.Audit{Node: s.cfg.Node, Networks: []status.AuditedNetwork{}}
	ids := s.rec.Audited()
	if ref != "" {
		n, err := s.find(ctx, ref)
		if err != nil {
			return out, err
		}
		ids = []carrick.NetworkID{n.ID}
	}
	for _, d := range s.recent() {
		if time.Since(d.At) < lately && (ref == "" || slices.Contains(ids, d.Network)) {
			out.Before = append(out.Before, d)
		}
	}
	begin := time.Now()
	for _, id := range ids {
		did, err := s.rec.Audit(ctx, id)
		if err != nil && !errors.Is(err, agent.ErrNotHere) {
			return out, err
		}
		if n := s.audited(id, did, err == nil); n.Here || ref != "" {
			out.Networks = append(out.Networks, n)
		}
	}
	out.Took = time.Since(begin)
	slices.SortFunc(out.Networks, func(a, b status.AuditedNetwork) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// audited is one network's part. A network whose plan is that nothing exists is
// not here, unless something was found all the same.
func (s *source) audited(id carrick.NetworkID, did agent.Audit, looked bool) status.AuditedNetwork {
	n := status.AuditedNetwork{ID: id, Name: s.label(id), Problems: did.Problems}
	if did.Drift.Total() > 0 {
		n.Kinds, n.Objects = some(did.Drift), objects(did.Found)
	}
	for _, ep := range sortedEndpoints(did.Endpoints) {
		if err := did.Endpoints[ep]; err != nil && !errors.Is(err, datapath.ErrPairMissing) { // which is a problem already
			n.Problems = append(n.Problems, fmt.Sprintf("endpoint %s: %v", ep.Short(), err))
		}
	}
	if did.Err != nil {
		n.Error = did.Err.Error()
	}
	n.Here = looked && (len(did.Endpoints) > 0 || did.Drift.Total() > 0 || did.Err != nil)
	return n
}

func sortedEndpoints(m map[carrick.EndpointID]error) []carrick.EndpointID {
	out := make([]carrick.EndpointID, 0, len(m))
	for id := range m {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func objects(found []datapath.Finding) []status.Object {
	out := make([]status.Object, 0, len(found))
	for _, f := range found {
		out = append(out, status.Object{Kind: string(f.Kind), Object: f.Object, Found: f.Found, Want: f.Want, Text: f.String()})
	}
	return out
}

// some is the kinds of which there are any.
func some(c datapath.Counts) map[string]int {
	out := map[string]int{}
	for _, k := range datapath.Kinds() {
		if n := c.Of(k); n > 0 {
			out[string(k)] = n
		}
	}
	return out
}

// maxShown is how many passes with drift are shown.
const maxShown = 10

// recent is the last passes with drift, newest first.
func (s *source) recent() []status.Drift {
	var out []status.Drift
	add := func(id carrick.NetworkID, ds []agent.Drift) {
		for _, d := range ds {
			x := status.Drift{At: d.At, Network: id, Kinds: some(d.Counts), Objects: objects(d.Found)}
			if id != "" {
				x.Name = s.label(id)
			}
			out = append(out, x)
		}
	}
	add("", s.rec.HostDrift())
	for _, n := range s.rec.Networks() {
		add(n.ID, n.Recent)
	}
	slices.SortStableFunc(out, func(a, b status.Drift) int { return b.At.Compare(a.At) })
	return out[:min(len(out), maxShown)]
}

// drift is all drift since the start.
func (s *source) drift() (int, map[string]int) {
	var all datapath.Counts
	for _, n := range s.rec.Networks() {
		all.Add(n.Drift)
	}
	for _, d := range s.rec.HostDrift() {
		all.Add(d.Counts)
	}
	return all.Total(), some(all)
}

// reading says how the audits do.
func (s *source) reading() status.Reading {
	out := status.Reading{Every: s.rec.Every()}
	for _, n := range s.rec.Networks() {
		if !n.Plan.Present {
			continue
		}
		out.Networks++
		switch {
		case n.Read.IsZero():
			out.Unread++
		case out.Oldest.IsZero() || n.Read.Before(out.Oldest):
			out.Oldest = n.Read
		}
	}
	return out
}

// Doctor implements [status.Source].
func (s *source) Doctor(ctx context.Context) ([]status.Checked, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := []status.Checked{
		status.OK("agent", "answers, version %s, as %s since %s", st.Version, st.Node, st.Started.Format(time.DateTime)),
		s.plugin(ctx),
		checkLink("store", st.Store, "bring the store up; containers run, start and stop on known networks meanwhile, and nothing is to be restarted"),
	}
	if st.Engine.URL != "" {
		out = append(out, checkLink("engine", st.Engine, "start the engine, or give the agent the right --docker"))
	} else {
		out = append(out, status.Note("engine", "its API is not used (--docker \"\"): containers have no names here, and networks that it forgot stay"))
	}
	wrong := map[string]bool{}
	for _, p := range st.Problems {
		what, _, _ := strings.Cut(p, " ")
		switch what {
		case "store", "engine", "names:":
			continue // said above
		case "network":
		default:
			what = "cluster"
		}
		wrong[what] = true
		out = append(out, status.Bad(what, "", "%s", p))
	}
	if !wrong["cluster"] {
		out = append(out, status.OK("cluster", "incarnation %d, this host is a member, nothing is held twice", st.Epoch.Num))
	}
	if !wrong["network"] {
		out = append(out, status.OK("network", "%d on this host with %d endpoints, in the kernel as planned", st.Networks, st.Local))
	}
	out = append(out, s.checkNames(ctx)...)
	out = append(out, checkAudits(st, time.Now()))
	return out, nil
}

// checkAudits tells what audits found. What was repaired is no problem any more.
func checkAudits(st status.Status, now time.Time) status.Checked {
	every := st.Audits.Every
	switch {
	case st.Drift > 0 && len(st.Recent) > 0:
		last := st.Recent[0]
		return status.Note("drift", "%d kernel objects repaired since the agent started that somebody else had changed, the last %s ago: carrick status",
			st.Drift, now.Sub(last.At).Round(time.Second))
	case st.Audits.Networks == 0:
		return status.OK("drift", "nothing to audit yet; each network is, every %s", every)
	}
	return status.OK("drift", "none since the agent started; each network is read back every %s", every)
}

func checkLink(what string, l status.Link, remedy string) status.Checked {
	if l.OK {
		return status.OK(what, "%s answers", l.URL)
	}
	return status.Bad(what, remedy, "%s: %s", l.URL, l.Error)
}

// pluginDir is where an engine looks for sockets of plugins (moby,
// pkg/plugins/discovery_unix.go).
const pluginDir = "/run/docker/plugins"

// plugin asks the driver's own socket what an engine asks first.
func (s *source) plugin(ctx context.Context) status.Checked {
	const what, remedy = "plugin", "restart the agent: it makes the socket again (systemctl restart carrick.socket carrick)"
	path := s.cfg.PluginSocket
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://carrick/Plugin.Activate", http.NoBody)
	if err != nil {
		return status.Bad(what, remedy, "%s: %v", path, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return status.Bad(what, remedy, "nobody answers an engine on %s: %v", path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "NetworkDriver") || !strings.Contains(string(body), "IpamDriver") {
		return status.Bad(what, remedy, "who answers on %s is not the driver: %s %.80q", path, resp.Status, body)
	}
	if filepath.Dir(path) != pluginDir {
		return status.Note(what, "the driver answers on %s; an engine finds it there only by a .spec file in /etc/docker/plugins", path)
	}
	return status.OK(what, "the driver answers on %s", path)
}
