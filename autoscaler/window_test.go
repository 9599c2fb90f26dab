package autoscaler

import (
	"math"
	"testing"
	"time"
)

// counters plays a gateway's counters: busy grows by concurrency, requests by rate.
type counters struct{ load Load }

func (c *counters) pass(d time.Duration, concurrency, rate int) Load {
	c.load.At = c.load.At.Add(d)
	c.load.Busy += time.Duration(concurrency) * d
	c.load.Requests += uint64(float64(rate) * d.Seconds())
	return c.load
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestWindow_MeansAreExactBetweenReadings(t *testing.T) {
	c := counters{Load{At: time.Unix(1000, 0), Busy: time.Hour, Requests: 7}}
	w := newWindow(time.Minute, 2*time.Second, c.load)
	for range 30 {
		w.record(c.pass(2*time.Second, 3, 10))
	}
	for range 3 {
		w.record(c.pass(time.Second, 0, 0))
		w.record(c.pass(time.Second, 50, 100))
	}
	// The last minute: 54 s at 3, 3 s at 0, 3 s at 50. The last six seconds: half of 50.
	for _, test := range []struct {
		metric string
		span   time.Duration
		want   float64
	}{
		{"concurrency", time.Minute, (54*3 + 3*50) / 60.0},
		{"concurrency", 6 * time.Second, 25},
		{"rps", time.Minute, (54*10 + 3*100) / 60.0},
		{"rps", 6 * time.Second, 50},
	} {
		if got := w.mean(test.metric, c.load, test.span, 6*time.Second); !near(got, test.want) {
			t.Errorf("mean %s over %s = %v, want %v", test.metric, test.span, got, test.want)
		}
	}
}

func TestWindow_TimeBeforeTheFirstReadingWasIdle(t *testing.T) {
	c := counters{Load{At: time.Unix(1000, 0)}}
	w := newWindow(time.Minute, 2*time.Second, c.load)
	if got := w.mean("concurrency", c.load, time.Minute, 6*time.Second); got != 0 {
		t.Errorf("mean over nothing = %v, want 0", got)
	}
	load := c.pass(60*time.Millisecond, 1, 0)
	if got := w.mean("concurrency", load, time.Minute, 6*time.Second); !near(got, 0.01) {
		t.Errorf("mean after 60 ms with one request = %v, want 0.01", got)
	}
	load = c.pass(12*time.Second-60*time.Millisecond, 1, 0)
	if got := w.mean("concurrency", load, time.Minute, 6*time.Second); !near(got, 1) {
		t.Errorf("mean after 12 s with one request = %v, want 1", got)
	}
}

func TestWindow_ReachesBackItsSpanWithBoundedMemory(t *testing.T) {
	for _, span := range []time.Duration{6 * time.Second, time.Minute, time.Hour} {
		c := counters{Load{At: time.Unix(1000, 0)}}
		w := newWindow(span, 2*time.Second, c.load)
		size := cap(w.readings)
		if size > windowReadings*4/3+3 {
			t.Errorf("window of %s keeps %d readings", span, size)
		}
		// Ticks come early and late, and events between them.
		for i := range 5000 {
			w.record(c.pass(time.Duration(1700+i%7*100)*time.Millisecond, 2, 0))
		}
		if cap(w.readings) != size {
			t.Errorf("window of %s grew from %d to %d readings", span, size, cap(w.readings))
		}
		if reach := w.reading(c.load).at - w.at(0).at; reach < span {
			t.Errorf("window of %s reaches back only %s", span, reach)
		}
		c.load = c.pass(span, 0, 0)
		w.record(c.load)
		if got := w.mean("concurrency", c.load, span, time.Second); got != 0 {
			t.Errorf("mean after %s without load = %v, want 0", span, got)
		}
	}
}
