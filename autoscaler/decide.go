package autoscaler

import (
	"math"
	"time"
)

// Input is what is seen of one revision at one moment.
type Input struct {
	Now               time.Time
	Ready, Starting   int           // instances
	Unready           int           // of Ready, those that have taken no requests for unreadyPatience
	InFlight, Waiting int           // requests, see [Load]
	Longest           time.Duration // that one of those that wait has waited
	Service           time.Duration // that recent requests took on an instance on average; 0 is not known
	Stable, Panic     float64       // the metric's averages over the two windows
	Reachable         bool          // a route leads here
	Prove             bool          // see [Revision].Prove
	Failing           bool          // the newest start failed
	Used              Used          // what instances use, where the revision scales by it
}

// State is what [Decide] remembers of one revision from one decision to the next. The zero value is a revision
// that has not been looked at. A State is used once: the next decision takes the one that was returned.
type State struct {
	panicAt  time.Time // when the load was last over the panic threshold; zero when not panicking
	panicMax int       // most instances wanted since panic began

	peaks   greatest // instances that the requests of each moment filled, in the last stable window
	delayed greatest // wanted numbers that the scale-down delay still holds

	activeSince time.Time // when the first instance became ready; zero when there is none
	idleSince   time.Time // when nothing was wanted any more; zero while something is
	proven      bool      // the initial scale has been reached
}

// unreadyPatience is how long an instance that takes no requests counts for those that wait as one that soon does
// again. A program that is started again in place, or loses a connection for a moment, is back by then.
const unreadyPatience = 10 * time.Second

// Decision is how many instances a revision should have.
type Decision struct {
	Desired int
	Panic   bool          // load grew so fast that the short window decides, and no instance is taken away
	Again   time.Duration // when to decide again at the latest, if not 0: requests wait that should have got a place by then
}

// Decide says how many instances a revision should have. It is Knative's algorithm, and two rules of ours in
// front: requests that wait ask for capacity at once, without an average and without a tick, and what the busiest
// moment of a stable window filled is kept.
//
//   - The average load over the stable window, divided by the target, is the number wanted. It moves by the
//     maximal rates at most. What instances use of CPU or memory wants a number too, where the revision scales by it
//     ([Used]); the greater of both counts.
//   - When the panic window alone wants PanicThreshold times the ready instances, it decides, and nothing is
//     taken away until a stable window after it last did.
//   - A scale-down delay holds the greatest number of its time.
//   - The last instance goes when nothing was wanted for the grace period (or the retention period, when longer),
//     and not before it has been there for a stable window.
func Decide(scale Scale, in Input, state State) (Decision, State) {
	wanted, panicking := 0, false
	if scale.byRequests() {
		wanted, panicking = state.average(scale, in)
	}
	if scale.byUse() {
		wanted = max(wanted, byUse(in))
	}
	if in.Failing && in.Ready+in.Starting+in.Waiting == 0 {
		// The averages still hold requests that have been refused. Nobody waits for another try.
		wanted = 0
	}
	surge, again := state.atOnce(scale, in)
	wanted = max(wanted, surge)
	if in.Reachable && scale.ScaleDownDelay > 0 {
		wanted = state.delayed.over(scale.ScaleDownDelay, in.Now, wanted)
	}
	wanted = state.bound(scale, in, wanted)
	wanted = state.lastInstance(scale, in, wanted)
	return Decision{Desired: wanted, Panic: panicking, Again: again}, state
}

// average is what the averages want: Knative's part.
func (s *State) average(scale Scale, in Input) (wanted int, panicking bool) {
	ready := float64(max(1, in.Ready))
	// Rounding up lets one instance grow at any rate, rounding down lets one go.
	most, least := math.Ceil(scale.MaxScaleUpRate*ready), 0.0
	if in.Reachable {
		least = math.Floor(ready / scale.MaxScaleDownRate)
	}
	within := func(average float64) int {
		n := math.Ceil(average / scale.Target)
		wanted := int(min(max(n, least), most))
		if n > 0 {
			wanted = max(wanted, scale.Activation)
		}
		return wanted
	}
	stable, panicked := within(in.Stable), within(in.Panic)
	switch {
	case math.Ceil(in.Panic/scale.Target)/ready >= scale.PanicThreshold:
		s.panicAt = in.Now
	case !s.panicAt.IsZero() && in.Now.Sub(s.panicAt) > scale.StableWindow:
		s.panicAt, s.panicMax = time.Time{}, 0
	}
	if s.panicAt.IsZero() {
		return stable, false
	}
	s.panicMax = max(s.panicMax, stable, panicked)
	return s.panicMax, true
}

// atOnce is what requests that wait want now: instances for all that is there, the waiting and the running. Of
// instances that are starting already it asks no more than that, so a burst is answered once.
//
// Requests are quick or slow. So many instances are asked for that those who wait should have a place within
// scale.Patience: requests of a millisecond that wait for each other are not worth an instance, requests of a second are
// worth one each. When that was expected, nothing starts, and it turns out wrong, the next look asks for all.
//
// What the busiest moment wanted is kept for a stable window: a burst that comes again finds it. Averages know nothing of
// moments, and would take away what is started anew a moment later.
//
// Instances that have been unready for long are made up for while requests wait, once: never by more than the load
// asks for, so that a revision whose instances all turn unready does not grow without end.
func (s *State) atOnce(scale Scale, in Input) (wanted int, again time.Duration) {
	requests := in.InFlight + in.Waiting
	instances := float64(requests) / scale.room(in.Ready)
	late := in.Waiting > 0 && in.Starting == 0 && in.Longest >= scale.Patience
	if in.Service > 0 && in.Ready > in.Unready && scale.Concurrency > 0 && !late {
		// A place is free for (Service+Patience)/Service requests one after the other.
		instances *= float64(in.Service) / float64(in.Service+scale.Patience)
		if in.Waiting > 0 {
			again = max(scale.Patience-in.Longest, 0)
		}
	}
	// With a target below 1 there would be more instances than requests, of no use to any.
	n := min(int(math.Ceil(instances)), requests)
	if in.Waiting > 0 {
		n = max(n, scale.Activation)
		n += min(n, in.Unready)
	}
	kept := min(s.peaks.over(scale.StableWindow, in.Now, n), in.Ready+in.Starting)
	if in.Waiting == 0 && !scale.overfull(in) {
		return kept, 0
	}
	return max(n, kept), again
}

// overfull tells whether requests are more than all instances are meant for, where these take any number: they wait for
// each other inside, unseen.
func (s Scale) overfull(in Input) bool {
	return s.Concurrency == 0 && s.Metric == metricConcurrency && float64(in.InFlight) > s.TotalTarget*float64(in.Ready+in.Starting)
}

// room is how many requests at once an instance is counted for when requests wait. The first instances are meant to
// run at the target. When there are some the averages see to that, and requests wait only where all places are taken.
func (s Scale) room(ready int) float64 {
	switch {
	case ready == 0:
		return s.Target
	case s.Concurrency > 0:
		return float64(s.Concurrency)
	case s.Metric == metricRPS:
		return s.Target
	default:
		return s.TotalTarget
	}
}

// greatest remembers numbers for a time and knows the greatest: greatest first and oldest first. A number that is
// neither greater nor newer than another can never be the greatest again, and is not kept.
type greatest []numberAt

type numberAt struct {
	at time.Time
	n  int
}

// over adds a number and returns the greatest of the time before now.
func (g *greatest) over(span time.Duration, now time.Time, n int) int {
	kept := *g
	for last := len(kept); last > 0 && kept[last-1].n <= n; last-- {
		kept = kept[:last-1]
	}
	kept = append(kept, numberAt{now, n})
	old := 0
	for now.Sub(kept[old].at) >= span && old < len(kept)-1 {
		old++
	}
	*g = append(kept[:0], kept[old:]...)
	return (*g)[0].n
}

// bound keeps wanted between the least and greatest number. The least counts only where a route leads; the
// initial scale counts until it has been reached.
func (s *State) bound(scale Scale, in Input, wanted int) int {
	if in.Reachable {
		wanted = max(wanted, scale.Min)
	}
	if initial := max(scale.Initial, scale.Min); in.Prove && !s.proven {
		if scale.Max > 0 {
			initial = min(initial, scale.Max)
		}
		wanted = max(wanted, initial)
		s.proven = in.Ready >= initial
	}
	if scale.Max > 0 {
		wanted = min(wanted, scale.Max)
	}
	return wanted
}

// lastInstance keeps one instance for the time that must pass before a revision goes to zero.
func (s *State) lastInstance(scale Scale, in Input, wanted int) int {
	if in.Ready == 0 {
		s.activeSince = time.Time{}
	} else if s.activeSince.IsZero() {
		s.activeSince = in.Now
	}
	if wanted > 0 || in.Ready == 0 {
		s.idleSince = time.Time{}
		return wanted
	}
	if in.Now.Sub(s.activeSince) < scale.StableWindow {
		return 1
	}
	if s.idleSince.IsZero() {
		s.idleSince = in.Now
	}
	keep := scale.ScaleToZeroGrace
	if in.Reachable {
		keep = max(keep, scale.ScaleToZeroRetention)
	}
	if in.Now.Sub(s.idleSince) < keep {
		return 1
	}
	return 0
}
