package gateway

import (
	"fmt"
	"time"

	"github.com/berth-run/berth/engine"
)

// Between requests the instances of a throttled revision have no CPU (contract C66, KY16). One that has had no request for
// Revision.IdleDelay is frozen, and thawed before the next request is sent to it. There is one timer for each revision, set
// when an instance becomes idle and none is set yet: a request sets no timer of its own.
//
// An instance is asleep from the moment that it is chosen to be frozen until it has been thawed. It falls asleep only while
// it has no request, under the activator's mutex, where claims are made too: so whoever has claimed one sees whether it
// sleeps, and has to call wake before a byte is sent. Freezing and thawing are writes to the kernel that may wait for it,
// and are made without that mutex, one at a time for each instance.

// retryIn is when the timer looks again at instances that became idle while others were being frozen.
const retryIn = time.Millisecond

// rested is called, with mu held, when an instance may have become idle.
func (a *Activator) rested(m *member, now time.Time) {
	if m.inFlight > 0 {
		return
	}
	m.idleSince = now
	if a.revision.Throttled && !a.cooling && m.linked && !m.unfreezable {
		a.cooling = true
		a.cool(a.revision.IdleDelay)
	}
}

// cool sets the revision's timer. It is called with mu held.
func (a *Activator) cool(in time.Duration) {
	if a.cooler == nil {
		a.cooler = time.AfterFunc(in, a.freezeIdle)
		return
	}
	a.cooler.Reset(in)
}

// freezeIdle freezes the instances that have been idle for long enough, and comes again while others are idle.
func (a *Activator) freezeIdle() {
	a.mu.Lock()
	var due []*member
	now := time.Now()
	a.eachAwake(func(m *member) {
		if now.Sub(m.idleSince) >= a.revision.IdleDelay {
			m.asleep.Store(true)
			due = append(due, m)
		}
	})
	a.mu.Unlock()
	for _, m := range due {
		a.freeze(m)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cooling = false
	now = time.Now()
	next := a.revision.IdleDelay
	a.eachAwake(func(m *member) {
		a.cooling = true
		next = min(next, a.revision.IdleDelay-now.Sub(m.idleSince))
	})
	if a.cooling {
		a.cool(max(next, retryIn))
	}
}

// eachAwake visits the listed instances that have no request and can be frozen. It is called with mu held.
func (a *Activator) eachAwake(visit func(*member)) {
	if len(a.balancer.levels) == 0 {
		return
	}
	for m := a.balancer.levels[0].first; m != nil; m = m.next {
		if !m.asleep.Load() && !m.unfreezable {
			visit(m)
		}
	}
}

// freeze takes the CPU from an instance that was chosen for it, unless a request has come for it meanwhile.
func (a *Activator) freeze(m *member) {
	m.power.Lock()
	defer m.power.Unlock()
	a.mu.Lock()
	still := m.asleep.Load() && m.inFlight == 0 && m.linked
	if !still {
		m.asleep.Store(false)
	}
	a.mu.Unlock()
	if !still {
		return
	}
	// Its connections are from before: an instance may end them all as soon as it has the CPU again, for its timers go on.
	m.conns.renew()
	err := m.instance.Freeze()
	if err == nil {
		return
	}
	a.mu.Lock()
	m.asleep.Store(m.instance.Frozen()) // a part of it may be, and must be thawed
	m.unfreezable = true
	a.mu.Unlock()
	if a.revision.FreezeFailed != nil && !hasExited(m.instance) {
		a.revision.FreezeFailed(m.id, err)
	}
}

// mustWake tells whether wake must be called before a request is sent to an instance that was claimed. It costs nothing
// where instances are not throttled.
func (a *Activator) mustWake(m *member) bool { return a.revision.Throttled && m.asleep.Load() }

// wake gives the CPU back to an instance. It may wait for the kernel. An instance that cannot be thawed gets no requests for
// a moment, and the error wraps errUnreachable.
func (a *Activator) wake(m *member) error {
	if !a.mustWake(m) {
		return nil
	}
	m.power.Lock()
	defer m.power.Unlock()
	if !m.asleep.Load() {
		return nil // another request has done it
	}
	begun := time.Now()
	if err := m.instance.Thaw(); err != nil {
		a.setAside(m)
		return fmt.Errorf("%w: thawing instance %q: %w", errUnreachable, m.id, err)
	}
	m.thawed.Store(&engine.Stage{Name: stageThaw, Begun: begun, Took: time.Since(begun)})
	a.mu.Lock()
	defer a.mu.Unlock()
	m.asleep.Store(false)
	if m.linked {
		a.rested(m, time.Now()) // whoever claimed it may be gone
	}
	return nil
}

// woken is the end of a claim that may have to wake its instance: when that fails the claim is given back.
func (a *Activator) woken(m *member, err error) (*member, error) {
	if err != nil {
		return nil, err
	}
	if err := a.wake(m); err != nil {
		a.release(m, time.Now())
		return nil, err
	}
	return m, nil
}

// Idle tells since when an instance has had no request, and whether its CPU is withheld meanwhile. The time is zero while it
// has one, and for an instance that is unknown, suspended or taken back.
func (a *Activator) Idle(instance engine.Instance) (since time.Time, frozen bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.members[instance.ID()]
	if m == nil || m.inFlight > 0 || !m.linked {
		return time.Time{}, false
	}
	return m.idleSince, m.asleep.Load()
}

// Spread tells over how many instances requests are to be spread. While so many have requests, and room for more
// (Revision.Room), frozen ones are left alone: they are kept for when the load is back, and age meanwhile.
func (a *Activator) Spread(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.balancer.spread = n
}
