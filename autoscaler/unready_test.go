package autoscaler

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

func TestAutoscaler_SaysWhichInstanceTakesNoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := New(e, DefaultSettings(), testLogger(), nil)
		var changes atomic.Int64
		a.OnChange = func(Key) { changes.Add(1) }
		run(t, a)
		r, pool := revision(t, a, "r", 0)
		a.Apply(r)
		pool.set(1)
		after(2 * time.Second)
		pool.set(0)
		instance := e.newest()
		one := func() InstanceStatus {
			t.Helper()
			for _, i := range a.Instances() {
				if i.ID == instance.ID() {
					return i
				}
			}
			t.Fatalf("instance %q is not listed in %+v", instance.ID(), a.Instances())
			return InstanceStatus{}
		}

		before := changes.Load()
		instance.readiness <- false
		after(time.Second)
		if got := one(); !got.Unready || got.State != engine.Ready {
			t.Errorf("got %+v, want an unready one in state ready", got)
		}
		if status, _ := a.Status(r.Key); status.Unready != 0 || status.Ready != 1 || changes.Load() != before {
			t.Errorf("after a moment: status %+v, %d changes; want none", status, changes.Load()-before)
		}
		after(unreadyPatience + 2*time.Second)
		if status, _ := a.Status(r.Key); status.Unready != 1 || status.Ready != 1 {
			t.Errorf("after long: status %+v, want 1 ready, unready", status)
		}

		instance.restart()
		if got := one().Containers[0].Restarts; got != 1 {
			t.Errorf("listed with %d restarts, want 1 as soon as it happened", got)
		}
		instance.readiness <- true
		after(time.Second)
		if status, _ := a.Status(r.Key); one().Unready || status.Unready != 0 {
			t.Errorf("takes requests again: %+v, status %+v", one(), status)
		}
		// The same told twice is nothing new: the pool would object.
		instance.readiness <- true
		after(time.Second)
	})
}

func TestAutoscaler_AnInstanceThatDrainsIsToldAndNotListenedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 0)
		a.Apply(r)
		pool.hold()
		pool.set(1)
		after(2 * time.Second)
		instance := e.newest()
		instance.readiness <- false
		after(time.Second)
		wait := a.Remove(r.Key)
		after(time.Second)
		if !instance.drained.Load() {
			t.Error("the instance was not told that it drains")
		}
		instance.readiness <- true // the pool would object to a Resume
		after(time.Second)
		pool.release()
		if err := wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
