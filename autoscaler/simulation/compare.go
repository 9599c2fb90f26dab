package simulation

import (
	"fmt"
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

// Thrift is the one knob by which Berth is made to use as many instance-seconds as another rule: level 0 is the
// platform's defaults, and each level uses less than the one before. First requests are left waiting for longer before
// they are worth an instance, then instances are kept for a shorter time, then they are filled more.
type Thrift int

// thriftMost is the last level.
const thriftMost Thrift = 13

// Settings are the level's.
func (t Thrift) Settings() autoscaler.Settings {
	s := autoscaler.DefaultSettings()
	patience := []time.Duration{10, 30, 100, 300, 1000, 3000} // ms
	keep := []float64{0.85, 0.7, 0.5, 0.35, 0.2}
	fill := []float64{0.75, 0.8, 0.9}
	n := int(t)
	s.Patience = patience[min(n, len(patience)-1)] * time.Millisecond
	if n -= len(patience); n >= 0 {
		part := keep[min(n, len(keep)-1)]
		s.StableWindow = time.Duration(part * float64(s.StableWindow))
		s.ScaleToZeroGrace = time.Duration(part * float64(s.ScaleToZeroGrace))
	}
	if n -= len(keep); n >= 0 {
		s.TargetUtilization = fill[n]
	}
	return s
}

// CloudRun returns Cloud Run's rules as settings of the same decision: 60 % of the concurrency over a minute, at most
// 100 instances, idle ones kept for 15 minutes.
func CloudRun() autoscaler.Settings {
	s := autoscaler.DefaultSettings()
	s.TargetUtilization = 0.6
	s.ScaleToZeroRetention = 15 * time.Minute
	return s
}

// CloudRunRules are Cloud Run's. A request waits for 3.5 starts or 10 seconds, whichever is longer, and is refused then.
func CloudRunRules(s Scenario, settings autoscaler.Settings) (Rule, error) {
	if s.Revision.Max == 0 {
		s.Revision.Max = 100
	}
	scale, err := s.scale(settings)
	return NewBerth(scale, settings.Tick, max(7*s.Revision.Start/2, 10*time.Second)), err
}

// Comparison is how rules do in one scenario.
type Comparison struct {
	Scenario                         Scenario
	Requests                         int
	Berth, Knative, CloudRun, Oracle Score
	Equal                            Score // Berth's where it uses as much instance time as Knative; see AtCost
	Level                            Thrift
	Verdict                          Verdict
}

// Verdict is who waits less where both use the same instance time.
type Verdict string

// Verdicts about Berth beside Knative.
const (
	Won  Verdict = "won"
	Even Verdict = "even" // the 99th percentiles are equal, and the mean wait is not longer
	Lost Verdict = "lost"
)

// Compare plays a scenario under every rule.
func Compare(s Scenario) (Comparison, error) {
	requests := s.Requests()
	c := Comparison{Scenario: s, Requests: len(requests), Oracle: Scored(Oracle(s.Revision, requests))}
	play := func(rules Rules, settings autoscaler.Settings) (Score, error) {
		rule, err := rules(s, settings)
		if err != nil {
			return Score{}, err
		}
		return Scored(Run(s.Revision, requests, rule)), nil
	}
	var err error
	if c.Knative, err = play(KnativeRules, autoscaler.DefaultSettings()); err != nil {
		return c, err
	}
	if c.CloudRun, err = play(CloudRunRules, CloudRun()); err != nil {
		return c, err
	}
	c.Equal, c.Level, err = AtCost(c.Knative.Cost, func(t Thrift) (Score, error) {
		score, err := play(BerthRules, t.Settings())
		if t == 0 {
			c.Berth = score
		}
		return score, err
	})
	if err != nil {
		return c, err
	}
	c.Verdict = judge(c.Equal, c.Knative)
	return c, nil
}

// AtCost returns what Berth comes to with as much instance time as given: at its defaults where they use no more, or
// else between the first level of thrift that uses no more and the one before it, by linear interpolation.
func AtCost(cost time.Duration, play func(Thrift) (Score, error)) (Score, Thrift, error) {
	var before Score
	for t := range thriftMost + 1 {
		score, err := play(t)
		if err != nil {
			return Score{}, 0, err
		}
		if float64(score.Cost) <= float64(cost)*(1+equalCost) {
			if t == 0 || score.Cost > cost {
				return score, t, nil
			}
			return between(score, before, cost), t, nil
		}
		before = score
	}
	return before, thriftMost, nil
}

// between interpolates the waits of two scores at a cost between theirs.
func between(less, more Score, cost time.Duration) Score {
	part := float64(cost-less.Cost) / float64(more.Cost-less.Cost)
	mix := func(a, b time.Duration) time.Duration { return a + time.Duration(part*float64(b-a)) }
	score := less
	score.P50, score.P99, score.Mean, score.Cost = mix(less.P50, more.P50), mix(less.P99, more.P99), mix(less.Mean, more.Mean), cost
	return score
}

// What counts as equal: chance moves a figure by more.
const (
	equalCost = 0.005            // of the instance time
	equalPart = 0.02             // of a wait
	equalWait = time.Millisecond // a 99th percentile below it is nobody's wait
)

// judge compares Berth's score with Knative's at the same cost.
func judge(berth, knative Score) Verdict {
	near := func(a, b time.Duration) bool { return float64(a) <= float64(b)*(1+equalPart) }
	switch {
	case float64(berth.Cost) > float64(knative.Cost)*(1+equalCost):
		return Lost // it cannot do with as little
	case !near(berth.P99, knative.P99) && berth.P99-knative.P99 > equalWait:
		return Lost
	case !near(knative.P99, berth.P99) && knative.P99-berth.P99 > equalWait:
		return Won
	case near(berth.Mean, knative.Mean) || berth.Mean-knative.Mean <= equalWait:
		return Even
	default:
		return Lost
	}
}

// String is the level in words.
func (t Thrift) String() string {
	s, d := t.Settings(), autoscaler.DefaultSettings()
	text := fmt.Sprintf("patience %s", s.Patience)
	if s.StableWindow != d.StableWindow {
		text += fmt.Sprintf(", window %s", s.StableWindow)
	}
	if s.TargetUtilization != d.TargetUtilization {
		text += fmt.Sprintf(", utilization %g", s.TargetUtilization)
	}
	return text
}
