package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
)

// Revision is what an activator must know of the revision whose requests it holds. Zero durations are no limit.
type Revision struct {
	Namespace     string
	Service       string
	Configuration string
	Name          string

	// Concurrency is the most requests that one instance is given at the same time; 0 is unlimited.
	Concurrency int
	// Timeout is the longest time from a request's arrival to the first byte of its response, the wait for an
	// instance included (contract C16). A response that has begun is never cut by it.
	Timeout time.Duration
	// ResponseStart is the longest time from handing a request to an instance to the first byte of its response. For an
	// instance that took nothing of it no time counts: it begins anew with the next one. Timeout includes them all.
	ResponseStart time.Duration
	// Idle is the longest silence of an instance that has a request: before its response, and within it.
	Idle time.Duration
	// Affinity brings a client back to the instance that served it before, by a cookie (contract 1.3).
	Affinity bool
	// HTTP2 says that the instances speak HTTP/2 without TLS (contract C13).
	HTTP2 bool

	// Throttled withholds the CPU from instances that have had no request for IdleDelay, until the next one (contract C66).
	Throttled bool
	IdleDelay time.Duration
	// Room is how many requests an instance has that is not frozen before another one is thawed for more, beyond those
	// that requests are spread over (Activator.Spread). 0 thaws one for each request that finds no idle instance.
	Room int
	// FreezeFailed, when set, is called once for each instance whose CPU cannot be withheld. It keeps it, then.
	FreezeFailed func(instance string, err error)

	// MaxQueue is the most requests that wait at the same time; 0 is unlimited. One more is answered with 429.
	MaxQueue int
	// QueueWait tells how long a request that begins to wait now waits at most, when that is less than Timeout allows.
	// Then it is answered as contract C48 says: with 429 when Full tells that there are as many instances as there may
	// be, and with 500 when they did not start fast enough. A nil QueueWait, or 0, is as long as Timeout. Both are
	// called without any lock held.
	QueueWait func() time.Duration
	Full      func() bool
	// Short tells that the machine has no memory for another instance: requests that are given none are told so. It is
	// called without any lock held, and nil when nobody knows.
	Short func() bool

	// Wake asks for capacity. It is called, without any lock held, for each request that has begun to wait;
	// it must return at once.
	Wake func()
}

// Activator is where the requests of one revision meet its instances: it gives a request a slot on an instance,
// or holds it until there is one (contract KA8). It counts exactly, and never gives an instance more requests
// than its concurrency. It knows nothing of HTTP.
//
// It implements [autoscaler.Pool].
type Activator struct {
	revision Revision
	mark     mark // of the revision, for session affinity; 0 when it wants none
	epoch    time.Time
	metrics  atomic.Pointer[revisionMetrics]

	mu       sync.Mutex
	members  map[string]*member // by instance ID; those draining included
	marked   map[mark]*member   // the members by their marks; nil without affinity
	balancer balancer
	queue    queue        // Invariant: empty while an instance has a free slot
	closed   *closedError // what every claim gets, once Close was called; the queue is empty then
	inFlight int
	requests uint64
	// busy makes the integral of the requests over time without adding at each change: every arrival takes its
	// time off, every end adds its time. The integral at a time t is busy + t·(requests that have not ended).
	busy time.Duration
	// waited is made as busy is, of the requests in the queue.
	waited time.Duration

	cooler  *time.Timer // freezes instances that have been idle for long enough; nil before the first
	cooling bool        // cooler is set, or at work
}

var _ autoscaler.Pool = (*Activator)(nil)

// Why a request was given no instance. They are returned by claim.
var (
	errQueueFull = errors.New("the queue is full")
	errTimeout   = errors.New("the request timeout is over")
	errFull      = errors.New("all instances that there may be were busy for as long as requests wait")
	errTooSlow   = errors.New("no instance started for as long as requests wait")
)

// shortError is why a request was given no instance, where the machine has no memory for one.
type shortError struct{ err error }

func (s *shortError) Error() string {
	return s.err.Error() + ": the machine has no memory for another instance"
}
func (s *shortError) Unwrap() error { return s.err }

// startFailure is the reason that the autoscaler gave to Fail.
type startFailure struct{ err error }

func (f *startFailure) Error() string { return "starting an instance: " + f.err.Error() }
func (f *startFailure) Unwrap() error { return f.err }

// closedError is the reason that was given to Close.
type closedError struct{ err error }

func (c *closedError) Error() string { return "claiming an instance: " + c.err.Error() }
func (c *closedError) Unwrap() error { return c.err }

// dialPause is how long an instance that refused a connection gets no requests.
const dialPause = 50 * time.Millisecond

// NewActivator returns the activator of a revision, without instances.
func NewActivator(revision Revision) *Activator {
	a := &Activator{
		revision: revision,
		epoch:    time.Now(),
		balancer: newBalancer(revision),
	}
	if revision.Affinity {
		a.mark = markOf(revision.Namespace, revision.Name)
	}
	return a
}

// Revision returns what the activator was made with.
func (a *Activator) Revision() Revision { return a.revision }

// claim takes a slot for a request that arrived at a time. It waits for one in the order of arrival, until ctx
// is done, the revision's limits are passed, or Fail or Close is called. The caller ends a successful claim with
// release.
func (a *Activator) claim(ctx context.Context, arrived time.Time) (*member, error) {
	a.mu.Lock()
	a.requests++
	a.busy -= arrived.Sub(a.epoch)
	return a.woken(a.place(ctx, arrived))
}

// tryClaim is claim for a caller that must not wait. It is nil when the request would have to, or would be refused;
// nothing is counted then, and the caller lets it wait with claim. Waiters are not overtaken: while there are any,
// no slot is free. Where mustWake tells so, the instance is to be woken before the request is sent there.
func (a *Activator) tryClaim(arrived time.Time) *member {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed != nil {
		return nil
	}
	m := a.balancer.take()
	if m != nil {
		a.requests++
		a.inFlight++
		a.busy -= arrived.Sub(a.epoch)
	}
	return m
}

// claimAgain exchanges a claim for another, for a request that could not reach its instance. The instance gets
// no requests for a moment; when it has exited, none any more. So the request goes to another one, or waits.
func (a *Activator) claimAgain(ctx context.Context, unreachable *member, arrived time.Time) (*member, error) {
	a.setAside(unreachable)
	a.mu.Lock()
	a.inFlight--
	a.balancer.put(unreachable)
	a.rested(unreachable, time.Now())
	a.grant()
	if a.endDrain(unreachable) {
		defer unreachable.conns.closeIdle()
	}
	return a.woken(a.place(ctx, arrived))
}

// place gives a request that has been counted a slot, or lets it wait. It is called with mu held and gives it back.
func (a *Activator) place(ctx context.Context, arrived time.Time) (*member, error) {
	if closed := a.closed; closed != nil {
		a.busy += time.Since(a.epoch)
		a.mu.Unlock()
		return nil, closed
	}
	if m := a.balancer.take(); m != nil {
		a.inFlight++
		a.mu.Unlock()
		return m, nil
	}
	return a.wait(ctx, arrived)
}

// wait is called with mu held and gives it back.
func (a *Activator) wait(ctx context.Context, arrived time.Time) (*member, error) {
	if a.revision.MaxQueue > 0 && a.queue.length >= a.revision.MaxQueue {
		a.busy += time.Since(a.epoch)
		a.mu.Unlock()
		return nil, a.blame(errQueueFull)
	}
	w := &waiter{done: make(chan struct{}), since: time.Since(a.epoch)}
	a.queue.push(w)
	a.waited -= w.since
	a.mu.Unlock()
	if a.revision.Wake != nil {
		a.revision.Wake()
	}

	var over <-chan time.Time // never, without a limit
	left, why := a.patience(arrived)
	if why != nil {
		timer := time.NewTimer(left)
		defer timer.Stop()
		over = timer.C
	}

	select {
	case <-w.done:
		return w.member, w.err
	case <-over:
		if a.leave(w) {
			if why == errTooSlow && a.revision.Full != nil && a.revision.Full() {
				why = errFull
			}
			return nil, a.blame(why)
		}
		return w.member, w.err // a slot came at the same moment: use it
	case <-ctx.Done():
		if !a.leave(w) && w.err == nil {
			a.release(w.member, time.Now())
		}
		return nil, ctx.Err()
	}
}

// blame adds to why a request was given no instance that the machine has no memory for another one, where that is so.
func (a *Activator) blame(why error) error {
	if a.revision.Short != nil && a.revision.Short() {
		return &shortError{why}
	}
	return why
}

// patience is for how long a request that arrived at a time may wait from now on, and what it gets then: nil when it
// may wait for ever.
func (a *Activator) patience(arrived time.Time) (left time.Duration, why error) {
	if limit := a.revision.Timeout; limit > 0 {
		left, why = limit-time.Since(arrived), errTimeout
	}
	if a.revision.QueueWait != nil {
		if limit := a.revision.QueueWait(); limit > 0 && (why == nil || limit < left) {
			left, why = limit, errTooSlow
		}
	}
	return left, why
}

// leave takes a waiter out of the queue; false when it was answered before.
func (a *Activator) leave(w *waiter) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.queue.remove(w) {
		return false
	}
	now := time.Since(a.epoch)
	a.busy += now
	a.waited += now
	return true
}

// release ends a claim: the slot goes to the request that has waited longest.
func (a *Activator) release(m *member, now time.Time) {
	a.mu.Lock()
	a.busy += now.Sub(a.epoch)
	a.inFlight--
	a.balancer.put(m)
	a.rested(m, now)
	a.grant()
	ended := a.endDrain(m)
	a.mu.Unlock()
	if ended {
		m.conns.closeIdle()
	}
}

// grant gives free slots to waiters.
func (a *Activator) grant() {
	for a.queue.first != nil {
		m := a.balancer.take()
		if m == nil {
			return
		}
		w := a.queue.first
		a.queue.remove(w)
		a.waited += time.Since(a.epoch)
		a.inFlight++
		w.member = m
		close(w.done)
	}
}

// endDrain forgets a draining instance whose last request has ended.
func (a *Activator) endDrain(m *member) bool {
	if !m.draining || m.inFlight > 0 {
		return false
	}
	delete(a.members, m.id)
	a.removeMark(m)
	close(m.drained)
	return true
}

// setAside keeps new requests from an instance that did not take a connection: for good when its user code has
// ended, else for a moment. The autoscaler removes those that have ended.
func (a *Activator) setAside(m *member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !m.linked {
		return
	}
	a.balancer.remove(m)
	if hasExited(m.instance) {
		return
	}
	time.AfterFunc(dialPause, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !m.draining && !m.suspended && !hasExited(m.instance) {
			a.balancer.add(m)
			a.rested(m, time.Now())
			a.grant()
		}
	})
}

// Suspend keeps new requests from an instance until Resume; those in flight on it go on. While no other instance takes
// requests they wait, as for a revision that wakes, within the same limits. It does nothing for an instance that is
// unknown or taken back.
func (a *Activator) Suspend(instance engine.Instance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.members[instance.ID()]; m != nil && !m.draining {
		m.suspended = true
		a.balancer.remove(m)
		if a.mustWake(m) { // it needs the CPU to become what it was
			go a.wake(m) // an error sets it aside, as it is
		}
	}
}

// Resume offers a suspended instance to requests again; those that wait get its slots at once. It does nothing for one
// that is unknown, taken back or not suspended.
func (a *Activator) Resume(instance engine.Instance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.members[instance.ID()]
	if m == nil || !m.suspended || m.draining {
		return
	}
	m.suspended = false
	if !hasExited(instance) {
		a.balancer.add(m)
		a.rested(m, time.Now())
		a.grant()
	}
}

// Add offers a ready instance to requests; those that wait get its slots at once. Adding one that is known
// already does nothing.
func (a *Activator) Add(instance engine.Instance) {
	id := instance.ID()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.members[id] != nil {
		return
	}
	m := &member{id: id, instance: instance, conns: newConnections(instance), drained: make(chan struct{})}
	if a.members == nil {
		a.members = make(map[string]*member)
	}
	a.members[id] = m
	a.addMark(m)
	a.balancer.add(m)
	a.rested(m, time.Now())
	a.grant()
}

// Remove takes an instance back: it gets no new request from now on. The channel is closed when the last request
// in flight on it has ended. Removing an unknown instance returns a closed channel.
//
// Remove does not call Wake, even when it takes the last instance while requests wait: Load shows them.
func (a *Activator) Remove(instance engine.Instance) <-chan struct{} {
	a.mu.Lock()
	m := a.members[instance.ID()]
	if m == nil {
		a.mu.Unlock()
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	if !m.draining {
		m.draining = true
		a.balancer.remove(m)
		a.endDrain(m)
	}
	a.mu.Unlock()
	m.conns.closeIdle()
	return m.drained
}

// Idlest returns the instance that scaling in should take: the one with the fewest requests in flight, and among
// equals the one that was used longest ago. It is nil when no instance takes requests.
func (a *Activator) Idlest() engine.Instance {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.balancer.idlest(); m != nil {
		return m.instance
	}
	return nil
}

// Fail answers every request that waits now: the revision has no instance and cannot start one.
func (a *Activator) Fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail(&startFailure{err})
}

// Close answers every request that waits, and from now on every one that comes, with status 404 and err's text:
// the revision was deleted. A request can come after that, by a route that it looked up before. Requests that are
// on an instance are not touched. Close says nothing to the autoscaler; only the first call counts.
func (a *Activator) Close(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed == nil {
		a.closed = &closedError{err}
		a.fail(a.closed)
	}
}

// fail answers every request that waits. It is called with mu held.
func (a *Activator) fail(err error) {
	now := time.Since(a.epoch)
	for a.queue.first != nil {
		w := a.queue.first
		a.queue.remove(w)
		a.busy += now
		a.waited += now
		w.err = err
		close(w.done)
	}
}

// Load reads the counters.
func (a *Activator) Load() autoscaler.Load {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := time.Now()
	present := a.inFlight + a.queue.length
	var longest time.Duration
	if w := a.queue.first; w != nil {
		longest = at.Sub(a.epoch) - w.since
	}
	return autoscaler.Load{
		At:       at,
		InFlight: a.inFlight,
		Waiting:  a.queue.length,
		Busy:     a.busy + time.Duration(present)*at.Sub(a.epoch),
		Longest:  longest,
		Waited:   a.waited + time.Duration(a.queue.length)*at.Sub(a.epoch),
		Requests: a.requests,
	}
}

func hasExited(instance engine.Instance) bool {
	select {
	case <-instance.Exited():
		return true
	default:
		return false
	}
}

// queue holds the waiters in the order they came. Any of them can leave in constant time.
type queue struct {
	first, last *waiter
	length      int
}

// waiter is one request that waits. member and err are set before done is closed, and not after.
type waiter struct {
	done       chan struct{}
	member     *member
	err        error
	queued     bool
	since      time.Duration // from the activator's epoch
	prev, next *waiter
}

func (q *queue) push(w *waiter) {
	w.queued = true
	w.prev = q.last
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
	q.length++
}

// remove takes a waiter out; false when it is not in the queue.
func (q *queue) remove(w *waiter) bool {
	if !w.queued {
		return false
	}
	w.queued = false
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.prev, w.next = nil, nil
	q.length--
	return true
}
