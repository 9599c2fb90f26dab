// Package simulation plays the requests and instances of one revision in virtual time, under any rule of scaling: a
// day of traffic takes seconds. It exists to judge the autoscaler, whose own decisions it runs, beside Knative's rules and
// beside an oracle that knows the future.
//
// What is simulated: arrivals, a queue in order of arrival, instances that take a time to start, that hold up to a number
// of requests at once and slow down when they hold more than they are made for. What is not: the cost of moving bytes, and
// instances that fail. Every rule is given the same queue and the same choice of instances unless it says otherwise
// ([Manner]), so that differences are those of its decisions.
package simulation

import (
	"math"
	"time"

	"github.com/berth-run/berth/autoscaler"
)

// Request is one request: when it arrives, counted from the beginning, and how long it takes on an idle instance.
type Request struct{ At, Service time.Duration }

// Revision is what the requests are for.
type Revision struct {
	Start time.Duration // from the decision to an instance that takes requests
	Limit int           // requests that an instance takes at once; 0 is any number
	Pace  int           // requests that an instance works on at full speed; more share it. 0 is any number
	Max   int           // instances; 0 is any number
}

// Seen is what a rule is shown.
type Seen struct {
	Now             time.Duration
	Ready, Starting int // instances
	Load            autoscaler.Load
	Waits           bool // it is asked because a request has to wait
}

// Rule decides how many instances there should be. A rule is used for one run.
type Rule interface {
	// Look is asked when a request has to wait, when an instance has become ready, and at the time that it gave last.
	// It returns how many instances there should be, and when it wants to be asked again at the latest ([Never]).
	Look(seen Seen) (desired int, again time.Duration)
	Manner() Manner
}

// Never is a time that does not come.
const Never = time.Duration(math.MaxInt64)

// Manner is how a rule's decisions are carried out.
type Manner struct {
	// Newest takes the newest instance away first, one that is starting before any, as Kubernetes does. Otherwise
	// instances that are starting are let be, and the idlest goes first.
	Newest bool
	// Direct tells, when set, whether requests go to an instance as they arrive, the less loaded of two random
	// ones, and wait there for a free place. Otherwise they wait together and go where a place is free first.
	Direct func() bool
	// Patience is how long a request waits for an instance before it is refused; 0 is without end.
	Patience time.Duration
}

// Result is what happened in a run.
type Result struct {
	Waits        []time.Duration // of each request in order of arrival: how much later than its service time it ended
	InstanceTime time.Duration   // of all instances, from the decision to start one until it is gone
	Starts       int
	Reversals    int // times that starting followed stopping, or stopping starting
	Refused      int // their waits are how long they waited
	Most         int // instances at one moment
}

// epoch is the beginning as a time, for rules that count in times.
var epoch = time.Unix(0, 0)

// Run plays requests, which are in order of arrival, until the last one has ended and no instance is left.
func Run(revision Revision, requests []Request, rule Rule) Result {
	s := &run{
		revision: revision, requests: requests, rule: rule, manner: rule.Manner(),
		result: Result{Waits: make([]time.Duration, len(requests))},
		began:  make([]bool, len(requests)),
		random: newRandom(1),
		asked:  Never,
	}
	s.events.less = func(a, b event) bool { return a.at < b.at || a.at == b.at && a.order < b.order }
	for s.step() {
	}
	return s.result
}

// kind is what an event is.
type kind int8

const (
	started  kind = iota // an instance has become ready
	finished             // an instance has finished the request that is nearest to its end
	expired              // a request has waited for too long
	due                  // the rule wants to be asked
)

// event is something that will happen.
type event struct {
	at       time.Duration
	order    int
	kind     kind
	instance *instance
	version  int // of the instance's plan, or the request's index
}

// run is one run in progress.
type run struct {
	revision Revision
	requests []Request
	rule     Rule
	manner   Manner
	result   Result

	now      time.Duration
	arrived  int
	began    []bool
	order    int
	events   heap[event]
	random   random
	asked    time.Duration // when the rule wants to be asked
	waiting  []int         // requests, oldest first, of which some may have been refused
	patient  int           // of them, those that still wait
	inFlight int
	busy     time.Duration // the integral of requests over time
	waited   time.Duration // of those that wait
	counted  time.Duration // until when

	ready    []*instance // in the order in which they became so
	starting []*instance // in the order of their starts
	gone     int         // direction of the last change: 1 started, -1 stopped
	live     int         // instances of any state
}

// step handles what happens next; false when nothing does.
func (s *run) step() bool {
	arrival := Never
	if s.arrived < len(s.requests) {
		arrival = s.requests[s.arrived].At
	}
	switch {
	case s.events.len() > 0 && s.events.first().at <= arrival:
		e := s.events.pop()
		s.advance(e.at)
		s.handle(e)
	case arrival < Never:
		s.advance(arrival)
		request := s.arrived
		s.arrived++
		s.arrive(request)
	default:
		return false
	}
	// The rule's own time is no reason to go on when all is over.
	return s.arrived < len(s.requests) || s.live > 0 || s.patient > 0
}

func (s *run) advance(to time.Duration) {
	s.busy += time.Duration(s.inFlight+s.patient) * (to - s.counted)
	s.waited += time.Duration(s.patient) * (to - s.counted)
	s.counted, s.now = to, to
}

func (s *run) handle(e event) {
	switch e.kind {
	case started:
		if !e.instance.leaving {
			s.begin(e.instance)
		}
	case finished:
		if e.instance.plan == e.version {
			s.finish(e.instance)
		}
	case expired:
		if !s.began[e.version] {
			s.began[e.version] = true
			s.patient--
			s.result.Refused++
			s.result.Waits[e.version] = s.now - s.requests[e.version].At
		}
	case due:
		if e.at == s.asked {
			s.ask(false)
		}
	}
}

func (s *run) push(at time.Duration, kind kind, i *instance, version int) {
	s.order++
	s.events.push(event{at: at, order: s.order, kind: kind, instance: i, version: version})
}

// arrive gives a request to an instance, or queues it.
func (s *run) arrive(request int) {
	if s.manner.Direct != nil && len(s.ready) > 0 && s.manner.Direct() {
		a, b := s.ready[s.random.intN(len(s.ready))], s.ready[s.random.intN(len(s.ready))]
		if b.load() < a.load() {
			a = b
		}
		s.inFlight++
		if s.revision.Limit > 0 && a.len() >= s.revision.Limit {
			a.queue = append(a.queue, request)
			return
		}
		s.serve(a, request)
		return
	}
	if i := s.free(); i != nil {
		s.inFlight++
		s.serve(i, request)
		return
	}
	s.waiting = append(s.waiting, request)
	s.patient++
	if s.manner.Patience > 0 {
		s.push(s.now+s.manner.Patience, expired, nil, request)
	}
	s.ask(true)
}

// free returns the ready instance with the fewest requests that has a place, of several the one used last.
func (s *run) free() *instance {
	var best *instance
	for _, i := range s.ready {
		if s.revision.Limit > 0 && i.len() >= s.revision.Limit {
			continue
		}
		if best == nil || i.len() < best.len() || i.len() == best.len() && i.used > best.used {
			best = i
		}
	}
	return best
}

// longest is how long one of those that wait has waited.
func (s *run) longest() time.Duration {
	for len(s.waiting) > 0 && s.began[s.waiting[0]] {
		s.waiting = s.waiting[1:] // it was refused
	}
	if len(s.waiting) == 0 {
		return 0
	}
	return s.now - s.requests[s.waiting[0]].At
}

// nextWaiting returns the request that waits longest, or -1.
func (s *run) nextWaiting() int {
	for len(s.waiting) > 0 {
		request := s.waiting[0]
		s.waiting = s.waiting[1:]
		if !s.began[request] {
			s.patient--
			s.inFlight++
			return request
		}
	}
	return -1
}

// serve begins a request, which counts as in flight already, on an instance with a place.
func (s *run) serve(i *instance, request int) {
	s.began[request] = true
	i.add(s.now, request, s.requests[request].Service)
	s.order++
	i.used = s.order
	s.plan(i)
}

// plan sets when an instance ends its next request.
func (s *run) plan(i *instance) {
	i.plan++
	if i.len() > 0 {
		s.push(i.next(s.now), finished, i, i.plan)
	}
}

func (s *run) finish(i *instance) {
	request := i.done(s.now)
	s.inFlight--
	r := s.requests[request]
	s.result.Waits[request] = max(0, s.now-r.At-r.Service)
	s.order++
	i.used = s.order
	switch {
	case len(i.queue) > 0:
		next := i.queue[0]
		i.queue = i.queue[1:]
		s.serve(i, next)
		return
	case !i.leaving:
		if next := s.nextWaiting(); next >= 0 {
			s.serve(i, next)
			return
		}
	}
	s.plan(i)
	if i.leaving && i.len() == 0 {
		s.remove(i)
	}
}

// begin makes a started instance ready.
func (s *run) begin(i *instance) {
	s.starting = without(s.starting, i)
	s.ready = append(s.ready, i)
	for s.revision.Limit == 0 || i.len() < s.revision.Limit {
		request := s.nextWaiting()
		if request < 0 {
			break
		}
		s.serve(i, request)
	}
	s.ask(false)
}

// ask asks the rule and does what it says.
func (s *run) ask(waits bool) {
	desired, again := s.rule.Look(Seen{
		Now: s.now, Ready: len(s.ready), Starting: len(s.starting), Waits: waits,
		Load: autoscaler.Load{
			At: epoch.Add(s.now), InFlight: s.inFlight, Waiting: s.patient, Busy: s.busy, Waited: s.waited, Longest: s.longest(), Requests: uint64(s.arrived),
		},
	})
	s.asked = again
	if again < Never {
		s.push(again, due, nil, 0)
	}
	if s.revision.Max > 0 {
		desired = min(desired, s.revision.Max)
	}
	for more := desired - len(s.ready) - len(s.starting); more > 0; more-- {
		s.start()
	}
	if s.manner.Newest {
		for len(s.starting) > 0 && len(s.ready)+len(s.starting) > desired {
			s.leave(s.starting[len(s.starting)-1])
		}
	}
	for len(s.ready) > desired {
		if s.manner.Newest {
			s.leave(s.ready[len(s.ready)-1])
		} else {
			s.leave(s.idlest())
		}
	}
}

func (s *run) start() {
	i := &instance{began: s.now, speed: s.revision.Pace, since: s.now}
	s.starting = append(s.starting, i)
	s.live++
	s.result.Most = max(s.result.Most, s.live)
	s.result.Starts++
	s.turn(1)
	s.push(s.now+s.revision.Start, started, i, 0)
}

// leave lets an instance finish what it has and then go.
func (s *run) leave(i *instance) {
	s.turn(-1)
	i.leaving = true
	s.starting, s.ready = without(s.starting, i), without(s.ready, i)
	if i.len() == 0 {
		s.remove(i)
	}
}

func (s *run) remove(i *instance) {
	s.live--
	s.result.InstanceTime += s.now - i.began
}

// turn counts a change of direction.
func (s *run) turn(direction int) {
	if s.gone == -direction {
		s.result.Reversals++
	}
	s.gone = direction
}

// idlest is the ready instance with the fewest requests, of several the one used longest ago.
func (s *run) idlest() *instance {
	best := s.ready[0]
	for _, i := range s.ready[1:] {
		if i.len() < best.len() || i.len() == best.len() && i.used < best.used {
			best = i
		}
	}
	return best
}

func without(all []*instance, one *instance) []*instance {
	for n, i := range all {
		if i == one {
			return append(all[:n], all[n+1:]...)
		}
	}
	return all
}
