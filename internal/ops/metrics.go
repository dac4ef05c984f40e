package ops

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/reconcile"
)

// Metric describes a metric of the service for docs/metrics.md.
type Metric struct {
	Name, Type, Help string
	Labels           []string
}

// Metrics are the metrics of one service. They are not in a registry of the process, because
// a process can run several services. The methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	defined  []Metric

	build    *prometheus.GaugeVec
	requests *prometheus.CounterVec
	request  *prometheus.HistogramVec

	operations *prometheus.CounterVec
	operation  *prometheus.HistogramVec
	own        *prometheus.HistogramVec
	phase      *prometheus.HistogramVec
	restarts   *prometheus.CounterVec

	calls *prometheus.CounterVec
	call  *prometheus.HistogramVec

	pass    prometheus.Observer
	actions *prometheus.CounterVec

	now gauges // what is collected at each scrape
}

// Upper limits of the buckets, in seconds.
var (
	requestBuckets   = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 180}
	operationBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	phaseBuckets     = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	callBuckets      = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	passBuckets      = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
)

// NewMetrics returns the metrics of a service, with those of Go's runtime and the process.
// What is collected at each scrape is added by Collect.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	m.build = m.constant("orch_build_info", "1, with the version of the service and the commit that it was built from.", "version", "commit")

	m.requests = m.counter("orch_http_requests_total", "Requests, on both listeners, by route and HTTP status. The route is its template in docs/openapi.yaml, or none. Status 499: the caller disconnected before the response; 0: the connection was aborted without a response.", "method", "route", "status")
	m.request = m.histogram("orch_http_request_duration_seconds", "Time from the end of a request's header to the end of its response.", requestBuckets, "method", "route")

	m.operations = m.counter("orch_operations_total", "Operations on engines that ended on this replica, by kind and outcome: ok, or the error code that the caller got.", "kind", "outcome")
	m.operation = m.histogram("orch_operation_duration_seconds", "Time of the operations that succeeded, from the checks before their first step to the end of their audit row.", operationBuckets, "kind")
	m.own = m.histogram("orch_operation_own_duration_seconds", "The service's own share of that time: without the phases in which Nomad, the node or the engine does the work (register, boot, scale-down, drain, purge, volume, thaw, proof).", operationBuckets, "kind")
	m.phase = m.histogram("orch_operation_phase_duration_seconds", "Time of each phase of the operations that succeeded: the steps of the operation (docs/architecture.md), checks (of the stores), probe (of a warm engine), claim (placement and first write of the row), rows (writing the row after each step), audit-begin and audit-end.", phaseBuckets, "kind", "phase")
	m.restarts = m.counter("orch_restarts_total", "Automatic restarts of failed engines that ended on this replica, by outcome: ok or failed.", "outcome")

	m.calls = m.counter("orch_store_calls_total", "Calls of a store by kind (read, write, wait: its response may be delayed on purpose, probe, sql: of the audit log) and result: ok, limited (refused because of a limit, and retried), denied (the token, or a right of it), client_error, server_error, no_response, or not_sent because the store is known not to respond.", "store", "kind", "result")
	m.call = m.histogram("orch_store_call_duration_seconds", "Time until the beginning of a store's response, with waiting for a connection and with retries; without the kind wait.", callBuckets, "store", "kind")

	m.pass = m.histogram("orch_reconcile_pass_duration_seconds", "Time of each full pass of reconcile, which the leader makes.", passBuckets).WithLabelValues()
	m.actions = m.counter("orch_reconcile_actions_total", "Actions that passes of reconcile tried, by action and outcome: ok or failed.", "action", "outcome")
	m.now = m.gauges()
	return m
}

func (m *Metrics) define(name, kind, help string, labels []string) {
	m.defined = append(m.defined, Metric{Name: name, Type: kind, Help: help, Labels: labels})
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	m.define(name, "counter", help, labels)
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) constant(name, help string, labels ...string) *prometheus.GaugeVec {
	m.define(name, "gauge", help, labels)
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	m.define(name, "histogram", help, labels)
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

// Defined returns the metrics of the service itself, in a fixed order.
func (m *Metrics) Defined() []Metric { return m.defined }

// Handler returns the handler of /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}

// Built tells which version of the service this is.
func (m *Metrics) Built(version, commit string) { m.build.WithLabelValues(version, commit).Set(1) }

// Request counts a request. It implements server.Observer.
func (m *Metrics) Request(method, route string, status int, took time.Duration) {
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.request.WithLabelValues(method, route).Observe(took.Seconds())
}

// Operation counts an operation that ended. With Pass and Action it implements
// scheduler.Observer.
func (m *Metrics) Operation(o operation.Outcome) {
	kind, outcome, restart := strings.ReplaceAll(o.Kind, " ", "_"), "ok", "ok"
	if o.Code != "" {
		outcome, restart = string(o.Code), "failed"
	}
	m.operations.WithLabelValues(kind, outcome).Inc()
	if o.Action == audit.ActionAutoRestartStart {
		m.restarts.WithLabelValues(restart).Inc()
	}
	if o.Code != "" {
		return
	}
	own := o.Took
	for _, p := range o.Phases {
		m.phase.WithLabelValues(kind, p.Name).Observe(p.Took.Seconds())
		if operation.Elsewhere(p.Name) {
			own -= p.Took
		}
	}
	m.operation.WithLabelValues(kind).Observe(o.Took.Seconds())
	m.own.WithLabelValues(kind).Observe(max(own, 0).Seconds())
}

// Pass counts a full pass of reconcile.
func (m *Metrics) Pass(took time.Duration) { m.pass.Observe(took.Seconds()) }

// Action counts an action that a pass tried.
func (m *Metrics) Action(act reconcile.Act, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.actions.WithLabelValues(string(act), outcome).Inc()
}

// Call counts a call of a store. It is a link.Observer.
func (m *Metrics) Call(store string, kind link.CallKind, result link.Result, took time.Duration) {
	m.calls.WithLabelValues(store, string(kind), string(result)).Inc()
	if kind != link.CallWait && took > 0 {
		m.call.WithLabelValues(store, string(kind)).Observe(took.Seconds())
	}
}

// callSQL is the kind of the calls of the audit log.
const callSQL link.CallKind = "sql"

// Audit counts a call of the audit log's database.
func (m *Metrics) Audit(took time.Duration, err error) {
	result := link.ResultOK
	switch {
	case errors.Is(err, link.ErrAway):
		result = link.ResultAway
	case errors.Is(err, audit.ErrUnavailable):
		result = link.ResultSilent
	case err != nil:
		result = link.ResultServer
	}
	m.Call("audit", callSQL, result, took)
}
