package autoscaler

import (
	"context"
	"time"
)

// urgency is why a fleet should start an instance. Those with the smaller number go first.
type urgency int8

const (
	notQueued   urgency = iota
	forRequests         // requests wait
	forLoad             // averages, or the least number
	forProof            // a deploy
	forRetry            // any of these, for a revision whose last starts have come to nothing
	urgencies
)

// startQueue holds the fleets that want to start instances when a slot is free. Each takes one slot in turn.
type startQueue struct {
	lanes [urgencies][]*fleet
}

// push queues a fleet, or moves it to a more urgent lane. Its old place stays behind and is skipped.
func (q *startQueue) push(f *fleet, why urgency) {
	if f.queued != notQueued && f.queued <= why {
		return
	}
	f.queued = why
	q.lanes[why] = append(q.lanes[why], f)
}

// pop takes the fleet whose turn it is, of those at least as urgent as the last that may be, or nil.
func (q *startQueue) pop(last urgency) (*fleet, urgency) {
	for why := range q.lanes[:last+1] {
		lane := &q.lanes[why]
		for len(*lane) > 0 {
			f := (*lane)[0]
			(*lane)[0] = nil
			*lane = (*lane)[1:]
			if f.queued == urgency(why) {
				f.queued = notQueued
				return f, urgency(why)
			}
		}
		*lane = nil
	}
	return nil, notQueued
}

// startQueued begins starts while there are slots. Tries of what has failed before take half of them at most: what
// starts well does not wait for what does not.
func (a *Autoscaler) startQueued(ctx context.Context) {
	for a.slots > 0 && !a.closing {
		last := forRetry
		if !a.mayRetry() {
			last = forProof
		}
		f, why := a.queue.pop(last)
		if f == nil {
			return
		}
		missing := f.missing()
		if f.removed || missing <= 0 || f.backoff.active() {
			continue
		}
		if !a.admits(ctx, f) {
			continue
		}
		a.begin(ctx, f, why == forRetry)
		if missing > 1 {
			a.queue.push(f, why)
		}
	}
}

// mayRetry tells whether a slot may be taken by a try of what has failed before.
func (a *Autoscaler) mayRetry() bool { return a.retrying < max(1, a.settings.StartsAtOnce/2) }

// slotTime is how long a start holds its slot at most. Starting takes CPU at first and patience later; revisions
// that never listen must not keep the others from starting.
const slotTime = 5 * time.Second

func (a *Autoscaler) takeSlot(m *member) {
	a.slots--
	if m.retry {
		a.retrying++
	}
	m.slot = time.AfterFunc(slotTime, func() {
		a.mail.post(func(context.Context) { a.freeSlot(m) })
	})
}

// freeSlot gives a member's slot to the next, once.
func (a *Autoscaler) freeSlot(m *member) {
	if m.slot != nil {
		m.slot.Stop()
		m.slot = nil
		a.slots++
		if m.retry {
			a.retrying--
		}
		a.room.dirty = true
	}
}

// starting tells whether a start holds a slot or waits for one.
func (a *Autoscaler) starting() bool {
	if a.slots < max(1, a.settings.StartsAtOnce) {
		return true
	}
	for _, lane := range a.queue.lanes {
		if len(lane) > 0 {
			return true
		}
	}
	return false
}
