package status

import (
	"bytes"
	"context"
	"encoding/json"
	"html/template"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Web serves /metrics, /healthz and the status page. It shows no secrets, but
// every network and endpoint: bind it where only operators can reach it.
func Web(src Source, reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { healthz(w, r, src) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { page(w, r, src) })
	return mux
}

// healthz answers 200 while nothing needs attention, else 503 with what does: the
// problems of carrick status. It is about this host as a part of the cluster, not
// about the process: an agent that answers 503 is alive, and nothing gets better
// by restarting it.
func healthz(w http.ResponseWriter, r *http.Request, src Source) {
	ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
	defer cancel()
	s, err := src.Status(ctx)
	if err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	if !s.Healthy() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(struct {
		OK       bool     `json:"ok"`
		Problems []string `json:"problems,omitempty"`
	}{s.Healthy(), s.Problems})
}

func page(w http.ResponseWriter, r *http.Request, src Source) {
	ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
	defer cancel()
	var data struct {
		Status    Status
		Networks  []Network
		Endpoints []Endpoint
		Nodes     []Node
		Errors    []error
	}
	var err error
	note := func() {
		if err != nil {
			data.Errors = append(data.Errors, err)
		}
	}
	data.Status, err = src.Status(ctx)
	note()
	data.Networks, err = src.Networks(ctx)
	note()
	data.Endpoints, err = src.Endpoints(ctx)
	note()
	data.Nodes, err = src.Nodes(ctx)
	note()
	t, err := template.New("page").Parse(pageHTML)
	var out bytes.Buffer
	if err == nil {
		err = t.Execute(&out, data)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(out.Bytes())
}

const pageHTML = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>carrick on {{.Status.Node}}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="refresh" content="10">
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b2733;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #dde3e8}
code{font:13px ui-monospace,monospace}.bad{color:#a40000}.ok{color:#0a6b2d}
@media(prefers-color-scheme:dark){body{background:#12181f;color:#dfe6ec}th,td{border-color:#2c3843}.bad{color:#ff8b8b}.ok{color:#7ddc9a}}
</style></head><body>
<h1>carrick on {{.Status.Node}}</h1>
<p>VTEP <code>{{.Status.VTEP}}</code> on {{.Status.Device}}, store <code>{{.Status.Store.URL}}</code>
{{if .Status.Store.OK}}<span class="ok">answers</span>{{else}}<span class="bad">does not answer: {{.Status.Store.Error}}</span>{{end}},
version {{.Status.Version}}</p>
{{range .Status.Problems}}<p class="bad">{{.}}</p>{{else}}<p class="ok">Nothing needs attention.</p>{{end}}
{{range .Errors}}<p class="bad">{{.}}</p>{{end}}
<h2>Networks</h2><table><tr><th>name</th><th>subnet</th><th>VNI</th><th>tenant</th><th>mode</th><th>id</th></tr>
{{range .Networks}}<tr><td>{{.Name}}</td><td><code>{{range .Pools}}{{.Prefix}} {{else}}{{.Subnet}}{{end}}</code></td><td>{{.VNI}}</td><td>{{.Tenant}}</td><td>{{.Mode}}</td><td><code>{{.ID}}</code></td></tr>{{end}}</table>
<h2>Hosts</h2><table><tr><th>name</th><th>VTEP</th><th>state</th><th>version</th></tr>
{{range .Nodes}}<tr><td>{{.Name}}{{if .Self}} (this one){{end}}</td><td><code>{{.VTEP}}</code></td><td><span class="{{if eq .State "alive"}}ok{{else}}bad{{end}}">{{.State}}{{if .Awaited}}, waited for{{end}}</span></td><td>{{.Version}}</td></tr>{{end}}</table>
<h2>Endpoints</h2><table><tr><th>network</th><th>address</th><th>MAC</th><th>host</th><th>container</th></tr>
{{range .Endpoints}}<tr><td>{{.NetName}}</td><td><code>{{range .Addrs}}{{.}} {{end}}</code></td><td><code>{{if .MAC.IsZero}}-{{else}}{{.MAC}}{{end}}</code></td><td>{{.Host}}</td><td>{{.Container}}{{with .Error}} <span class="bad">{{.}}</span>{{end}}</td></tr>{{end}}</table>
</body></html>
`
