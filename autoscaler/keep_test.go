package autoscaler

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

// idle makes instances of a pool idle and frozen since now, as the gateway does; the first is the one used longest ago.
func (p *fakePool) idle(instances ...*fakeInstance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idlest = nil
	for _, i := range instances {
		i.idleSince.Store(time.Now().UnixNano())
		i.frozen.Store(true)
		p.idlest = append(p.idlest, i)
	}
}

// throttled starts a revision with n instances that are frozen and idle since a second later each; it is at 0 requests.
func throttled(t *testing.T, a *Autoscaler, e *fakeEngine, name string, n int, annotations ...string) (Revision, *fakePool, []*fakeInstance) {
	t.Helper()
	r, pool := revision(t, a, name, 1, annotations...)
	r.Throttled = true
	e.mu.Lock()
	began := len(e.starts)
	e.mu.Unlock()
	a.Apply(r) // a least number starts some at once
	pool.set(n)
	after(2 * time.Second)
	if got := status(t, a, r); got.Ready != n {
		t.Fatalf("status %+v, want %d ready", got, n)
	}
	pool.set(0)
	instances := append([]*fakeInstance(nil), e.starts[began:]...)
	pool.idle(instances...)
	for n, i := range instances {
		i.idleSince.Add(int64(n) * int64(time.Second))
	}
	return r, pool, instances
}

func TestAutoscaler_KeepsFrozenInstancesForTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := running(t, e, DefaultSettings())
		r, _, instances := throttled(t, a, e, "r", 3)
		after(14 * time.Minute)
		if got := status(t, a, r); got.Ready != 3 || got.Desired != 0 {
			t.Errorf("after 14 minutes: %+v, want 3 kept and 0 desired", got)
		}
		for _, i := range a.Instances() {
			if i.State == engine.Ready || i.State == engine.Idle && time.Since(i.Since) < 13*time.Minute {
				t.Errorf("instance %s is %s since %v, want idle since its last request", i.ID, i.State, time.Since(i.Since))
			}
		}
		instances[2].idleSince.Store(time.Now().UnixNano()) // it was used
		after(2 * time.Minute)
		if got := status(t, a, r); got.Ready != 1 || instances[2].isStopped() {
			t.Errorf("after 16 minutes: %+v, want the one left that was used", got)
		}
		after(15 * time.Minute)
		if got := status(t, a, r); got.Ready != 0 {
			t.Errorf("after 31 minutes: %+v, want none", got)
		}
	})
}

func TestAutoscaler_KeepsTheLeastNumberForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := running(t, e, DefaultSettings())
		r, _, _ := throttled(t, a, e, "r", 3, "min-scale", "2")
		after(24 * time.Hour)
		if got := status(t, a, r); got.Ready != 2 {
			t.Errorf("after a day: %+v, want the 2 of min-scale", got)
		}
	})
}

func TestAutoscaler_DoesNotKeepInstancesThatNoRouteLeadsTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := running(t, e, DefaultSettings())
		r, _, _ := throttled(t, a, e, "r", 3)
		r.Reachable = false
		a.Apply(r)
		after(2 * time.Minute)
		if got := status(t, a, r); got.Ready != 0 {
			t.Errorf("after two minutes: %+v, want none", got)
		}
	})
}

func TestAutoscaler_DoesNotKeepWhatCannotBeFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := running(t, e, DefaultSettings())
		r, _, instances := throttled(t, a, e, "r", 3)
		for _, i := range instances {
			i.frozen.Store(false)
		}
		after(2 * time.Minute)
		if got := status(t, a, r); got.Ready != 0 {
			t.Errorf("after two minutes: %+v, want none", got)
		}
	})
}

// Frozen instances beyond those wanted are none for the decision: it goes down as if they were not there, and up without
// starting others in their place.
func TestAutoscaler_UsesKeptInstancesBeforeItStartsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := running(t, e, DefaultSettings())
		r, pool, instances := throttled(t, a, e, "r", 8)
		after(5 * time.Minute)
		if pool.spread != 0 {
			t.Errorf("requests are to be spread over %d instances, want 0", pool.spread)
		}
		for _, i := range instances[5:] { // used, and not idle any more
			i.frozen.Store(false)
		}
		pool.mu.Lock()
		pool.idlest = pool.idlest[:5]
		pool.mu.Unlock()
		pool.set(3)
		after(time.Minute)
		if got := status(t, a, r); got.Ready != 8 || got.Starting != 0 || got.Desired == 0 || got.Desired > 5 {
			t.Errorf("with 3 requests: %+v, want no start, and a number wanted by the load", got)
		}
		if _, started, _ := e.counts(); started != 8 {
			t.Errorf("%d were started, want 8", started)
		}
		pool.set(10)
		after(time.Minute)
		if got := status(t, a, r); got.Ready < 10 {
			t.Errorf("with 10 requests: %+v, want 10 at least", got)
		}
	})
}

func TestRelieve_ReclaimsTheOldestFirstAndThenStops(t *testing.T) {
	at := time.Unix(1000, 0)
	idle := func(age int, memory int64, reclaimed, needed bool) frozen {
		return frozen{since: at.Add(-time.Duration(age) * time.Minute), memory: memory, reclaimed: reclaimed, needed: needed}
	}
	ages := func(of []frozen) (all []int) {
		for _, i := range of {
			all = append(all, int(at.Sub(i.since)/time.Minute))
		}
		return all
	}
	for name, c := range map[string]struct {
		short         int64
		idle          []frozen
		reclaim, stop []int
	}{
		"nothing is short":                   {0, []frozen{idle(1, 100, false, false)}, nil, nil},
		"nobody is idle":                     {100, nil, nil, nil},
		"the oldest is enough":               {100, []frozen{idle(1, 100, false, false), idle(3, 100, false, false)}, []int{3}, nil},
		"two are needed":                     {150, []frozen{idle(1, 100, false, false), idle(3, 100, false, false), idle(2, 100, false, false)}, []int{3, 2}, nil},
		"those of the least number too":      {150, []frozen{idle(1, 100, false, true), idle(3, 100, false, true)}, []int{3, 1}, nil},
		"what was reclaimed is left":         {100, []frozen{idle(1, 100, false, false), idle(3, 100, true, false)}, []int{1}, nil},
		"then the oldest are stopped":        {150, []frozen{idle(1, 100, true, false), idle(3, 100, true, false), idle(2, 100, true, false)}, nil, []int{3, 2}},
		"but not those of the least number":  {150, []frozen{idle(3, 100, true, true), idle(1, 100, true, false)}, nil, []int{1}},
		"nor any but the needed can be":      {150, []frozen{idle(3, 100, true, true)}, nil, nil},
		"one of unknown memory counts":       {1, []frozen{idle(3, 0, true, false), idle(2, 0, true, false)}, nil, []int{3}},
		"one of unknown memory is reclaimed": {1, []frozen{idle(3, 0, false, false), idle(2, 5, false, false)}, []int{3, 2}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			reclaim, stop := relieve(c.short, c.idle)
			if diff := cmp.Diff([][]int{c.reclaim, c.stop}, [][]int{ages(reclaim), ages(stop)}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAutoscaler_RelievesAMachineThatIsShortOfMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var available atomic.Int64
		available.Store(1000)
		settings := DefaultSettings()
		settings.MemoryReserve = Amount{Percent: 10}
		settings.MachineMemory = 10000
		settings.PreparedMemory, settings.InstanceMemory = Amount{}, Amount{}
		settings.MemoryAvailable = func() (int64, error) { return available.Load(), nil }
		e := &fakeEngine{start: time.Second}
		e.usage = func(*fakeInstance) (engine.Usage, error) { return engine.Usage{Memory: 300}, nil }
		e.reclaim = func(*fakeInstance) (int64, error) { return 0, nil } // there is no swap
		a := running(t, e, settings)
		r, _, instances := throttled(t, a, e, "r", 3)
		other, _, others := throttled(t, a, e, "other", 1, "min-scale", "1")
		after(5 * time.Minute)
		reclaims := func() (all []int64) {
			for _, i := range append(instances, others...) {
				all = append(all, i.reclaims.Load())
			}
			return all
		}
		if diff := cmp.Diff([]int64{0, 0, 0, 0}, reclaims()); diff != "" {
			t.Errorf("with enough memory, reclaimed (-want +got):\n%s", diff)
		}
		available.Store(600)
		after(pressureTick + settings.Tick)
		if diff := cmp.Diff([]int64{1, 1, 0, 0}, reclaims()); diff != "" {
			t.Errorf("400 bytes too few, reclaimed (-want +got):\n%s", diff)
		}
		after(pressureTick + settings.Tick)
		if diff := cmp.Diff([]int64{1, 1, 1, 1}, reclaims()); diff != "" {
			t.Errorf("still too few, reclaimed (-want +got):\n%s", diff)
		}
		if got := status(t, a, r); got.Ready != 3 {
			t.Errorf("%+v, want none stopped before all are reclaimed", got)
		}
		after(pressureTick + settings.Tick)
		if got := status(t, a, r); got.Ready != 1 || instances[2].isStopped() {
			t.Errorf("%+v, want the one left that was used last", got)
		}
		available.Store(1000)
		after(5 * time.Minute)
		if got := status(t, a, r); got.Ready != 1 {
			t.Errorf("%+v, want nothing more stopped", got)
		}
		available.Store(0)
		after(time.Minute)
		if got := status(t, a, other); got.Ready != 1 {
			t.Errorf("%+v, want the one of min-scale to stay", got)
		}
		if diff := cmp.Diff([]int64{1, 1, 1, 1}, reclaims()); diff != "" {
			t.Errorf("nobody was used, reclaimed again (-want +got):\n%s", diff)
		}
		others[0].idleSince.Store(time.Now().UnixNano())
		after(pressureTick + settings.Tick)
		if diff := cmp.Diff([]int64{1, 1, 1, 2}, reclaims()); diff != "" {
			t.Errorf("one was used, reclaimed (-want +got):\n%s", diff)
		}
	})
}

// isStopped tells whether Stop was called.
func (i *fakeInstance) isStopped() bool {
	i.engine.mu.Lock()
	defer i.engine.mu.Unlock()
	return i.stopped
}
