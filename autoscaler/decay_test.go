package autoscaler

import (
	"math"
	"testing"
	"time"
)

// buckets is Knative's definition over whole seconds, newest first.
func buckets(values []float64) float64 {
	coefficient := max(1-math.Pow(0.0001, 1/float64(len(values))), 0.2)
	average, weight := 0.0, coefficient
	for _, v := range values {
		average += v * weight
		weight *= 1 - coefficient
	}
	return average
}

func TestWindow_DecayedMeansAreKnatives(t *testing.T) {
	for _, span := range []int{6, 60} {
		c := counters{Load{At: time.Unix(1000, 0), Busy: time.Hour}}
		w := newWindow(time.Minute, time.Second, c.load)
		values := make([]float64, span)
		for n := range 90 {
			concurrency := n * n % 17
			w.record(c.pass(time.Second, concurrency, 3*concurrency))
			copy(values[1:], values)
			values[0] = float64(concurrency)
		}
		over := time.Duration(span) * time.Second
		if got, want := w.decayed("concurrency", c.load, over), buckets(values); math.Abs(got-want) > 1e-9 {
			t.Errorf("concurrency over %s: %v, want %v", over, got, want)
		}
		if got, want := w.decayed("rps", c.load, over), 3*buckets(values); math.Abs(got-want) > 1e-9 {
			t.Errorf("requests a second over %s: %v, want %v", over, got, want)
		}
		c.pass(2*over, 0, 0)
		w.record(c.load)
		if got := w.decayed("concurrency", c.load, over); got != 0 {
			t.Errorf("after a window of %s without requests: %v, want 0", over, got)
		}
	}
}
