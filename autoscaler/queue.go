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

// pop takes the fleet whose turn it is, or nil.
func (q *startQueue) pop() (*fleet, urgency) {
	for why := range q.lanes {
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

// startQueued begins starts while there are slots.
func (a *Autoscaler) startQueued(ctx context.Context) {
	for a.slots > 0 && !a.closing {
		f, why := a.queue.pop()
		if f == nil {
			return
		}
		missing := f.missing()
		if f.removed || missing <= 0 || f.backoff.active() {
			continue
		}
		a.begin(ctx, f)
		if missing > 1 {
			a.queue.push(f, why)
		}
	}
}

// slotTime is how long a start holds its slot at most. Starting takes CPU at first and patience later; revisions
// that never listen must not keep the others from starting.
const slotTime = 5 * time.Second

func (a *Autoscaler) takeSlot(m *member) {
	a.slots--
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

// rank gives a fleet its place among those that may have a prepared instance, or takes it away. One that is not
// to be proved any more was proven before this server began: it comes after those that were used.
func (a *Autoscaler) rank(f *fleet) {
	may := f.revision.Reachable && !f.removed && (f.proven || f.declared && !f.revision.Prove)
	switch {
	case may && f.recent == nil && f.proven:
		f.recent = a.recent.PushFront(f)
	case may && f.recent == nil:
		f.recent = a.recent.PushBack(f)
	case !may && f.recent != nil:
		a.recent.Remove(f.recent)
		f.recent = nil
	}
	a.refilled = false
}

// touch records that a fleet was used.
func (a *Autoscaler) touch(f *fleet) {
	if f.recent != nil && a.recent.Front() != f.recent {
		a.recent.MoveToFront(f.recent)
		a.refilled = a.refilled && a.spares[f] != nil
	}
}

// refill sees to it that the most recently used fleets, and only those, have one prepared instance each. It makes
// one at a time, and only while nothing starts: it is work ahead, and gives way to work that is waited for.
func (a *Autoscaler) refill(ctx context.Context) {
	if a.refilled || a.closing || a.sparing > 0 || a.starting() {
		return
	}
	a.refilled = true
	entitled := make(map[*fleet]bool, a.settings.Prepared)
	var next *fleet
	for e := a.recent.Front(); e != nil && len(entitled) < a.settings.Prepared; e = e.Next() {
		f := e.Value.(*fleet)
		entitled[f] = true
		if next == nil && a.spares[f] == nil && !f.unspared && f.failure == nil {
			next = f
		}
	}
	for f, m := range a.spares {
		if !entitled[f] {
			a.stop(f, m, "other revisions were used more recently")
		}
	}
	if next == nil {
		return
	}
	m := &member{created: time.Now()}
	a.join(next, m)
	a.sparing++
	a.prepare(ctx, next, m)
}
