package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/berth-run/berth/engine"
)

// ReasonCrashed is the reason of an [engine.StartError] about instances that were ready and then ended by
// themselves, again and again.
const ReasonCrashed = "Crashed"

// begin brings one more instance of a fleet up: the prepared one, the one being prepared, or a new one.
func (a *Autoscaler) begin(ctx context.Context, f *fleet, retry bool) {
	now := time.Now()
	m := a.spares[f]
	switch {
	case m != nil:
		delete(a.spares, f)
		a.refilled = false
	default:
		for _, other := range f.members {
			if other.state == "" && !other.claimed && !other.given {
				m = other
				a.sparing--
				a.refilled = false
			}
		}
	}
	fresh := m == nil
	if fresh {
		m = &member{created: now}
		a.join(f, m)
	}
	m.cold = f.count(engine.Ready)+f.count(engine.Starting) == 0
	m.claimed, m.claimedAt, m.retry = true, now, retry
	a.hold(m, f.size)
	a.takeSlot(m)
	a.change(f)
	switch {
	case fresh:
		a.prepare(ctx, f, m)
	case m.instance != nil:
		a.start(ctx, f, m)
	default:
		close(m.hurry)
	}
}

func (a *Autoscaler) join(f *fleet, m *member) {
	f.members = append(f.members, m)
	a.members++
}

// part forgets a member of which nothing is left.
func (a *Autoscaler) part(f *fleet, m *member) {
	if i := slices.Index(f.members, m); i >= 0 {
		if m.instance != nil {
			f.restarts += restarts(m.instance)
		}
		f.members = slices.Delete(f.members, i, i+1)
		a.members--
		a.hold(m, 0)
		delete(a.room.going, m)
		a.room.dirty = true
		a.refilled = false
	}
	if len(f.members) == 0 {
		f.members = nil
	}
	a.change(f)
}

// enter records that a member is in a state from now on.
func (a *Autoscaler) enter(f *fleet, m *member, state engine.State) {
	m.state, m.since = state, time.Now()
	if state == engine.Draining || state == engine.Stopping {
		a.room.going[m] = struct{}{}
	}
	a.change(f)
}

// step runs one slow step of a member's life beside the loop, and then handles its end in the loop.
func (a *Autoscaler) step(slow func(), end func(ctx context.Context)) {
	a.beside.Go(func() {
		slow()
		a.mail.post(end)
	})
}

func (a *Autoscaler) prepare(ctx context.Context, f *fleet, m *member) {
	ctx, m.cancel = context.WithCancel(ctx)
	var instance engine.Instance
	var err error
	var held int64
	spec, ahead := f.revision.Spec, !m.claimed
	m.spare = ahead
	if ahead {
		m.hurry = make(chan struct{})
	}
	hurry := m.hurry
	a.step(func() {
		if ahead {
			instance, err = a.prepareAhead(ctx, spec, hurry)
		} else {
			instance, err = a.engine.Prepare(ctx, spec)
		}
		switch {
		case !ahead && isMissingImage(err): // nothing is fetched only to have something ready
			instance, err = a.fetchAndPrepare(ctx, spec)
		case ahead && err == nil:
			held = measure(instance)
		}
	}, func(ctx context.Context) {
		if held > 0 {
			f.spareHeld = held
		}
		a.prepared(ctx, f, m, instance, err)
	})
}

func isMissingImage(err error) bool {
	var failure *engine.StartError
	return errors.As(err, &failure) && failure.Reason == engine.ReasonImageNotPulled
}

// fetchAndPrepare prepares an instance whose image has gone from the machine.
func (a *Autoscaler) fetchAndPrepare(ctx context.Context, spec engine.Spec) (engine.Instance, error) {
	if err := a.engine.Pull(ctx, spec, func(engine.Progress) {}); err != nil {
		return nil, fmt.Errorf("pulling image %q: %w", spec.Container.Image, err)
	}
	return a.engine.Prepare(ctx, spec)
}

func (a *Autoscaler) prepared(ctx context.Context, f *fleet, m *member, instance engine.Instance, err error) {
	m.cancel()
	m.cancel = nil
	m.instance = instance
	if !m.claimed {
		a.sparing--
		a.refilled = false
	}
	switch {
	case err != nil:
		a.freeSlot(m)
		a.part(f, m)
		switch {
		case m.given || ctx.Err() != nil || errors.Is(err, context.Canceled):
		case m.claimed && m.spare && isMissingImage(err):
			a.look(ctx, f)
		case m.claimed:
			a.startFailed(ctx, f, m, err)
		default:
			f.unspared = true
			a.log(f, m).Warn("instance not prepared ahead", "error", err)
		}
	case m.given:
		a.freeSlot(m)
		a.stop(f, m, "it is not wanted any more")
	case m.claimed:
		a.start(ctx, f, m)
	default:
		a.enter(f, m, engine.Prepared)
		a.hold(m, f.spareCost())
		a.spares[f] = m
	}
}

func (a *Autoscaler) start(ctx context.Context, f *fleet, m *member) {
	a.enter(f, m, engine.Starting)
	ctx, m.cancel = context.WithCancel(ctx)
	instance := m.instance
	var err error
	a.step(func() {
		err = instance.Start(ctx)
	}, func(ctx context.Context) {
		a.started(ctx, f, m, err)
	})
}

func (a *Autoscaler) started(ctx context.Context, f *fleet, m *member, err error) {
	m.cancel()
	m.cancel = nil
	a.freeSlot(m)
	a.startEnded = time.Now()
	switch {
	case m.given:
		a.stop(f, m, "it is not wanted any more")
	case err != nil:
		a.stop(f, m, "it did not start")
		var failure *engine.StartError
		if errors.Is(err, context.Canceled) {
			return
		}
		if m.spare && errors.As(err, &failure) && failure.Reason == engine.ReasonEngine {
			// It may have gone stale while it lay there. That says nothing of the revision: try a fresh one.
			a.log(f, m).Warn("prepared instance not usable", "error", err)
			a.look(ctx, f)
			return
		}
		a.startFailed(ctx, f, m, err)
	default:
		a.ready(ctx, f, m)
	}
}

// startFailed keeps the reason, and sees to it that requests do not wait in vain.
func (a *Autoscaler) startFailed(ctx context.Context, f *fleet, m *member, err error) {
	var failure *engine.StartError
	if !errors.As(err, &failure) {
		failure = &engine.StartError{Reason: engine.ReasonEngine, Err: err}
	}
	now := time.Now()
	a.settle(f, now)
	f.backoff.startFailed(m.claimedAt, now)
	f.failure, f.lastFailure = failure, failure
	f.failures++
	f.wokenAt = time.Time{}
	a.measures.failed.WithLabelValues(failure.Reason).Inc()
	a.log(f, m).Error("instance not started", "reason", failure.Reason, "error", failure,
		"next", f.backoff.until.Format(time.RFC3339))
	a.tell(f, m, NotStarted, 0, failure.Error())
	a.tellLoop(f)
	a.change(f)
	a.look(ctx, f)
}

func (a *Autoscaler) ready(ctx context.Context, f *fleet, m *member) {
	a.enter(f, m, engine.Ready)
	m.took = m.since.Sub(m.claimedAt)
	f.took(m.took)
	m.leave = make(chan struct{})
	f.proven = true
	f.failure = nil
	f.unspared = false
	f.backoff.until = time.Time{}
	instance, leave := m.instance, m.leave
	a.beside.Go(func() {
		for {
			select {
			case <-instance.Exited():
				a.mail.post(func(ctx context.Context) { a.exited(ctx, f, m) })
				return
			case ready := <-instance.Readiness():
				a.mail.post(func(ctx context.Context) { a.turned(ctx, f, m, ready) })
			case <-leave:
				return
			}
		}
	})
	f.revision.Pool.Add(instance)
	a.measures.started(f, m)
	f.wokenAt = time.Time{}
	attrs := []any{"took", m.took, "prepared", m.spare}
	for _, stage := range instance.Stages() {
		attrs = append(attrs, slog.Duration("stage_"+stage.Name, stage.Took))
	}
	a.log(f, m).Info("instance started", attrs...)
	a.tell(f, m, Started, m.took, "")
	a.rank(f)
	a.look(ctx, f)
}

// turned handles an instance that has become ready and takes no requests for a while, or takes them again. It stays
// one of the fleet's ready instances: load decides as if it were back soon, and starts no other in its place unless
// requests wait for long.
func (a *Autoscaler) turned(ctx context.Context, f *fleet, m *member, ready bool) {
	f.turns++
	a.change(f)
	if m.state != engine.Ready || ready != m.isUnready() {
		return
	}
	now := time.Now()
	if ready {
		f.revision.Pool.Resume(m.instance)
		a.log(f, m).Info("instance takes requests again", "after", now.Sub(m.unreadySince))
		a.tell(f, m, Recovered, now.Sub(m.unreadySince), "")
		m.unreadySince = time.Time{}
	} else {
		f.revision.Pool.Suspend(m.instance)
		why := whyUnready(m.instance.Containers())
		a.log(f, m).Warn("instance takes no requests", "reason", why)
		a.tell(f, m, Unready, 0, why)
		m.unreadySince = now
	}
	a.look(ctx, f)
}

// exited handles an instance that ended by itself.
func (a *Autoscaler) exited(ctx context.Context, f *fleet, m *member) {
	if m.state != engine.Ready {
		return
	}
	now, exit := time.Now(), m.instance.Exit()
	close(m.leave)
	f.revision.Pool.Remove(m.instance) // its requests have lost their connections: nothing to wait for
	f.backoff.exited(m.since, now)
	if f.backoff.failures > 0 {
		f.lastFailure = f.crashed(exit, now.Sub(m.since))
	}
	if f.backoff.active() {
		f.failure = f.lastFailure
		f.failures++
	}
	a.log(f, m).Warn("instance exited", "exit", exit.String(), "after", now.Sub(m.since))
	a.tell(f, m, Exited, now.Sub(m.since), exit.String())
	a.tellLoop(f)
	a.stop(f, m, "it exited")
	a.look(ctx, f)
}

// crashed says that an instance ended by itself after it had been ready for so long.
func (f *fleet) crashed(exit engine.Exit, after time.Duration) error {
	row, remedy := "", ""
	if f.backoff.loops() {
		row = fmt.Sprintf(", and did so %d times in a row", f.backoff.failures)
	}
	if exit.OOM {
		remedy = "; raise the memory limit"
	}
	return &engine.StartError{
		Reason:    ReasonCrashed,
		Exit:      &exit,
		Port:      f.revision.Spec.Container.Port,
		LastLines: exit.LastLines,
		Err:       fmt.Errorf("the container %s %s after it was ready%s%s", exit, after.Round(time.Millisecond), row, remedy),
	}
}

// drain takes a ready instance from its pool, and stops it when its requests have ended.
func (a *Autoscaler) drain(f *fleet, m *member, reason string) {
	a.settle(f, time.Now())
	close(m.leave)
	a.enter(f, m, engine.Draining)
	if probed, ok := m.instance.(interface{ Drain() }); ok {
		probed.Drain()
	}
	ended, instance := f.revision.Pool.Remove(m.instance), m.instance
	a.step(func() {
		limit := time.NewTimer(a.settings.DrainTimeout)
		defer limit.Stop()
		select {
		case <-ended:
		case <-instance.Exited():
		case <-a.hurry:
		case <-limit.C:
		}
	}, func(context.Context) {
		a.stop(f, m, reason)
	})
}

// stop ends a member that takes no request (any more).
func (a *Autoscaler) stop(f *fleet, m *member, reason string) {
	drained := m.state == engine.Draining
	a.enter(f, m, engine.Stopping)
	if a.spares[f] == m {
		delete(a.spares, f)
	}
	begun := m.since
	instance, grace := m.instance, a.settings.StopGrace
	a.step(func() {
		instance.Stop(grace)
	}, func(context.Context) {
		a.log(f, m).Info("instance stopped", "reason", reason, "took", time.Since(begun))
		if drained { // the others have been told of
			a.tell(f, m, Stopped, 0, reason)
		}
		a.part(f, m)
	})
}

func (a *Autoscaler) log(f *fleet, m *member) *slog.Logger {
	logger := a.logger.With("service", f.revision.Spec.Service, "revision", f.revision.Key.Revision)
	if m.instance != nil {
		logger = logger.With("instance", m.instance.ID())
	}
	return logger
}
