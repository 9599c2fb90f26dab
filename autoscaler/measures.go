package autoscaler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
)

// measures are the autoscaler's metrics. It is a collector for those that are read off the published state, so
// that a revision without instances has no series.
type measures struct {
	autoscaler *Autoscaler

	instances  *prometheus.Desc
	memory     *prometheus.Desc
	waiting    *prometheus.Desc
	unready    *prometheus.Desc
	restarts   *prometheus.Desc
	coldStarts *prometheus.CounterVec
	stages     *prometheus.HistogramVec
	failed     *prometheus.CounterVec
}

func newMeasures(a *Autoscaler, registerer prometheus.Registerer) *measures {
	m := &measures{
		autoscaler: a,
		instances: prometheus.NewDesc("berth_instances", "Instances by state.",
			[]string{"namespace", "service", "revision", "state"}, nil),
		memory: prometheus.NewDesc("berth_memory_bytes",
			"Memory for instances: kind used is what the limits of those that run add up to, with what prepared ones hold; kind limit is --instance-memory, where it bounds.",
			[]string{"kind"}, nil),
		waiting: prometheus.NewDesc("berth_starts_waiting", "Revisions with work for another instance for which there is no memory.", nil, nil),
		unready: prometheus.NewDesc("berth_instances_unready", "Instances in state ready that take no requests for now.",
			[]string{"namespace", "service", "revision"}, nil),
		restarts: prometheus.NewDesc("berth_container_restarts_total", "Containers that were started again in their instances.",
			[]string{"namespace", "service", "revision"}, nil),
		coldStarts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_cold_starts_total",
			Help: "Starts from zero that requests waited for, by whether the instance had been prepared.",
		}, []string{"prepared"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_instance_start_seconds",
			Help:    "Time that the stages of instance starts took; stage wait is from the first waiting request to ready.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 22),
		}, []string{"stage"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_instance_starts_failed_total",
			Help: "Instances that did not become ready, by reason.",
		}, []string{"reason"}),
	}
	if registerer != nil {
		registerer.MustRegister(m, m.coldStarts, m.stages, m.failed)
	}
	return m
}

// started counts an instance that has become ready.
func (m *measures) started(f *fleet, started *member) {
	if started.cold && !f.wokenAt.IsZero() {
		prepared := "no"
		if started.spare {
			prepared = "yes"
		}
		m.coldStarts.WithLabelValues(prepared).Inc()
	}
	for _, stage := range started.instance.Stages() {
		m.stages.WithLabelValues(stage.Name).Observe(stage.Took.Seconds())
	}
	if !f.wokenAt.IsZero() {
		m.stages.WithLabelValues("wait").Observe(time.Since(f.wokenAt).Seconds())
	}
}

// Describe implements [prometheus.Collector].
func (m *measures) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.instances
	descs <- m.memory
	descs <- m.waiting
	descs <- m.unready
	descs <- m.restarts
}

// Collect implements [prometheus.Collector].
func (m *measures) Collect(metrics chan<- prometheus.Metric) {
	type revision struct{ namespace, service, revision string }
	type series struct {
		revision
		state engine.State
	}
	memory := m.autoscaler.Memory()
	metrics <- prometheus.MustNewConstMetric(m.memory, prometheus.GaugeValue, float64(memory.Used), "used")
	if memory.Limit > 0 {
		metrics <- prometheus.MustNewConstMetric(m.memory, prometheus.GaugeValue, float64(memory.Limit), "limit")
	}
	metrics <- prometheus.MustNewConstMetric(m.waiting, prometheus.GaugeValue, float64(memory.Waiting))
	// A revision that was removed and declared again while it drains is there twice.
	counts := make(map[series]int)
	unready, restarted := make(map[revision]int), make(map[revision]int)
	m.autoscaler.eachPublished(func(_ *fleet, p *published) {
		for n, i := range p.instances {
			of := revision{i.Namespace, i.Service, i.Revision}
			state, _ := p.now(n)
			counts[series{of, state}]++
			if n == 0 {
				restarted[of] += p.restarts
			}
			restarted[of] += restarts(p.live[n])
			unready[of] += 0
			if i.Unready {
				unready[of]++
			}
		}
	})
	for s, n := range counts {
		metrics <- prometheus.MustNewConstMetric(m.instances, prometheus.GaugeValue, float64(n),
			s.namespace, s.service, s.revision.revision, string(s.state))
	}
	for r, n := range unready {
		metrics <- prometheus.MustNewConstMetric(m.unready, prometheus.GaugeValue, float64(n), r.namespace, r.service, r.revision)
	}
	for r, n := range restarted {
		metrics <- prometheus.MustNewConstMetric(m.restarts, prometheus.CounterValue, float64(n), r.namespace, r.service, r.revision)
	}
}

// restarts is how often an instance's containers were started again.
func restarts(instance engine.Instance) int {
	n := 0
	for _, c := range instance.Containers() {
		n += c.Restarts
	}
	return n
}
