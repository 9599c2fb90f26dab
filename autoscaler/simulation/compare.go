package simulation

import (
	"slices"
	"time"

	"github.com/berth-run/berth/autoscaler"
)

// Score is what a run comes to.
type Score struct {
	P50, P99, Mean time.Duration // of the waits
	Cost           time.Duration // instance time
	Starts         int
	Reversals      int
	Refused        int
	Most           int
}

// Scored sums a result up.
func Scored(r Result) Score {
	sorted := slices.Clone(r.Waits)
	slices.Sort(sorted)
	var sum float64
	for _, w := range sorted {
		sum += float64(w)
	}
	s := Score{Cost: r.InstanceTime, Starts: r.Starts, Reversals: r.Reversals, Refused: r.Refused, Most: r.Most}
	if n := len(sorted); n > 0 {
		s.P50, s.P99 = sorted[rank(n, 0.5)], sorted[rank(n, 0.99)]
		s.Mean = time.Duration(sum / float64(n))
	}
	return s
}

// rank is the index of a quantile among n sorted values: the nearest rank.
func rank(n int, q float64) int { return min(n-1, int(q*float64(n))) }

// Thrift returns the platform's default settings with all times for which instances are kept, multiplied by a factor.
func Thrift(factor float64) autoscaler.Settings {
	s := autoscaler.DefaultSettings()
	s.StableWindow = time.Duration(factor * float64(s.StableWindow))
	s.ScaleToZeroGrace = time.Duration(factor * float64(s.ScaleToZeroGrace))
	return s
}
