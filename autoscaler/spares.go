package autoscaler

import (
	"context"
	"time"

	"github.com/berth-run/berth/engine"
)

const (
	// spareBound is what a prepared instance is taken to hold for each of its containers, at least.
	spareBound = 3 << 19
	// quietTime is how long after a start nothing is prepared: the request that was waited for is answered first.
	quietTime = 20 * time.Millisecond
	// sparePatience bounds how long starts keep prepared instances from being made: where revisions wake all the time,
	// one is made in so much time.
	sparePatience = time.Second
	// skippedMost bounds how many revisions are passed over whose prepared instance holds more than all may.
	skippedMost = 100
)

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

// spareCost is what a prepared instance of the fleet counts for: the bound, or what one was measured to hold where that is
// more. The measure alone would be too little: what the runtime took before it joined the cgroup is not in it.
func (f *fleet) spareCost() int64 {
	return max(f.spareHeld, spareBound*int64(1+len(f.revision.Spec.Sidecars)))
}

// refill sees to it that the most recently used fleets, and only those, have one prepared instance each, within the
// memory for them. It makes one at a time, and only a moment after the last start: it is work ahead, and gives way to
// work that is waited for.
func (a *Autoscaler) refill(ctx context.Context) {
	if a.refilled || a.closing || a.sparing > 0 || !a.isQuiet(time.Now()) {
		return
	}
	a.refilled = true
	entitled, next := a.entitled()
	for f, m := range a.spares {
		if !entitled[f] {
			a.stop(f, m, "other revisions were used more recently")
		}
	}
	if next == nil || a.room.total > 0 && (len(a.room.short) > 0 || a.room.used+next.spareCost() > a.room.total) {
		return
	}
	m := &member{created: time.Now()}
	a.join(next, m)
	a.hold(m, next.spareCost())
	a.sparing++
	a.prepare(ctx, next, m)
}

// entitled returns the fleets that may have a prepared instance, and the first of them that is to get one.
func (a *Autoscaler) entitled() (all map[*fleet]bool, next *fleet) {
	all = make(map[*fleet]bool, len(a.spares)+1)
	left, skipped := a.settings.PreparedMemory.Of(a.settings.MachineMemory), 0
	if left <= 0 {
		return all, nil
	}
	most := left
	for e := a.recent.Front(); e != nil && skipped < skippedMost; e = e.Next() {
		f := e.Value.(*fleet)
		cost := f.spareCost()
		if cost > most {
			skipped++
			continue
		}
		// What is used less must not stay while what is used more has to go.
		if left -= cost; left < 0 {
			break
		}
		all[f] = true
		if next == nil && a.spares[f] == nil && !f.unspared && f.failure == nil {
			next = f
		}
	}
	return all, next
}

// isQuiet tells whether prepared instances may be made now. When not, the loop comes back as soon as they may.
func (a *Autoscaler) isQuiet(now time.Time) bool {
	if a.spareDue.IsZero() {
		a.spareDue = now.Add(sparePatience)
	}
	wait := a.spareDue.Sub(now)
	if !a.starting() {
		wait = min(wait, a.startEnded.Add(quietTime).Sub(now))
	}
	if wait <= 0 {
		a.spareDue = time.Time{}
		return true
	}
	if a.spareTimer == nil {
		a.spareTimer = time.AfterFunc(wait, func() { a.mail.post(func(context.Context) {}) })
	} else {
		a.spareTimer.Reset(wait)
	}
	return false
}

// prepareAhead prepares an instance that nobody waits for until hurry is closed, at a low priority where the engine can.
func (a *Autoscaler) prepareAhead(ctx context.Context, spec engine.Spec, hurry <-chan struct{}) (engine.Instance, error) {
	if patient, ok := a.engine.(interface {
		PrepareAhead(ctx context.Context, spec engine.Spec, hurry <-chan struct{}) (engine.Instance, error)
	}); ok {
		return patient.PrepareAhead(ctx, spec, hurry)
	}
	return a.engine.Prepare(ctx, spec)
}

// measure returns what a prepared instance holds, in bytes; 0 when the engine cannot tell.
func measure(instance engine.Instance) int64 {
	usage, err := instance.Usage()
	if err != nil {
		return 0 // the bound counts
	}
	return usage.Memory
}
