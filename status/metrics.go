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
}

// Gauges are values read when somebody asks.
type Gauges struct {
	StoreUp     func() float64 // 1 or 0
	StoreAge    func() float64 // seconds since the store's last answer
	Networks    func() float64 // with a Docker network on this host
	Endpoints   func() float64 // of this host
	Unpublished func() float64 // networks with facts the store has not heard
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
	}
	m.Registry.MustRegister(m.calls, m.passes, m.changes, m.drift,
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

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
