package simulation

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// random draws the same numbers for the same seed.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 0x6265727468))} }

func (r random) intN(n int) int { return r.IntN(n) }

// Rate is how many requests arrive in a second at a time.
type Rate func(at time.Duration) float64

// Constant is the same rate always.
func Constant(rate float64) Rate { return func(time.Duration) float64 { return rate } }

// Step is one rate before a time, and another from then on.
func Step(before, after float64, at time.Duration) Rate {
	return func(t time.Duration) float64 {
		if t < at {
			return before
		}
		return after
	}
}

// Ramp grows from one rate to another between two times.
func Ramp(before, after float64, from, to time.Duration) Rate {
	return func(t time.Duration) float64 {
		part := min(1, max(0, float64(t-from)/float64(to-from)))
		return before + part*(after-before)
	}
}

// Pulse is high for a time at the beginning of each period, and low for the rest.
func Pulse(low, high float64, period, length time.Duration) Rate {
	return func(t time.Duration) float64 {
		if t%period < length {
			return high
		}
		return low
	}
}

// Sine swings between low and high.
func Sine(low, high float64, period time.Duration) Rate {
	return func(t time.Duration) float64 {
		return low + (high-low)*(1-math.Cos(2*math.Pi*float64(t)/float64(period)))/2
	}
}

// Times is how long requests take.
type Times func(r random) time.Duration

// Exactly is the same time for all.
func Exactly(d time.Duration) Times { return func(random) time.Duration { return d } }

// Exponential times have a mean.
func Exponential(mean time.Duration) Times {
	return func(r random) time.Duration { return time.Duration(r.ExpFloat64() * float64(mean)) }
}

// Lognormal times have a median; sigma is the standard deviation of their logarithm. None is longer than most.
func Lognormal(median time.Duration, sigma float64, most time.Duration) Times {
	return func(r random) time.Duration {
		return min(most, time.Duration(float64(median)*math.Exp(sigma*r.NormFloat64())))
	}
}

// Pareto times are at least least, and longer than n times that with a probability of 1/n^alpha. None is longer than most.
func Pareto(least time.Duration, alpha float64, most time.Duration) Times {
	return func(r random) time.Duration {
		return min(most, time.Duration(float64(least)*math.Pow(1-r.Float64(), -1/alpha)))
	}
}

// Poisson makes requests that arrive by chance, at a rate that never exceeds highest, for a time.
func Poisson(seed uint64, length time.Duration, rate Rate, highest float64, times Times) []Request {
	r := newRandom(seed)
	var all []Request
	for at := time.Duration(0); ; {
		at += time.Duration(r.ExpFloat64() / highest * float64(time.Second))
		if at >= length {
			return all
		}
		// Of arrivals at the highest rate, as many are kept as the rate of the moment wants.
		if r.Float64()*highest < rate(at) {
			all = append(all, Request{at, times(r)})
		}
	}
}

// Every makes requests at a fixed distance, several at a time.
func Every(seed uint64, length, distance time.Duration, together int, times Times) []Request {
	r := newRandom(seed)
	var all []Request
	for at := distance / 2; at < length; at += distance {
		for range together {
			all = append(all, Request{at, times(r)})
		}
	}
	return all
}

// Merge puts several into one, in order of arrival.
func Merge(parts ...[]Request) []Request {
	all := slices.Concat(parts...)
	slices.SortStableFunc(all, func(a, b Request) int { return int(a.At - b.At) })
	return all
}
