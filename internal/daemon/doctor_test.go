package daemon

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/plan"
	"github.com/carrick-net/carrick/status"
)

// An audit says what somebody changed, once: it repairs it. Status remembers it, and
// a link that its own event healed before anybody asked is told as well.
func TestAuditSaysWhatWasChanged(t *testing.T) {
	t.Parallel()
	_, h1, h2, n1, n2 := two(t)
	h1.run(n1, sim.Run{})
	far := h2.run(n2, sim.Run{})
	rec, err := h1.Cluster.Journal().ByAlias(n1.ID)
	if err != nil {
		t.Fatal(err)
	}
	ns := plan.Namespace(rec.Conf.ID)
	sim.Eventually(t, "the other container's row", func() bool {
		return strings.Contains(h1.kernel.Dump(), far.MAC.String()+" dev vxlan0 dst")
	})
	ctx := t.Context()
	clean := func(when string) {
		t.Helper()
		a, err := h1.src.Audit(ctx, "")
		if err != nil || !a.Fine() || len(a.Networks) != 1 || !a.Networks[0].Here || a.Networks[0].Name != "app" {
			t.Errorf("%s: %+v, %v", when, a, err)
		}
	}
	clean("at the beginning")
	if s := h1.status(); s.Drift != 0 || len(s.Recent) != 0 || s.Audits.Networks != 1 || s.Audits.Oldest.IsZero() || s.Audits.Late(time.Now()) {
		t.Errorf("status %+v", s)
	}
	before := h1.kernel.Dump()
	vx := h1.kernel.Ref(ns, plan.VXLANName)
	if err := h1.kernel.As(ns, nl.DelFDB{Link: vx, MAC: far.MAC}, nl.SetNeigh{Link: vx, Addr: far.Addr.Addr(), MAC: carrick.MAC{2, 0x66}}); err != nil {
		t.Fatal(err)
	}
	a, err := h1.src.Audit(ctx, "app")
	if err != nil || a.Fine() || len(a.Networks) != 1 || a.Networks[0].Total() != 2 || a.Networks[0].Kinds["fdb"] != 1 || a.Networks[0].Kinds["neighbour"] != 1 {
		t.Fatalf("audit %+v, %v", a, err)
	}
	var texts []string
	for _, o := range a.Networks[0].Objects {
		texts = append(texts, o.Text)
	}
	for _, want := range []string{
		"fdb row " + far.MAC.String() + " dst " + h2.VTEP.String() + " was missing",
		"neighbour " + far.Addr.Addr().String() + " was lladdr 02:66:00:00:00:00, wants lladdr " + far.MAC.String(),
	} {
		if !slices.Contains(texts, want) {
			t.Errorf("%q is not in %q", want, texts)
		}
	}
	if h1.kernel.Dump() != before {
		t.Error("not repaired")
	}
	clean("afterwards")
	if s := h1.status(); s.Drift != 2 || s.DriftKinds["fdb"] != 1 || len(s.Recent) != 1 || s.Recent[0].Name != "app" || s.Recent[0].Total() != 2 || !s.Healthy() {
		t.Errorf("status %+v", s)
	}
	h1.kernel.Alter(ns, plan.BridgeName, func(l *nl.Link) { l.MTU = 1280 })
	sim.Eventually(t, "the event healed it", func() bool { return h1.kernel.Dump() == before && h1.status().Drift == 3 })
	a, err = h1.src.Audit(ctx, "")
	if err != nil || !a.Fine() || len(a.Before) != 2 || a.Before[0].Kinds["link"] != 1 {
		t.Errorf("audit after an event healed: %+v, %v", a, err)
	}
	checks, err := h1.src.Doctor(ctx)
	if i := slices.IndexFunc(checks, func(c status.Checked) bool { return c.What == "drift" }); err != nil || i < 0 || checks[i].State != status.CheckNote || !strings.Contains(checks[i].Text, "3 kernel objects") {
		t.Errorf("doctor %+v, %v", checks, err)
	}
	if g := h1.src.gauges(); g.ReadingAge() < 0 || g.ReadingAge() > 600 {
		t.Errorf("age of the last reading %v", g.ReadingAge())
	}

	if _, err := h1.src.Audit(ctx, "none"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("audit of no network: %v", err)
	}
	h1.create("empty", "10.43.0.0/24")
	if a, err := h1.src.Audit(ctx, "empty"); err != nil || len(a.Networks) != 1 || a.Networks[0].Here || !a.Fine() {
		t.Errorf("audit of a network without containers here: %+v, %v", a, err)
	}
}

// What cannot be repaired is told by every audit, with the remedy.
func TestAuditNamesWhatItCannotRepair(t *testing.T) {
	t.Parallel()
	_, h1, _, n1, _ := two(t)
	c := h1.run(n1, sim.Run{})
	rec, err := h1.Cluster.Journal().ByAlias(n1.ID)
	if err != nil {
		t.Fatal(err)
	}
	ns := plan.Namespace(rec.Conf.ID)
	if err := h1.kernel.As(ns, nl.DelLink{Link: h1.kernel.Ref(ns, c.Endpoint.PortName())}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a, err := h1.src.Audit(t.Context(), "app")
		if err != nil || a.Fine() || len(a.Networks) != 1 || a.Networks[0].Total() != 0 || len(a.Networks[0].Problems) != 1 || !strings.Contains(a.Networks[0].Problems[0], "docker restart") {
			t.Errorf("audit %+v, %v", a, err)
		}
	}
}

// The doctor asks the driver's socket as an engine would.
func TestDoctorAsksThePluginSocket(t *testing.T) {
	t.Parallel()
	_, h1, _, _, _ := two(t)
	h1.src.cfg.PluginSocket = filepath.Join(t.TempDir(), "carrick.sock")
	plugin := func() status.Checked {
		t.Helper()
		checks, err := h1.src.Doctor(t.Context())
		i := slices.IndexFunc(checks, func(c status.Checked) bool { return c.What == "plugin" })
		if err != nil || i < 0 {
			t.Fatalf("%+v, %v", checks, err)
		}
		return checks[i]
	}
	if c := plugin(); c.State != status.CheckBad || !strings.Contains(c.Text, "carrick.sock") || c.Remedy == "" {
		t.Errorf("without a socket: %+v", c)
	}
	answer := `{"Implements":["authz"]}`
	l, err := net.Listen("unix", h1.src.cfg.PluginSocket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/Plugin.Activate" {
			_, _ = w.Write([]byte(answer))
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	if c := plugin(); c.State != status.CheckBad || !strings.Contains(c.Text, "authz") {
		t.Errorf("with somebody else's: %+v", c)
	}
	answer = `{"Implements":["NetworkDriver","IpamDriver"]}`
	if c := plugin(); c.State != status.CheckNote { // it is not where engines look
		t.Errorf("with the driver's: %+v", c)
	}
}
