package status

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics are all the agent's metrics, declared in one place.
type Metrics struct {
	Registry *prometheus.Registry

	calls   *prometheus.HistogramVec
	passes  *prometheus.CounterVec
	changes *prometheus.CounterVec
	drift   *prometheus.CounterVec
	audits  *prometheus.CounterVec
	audit   prometheus.Gauge
}

// Gauges are values read when somebody asks.
type Gauges struct {
	StoreUp     func() float64 // 1 or 0
	StoreAge    func() float64 // seconds since the store's last answer
	Networks    func() float64 // with a Docker network on this host
	Endpoints   func() float64 // of this host
	Unpublished func() float64 // networks with facts the store has not heard
	// UnpublishedAge is how long the oldest of these has waited, in seconds.
	UnpublishedAge func() float64
	Recovery       func() float64 // 1 while the store is recovered, else 0
	Fenced         func() float64 // 1 while this host is fenced, else 0
	Cut            func() float64 // endpoints whose ports are down because of a fence
	Conflicts      func() float64 // things that two hosts hold
	// ReadingAge is how long ago the network was read back in full that was so
	// longest ago, in seconds; 0 without networks.
	ReadingAge func() float64
	// Pools are the pools of networks whose endpoints this host knows whole.
	Pools func() []PoolRatio
}

// PoolRatio is how full a pool is.
type PoolRatio struct {
	Network string // its id
	Name    string
	Pool    string
	Ratio   float64 // 0 to 1, of the addresses that endpoints can have
}

// poolCollector reads the pools when somebody asks: networks come and go.
type poolCollector struct {
	desc *prometheus.Desc
	read func() []PoolRatio
}

func (c poolCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	for _, p := range c.read() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, p.Ratio, p.Network, p.Name, p.Pool)
	}
}

// NewMetrics makes the metrics and their registry.
func NewMetrics(version string, g Gauges) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "carrick_plugin_call_seconds", Help: "Time to answer a call of the engine.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"method", "result"}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "carrick_passes_total", Help: "Passes over a network's kernel state.",
		}, []string{"result"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "carrick_kernel_changes_total", Help: "Kernel objects made, altered or removed.",
		}, []string{"kind"}),
		drift: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "carrick_drift_total", Help: "Kernel objects repaired that somebody else had changed.",
		}, []string{"kind"}),
		audits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "carrick_audits_total", Help: "Times that a network's kernel state was read back in full.",
		}, []string{"result"}),
		audit: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "carrick_audit_seconds", Help: "Time that the last of these took, with repairs.",
		}),
	}
	for _, result := range []string{"clean", "drift", "error"} {
		m.audits.WithLabelValues(result)
	}
	m.Registry.MustRegister(m.calls, m.passes, m.changes, m.drift, m.audits, m.audit,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, labels prometheus.Labels, fn func() float64) {
		m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, fn))
	}
	gauge("carrick_info", "Always 1; the version is a label.", prometheus.Labels{"version": version}, func() float64 { return 1 })
	gauge("carrick_store_up", "Whether the store answered last time.", nil, g.StoreUp)
	gauge("carrick_store_age_seconds", "Time since the store's last answer.", nil, g.StoreAge)
	gauge("carrick_networks", "Cluster networks that have a Docker network on this host.", nil, g.Networks)
	gauge("carrick_endpoints", "Endpoints of this host.", nil, g.Endpoints)
	gauge("carrick_unpublished_networks", "Networks with local facts that the store has not heard.", nil, g.Unpublished)
	gauge("carrick_unpublished_age_seconds", "How long the oldest of these facts has waited.", nil, g.UnpublishedAge)
	gauge("carrick_recovery", "Whether the store lost its past and is being written again.", nil, g.Recovery)
	gauge("carrick_fenced", "Whether this host was removed and has not regained its addresses.", nil, g.Fenced)
	gauge("carrick_cut_endpoints", "Endpoints that are cut off because their addresses may be another host's.", nil, g.Cut)
	gauge("carrick_conflicts", "Blocks, addresses and networks that two hosts hold.", nil, g.Conflicts)
	gauge("carrick_reading_age_seconds", "How long ago the network was read back in full that was so longest ago.", nil, g.ReadingAge)
	m.Registry.MustRegister(poolCollector{
		desc: prometheus.NewDesc("carrick_pool_used_ratio", "Addresses given out, of those a pool has for endpoints, in networks with a container on this host.", []string{"network", "name", "pool"}, nil),
		read: g.Pools,
	})
	return m
}

// Call records one call of the engine.
func (m *Metrics) Call(method string, d time.Duration, err error) {
	m.calls.WithLabelValues(method, result(err)).Observe(d.Seconds())
}

// Pass records one pass: what it changed, and how much of that was drift, by
// kind of object.
func (m *Metrics) Pass(changes, drift map[string]int, err error) {
	m.passes.WithLabelValues(result(err)).Inc()
	for kind, n := range changes {
		m.changes.WithLabelValues(kind).Add(float64(n))
	}
	for kind, n := range drift {
		m.drift.WithLabelValues(kind).Add(float64(n))
	}
}

// Audited records one whole reading: how long it took, and whether it found
// drift.
func (m *Metrics) Audited(took time.Duration, drift bool, err error) {
	m.audit.Set(took.Seconds())
	switch {
	case err != nil:
		m.audits.WithLabelValues("error").Inc()
	case drift:
		m.audits.WithLabelValues("drift").Inc()
	default:
		m.audits.WithLabelValues("clean").Inc()
	}
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
