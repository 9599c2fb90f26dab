// Package autoscaler decides how many instances each revision has, and makes it so: it starts instances when
// requests wait, keeps prepared ones at hand, drains and stops what load no longer needs.
//
// Start reading at [Decide], which holds the rules and does no I/O. [Autoscaler] carries them out: one loop owns
// all that is known of instances (fleet.go), and every slow step of an instance's life (life.go) runs beside it
// and reports back.
package autoscaler

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
)

// ErrRemoved is what requests are told that wait for an instance of a revision that is removed.
var ErrRemoved = errors.New("the revision has been removed")

// Autoscaler keeps the instances of every revision. Make it with [New], let [Autoscaler.Run] run, and end it with
// [Autoscaler.Close]. Its methods may be called from any goroutine, before Run too.
type Autoscaler struct {
	// OnChange, when set, is called after the Status of a revision has changed, from one goroutine at a time and
	// with no lock held. It must return soon, and must not wait for Remove or Close. Set it before Run.
	OnChange func(Key)
	// OnInstances, when set, is called as OnChange is, after [Autoscaler.InstancesOf] a revision has changed in anything
	// but prepared instances.
	OnInstances func(Key)
	// OnEvent, when set, is called as OnChange is, when something happened to an instance that people want to read.
	OnEvent func(Event)

	engine   engine.Engine
	settings Settings
	logger   *slog.Logger
	measures *measures

	memory atomic.Pointer[MemoryStatus]
	mail   mailbox
	turn   chan struct{}  // holds a token while someone runs the loop: Run, or Close after it
	beside sync.WaitGroup // goroutines that the loop started

	hurry     chan struct{} // closed when Close waits no longer for requests in flight
	hurryOnce sync.Once
	closed    chan struct{} // closed when Close was called and no instance is left

	mu      sync.RWMutex
	fleets  map[Key]*fleet      // guarded by mu
	leaving map[*fleet]struct{} // removed, with instances still; guarded by mu
	peopled map[*fleet]struct{} // those that published instances, few of many; guarded by mu

	// The rest belongs to the loop.
	closing  bool
	finished bool                // closed is closed
	members  int                 // instances of all fleets, in any state
	busy     map[*fleet]struct{} // looked at each tick
	changed  []*fleet            // to be published
	queue    startQueue
	room     room
	slots    int        // starts that may begin now
	retrying int        // of those that have taken one, tries of what has failed before
	recent   *list.List // fleets that may have a prepared instance, most recently used first
	spares   map[*fleet]*member
	sparing  int // spares that are being prepared
	refilled bool

	pressure pressure

	startEnded time.Time   // when a start last ended
	spareDue   time.Time   // when the next spare is made although instances start; zero when none is to be made
	spareTimer *time.Timer // looks again whether one may be made
}

// New returns an autoscaler that runs instances with engine. A registerer that is not nil gets its metrics.
func New(engine engine.Engine, settings Settings, logger *slog.Logger, registerer prometheus.Registerer) *Autoscaler {
	if settings.Tick <= 0 {
		settings.Tick = DefaultSettings().Tick
	}
	a := &Autoscaler{
		engine:   engine,
		settings: settings,
		logger:   logger,
		mail:     mailbox{signal: make(chan struct{}, 1)},
		turn:     make(chan struct{}, 1),
		hurry:    make(chan struct{}),
		closed:   make(chan struct{}),
		fleets:   make(map[Key]*fleet),
		leaving:  make(map[*fleet]struct{}),
		peopled:  make(map[*fleet]struct{}),
		busy:     make(map[*fleet]struct{}),
		slots:    max(1, settings.StartsAtOnce),
		recent:   list.New(),
		spares:   make(map[*fleet]*member),
		refilled: true,
	}
	a.room = room{total: settings.InstanceMemory.Of(settings.MachineMemory), going: make(map[*member]struct{})}
	a.publishMemory()
	a.measures = newMeasures(a, registerer)
	return a
}

// Apply declares a revision, or changes what is declared of it: Scale, Prove and Reachable. Its Spec and Pool stay
// those of the first time; Pool must not be nil. Applying the same again changes nothing.
func (a *Autoscaler) Apply(revision Revision) {
	a.mu.Lock()
	f := a.fleets[revision.Key]
	if f == nil {
		f = newFleet(revision)
		a.fleets[revision.Key] = f
	}
	a.mu.Unlock()
	a.mail.post(func(ctx context.Context) { a.declare(ctx, f, revision) })
}

// Remove forgets a revision at once: what is applied under its key from now on is another one. Requests that wait
// are told [ErrRemoved], and its instances drain and stop. wait returns when none is left, or with ctx's error when
// ctx ends first; they go on draining then. Removing an unknown revision does nothing.
func (a *Autoscaler) Remove(key Key) (wait func(ctx context.Context) error) {
	a.mu.Lock()
	f := a.fleets[key]
	if f == nil {
		a.mu.Unlock()
		return func(context.Context) error { return nil }
	}
	delete(a.fleets, key)
	a.leaving[f] = struct{}{}
	a.mu.Unlock()
	gone := make(chan struct{})
	a.mail.post(func(context.Context) {
		f.gone = gone
		a.retire(f, "the revision is removed")
		a.change(f) // publishing finds that nothing is left of it, also where Close has retired it before
	})
	return func(ctx context.Context) error {
		select {
		case <-gone:
			return nil
		case <-a.closed: // nobody reads the event, and no instance is left
			return nil
		case <-ctx.Done():
			return fmt.Errorf("waiting for the instances of revision %q to stop: %w", key.Revision, ctx.Err())
		}
	}
}

// Wake says that a request waits for an instance of a revision. Call it when the request counts as waiting in the
// Pool's Load. It does not block, and calls for one revision in a row cost one look at it.
func (a *Autoscaler) Wake(key Key) {
	a.mu.RLock()
	f := a.fleets[key]
	a.mu.RUnlock()
	if f == nil || !f.woken.CompareAndSwap(false, true) {
		return
	}
	at := time.Now()
	a.mail.post(func(ctx context.Context) {
		f.woken.Store(false)
		if f.wokenAt.IsZero() && f.count(engine.Ready) == 0 {
			f.wokenAt = at
		}
		a.look(ctx, f)
	})
}

// Status tells what is known of a revision; false when it is not declared.
func (a *Autoscaler) Status(key Key) (Status, bool) {
	a.mu.RLock()
	f := a.fleets[key]
	a.mu.RUnlock()
	if f == nil {
		return Status{}, false
	}
	return f.published.Load().status, true
}

// Outlook tells what those who wait for an instance of a revision can expect: nothing, when it is not declared.
func (a *Autoscaler) Outlook(key Key) Outlook {
	a.mu.RLock()
	f := a.fleets[key]
	a.mu.RUnlock()
	if f == nil {
		return Outlook{}
	}
	return f.published.Load().outlook
}

// InstancesOf lists the instances of a revision, of one that was removed too while they stop, in no order.
func (a *Autoscaler) InstancesOf(key Key) []InstanceStatus {
	var all []InstanceStatus
	a.mu.RLock()
	defer a.mu.RUnlock()
	if f := a.fleets[key]; f != nil {
		all = append(all, f.published.Load().statuses()...)
	}
	for f := range a.leaving {
		if f.revision.Key == key {
			all = append(all, f.published.Load().statuses()...)
		}
	}
	return all
}

// Instances lists every instance there is, of removed revisions too while they stop, in no order.
func (a *Autoscaler) Instances() []InstanceStatus {
	var all []InstanceStatus
	a.eachPeopled(func(p *published) { all = append(all, p.statuses()...) })
	return all
}

// Instance returns the instance that has an ID, or nil when there is none.
func (a *Autoscaler) Instance(id string) engine.Instance {
	var found engine.Instance
	a.eachPeopled(func(p *published) {
		for i := range p.instances {
			if p.instances[i].ID == id {
				found = p.live[i]
			}
		}
	})
	return found
}

// eachPeopled visits the fleets that have instances: what that costs does not grow with the number of revisions.
func (a *Autoscaler) eachPeopled(visit func(*published)) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for f := range a.peopled {
		visit(f.published.Load())
	}
}

func (a *Autoscaler) eachPublished(visit func(*fleet, *published)) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, f := range a.fleets {
		visit(f, f.published.Load())
	}
	for f := range a.leaving {
		visit(f, f.published.Load())
	}
}

// Run works until ctx ends or Close has stopped everything. When ctx ends, starts in progress are given up and
// instances stay: Close stops them.
func (a *Autoscaler) Run(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	defer func() { <-a.turn }()
	a.loop(ctx)
	return nil
}

// Close starts nothing more, drains and stops every instance, and returns when none is left. When ctx ends
// before, requests in flight are not waited for any longer, and its error is returned.
func (a *Autoscaler) Close(ctx context.Context) error {
	a.mail.post(func(context.Context) { a.shut() })
	stop := context.AfterFunc(ctx, func() { a.hurryOnce.Do(func() { close(a.hurry) }) })
	defer stop()
	select {
	case <-a.closed:
	case a.turn <- struct{}{}: // Run is not there to do it
		a.loop(context.WithoutCancel(ctx))
		<-a.turn
	}
	a.beside.Wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("draining every instance: %w", err)
	}
	return nil
}

// shut retires every fleet.
func (a *Autoscaler) shut() {
	if a.closing {
		return
	}
	a.closing = true
	a.mu.RLock()
	fleets := make([]*fleet, 0, len(a.fleets))
	for _, f := range a.fleets {
		fleets = append(fleets, f)
	}
	a.mu.RUnlock()
	for _, f := range fleets {
		a.retire(f, "the server stops")
	}
}

// loop handles events one after the other. There is a tick only while a fleet is busy.
func (a *Autoscaler) loop(ctx context.Context) {
	tick := time.NewTimer(a.settings.Tick)
	defer tick.Stop()
	tick.Stop()
	ticking := false
	for {
		if !ticking && len(a.busy) > 0 {
			tick.Reset(a.settings.Tick)
			ticking = true
		}
		select {
		case <-ctx.Done():
			return
		case <-a.closed:
			return
		case <-a.mail.signal:
			for _, event := range a.mail.take() {
				event(ctx)
			}
		case <-tick.C:
			ticking = false
			for f := range a.busy {
				a.look(ctx, f)
			}
			a.tend(time.Now())
		}
		a.startQueued(ctx)
		a.makeRoom(ctx)
		a.refill(ctx)
		a.publish()
		if a.closing && a.members == 0 {
			if !a.finished {
				a.finished = true
				close(a.closed)
			}
			return
		}
	}
}

// publish makes what changed visible, and tells OnChange.
func (a *Autoscaler) publish() {
	a.publishMemory()
	for i, f := range a.changed {
		a.changed[i] = nil
		f.unpublished = false
		before := f.published.Load()
		after := f.snapshot()
		a.show(f, after)
		if f.removed && len(f.members) == 0 {
			a.mu.Lock()
			delete(a.leaving, f)
			a.mu.Unlock()
			if f.gone != nil {
				close(f.gone)
				f.gone = nil
			}
		}
		if a.OnChange != nil && !after.same(before) {
			a.OnChange(f.revision.Key)
		}
		if a.OnInstances != nil && !after.sameInstances(before) {
			a.OnInstances(f.revision.Key)
		}
	}
	a.changed = a.changed[:0]
}

// change marks a fleet to be published at the end of the event.
func (a *Autoscaler) change(f *fleet) {
	if !f.unpublished {
		f.unpublished = true
		a.changed = append(a.changed, f)
	}
}

// show lets the outside see a fleet as it is.
func (a *Autoscaler) show(f *fleet, p *published) {
	if (len(p.instances) > 0) == (len(f.published.Load().instances) > 0) {
		f.published.Store(p)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f.published.Store(p)
	if len(p.instances) > 0 {
		a.peopled[f] = struct{}{}
	} else {
		delete(a.peopled, f)
	}
}

// mailbox holds events for the loop, in order. Posting never waits.
type mailbox struct {
	signal chan struct{} // holds a token while there are events

	mu     sync.Mutex
	events []func(context.Context) // guarded by mu
}

func (m *mailbox) post(event func(context.Context)) {
	m.mu.Lock()
	m.events = append(m.events, event)
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []func(context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	events := m.events
	m.events = nil
	return events
}
