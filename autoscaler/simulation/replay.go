package simulation

import (
	"math"
	"slices"
	"sort"
	"time"

	"github.com/berth-run/berth/autoscaler"
)

// Requests spreads a function's calls over the minutes that they were counted in, by chance, and draws their durations from
// the percentiles that are known, by linear interpolation. The trace says no more.
func (f *Function) Requests(seed uint64) []Request {
	r := newRandom(seed)
	var all []Request
	for m, calls := range f.Calls {
		for range calls {
			at := time.Duration(m)*time.Minute + time.Duration(r.Int64N(int64(time.Minute)))
			all = append(all, Request{at, f.duration(100 * r.Float64())})
		}
	}
	slices.SortStableFunc(all, func(a, b Request) int { return int(a.At - b.At) })
	return all
}

// leastDuration is what a call takes at least: the trace has zeros, and a slowdown over nothing has no meaning.
const leastDuration = time.Millisecond

func (f *Function) duration(percent float64) time.Duration {
	i := sort.Search(len(durationRanks), func(i int) bool { return float64(durationRanks[i]) >= percent })
	if i == 0 {
		return max(leastDuration, f.Durations[0])
	}
	low, high := durationRanks[i-1], durationRanks[i]
	part := (percent - float64(low)) / float64(high-low)
	return max(leastDuration, f.Durations[i-1]+time.Duration(part*float64(f.Durations[i]-f.Durations[i-1])))
}

// Slowdowns is what a replay comes to. A request's slowdown is its response time divided by its service time, and a
// function's is the geometric mean of its requests', as Dirigent's evaluation has it (SOSP '24): functions count alike,
// however often they are called.
type Slowdowns struct {
	Mean         float64 // geometric, of the functions' slowdowns
	P50, P99     float64 // of the functions' slowdowns
	Tail         float64 // geometric mean of the functions' 99th percentiles
	Cost         time.Duration
	Starts       int
	Refused      int
	Requests     int
	Functions    int
	MemoryTime   float64 // MiB·s of instances, of functions whose app's memory is known
	WaitP99      time.Duration
	waits        []time.Duration
	logs, logs99 []float64
}

// ReplayStart is how long instances start in a replay: about a small program in an interpreted language.
const ReplayStart = 250 * time.Millisecond

// ReplayRevision is how the functions of a trace run: one request at a time, as in the trace's own platform, and
// instances that start in the time given.
func ReplayRevision(start time.Duration) Revision { return Revision{Start: start, Limit: 1} }

// Replay plays every function of a trace for itself under a rule; nil rules are the oracle's.
func Replay(t Trace, revision Revision, rules Rules, settings autoscaler.Settings) (Slowdowns, error) {
	var s Slowdowns
	for i := range t.Functions {
		f := &t.Functions[i]
		requests := f.Requests(uint64(i))
		if len(requests) == 0 {
			continue
		}
		var result Result
		if rules == nil {
			result = Oracle(revision, requests)
		} else {
			rule, err := rules(Scenario{Name: f.Name, Revision: revision}, settings)
			if err != nil {
				return Slowdowns{}, err
			}
			result = Run(revision, requests, rule)
		}
		s.add(f, requests, result)
	}
	s.finish()
	return s, nil
}

// add counts a function's result.
func (s *Slowdowns) add(f *Function, requests []Request, result Result) {
	slowdowns := make([]float64, len(requests))
	sum := 0.0
	for n, r := range requests {
		slowdowns[n] = math.Log(float64(r.Service+result.Waits[n]) / float64(r.Service))
		sum += slowdowns[n]
	}
	slices.Sort(slowdowns)
	s.logs = append(s.logs, sum/float64(len(requests)))
	s.logs99 = append(s.logs99, slowdowns[rank(len(slowdowns), 0.99)])
	s.waits = append(s.waits, result.Waits...)
	s.Cost += result.InstanceTime
	s.MemoryTime += f.Memory * result.InstanceTime.Seconds()
	s.Starts += result.Starts
	s.Refused += result.Refused
	s.Requests += len(requests)
	s.Functions++
}

// finish sums up what was added.
func (s *Slowdowns) finish() {
	if s.Functions == 0 {
		return
	}
	slices.Sort(s.logs)
	slices.Sort(s.waits)
	mean := func(logs []float64) float64 {
		sum := 0.0
		for _, l := range logs {
			sum += l
		}
		return math.Exp(sum / float64(len(logs)))
	}
	s.Mean, s.Tail = mean(s.logs), mean(s.logs99)
	s.P50, s.P99 = math.Exp(s.logs[rank(len(s.logs), 0.5)]), math.Exp(s.logs[rank(len(s.logs), 0.99)])
	s.WaitP99 = s.waits[rank(len(s.waits), 0.99)]
	s.waits, s.logs, s.logs99 = nil, nil, nil
}

// Spread returns a trace with at most n of the functions, evenly over all.
func (t Trace) Spread(n int) Trace {
	if n <= 0 || n >= len(t.Functions) {
		return t
	}
	part := Trace{Unknown: t.Unknown}
	for i := range n {
		part.Functions = append(part.Functions, t.Functions[i*len(t.Functions)/n])
	}
	return part
}
