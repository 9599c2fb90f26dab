package autoscaler

import "time"

// window remembers readings of one revision's load for as long as its stable window, and averages over them.
// A mean is exact between two readings, because they count from the beginning: nothing is sampled.
// Only a revision that is looked at has a window.
type window struct {
	base     time.Time     // what reading.at counts from
	step     time.Duration // least distance of two readings that are kept
	readings []reading     // a ring, in order of time from first
	first    int
}

// reading is a [Load] without what means are not made of.
type reading struct {
	at, busy, waited time.Duration
	requests, ended  uint64
}

// windowReadings bounds a window's memory: an hour's window keeps a reading every 12 s.
const windowReadings = 300

// newWindow returns a window that averages over up to span, with readings about every tick.
func newWindow(span, tick time.Duration, load Load) *window {
	step := max(tick, span/windowReadings)
	// A reading that comes a little early counts, or a late tick before it would lose it.
	step -= step / 4
	w := &window{base: load.At, step: step, readings: make([]reading, 0, int(span/step)+2)}
	w.record(load)
	return w
}

func (w *window) reading(load Load) reading {
	return reading{
		at: load.At.Sub(w.base), busy: load.Busy, waited: load.Waited,
		requests: load.Requests, ended: load.Requests - uint64(load.InFlight+load.Waiting),
	}
}

// at returns the i-th oldest reading.
func (w *window) at(i int) *reading {
	return &w.readings[(w.first+i)%len(w.readings)]
}

// record remembers a reading, unless the newest one is too near.
func (w *window) record(load Load) {
	r := w.reading(load)
	n := len(w.readings)
	switch {
	case n > 0 && r.at-w.at(n-1).at < w.step:
	case n < cap(w.readings):
		w.readings = append(w.readings, r)
	default:
		// The oldest gives way: the others reach back further than the window.
		w.readings[w.first] = r
		w.first = (w.first + 1) % n
	}
}

// mean is the average of the metric from the newest reading that is at least span old until load. When none is
// that old, it is the average since the first reading, but over no less than least: before the first reading
// there was no load, and an average over an instant would say nothing.
func (w *window) mean(metric string, load Load, span, least time.Duration) float64 {
	now := w.reading(load)
	from := *w.at(0)
	for i := len(w.readings) - 1; i > 0; i-- {
		if r := w.at(i); now.at-r.at >= span {
			from = *r
			break
		}
	}
	over := max(now.at-from.at, min(least, span))
	if over <= 0 {
		return 0
	}
	if metric == metricRPS {
		return float64(now.requests-from.requests) / over.Seconds()
	}
	return float64(now.busy-from.busy) / float64(over)
}

// service is how long a request has taken on an instance on average, of those in all of the window until load; 0 when
// none has ended.
func (w *window) service(load Load) time.Duration {
	now, from := w.reading(load), w.at(0)
	if now.ended <= from.ended {
		return 0
	}
	return (now.busy - from.busy - (now.waited - from.waited)) / time.Duration(now.ended-from.ended)
}
