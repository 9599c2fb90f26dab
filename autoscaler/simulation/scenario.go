package simulation

import (
	"fmt"
	"time"

	"github.com/berth-run/berth/autoscaler"
)

// Scenario is a revision with its traffic.
type Scenario struct {
	Name     string
	Revision Revision
	// Target is the target annotation, for revisions that take any number of requests; 0 is the default.
	Target   int
	Requests func() []Request
}

// Scenarios are the corners of what a revision may meet: every shape of traffic, service times from a millisecond to a
// minute, starts from 5 ms to 20 s, and instances that take one request, some, or any number.
func Scenarios() []Scenario {
	const (
		ms   = time.Millisecond
		sec  = time.Second
		min  = time.Minute
		hour = time.Hour
	)
	one := func(start time.Duration) Revision { return Revision{Start: start, Limit: 1} }
	ten := func(start time.Duration) Revision { return Revision{Start: start, Limit: 10} }
	eighty := func(start time.Duration) Revision { return Revision{Start: start, Limit: 80} }
	free := func(start time.Duration) Revision { return Revision{Start: start, Pace: 100} }
	poisson := func(length time.Duration, rate Rate, highest float64, times Times) func() []Request {
		return func() []Request { return Poisson(7, length, rate, highest, times) }
	}
	every := func(length, distance time.Duration, together int, times Times) func() []Request {
		return func() []Request { return Every(7, length, distance, together, times) }
	}
	return []Scenario{
		{"step-1", one(100 * ms), 0, poisson(hour, Step(2, 40, 20*min), 40, Exponential(200*ms))},
		{"step-10-slow-start", ten(20 * sec), 0, poisson(hour, Step(5, 200, 20*min), 200, Exponential(500*ms))},
		{"step-80", eighty(500 * ms), 0, poisson(15*min, Step(20, 1000, 5*min), 1000, Exponential(300*ms))},
		{"step-unlimited", free(sec), 0, poisson(15*min, Step(20, 1200, 7*min), 1200, Exponential(300*ms))},
		{"ramp-1", one(10 * ms), 0, poisson(2*hour, Ramp(0.5, 60, 10*min, 100*min), 60, Exponential(100*ms))},
		{"ramp-10-slow-start", ten(20 * sec), 0, poisson(hour, Ramp(2, 150, 10*min, 20*min), 150, Exponential(600*ms))},
		{"ramp-unlimited", free(2 * sec), 0, poisson(20*min, Ramp(10, 600, 5*min, 15*min), 600, Exponential(500*ms))},
		{"spike-1", one(50 * ms), 0, func() []Request {
			return Merge(Poisson(7, hour, Constant(2), 2, Exponential(100*ms)), Every(8, hour, 10*min, 100, Exponential(100*ms)))
		}},
		{"spike-10", ten(sec), 0, poisson(2*hour, Pulse(5, 400, 20*min, 10*sec), 400, Exponential(200*ms))},
		{"spike-80-slow-start", eighty(20 * sec), 0, poisson(2*hour, Pulse(50, 3000, 30*min, 15*sec), 3000, Exponential(100*ms))},
		{"sine-1-day", one(200 * ms), 0, poisson(24*hour, Sine(0.05, 8, 24*hour), 8, Exponential(300*ms))},
		{"sine-10", ten(5 * sec), 0, poisson(4*hour, Sine(1, 100, 30*min), 100, Exponential(500*ms))},
		{"sine-unlimited-fast", free(20 * ms), 0, poisson(20*min, Sine(1, 2000, 4*min), 2000, Exponential(150*ms))},
		{"poisson-1-1ms", one(5 * ms), 0, poisson(20*min, Constant(300), 300, Exactly(ms))},
		{"poisson-1-1s", one(sec), 0, poisson(2*hour, Constant(10), 10, Exponential(sec))},
		{"poisson-10", ten(2 * sec), 0, poisson(hour, Constant(100), 100, Exponential(400*ms))},
		{"poisson-1-60s", one(5 * sec), 0, poisson(8*hour, Constant(0.2), 0.2, Exponential(60*sec))},
		{"poisson-sparse", one(5 * ms), 0, poisson(24*hour, Constant(0.01), 0.01, Exponential(50*ms))},
		{"poisson-sparse-slow-start", ten(10 * sec), 0, poisson(24*hour, Constant(0.02), 0.02, Exponential(200*ms))},
		{"poisson-small-mean", one(300 * ms), 0, poisson(4*hour, Constant(1), 1, Exponential(500*ms))},
		{"on-off-1", one(100 * ms), 0, poisson(2*hour, Pulse(0, 20, 4*min, 2*min), 20, Exponential(300*ms))},
		{"on-off-10-slow-start", ten(15 * sec), 0, poisson(4*hour, Pulse(0, 100, 10*min, 5*min), 100, Exponential(500*ms))},
		{"on-off-fast", one(20 * ms), 0, poisson(hour, Pulse(0, 50, 20*sec, 5*sec), 50, Exponential(100*ms))},
		{"cron-1", one(sec), 0, every(24*hour, 10*min, 1, Exactly(2*sec))},
		{"cron-20-at-once", one(500 * ms), 0, every(24*hour, 5*min, 20, Exponential(sec))},
		{"batch-60s", one(2 * sec), 0, every(12*hour, 15*min, 30, Exactly(60*sec))},
		{"pareto-1", one(200 * ms), 0, poisson(2*hour, Constant(10), 10, Pareto(20*ms, 1.2, 60*sec))},
		{"pareto-10", ten(sec), 0, poisson(2*hour, Constant(50), 50, Pareto(30*ms, 1.3, 60*sec))},
		{"lognormal-1-slow-start", one(10 * sec), 0, poisson(4*hour, Constant(3), 3, Lognormal(200*ms, 1.5, 60*sec))},
		{"lognormal-80", eighty(3 * sec), 0, poisson(30*min, Sine(20, 800, 10*min), 800, Lognormal(100*ms, 1.2, 30*sec))},
		{"limited-5", Revision{Start: 500 * ms, Limit: 10, Max: 5}, 0, poisson(hour, Pulse(10, 90, 10*min, 2*min), 90, Exponential(500*ms))},
	}
}

// patience is how long requests wait where nothing else is said: Knative's default timeout.
const patience = 300 * time.Second

// Rules are made for a scenario with settings: the platform's defaults, or varied.
type Rules func(s Scenario, settings autoscaler.Settings) (Rule, error)

// scale is how the scenario's revision scales.
func (s Scenario) scale(settings autoscaler.Settings) (autoscaler.Scale, error) {
	settings.MaxScale = s.Revision.Max
	annotations := map[string]string{}
	if s.Target > 0 {
		annotations["autoscaling.knative.dev/target"] = fmt.Sprint(s.Target)
	}
	scale, err := settings.Scale(annotations, int64(s.Revision.Limit))
	if err != nil {
		return autoscaler.Scale{}, fmt.Errorf("scaling scenario %q: %w", s.Name, err)
	}
	return scale, nil
}

// BerthRules are the platform's.
func BerthRules(s Scenario, settings autoscaler.Settings) (Rule, error) {
	scale, err := s.scale(settings)
	return NewBerth(scale, settings.Tick, patience), err
}

// KnativeRules are Knative's.
func KnativeRules(s Scenario, settings autoscaler.Settings) (Rule, error) {
	scale, err := s.scale(settings)
	return NewKnative(scale, patience), err
}
