package gateway

import (
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the gateway counts. Every revision's own counters are looked up once, not for each request;
// those that can be read from an activator are, when they are asked for.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	own      *prometheus.CounterVec
	stages   *prometheus.HistogramVec
	inFlight *prometheus.Desc
	queue    *prometheus.Desc
	dropped  *prometheus.Desc
	open     *prometheus.Desc
	refused  *prometheus.Desc
	log      *accessLog
	clients  *admission

	mu         sync.Mutex
	activators map[*Activator]struct{} // guarded by mu
	series     map[series]int          // attached activators of a revision; guarded by mu
}

// series names what is counted together. A revision that was deleted and made again under its name while the old
// one's requests end has two activators, and one series.
type series struct{ namespace, service, revision string }

func seriesOf(a *Activator) series {
	return series{a.revision.Namespace, a.revision.Service, a.revision.Name}
}

func (s series) labels() prometheus.Labels {
	return prometheus.Labels{"namespace": s.namespace, "service": s.service, "revision": s.revision}
}

// revisionMetrics counts the requests of one activator.
type revisionMetrics struct {
	metrics   *metrics
	activator *Activator
	counters  atomic.Pointer[counters] // nil until its first request; replaced, never changed
}

// counters are those that a revision's requests have needed so far: most of many services have no requests for long, and
// a histogram is more memory than all else that the gateway keeps of them.
type counters struct {
	duration prometheus.Observer
	codes    []codeCounter
}

type codeCounter struct {
	code    int
	counter prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer, log *accessLog, clients *admission) *metrics {
	labels := []string{"namespace", "service", "revision"}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_requests_total",
			Help: "Requests answered, by HTTP status; 499 is a client that went away before its response began.",
		}, append(labels, "code")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_request_duration_seconds",
			Help:    "Time from a request's arrival to the end of its response, the wait for an instance included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, labels),
		own: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_requests_unrouted_total",
			Help: "Requests that the gateway answered itself, without a service, by HTTP status: hosts that no service has, " +
				"malformed and too large requests, redirects to https.",
		}, []string{"code"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_request_wait_seconds",
			Help: "Where the time of requests that waited for an instance went, from arrival to the response's first byte: " +
				"queue for a free slot, or wake, the steps of the instance's start or thaw, claim; then connect and answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 22),
		}, []string{"stage"}),
		inFlight: prometheus.NewDesc("berth_requests_in_flight", "Requests on instances now.", labels, nil),
		queue:    prometheus.NewDesc("berth_requests_waiting", "Requests that wait for an instance now.", labels, nil),
		dropped: prometheus.NewDesc("berth_access_log_dropped_total",
			"Access log lines that were dropped because their reader was too slow.", nil, nil),
		open: prometheus.NewDesc("berth_client_connections", "Connections of clients to the gateway now.", nil, nil),
		refused: prometheus.NewDesc("berth_client_connections_refused_total",
			"Connections that were not taken because there were too many, in all or of one client.", []string{"of"}, nil),
		log:        log,
		clients:    clients,
		activators: make(map[*Activator]struct{}),
		series:     make(map[series]int),
	}
	registerer.MustRegister(m.requests, m.duration, m.own, m.stages, m)
	return m
}

// attach gives an activator its counters, once.
func (m *metrics) attach(a *Activator) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.activators[a]; ok {
		return
	}
	m.activators[a] = struct{}{}
	m.series[seriesOf(a)]++
	a.metrics.Store(&revisionMetrics{metrics: m, activator: a})
}

// detach takes an activator's counters away. The series of its revision end with the last activator.
func (m *metrics) detach(a *Activator) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.activators[a]; !ok {
		return
	}
	delete(m.activators, a)
	a.metrics.Store(nil)
	of := seriesOf(a)
	if m.series[of]--; m.series[of] > 0 {
		return
	}
	delete(m.series, of)
	m.requests.DeletePartialMatch(of.labels())
	m.duration.Delete(of.labels())
}

// unrouted counts a request that was answered without a service. m may be nil: then nothing is counted.
func (m *metrics) unrouted(code int) {
	if m != nil {
		m.own.WithLabelValues(strconv.Itoa(code)).Inc()
	}
}

// waited counts the stages of a request that waited. m and t may be nil: then nothing is counted.
func (m *metrics) waited(t *timing) {
	if m == nil || t == nil {
		return
	}
	for _, stage := range t.stages {
		m.stages.WithLabelValues(stage.Name).Observe(stage.Took.Seconds())
	}
}

// observe counts one request.
func (r *revisionMetrics) observe(code int, took time.Duration) {
	c := r.counters.Load()
	counter := c.of(code)
	if counter == nil {
		if c = r.add(code); c == nil {
			return
		}
		counter = c.of(code)
	}
	c.duration.Observe(took.Seconds())
	counter.Inc()
}

// of returns the counter of a status, nil before its first request.
func (c *counters) of(code int) prometheus.Counter {
	if c == nil {
		return nil
	}
	for i := range c.codes {
		if c.codes[i].code == code {
			return c.codes[i].counter
		}
	}
	return nil
}

// add makes the counter of a status. It returns nil when the activator has been detached: what its last requests would
// add to has ended.
func (r *revisionMetrics) add(code int) *counters {
	m := r.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, attached := m.activators[r.activator]; !attached {
		return nil
	}
	seen := r.counters.Load()
	if seen.of(code) != nil { // another request was faster
		return seen
	}
	of := seriesOf(r.activator)
	next := &counters{}
	if seen == nil {
		next.duration = m.duration.WithLabelValues(of.namespace, of.service, of.revision)
	} else {
		next.duration, next.codes = seen.duration, slices.Clone(seen.codes)
	}
	next.codes = append(next.codes, codeCounter{code, m.requests.WithLabelValues(of.namespace, of.service, of.revision, strconv.Itoa(code))})
	r.counters.Store(next)
	return next
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.inFlight
	descs <- m.queue
	descs <- m.dropped
	descs <- m.open
	descs <- m.refused
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	if m.log != nil {
		out <- prometheus.MustNewConstMetric(m.dropped, prometheus.CounterValue, float64(m.log.dropped.Load()))
	}
	out <- prometheus.MustNewConstMetric(m.open, prometheus.GaugeValue, float64(m.clients.count()))
	for of, n := range map[string]uint64{"all": m.clients.refusedAll.Load(), "client": m.clients.refusedClient.Load()} {
		out <- prometheus.MustNewConstMetric(m.refused, prometheus.CounterValue, float64(n), of)
	}
	type present struct{ inFlight, waiting int }
	counts := make(map[series]present)
	m.mu.Lock()
	for a := range m.activators {
		load, of := a.Load(), seriesOf(a)
		sum := counts[of]
		counts[of] = present{sum.inFlight + load.InFlight, sum.waiting + load.Waiting}
	}
	m.mu.Unlock()
	for of, sum := range counts {
		labels := []string{of.namespace, of.service, of.revision}
		out <- prometheus.MustNewConstMetric(m.inFlight, prometheus.GaugeValue, float64(sum.inFlight), labels...)
		out <- prometheus.MustNewConstMetric(m.queue, prometheus.GaugeValue, float64(sum.waiting), labels...)
	}
}
