package autoscaler

import (
	"context"
	"math"
	"time"

	"github.com/berth-run/berth/engine"
)

// Used is what the instances of a revision use of CPU or memory, for revisions that scale by it. Its unit is what one
// instance is meant to use: 2.5 is the work of two and a half instances.
type Used struct {
	Known         bool    // at least one instance has said what it uses
	Short, Stable float64 // averages over the short and the stable window, of all instances together
	Young         int     // ready instances that have become so lately: the averages know them in part
}

// useTolerance is how far use may be from what the ready instances are for and change nothing: the tolerance of
// Kubernetes' horizontal autoscaler.
const useTolerance = 0.1

// useSettle is for how long a ready instance may use its CPU for itself, for caches and compilers: it counts for no more
// than the others use then. It is as long as the startup CPU boost.
const useSettle = engine.BoostAfter

// shortWindows is how often the window that sees use grow fits into the stable one: 15 s of 60 s.
const shortWindows = 4

// byUse is how many instances the use of CPU or memory wants. It keeps none that has no requests: a program's own
// housekeeping, or the memory that it holds, is no reason to run.
func byUse(in Input) int {
	switch {
	case in.Ready == 0 || in.Stable == 0 && in.InFlight+in.Waiting == 0:
		return 0
	case !in.Used.Known:
		return in.Ready
	}
	used, ready := max(in.Used.Short, in.Used.Stable), float64(in.Ready)
	if math.Abs(used-ready) <= useTolerance*ready {
		return in.Ready
	}
	wanted := math.Ceil(used)
	if wanted < ready {
		// They may have come to use what they are meant to.
		wanted = min(ready, wanted+float64(in.Used.Young))
	}
	return int(min(max(wanted, 1), math.MaxInt32))
}

// meter adds up what a fleet's instances use. It belongs to the loop; only read runs beside it.
type meter struct {
	at      time.Time // when the last reading began
	reading bool
	read    map[*member]useReading // the last reading of each ready member
	total   Load                   // Busy is CPU time, or MiB of memory times time
	window  *window                // of total; nil until a member has settled
	began   time.Time              // when window did
	young   int                    // see Used
	failing bool                   // the last reading failed, which was logged
}

// useReading is what one instance said.
type useReading struct {
	member *member
	at     time.Time
	usage  engine.Usage
	err    error
}

// measure has the instances of a fleet that scales by use read, once in a tick, beside the loop.
func (a *Autoscaler) measure(f *fleet, now time.Time) {
	if !f.revision.Scale.byUse() || f.count(engine.Ready) == 0 {
		return
	}
	if f.meter == nil {
		f.meter = &meter{read: make(map[*member]useReading)}
	}
	// A tick may come a little early.
	if f.meter.reading || now.Sub(f.meter.at) < a.settings.Tick*3/4 {
		return
	}
	meter := f.meter
	meter.reading, meter.at = true, now
	var readings []useReading
	for _, m := range f.members {
		if m.state == engine.Ready {
			readings = append(readings, useReading{member: m})
		}
	}
	a.step(func() {
		for i := range readings {
			r := &readings[i]
			r.at = time.Now()
			r.usage, r.err = r.member.instance.Usage()
		}
	}, func(ctx context.Context) {
		meter.reading = false
		if f.meter != meter { // forgotten meanwhile
			return
		}
		a.complain(f, readings)
		meter.count(f.revision.Scale, a.settings.Tick, readings)
		a.look(ctx, f)
	})
}

// complain logs that instances do not say what they use, once until they do again.
func (a *Autoscaler) complain(f *fleet, readings []useReading) {
	var failed *useReading
	for i, r := range readings {
		if r.err != nil && r.member.state == engine.Ready {
			failed = &readings[i]
		}
	}
	if failed != nil && !f.meter.failing {
		a.log(f, failed.member).Warn("instance not measured: the revision does not scale by what it uses", "error", failed.err)
	}
	f.meter.failing = failed != nil
}

// count takes readings into the total. Instances that have settled say how much an instance uses: one that has not, and
// so may still use its CPU for itself, counts for no more than they do, and one that could not be asked for as much.
func (m *meter) count(scale Scale, tick time.Duration, readings []useReading) {
	read := make(map[*member]useReading, len(readings))
	var settled, others []float64 // CPUs or MiB since the last reading
	began, missing, at := time.Time{}, 0, time.Time{}
	m.young = 0
	for _, r := range readings {
		if r.member.state != engine.Ready {
			continue // it went meanwhile
		}
		age := r.at.Sub(r.member.since)
		if age < useSettle+scale.short() {
			m.young++
		}
		if r.err != nil {
			missing++
			continue
		}
		read[r.member] = r
		before, ok := m.read[r.member]
		passed := r.at.Sub(before.at)
		if !ok || passed <= 0 {
			continue
		}
		at = r.at
		if began.IsZero() || before.at.Before(began) {
			began = before.at
		}
		switch {
		case scale.Metric == metricMemory:
			settled = append(settled, float64(r.usage.Memory)/(1<<20))
		case age-passed < useSettle:
			others = append(others, max(0, float64(r.usage.CPU-before.usage.CPU)/float64(passed)))
		default:
			settled = append(settled, max(0, float64(r.usage.CPU-before.usage.CPU)/float64(passed)))
		}
	}
	m.read = read
	if len(settled) == 0 {
		m.window, m.total = nil, Load{} // nothing is known, and that is not nothing used
		return
	}
	sum := 0.0
	for _, use := range settled {
		sum += use
	}
	mean := sum / float64(len(settled))
	sum += mean * float64(missing)
	for _, use := range others {
		sum += min(use, mean)
	}
	if m.window == nil {
		m.total = Load{At: began}
		m.window = newWindow(scale.StableWindow, tick, m.total)
		m.began = began
	}
	m.total.Busy += time.Duration(sum * float64(at.Sub(m.total.At)))
	m.total.At = at
	m.window.record(m.total)
}

// used is what a fleet's instances use, for Decide.
func (f *fleet) used() Used {
	m, scale := f.meter, f.revision.Scale
	// Less than a panic window says little.
	if m == nil || m.window == nil || m.total.At.Sub(m.began) < scale.PanicWindow {
		return Used{}
	}
	one := scale.MemoryTarget
	if scale.Metric != metricMemory {
		one = scale.CPUTarget * cpus(f.revision.Spec, scale.CPUOfRequest)
	}
	return Used{
		Known:  true,
		Short:  m.window.mean(metricConcurrency, m.total, scale.short(), 0) / one,
		Stable: m.window.mean(metricConcurrency, m.total, scale.StableWindow, 0) / one,
		Young:  m.young,
	}
}

// short is the window that sees use grow.
func (s Scale) short() time.Duration { return s.StableWindow / shortWindows }

// cpus is how many CPUs an instance has: its containers' limits, or what they request of them. A container without
// either counts as one CPU, which is what Cloud Run gives.
func cpus(spec engine.Spec, requested bool) float64 {
	total := int64(0)
	count := func(c engine.Container) {
		switch {
		case requested && c.CPURequest > 0:
			total += c.CPURequest
		case c.CPU > 0:
			total += c.CPU
		case c.CPURequest > 0:
			total += c.CPURequest
		default:
			total += 1000
		}
	}
	count(spec.Container)
	for _, c := range spec.Sidecars {
		count(c)
	}
	return float64(total) / 1000
}
