package simulation

import (
	"math"
	"time"

	"github.com/berth-run/berth/autoscaler"
)

// What Knative's configuration has no setting for, or no setting that this simulation varies.
const (
	knativeReport = time.Second     // the activator reports, and instances are scraped, so often; also the size of a bucket
	knativeTick   = 2 * time.Second // between two decisions
	knativeBurst  = 211             // target burst capacity
)

// Knative scales by Knative's rules (serving 0.50, with its defaults), written anew from their documentation and
// behaviour. Like there, load is reported once a second, as the average of that second, into buckets; a decision is made
// every two seconds from the averages of the buckets in the stable and in the panic window. The first request for a
// revision at zero is reported, and decided on, at once.
//
// Where Knative's behaviour depends on the cluster around it, the simulation is kind: reports take no time, none is lost,
// every instance is scraped, and an instance starts as fast as Berth's.
type Knative struct {
	scale    autoscaler.Scale
	patience time.Duration

	stable, panic buckets
	reported      time.Duration // when the last report was made
	busy          time.Duration // until then
	requests      uint64
	known         bool    // the activator knows of requests: it reports, with ready instances or without
	early         float64 // reported ahead of its second
	ticked        time.Duration

	wanted    int // what load and bounds want
	desired   int // that, with the last instance kept for its time
	panicAt   time.Duration
	panicking bool
	panicMost int
	delayed   []delayedScale
	activeAt  time.Duration // when instances were first ready; Never when there are none
	proxyAt   time.Duration // since when the activator is in the path; Never when it is not
}

type delayedScale struct {
	at time.Duration
	n  int
}

// NewKnative returns Knative's rule for a revision with these settings. A request is refused when it has waited for
// patience.
func NewKnative(scale autoscaler.Scale, patience time.Duration) *Knative {
	return &Knative{
		scale: scale, patience: patience, activeAt: Never,
		stable: newBuckets(scale.StableWindow, knativeReport), panic: newBuckets(scale.PanicWindow, knativeReport),
	}
}

// Manner implements [Rule]. While the activator is out of the path requests go to instances as they arrive.
func (k *Knative) Manner() Manner {
	return Manner{Newest: true, Patience: k.patience, Direct: func() bool { return k.proxyAt == Never }}
}

// Look implements [Rule].
func (k *Knative) Look(seen Seen) (desired int, again time.Duration) {
	if seen.Waits && !k.known {
		// The activator tells of the first request at once. A revision at zero is then decided on at once.
		k.known, k.early = true, 1
		k.record(seen.Now, 1)
		if k.desired == 0 {
			k.decide(seen)
		}
		k.catchUp(seen)
	}
	for seen.Now >= k.reported+knativeReport {
		k.report(seen)
	}
	if seen.Now >= k.ticked+knativeTick {
		k.ticked = seen.Now - seen.Now%knativeTick
		k.decide(seen)
	}
	k.excessBurst(seen)
	if !k.known && seen.Ready+seen.Starting == 0 && k.desired == 0 {
		return 0, Never // nothing reports
	}
	return k.desired, k.reported + knativeReport
}

// catchUp skips the reports of a time in which nothing happened.
func (k *Knative) catchUp(seen Seen) {
	if seen.Now >= k.reported+2*knativeReport {
		k.reported = seen.Now - seen.Now%knativeReport
		k.busy, k.requests = seen.Load.Busy, seen.Load.Requests-1
		k.ticked = max(k.ticked, seen.Now-seen.Now%knativeTick)
	}
}

// report records the average of the second that is over.
func (k *Knative) report(seen Seen) {
	k.reported += knativeReport
	concurrency := float64(seen.Load.Busy-k.busy) / float64(knativeReport)
	rate := float64(seen.Load.Requests-k.requests) / knativeReport.Seconds()
	k.busy, k.requests = seen.Load.Busy, seen.Load.Requests
	// What was reported ahead is taken off, and never more than there is.
	if k.scale.Metric == metricRPS {
		k.record(seen.Now, max(0, rate-k.early))
	} else if k.known || seen.Ready > 0 {
		k.record(seen.Now, max(0, concurrency-k.early))
	}
	k.early = 0
	k.known = concurrency > 0 // it forgets a revision that had no request for a second
}

// metricRPS is the value of the metric annotation for requests in a second.
const metricRPS = "rps"

func (k *Knative) record(now time.Duration, value float64) {
	k.stable.record(now, value)
	k.panic.record(now, value)
}

// decide is the decision of one tick.
func (k *Knative) decide(seen Seen) {
	if k.stable.empty(seen.Now) && k.panic.empty(seen.Now) {
		return // no data: what was decided last stays
	}
	ready := float64(max(1, seen.Ready))
	stable, panicked := k.stable.average(seen.Now), k.panic.average(seen.Now)
	most, least := math.Ceil(k.scale.MaxScaleUpRate*ready), math.Floor(ready/k.scale.MaxScaleDownRate)
	wanted := func(average float64) (raw float64, bounded int) {
		raw = math.Ceil(average / k.scale.Target)
		bounded = int(min(max(raw, least), most))
		if raw > 0 {
			bounded = max(bounded, k.scale.Activation)
		}
		return raw, bounded
	}
	_, byStable := wanted(stable)
	rawPanic, byPanic := wanted(panicked)
	switch over := rawPanic/ready >= k.scale.PanicThreshold; {
	case over:
		k.panicking, k.panicAt = true, seen.Now
	case k.panicking && k.panicAt+k.scale.StableWindow < seen.Now:
		k.panicking, k.panicMost = false, 0
	}
	n := byStable
	if k.panicking {
		k.panicMost = max(k.panicMost, byStable, byPanic)
		n = k.panicMost
	}
	n = k.delay(seen.Now, n)
	n = max(n, k.scale.Min)
	if k.scale.Max > 0 {
		n = min(n, k.scale.Max)
	}
	k.wanted, k.desired = n, k.lastInstance(seen, n)
}

// delay is the greatest number of the time that scaling down is delayed for.
func (k *Knative) delay(now time.Duration, n int) int {
	if k.scale.ScaleDownDelay <= 0 {
		return n
	}
	k.delayed = append(k.delayed, delayedScale{now, n})
	for k.delayed[0].at+k.scale.ScaleDownDelay <= now {
		k.delayed = k.delayed[1:]
	}
	for _, d := range k.delayed {
		n = max(n, d.n)
	}
	return n
}

// lastInstance is the way to zero. A revision must have been active for a stable window; then the activator must have been
// in the path for the grace period, which it has where it always is.
func (k *Knative) lastInstance(seen Seen, n int) int {
	if seen.Ready == 0 {
		k.activeAt = Never
	} else if k.activeAt == Never {
		k.activeAt = seen.Now
	}
	if n > 0 {
		return n
	}
	if seen.Ready == 0 {
		// Instances that are starting are waited for.
		return seen.Starting
	}
	if seen.Now-k.activeAt < k.scale.StableWindow {
		return 1
	}
	if k.proxyAt == Never {
		k.proxyAt = seen.Now
	}
	if seen.Now-k.proxyAt < k.scale.ScaleToZeroGrace {
		return 1
	}
	return 0
}

// excessBurst takes the activator out of the path while instances could take a burst beyond the load, and puts it back.
func (k *Knative) excessBurst(seen Seen) {
	total := k.scale.TotalTarget
	switch excess := math.Floor(float64(seen.Ready)*total - knativeBurst - k.panic.average(seen.Now)); {
	case k.wanted == 0: // on its way to zero
	case excess >= 0:
		k.proxyAt = Never
	case k.proxyAt == Never:
		k.proxyAt = seen.Now
	}
}

// buckets hold what was reported in each second of a window. An average is over the seconds from the first report, or a
// window back, to the last one; a second without a report counts as 0. When nothing was reported for a window it
// begins anew.
type buckets struct {
	size        time.Duration
	values      []float64 // of the seconds modulo their number
	first, last time.Duration
	any         bool
}

func newBuckets(window, size time.Duration) buckets {
	return buckets{size: size, values: make([]float64, int((window+size-1)/size))}
}

func (b *buckets) window() time.Duration { return time.Duration(len(b.values)) * b.size }

func (b *buckets) at(t time.Duration) *float64 {
	return &b.values[int(t/b.size)%len(b.values)]
}

func (b *buckets) record(now time.Duration, value float64) {
	now -= now % b.size
	if !b.any || now-b.last >= b.window() {
		clear(b.values)
		b.first, b.last, b.any = now, now, true
	}
	for b.last < now {
		b.last += b.size
		*b.at(b.last) = 0
	}
	*b.at(now) += value
}

// empty tells whether nothing was recorded for more than a window.
func (b *buckets) empty(now time.Duration) bool {
	return !b.any || now-now%b.size-b.last > b.window()
}

func (b *buckets) average(now time.Duration) float64 {
	now -= now % b.size
	if !b.any || now-b.last >= b.window() {
		return 0
	}
	from := max(b.first, now-b.window()+b.size)
	sum, n := 0.0, 0
	for t := b.last; t >= from; t -= b.size {
		sum += *b.at(t)
		n++
	}
	if n == 0 {
		return 0
	}
	return sum / float64(n)
}
