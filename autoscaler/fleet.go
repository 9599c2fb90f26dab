package autoscaler

import (
	"container/list"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/engine"
)

// proofLimit is for how long a revision that does not start is tried again only to prove it: Knative's progress
// deadline.
const proofLimit = 600 * time.Second

// fleet is one revision and its instances. All but woken and published belongs to the loop.
type fleet struct {
	revision  Revision
	woken     atomic.Bool // a wake is in the mail
	published atomic.Pointer[published]

	declared    bool
	removed     bool
	unpublished bool
	gone        chan struct{} // closed when removed and empty, if anyone waits for it

	members []*member
	judge   Judge
	meter   *meter // nil unless the revision scales by what its instances use
	desired int

	proven      bool
	proveSince  time.Time
	backoff     backoff
	failure     error
	lastFailure error  // of backoff's row: outlives a start in between
	failures    uint64 // of starts so far: tells one failure from another
	waiting     string // what the oldest start waits for, when it takes long
	unready     int    // of the ready ones, those unready for long, at the last look
	restarts    int    // of containers, in instances that are gone
	turns       uint64 // times that an engine said that an instance's readiness or containers changed
	retry       *time.Timer
	again       *time.Timer // looks at requests that should have got a place by then; nil when none is waited for
	wokenAt     time.Time   // when the first of the requests came that wait for the first instance; zero when none does

	queued   urgency
	requests uint64        // at the last look
	recent   *list.Element // in Autoscaler.recent
	// spareHeld is what a prepared instance of it was measured to hold, in bytes; 0 before one was.
	spareHeld int64
	size      int64 // what each of its instances counts for, in bytes
	short     shortage
	yielded   time.Time // when an instance of it that was unused was taken away for another fleet
	unspared  bool      // preparing a spare failed: not tried again until an instance has started

	averageStart time.Duration // that recent starts took, from claimed to ready; 0 before the first
}

// averageWeight is how many starts it takes, about, until the average of starts is that of new ones.
const averageWeight = 8

// took counts the time that a start took into the average.
func (f *fleet) took(start time.Duration) {
	if f.averageStart == 0 {
		f.averageStart = start
		return
	}
	f.averageStart += (start - f.averageStart) / averageWeight
}

// member is one instance of a fleet, from the decision to prepare it until nothing of it is left.
type member struct {
	instance engine.Instance // nil until it is prepared
	state    engine.State    // "" until it is prepared
	since    time.Time       // when it entered state
	created  time.Time
	held     int64         // what it counts for of Autoscaler.room, in bytes
	took     time.Duration // from claimed to ready

	claimed   bool      // it is wanted now: started as soon as it is prepared
	claimedAt time.Time // when it was claimed
	cold      bool      // no instance was ready or starting when it was claimed
	spare     bool      // it was prepared before it was wanted
	retry     bool      // starts before it have come to nothing
	given     bool      // it is not wanted any more: stopped as soon as its step has ended

	slot *time.Timer // ends its hold of one of Autoscaler.slots; nil when it holds none

	hurry  chan struct{}      // closed when it is claimed while it is prepared ahead; nil for others
	cancel context.CancelFunc // ends the step in progress; nil between steps
	leave  chan struct{}      // closed when it stops being ready; made when it becomes so

	unreadySince time.Time // when it began to take no requests, in state ready; zero while it takes them

	reclaimedSince time.Time // since when it had been idle when its memory was last reclaimed
}

// published is what the outside may see of a fleet.
type published struct {
	status    Status
	outlook   Outlook
	failures  uint64
	restarts  int // of containers, in instances that are gone
	turns     uint64
	instances []InstanceStatus
	pool      Pool
	live      []engine.Instance // of the same indexes: asked for what changes by itself
}

// statuses are the instances as they are now.
func (p *published) statuses() []InstanceStatus {
	all := slices.Clone(p.instances)
	for i := range all {
		all[i].Containers = p.live[i].Containers()
		all[i].State, all[i].Since = p.now(i)
	}
	return all
}

// now is an instance's state, and since when: whether a ready one is frozen changes with every request.
func (p *published) now(i int) (engine.State, time.Time) {
	state, since := p.instances[i].State, p.instances[i].Since
	if state != engine.Ready || !p.live[i].Frozen() {
		return state, since
	}
	if idle, frozen := p.pool.Idle(p.live[i]); frozen {
		return engine.Idle, idle
	}
	return state, since
}

// same tells whether the statuses are equal. Failures are told apart by their number: errors need not be comparable.
func (p *published) same(q *published) bool {
	a, b := p.status, q.status
	a.Failure, b.Failure, a.LastFailure, b.LastFailure = nil, nil, nil, nil
	return a == b && p.failures == q.failures && (p.status.Failure == nil) == (q.status.Failure == nil)
}

// sameInstances tells whether the instances that run user code are the same, in the same states.
func (p *published) sameInstances(q *published) bool {
	a, b := p.begun(), q.begun()
	return p.turns == q.turns && slices.EqualFunc(a, b, func(a, b *InstanceStatus) bool {
		return a.ID == b.ID && a.State == b.State
	})
}

// begun are the instances that are not merely prepared.
func (p *published) begun() []*InstanceStatus {
	var begun []*InstanceStatus
	for i := range p.instances {
		if p.instances[i].State != engine.Prepared {
			begun = append(begun, &p.instances[i])
		}
	}
	return begun
}

func newFleet(revision Revision) *fleet {
	f := &fleet{revision: revision, size: sizeOf(revision.Spec)}
	f.published.Store(&published{})
	return f
}

// count returns how many members are in a state. Those that are prepared in order to start count as starting.
func (f *fleet) count(state engine.State) int {
	n := 0
	for _, m := range f.members {
		s := m.state
		if s == "" && m.claimed && !m.given {
			s = engine.Starting
		}
		if s == state && !(m.given && s == engine.Starting) {
			n++
		}
	}
	return n
}

// missing is how many more instances should start.
func (f *fleet) missing() int {
	starting := f.count(engine.Starting)
	missing := f.desired - f.count(engine.Ready) - starting
	if f.backoff.loops() {
		return min(missing, 1-starting) // it is tried with one
	}
	return missing
}

func (f *fleet) snapshot() *published {
	p := &published{pool: f.revision.Pool, failures: f.failures, restarts: f.restarts, turns: f.turns, status: Status{
		Desired:     f.desired,
		Prepared:    f.count(engine.Prepared),
		Starting:    f.count(engine.Starting),
		Ready:       f.count(engine.Ready),
		Draining:    f.count(engine.Draining),
		Unready:     f.unready,
		Proven:      f.proven,
		Failure:     f.failure,
		Failures:    f.backoff.failures,
		Next:        f.backoff.until,
		LastFailure: f.lastFailure,
		Waiting:     f.waiting,
		Short:       f.short.text,
	}}
	most := f.revision.Scale.Max
	short := f.short.waits()
	p.outlook = Outlook{AverageStart: f.averageStart, Full: short || most > 0 && p.status.Starting+p.status.Ready >= most, Short: short}
	for _, m := range f.members {
		if m.instance == nil {
			continue
		}
		p.instances = append(p.instances, InstanceStatus{
			ID:        m.instance.ID(),
			Namespace: f.revision.Spec.Namespace,
			Service:   f.revision.Spec.Service,
			Revision:  f.revision.Spec.Revision,
			State:     m.state,
			Since:     m.since,
			Created:   m.created,
			StartTook: m.took,
			Stages:    m.instance.Stages(),
			Unready:   m.isUnready(),
			Address:   address(m.instance),
		})
		p.live = append(p.live, m.instance)
	}
	return p
}

// declare takes over a declaration.
func (a *Autoscaler) declare(ctx context.Context, f *fleet, revision Revision) {
	if f.removed || a.closing {
		return
	}
	before := f.revision
	f.revision.Scale = revision.Scale
	f.revision.Reachable = revision.Reachable
	f.revision.Prove = revision.Prove
	f.revision.Throttled = revision.Throttled
	if revision.Prove && (!f.declared || !before.Prove) {
		f.proveSince = time.Now()
		f.judge.state.proven = false
	}
	if before.Scale.StableWindow != revision.Scale.StableWindow {
		f.judge.rewindow()
	}
	if before.Scale != revision.Scale {
		f.meter = nil
	}
	f.declared = true
	a.rank(f)
	a.look(ctx, f)
}

// look reads a fleet's load, decides, and sets in motion what is decided.
func (a *Autoscaler) look(ctx context.Context, f *fleet) {
	if f.removed || a.closing {
		return
	}
	now, scale, load := time.Now(), f.revision.Scale, f.revision.Pool.Load()
	a.settle(f, now)
	if load.Requests != f.requests {
		f.requests = load.Requests
		a.touch(f)
	}
	in := Input{
		Now:       now,
		Ready:     f.count(engine.Ready),
		Starting:  f.count(engine.Starting),
		Unready:   f.countUnready(now),
		InFlight:  load.InFlight,
		Waiting:   load.Waiting,
		Reachable: f.revision.Reachable,
		Prove:     f.revision.Prove && now.Sub(f.proveSince) < proofLimit,
		Failing:   f.failure != nil,
		Longest:   load.Longest,
	}
	if in.Waiting == 0 {
		f.wokenAt = time.Time{}
	}
	idle := in.Ready+in.Starting+in.InFlight+in.Waiting == 0
	if scale.byUse() {
		in.Used = f.used()
		a.measure(f, now)
	}
	ready := in.Ready
	in.Ready = f.serving(ready)
	decision := f.judge.Look(scale, a.settings.Tick, in, load)
	in.Ready = ready
	if f.desired != decision.Desired {
		f.desired = decision.Desired
		f.revision.Pool.Spread(f.desired)
		a.change(f)
	}
	if f.unready != in.Unready {
		f.unready = in.Unready
		a.change(f)
	}
	if waiting := f.waitsFor(); f.waiting != waiting {
		f.waiting = waiting
		a.change(f)
	}
	if idle && f.desired == 0 {
		a.rest(f)
		return
	}
	a.busy[f] = struct{}{}
	if decision.Again > 0 && f.again == nil {
		f.again = time.AfterFunc(decision.Again, func() {
			a.mail.post(func(ctx context.Context) {
				f.again = nil
				a.look(ctx, f)
			})
		})
	}
	a.follow(f, in)
}

// waitsFor asks the starting instances, oldest first, what they wait for, where the engine can tell.
func (f *fleet) waitsFor() string {
	for _, m := range f.members {
		if speaker, ok := m.instance.(interface{ Waiting() string }); ok && m.state == engine.Starting {
			if waiting := speaker.Waiting(); waiting != "" {
				return waiting
			}
		}
	}
	return ""
}

// rest ends looking at a fleet until something happens to it, and forgets what only averages need.
func (a *Autoscaler) rest(f *fleet) {
	delete(a.busy, f)
	f.judge.Rest()
	f.meter = nil
}

// follow moves a fleet towards the number desired.
func (a *Autoscaler) follow(f *fleet, in Input) {
	if less := in.Ready - f.desired; less > 0 {
		// Starting ones are let be: they may fail yet, and are looked at again when they have become ready.
		if a.keeps(f) {
			a.letIdle(f, less, in.Now)
		} else {
			a.scaleIn(f, less)
		}
		return
	}
	if f.desired <= in.Ready+in.Starting {
		return
	}
	if wait := f.backoff.until.Sub(in.Now); wait > 0 {
		if in.Waiting > 0 && in.Ready+in.Starting == 0 && !(f.proven && f.backoff.brief()) {
			f.revision.Pool.Fail(f.failure)
		}
		if f.retry == nil {
			f.retry = time.AfterFunc(wait, func() {
				a.mail.post(func(ctx context.Context) {
					f.retry = nil
					a.look(ctx, f)
				})
			})
		}
		return
	}
	switch {
	case f.backoff.loops():
		a.queue.push(f, forRetry)
	case in.Waiting > 0:
		a.queue.push(f, forRequests)
	case in.Prove && !f.judge.state.proven:
		a.queue.push(f, forProof)
	default:
		a.queue.push(f, forLoad)
	}
}

// scaleIn takes n ready instances away: those that take no requests first, then the idlest. They drain at once, and the
// others have their caches warm.
func (a *Autoscaler) scaleIn(f *fleet, n int) {
	for range n {
		m := f.longestUnready()
		if m == nil {
			m = f.holding(f.revision.Pool.Idlest())
		}
		if m == nil { // the pool knows of none that takes requests: the newest
			m = f.newest(engine.Ready)
		}
		if m == nil {
			return
		}
		a.drain(f, m, "load no longer needs it")
	}
}

// holding returns the ready member of an instance, or nil.
func (f *fleet) holding(instance engine.Instance) *member {
	for _, m := range f.members {
		if m.state == engine.Ready && m.instance == instance {
			return m
		}
	}
	return nil
}

// isUnready tells whether a member takes no requests although it is in state ready.
func (m *member) isUnready() bool { return m.state == engine.Ready && !m.unreadySince.IsZero() }

// countUnready returns how many members have been unready for long.
func (f *fleet) countUnready(now time.Time) int {
	n := 0
	for _, m := range f.members {
		if m.isUnready() && now.Sub(m.unreadySince) >= unreadyPatience {
			n++
		}
	}
	return n
}

// longestUnready returns the member that has taken no requests for the longest time, or nil when all ready ones take them.
func (f *fleet) longestUnready() *member {
	var longest *member
	for _, m := range f.members {
		if m.isUnready() && (longest == nil || m.unreadySince.Before(longest.unreadySince)) {
			longest = m
		}
	}
	return longest
}

// newest returns the member in a state that was made last, or nil.
func (f *fleet) newest(state engine.State) *member {
	for _, m := range slices.Backward(f.members) {
		if m.state == state {
			return m
		}
	}
	return nil
}

// retire ends a fleet.
func (a *Autoscaler) retire(f *fleet, reason string) {
	if f.removed {
		return
	}
	f.removed = true
	f.desired = 0
	f.queued = notQueued
	a.suffice(f)
	if f.retry != nil {
		f.retry.Stop()
		f.retry = nil
	}
	if f.again != nil {
		f.again.Stop()
		f.again = nil
	}
	a.rest(f)
	a.rank(f)
	for _, m := range f.members {
		switch m.state {
		case "", engine.Starting:
			m.given = true
			m.cancel()
		case engine.Prepared:
			a.stop(f, m, reason)
		case engine.Ready:
			a.drain(f, m, reason)
		}
	}
	f.revision.Pool.Fail(ErrRemoved)
	a.change(f)
}
