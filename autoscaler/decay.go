package autoscaler

import (
	"math"
	"time"
)

// Knative's weights for the aggregation algorithm weighted-exponential: those of the seconds of a window add up to
// decayPrecision at least, and each is at least decayLeast of what is left by the newer ones.
const (
	decayPrecision = 0.9999
	decayLeast     = 0.2
)

// decayed is the average of the metric over the span until load in which what is newer weighs more, by Knative's
// weights: a second ago weighs four fifths of now, or less in a short window. Time before the first reading is without load.
func (w *window) decayed(metric string, load Load, span time.Duration) float64 {
	seconds := math.Ceil(span.Seconds())
	keep := 1 - max(1-math.Pow(1-decayPrecision, 1/seconds), decayLeast) // of the weight, from second to second
	now := w.reading(load)
	average, left, newer := 0.0, 1.0, now
	for i := len(w.readings) - 1; i >= 0 && now.at-newer.at < span; i-- {
		older := *w.at(i)
		if older.at >= newer.at {
			continue // the load itself
		}
		weight := math.Pow(keep, min(now.at-older.at, span).Seconds())
		average += (left - weight) * meanBetween(metric, older, newer)
		left, newer = weight, older
	}
	return average
}

// meanBetween is the metric's mean from one reading to a later one.
func meanBetween(metric string, from, to reading) float64 {
	over := to.at - from.at
	if metric == metricRPS {
		return float64(to.requests-from.requests) / over.Seconds()
	}
	return float64(to.busy-from.busy) / float64(over)
}
