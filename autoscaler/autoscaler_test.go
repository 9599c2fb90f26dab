package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
)

// after lets virtual time pass, and everything that happens in it.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func status(t *testing.T, a *Autoscaler, r Revision) Status {
	t.Helper()
	s, ok := a.Status(r.Key)
	if !ok {
		t.Fatalf("revision %s is not known", r.Key.Revision)
	}
	return s
}

func TestAutoscaler_BurstFromZeroStartsWhatItNeedsAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.StartsAtOnce, settings.PreparedMemory = 4, Amount{}
		e := &fakeEngine{prepare: 50 * time.Millisecond, start: time.Second}
		a := running(t, e, settings)
		r, pool := revision(t, a, "r", 0)
		a.Apply(r)
		for n := 1; n <= 1000; n++ {
			pool.set(n)
		}
		after(30 * time.Second)
		if prepared, started, _ := e.counts(); prepared != 15 || started != 15 {
			t.Errorf("prepared %d and started %d instances for 1,000 requests at 70 each, want 15", prepared, started)
		}
		if e.startsMost > 4 {
			t.Errorf("%d instances started at the same moment, want at most 4", e.startsMost)
		}
	})
}

func TestAutoscaler_PreparedInstanceIsUsedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{prepare: 3 * time.Second, start: 10 * time.Millisecond}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 2)
		a.Apply(r)
		pool.set(1)
		after(3500 * time.Millisecond)
		if s := status(t, a, r); s.Ready != 1 || s.Prepared != 0 {
			t.Fatalf("after the first start: %+v", s)
		}
		after(3 * time.Second) // long enough to prepare another
		for _, i := range a.Instances() {
			if created := time.Since(i.Created); created <= 0 || created > 8*time.Second || i.Since.Before(i.Created) {
				t.Errorf("instance %s: created %s, %s since %s", i.ID, i.Created, i.State, i.Since)
			}
		}
		if s := status(t, a, r); s.Prepared != 1 {
			t.Fatalf("no instance was prepared ahead: %+v", s)
		}
		pool.set(3)
		after(10 * time.Millisecond)
		if s := status(t, a, r); s.Ready != 2 {
			t.Errorf("the prepared instance did not start at once: %+v", s)
		}
	})
}

func TestAutoscaler_StartTakesOverWhatIsBeingPrepared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{prepare: time.Second}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(1)
		after(1500 * time.Millisecond) // half of the second instance is prepared
		pool.set(2)
		after(600 * time.Millisecond)
		if s := status(t, a, r); s.Ready != 2 {
			t.Errorf("the start did not take over the instance being prepared: %+v", s)
		}
	})
}

func TestAutoscaler_MostRecentlyUsedRevisionsHavePreparedInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.PreparedMemory = spares(2)
		e := &fakeEngine{}
		a := running(t, e, settings)
		var revisions []Revision
		var pools []*fakePool
		for i := range 3 {
			r, pool := revision(t, a, fmt.Sprint("r", i), 0)
			a.Apply(r)
			pool.set(1)
			after(time.Second)
			pool.set(0)
			revisions, pools = append(revisions, r), append(pools, pool)
		}
		prepared := func() (got []int) {
			for _, r := range revisions {
				got = append(got, status(t, a, r).Prepared)
			}
			return got
		}
		after(10 * time.Second)
		if diff := cmp.Diff([]int{0, 1, 1}, prepared()); diff != "" {
			t.Errorf("prepared instances of the three (-want +got):\n%s", diff)
		}
		pools[0].set(1)
		pools[0].set(0)
		after(10 * time.Second)
		if diff := cmp.Diff([]int{1, 0, 1}, prepared()); diff != "" {
			t.Errorf("after the first was used (-want +got):\n%s", diff)
		}
		if err := a.Remove(revisions[2].Key)(t.Context()); err != nil {
			t.Fatal(err)
		}
		revisions = revisions[:2]
		after(10 * time.Second)
		if diff := cmp.Diff([]int{1, 1}, prepared()); diff != "" {
			t.Errorf("after the third was removed (-want +got):\n%s", diff)
		}
		revisions[0].Reachable = false
		a.Apply(revisions[0])
		after(time.Second)
		if diff := cmp.Diff([]int{0, 1}, prepared()); diff != "" {
			t.Errorf("after the first was unreachable (-want +got):\n%s", diff)
		}
	})
}

func TestAutoscaler_StalePreparedInstanceIsReplacedWithoutAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(1)
		after(time.Second)
		stale := e.instances[1]
		e.startErr = func(i *fakeInstance) error {
			if i == stale {
				return &engine.StartError{Reason: engine.ReasonEngine, Err: errors.New("its network is gone")}
			}
			return nil
		}
		pool.set(2)
		after(time.Millisecond)
		if s := status(t, a, r); s.Ready != 2 || s.Failure != nil {
			t.Errorf("after a stale start: %+v", s)
		}
		if failed := pool.failed(); len(failed) > 0 {
			t.Errorf("requests were told %v", failed)
		}
	})
}

func TestAutoscaler_WaitingRequestsLearnWhyNothingStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := &engine.StartError{Reason: engine.ReasonNotListening, Port: 8080, Waited: 4 * time.Minute}
		e := &fakeEngine{start: time.Second, startErr: func(*fakeInstance) error { return want }}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(3)
		after(time.Second)
		var got *engine.StartError
		if failed := pool.failed(); len(failed) != 1 || !errors.As(failed[0], &got) || got != want {
			t.Fatalf("waiting requests were told %v, want %v", failed, want)
		}
		if s := status(t, a, r); s.Failure != want || s.Proven {
			t.Errorf("status: %+v", s)
		}
		pool.set(1)
		after(0)
		if failed := pool.failed(); len(failed) != 2 || failed[1] != want {
			t.Errorf("a request in the back-off was told %v", failed)
		}
		after(time.Second)
		pool.set(1)
		after(0)
		if _, started, _ := e.counts(); started != 4 {
			t.Errorf("%d starts, want one more than the first three, after the back-off", started)
		}
		after(time.Second)
		if prepared, _, stopped := e.counts(); stopped != prepared {
			t.Errorf("%d instances were prepared and %d stopped", prepared, stopped)
		}
	})
}

func TestAutoscaler_RequestsWaitWhileOneOfSeveralStartsMaySucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := true
		e := &fakeEngine{start: time.Second}
		e.startErr = func(i *fakeInstance) error {
			e.mu.Lock()
			defer e.mu.Unlock()
			if first {
				first = false
				return errors.New("bad luck")
			}
			return nil
		}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(2)
		after(1500 * time.Millisecond)
		if failed := pool.failed(); len(failed) > 0 {
			t.Errorf("requests were told %v although an instance was starting", failed)
		}
		if got := pool.ready(); got != 1 {
			t.Errorf("%d ready instances, want 1", got)
		}
		after(10 * time.Second)
		if got := pool.ready(); got < 2 {
			t.Errorf("%d ready instances after the back-off, want 2", got)
		}
	})
}

func TestAutoscaler_MissingImageIsPulled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{}
		e.prepareErr = func(engine.Spec) error {
			if e.pulls == 0 {
				return &engine.StartError{Reason: engine.ReasonImageNotPulled}
			}
			return nil
		}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(1)
		after(time.Second)
		if s := status(t, a, r); s.Ready != 1 || e.pulls != 1 {
			t.Errorf("after %d pulls: %+v", e.pulls, s)
		}
	})
}

func TestAutoscaler_MissingImageIsPulledForRequestsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{prepare: time.Second}
		e.prepareErr = func(engine.Spec) error {
			if e.pulls == 0 {
				return &engine.StartError{Reason: engine.ReasonImageNotPulled}
			}
			return nil
		}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		after(500 * time.Millisecond) // an instance is being prepared ahead
		if e.pulls != 0 {
			t.Errorf("pulled %d times though nothing was asked of the revision", e.pulls)
		}
		pool.set(1)
		after(4 * time.Second)
		if s := status(t, a, r); s.Ready != 1 || s.Failure != nil || len(pool.failed()) > 0 {
			t.Errorf("after a request: %+v, requests were told %v", s, pool.failed())
		}
	})
}

func TestAutoscaler_RevisionThatWasReadyBeforeTheServerBeganIsPreparedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.PreparedMemory = spares(1)
		a := running(t, &fakeEngine{}, settings)
		idle, _ := revision(t, a, "idle", 1)
		a.Apply(idle)
		deployed, _ := revision(t, a, "deployed", 1)
		deployed.Prove = true
		after(time.Second)
		if s := status(t, a, idle); s.Prepared != 1 {
			t.Errorf("nothing was prepared for a revision that has been ready: %+v", s)
		}
		a.Apply(deployed)
		after(time.Second)
		if s := status(t, a, deployed); s.Prepared != 1 {
			t.Errorf("nothing was prepared for a revision that was deployed now: %+v", s)
		}
		if s := status(t, a, idle); s.Prepared != 0 {
			t.Errorf("more was prepared than the bound: %+v", s)
		}
	})
}

func TestAutoscaler_RevisionsStartInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.StartsAtOnce, settings.PreparedMemory = 1, Amount{}
		e := &fakeEngine{start: time.Second}
		a := running(t, e, settings)
		proof, _ := revision(t, a, "proof", 1, "initial-scale", "2")
		proof.Prove = true
		many, manyPool := revision(t, a, "many", 1)
		one, onePool := revision(t, a, "one", 1)
		a.Apply(proof)
		a.Apply(many)
		a.Apply(one)
		after(time.Millisecond) // the proof has the only slot
		manyPool.set(4)
		synctest.Wait()
		onePool.set(1)
		after(10 * time.Second)
		var order []string
		for _, i := range e.starts {
			order = append(order, i.spec.Revision)
		}
		want := []string{"proof", "many", "one", "many", "many", "many", "proof"}
		if len(order) > len(want) {
			order = order[:len(want)]
		}
		if diff := cmp.Diff(want, order); diff != "" {
			t.Errorf("order of starts (-want +got):\n%s", diff)
		}
	})
}

func TestAutoscaler_RevisionThatNeverListensDoesNotKeepTheSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.StartsAtOnce = 1
		e := &fakeEngine{start: 4 * time.Minute}
		a := running(t, e, settings)
		stuck, stuckPool := revision(t, a, "stuck", 1)
		other, otherPool := revision(t, a, "other", 1)
		a.Apply(stuck)
		a.Apply(other)
		stuckPool.set(1)
		synctest.Wait()
		otherPool.set(1)
		after(slotTime)
		if s := status(t, a, other); s.Starting != 1 || len(e.starts) != 2 {
			t.Errorf("the other revision does not start: %+v", s)
		}
	})
}

func TestAutoscaler_DrainWaitsForRequestsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.DrainTimeout = 10 * time.Minute
		settings.PreparedMemory = Amount{}
		e := &fakeEngine{}
		a := running(t, e, settings)
		r, pool := revision(t, a, "r", 0)
		a.Apply(r)
		pool.set(1)
		synctest.Wait()
		pool.hold()
		pool.set(0)
		after(5 * time.Minute)
		if s := status(t, a, r); s.Draining != 1 || s.Ready != 0 {
			t.Fatalf("not draining: %+v", s)
		}
		if states := a.Instances(); len(states) != 1 || states[0].State != engine.Draining {
			t.Errorf("instances: %+v", states)
		}
		if _, _, stopped := e.counts(); stopped != 0 {
			t.Error("the instance was stopped although a request is in flight")
		}
		pool.release()
		after(0)
		if _, _, stopped := e.counts(); stopped != 1 {
			t.Error("the instance was not stopped when its last request had ended")
		}

		pool.set(1)
		synctest.Wait()
		pool.hold()
		pool.set(0)
		after(15 * time.Minute)
		if _, _, stopped := e.counts(); stopped != 2 {
			t.Error("the instance was not stopped after the drain timeout")
		}
	})
}

func TestAutoscaler_RemoveDuringAStartLeavesNothing(t *testing.T) {
	for _, moment := range []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			e := &fakeEngine{prepare: time.Second, start: time.Second, stop: time.Second}
			a := running(t, e, DefaultSettings())
			r, pool := revision(t, a, "r", 1)
			a.Apply(r)
			pool.set(2)
			after(moment)
			if err := a.Remove(r.Key)(t.Context()); err != nil {
				t.Fatal(err)
			}
			if prepared, _, stopped := e.counts(); prepared != stopped {
				t.Errorf("removed after %s: %d instances prepared, %d stopped", moment, prepared, stopped)
			}
			if _, ok := a.Status(r.Key); ok || len(a.Instances()) > 0 {
				t.Errorf("removed after %s: still known, instances %v", moment, a.Instances())
			}
			if failed := pool.failed(); moment < 2*time.Second && (len(failed) != 1 || !errors.Is(failed[0], ErrRemoved)) {
				t.Errorf("removed after %s: waiting requests were told %v", moment, failed)
			}
			a.Wake(r.Key)
			if pool.ready() != 0 {
				t.Errorf("removed after %s: the pool has %d instances", moment, pool.ready())
			}
		})
	}
}

func TestAutoscaler_RemoveGivesUpWaitingWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(1)
		synctest.Wait()
		pool.hold()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Remove(r.Key)(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Remove: %v", err)
		}
		// The same name may be used again while the old instance drains.
		again, againPool := revision(t, a, "r", 1)
		a.Apply(again)
		againPool.set(1)
		after(time.Second)
		if s := status(t, a, again); s.Ready != 1 || s.Draining != 0 {
			t.Errorf("declared again: %+v", s)
		}
		pool.release()
		after(0)
		if e.instances[0].stopped != true {
			t.Error("the old instance was not stopped")
		}
	})
}

func TestAutoscaler_CloseWaitsNoLongerThanItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{}
		a := New(e, DefaultSettings(), testLogger(), nil)
		ctx, cancel := context.WithCancel(t.Context())
		go a.Run(ctx)
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(1)
		synctest.Wait()
		pool.hold()
		cancel()
		synctest.Wait()
		limited, done := context.WithTimeout(t.Context(), time.Minute)
		defer done()
		began := time.Now()
		if err := a.Close(limited); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("Close took %s, want the minute it was given", took)
		}
		if prepared, _, stopped := e.counts(); prepared != stopped {
			t.Errorf("%d instances prepared, %d stopped", prepared, stopped)
		}
		if err := a.Close(t.Context()); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// TestAutoscaler_NothingIsLeftWhateverHappens does at random what can be done, closes at a random moment, and counts.
// A goroutine that is left over fails the test: synctest sees it.
func TestAutoscaler_NothingIsLeftWhateverHappens(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			settings := DefaultSettings()
			settings.StartsAtOnce, settings.PreparedMemory = 1+random.IntN(4), spares(random.IntN(4))
			e := &fakeEngine{prepare: 30 * time.Millisecond, start: 300 * time.Millisecond, stop: 50 * time.Millisecond}
			luck := rand.New(rand.NewPCG(seed, 1))
			e.startErr = func(*fakeInstance) error {
				e.mu.Lock()
				defer e.mu.Unlock()
				if luck.IntN(5) == 0 {
					return &engine.StartError{Reason: engine.ReasonEngine, Err: errors.New("bad luck")}
				}
				return nil
			}
			a := New(e, settings, testLogger(), prometheus.NewRegistry())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go a.Run(ctx)
			var revisions []Revision
			var pools []*fakePool
			for i := range 6 {
				r, pool := revision(t, a, fmt.Sprint("r", i), random.IntN(3), "window", "6s", "max-scale", "4")
				a.Apply(r)
				revisions, pools = append(revisions, r), append(pools, pool)
			}
			for range 100 {
				i := random.IntN(len(revisions))
				r, pool := &revisions[i], pools[i]
				switch random.IntN(8) {
				case 0, 1, 2:
					pool.set(random.IntN(10))
				case 3:
					pool.set(0)
				case 4:
					r.Reachable, r.Prove = random.IntN(3) > 0, random.IntN(2) == 0
					a.Apply(*r)
				case 5:
					removed, done := context.WithCancel(ctx)
					done()
					_ = a.Remove(r.Key)(removed) // it goes on by itself
					if random.IntN(2) == 0 {
						a.Apply(*r)
					}
				case 6:
					crashOne(e, random)
				case 7:
					time.Sleep(time.Duration(random.IntN(30)) * time.Second)
				}
				time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
			}
			if random.IntN(2) == 0 {
				cancel()
			}
			if err := a.Close(context.Background()); err != nil {
				t.Errorf("seed %d: Close: %v", seed, err)
			}
			if prepared, started, stopped := e.counts(); prepared != stopped || started == 0 {
				t.Errorf("seed %d: %d instances prepared, %d started, %d stopped", seed, prepared, started, stopped)
			}
			if left := a.Instances(); len(left) > 0 {
				t.Errorf("seed %d: instances listed after Close: %+v", seed, left)
			}
			for i, pool := range pools {
				if pool.ready() > 0 {
					t.Errorf("seed %d: pool %d has %d instances after Close", seed, i, pool.ready())
				}
			}
		})
	}
}

// crashOne ends the user code of an instance that runs.
func crashOne(e *fakeEngine, random *rand.Rand) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, i := range e.instances {
		select {
		case <-i.exited:
		default:
			if i.started && !i.stopped && random.IntN(2) == 0 {
				i.crash(1)
				return
			}
		}
	}
}

func TestAutoscaler_OnChangeTellsEachChangeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(&fakeEngine{start: time.Second}, DefaultSettings(), testLogger(), nil)
		var seen []Status
		a.OnChange = func(key Key) {
			s, _ := a.Status(key) // takes no lock that is held
			seen = append(seen, s)
		}
		run(t, a)
		r, _ := revision(t, a, "r", 1)
		r.Prove = true
		a.Apply(r)
		after(10 * time.Second)
		for range 3 {
			a.Apply(r)
		}
		after(10 * time.Second)
		want := []Status{
			{Desired: 1, Starting: 1},
			{Desired: 1, Ready: 1, Proven: true},
			{Desired: 1, Ready: 1, Proven: true, Prepared: 1},
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
	})
}

func TestAutoscaler_MetricsFollowTheInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.PreparedMemory, settings.InstanceMemory = Amount{}, Amount{Bytes: 1 << 30}
		e := &fakeEngine{start: time.Second}
		registry := prometheus.NewRegistry()
		a := New(e, settings, testLogger(), registry)
		run(t, a)
		r, pool := revision(t, a, "r", 1)
		proof, _ := revision(t, a, "proof", 1)
		proof.Prove = true
		a.Apply(proof) // no request waits for it: not a cold start
		after(time.Second)
		if err := a.Remove(proof.Key)(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Apply(r)
		pool.set(1)
		after(2 * time.Second)
		pool.set(0)
		e.newest().readiness <- false
		e.newest().restart()
		after(0)
		want := []string{
			"berth_cold_starts_total{prepared=no} 1",
			"berth_container_restarts_total{namespace=default,revision=r,service=service-of-r} 1",
			"berth_instance_start_seconds{stage=listen} 2",
			"berth_instance_start_seconds{stage=rootfs} 2",
			"berth_instance_start_seconds{stage=wait} 1",
			"berth_instances{namespace=default,revision=r,service=service-of-r,state=ready} 1",
			"berth_instances_unready{namespace=default,revision=r,service=service-of-r} 1",
			"berth_memory_bytes{kind=limit} 1.073741824e+09",
			"berth_memory_bytes{kind=used} 5.36870912e+08",
			"berth_starts_waiting{} 0",
		}
		if diff := cmp.Diff(want, gather(t, registry)); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
		after(2 * time.Minute)
		atZero := slices.DeleteFunc(want, func(series string) bool { return strings.Contains(series, "revision=r") })
		atZero[slices.Index(atZero, "berth_memory_bytes{kind=used} 5.36870912e+08")] = "berth_memory_bytes{kind=used} 0"
		if diff := cmp.Diff(atZero, gather(t, registry)); diff != "" {
			t.Errorf("metrics at zero (-want +got):\n%s", diff)
		}
	})
}

// gather lists series with their values; histograms with their counts.
func gather(t *testing.T, registry *prometheus.Registry) []string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, label.GetName()+"="+label.GetValue())
			}
			value := metric.GetGauge().GetValue() + metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
			series = append(series, fmt.Sprintf("%s{%s} %g", family.GetName(), strings.Join(labels, ","), value))
		}
	}
	return series
}

func TestAutoscaler_RemoveReturnsWhileCloseWaitsForOthersAndAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{stop: time.Minute}
		settings := DefaultSettings()
		settings.PreparedMemory = Amount{}
		a := New(e, settings, testLogger(), nil)
		go a.Run(t.Context())
		busy, pool := revision(t, a, "busy", 1)
		idle, _ := revision(t, a, "idle", 1)
		late, _ := revision(t, a, "late", 1)
		for _, r := range []Revision{busy, idle, late} {
			a.Apply(r)
		}
		pool.set(1)
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- a.Close(context.Background()) }()
		synctest.Wait()

		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := a.Remove(idle.Key)(ctx); err != nil || time.Since(began) != 0 {
			t.Errorf("removing a revision without instances: %v after %s, want nil at once", err, time.Since(began))
		}
		if err := a.Remove(busy.Key)(ctx); err != nil || time.Since(began) != time.Minute {
			t.Errorf("removing a revision whose instance stops: %v after %s, want nil after a minute", err, time.Since(began))
		}
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := a.Remove(late.Key)(ctx); err != nil {
			t.Errorf("removing a revision after Close: %v", err)
		}
	})
}

func TestAutoscaler_ScalesInTheIdlestInstancesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.PreparedMemory = Amount{}
		e := &fakeEngine{}
		a := running(t, e, settings)
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(5)
		synctest.Wait()
		if len(e.starts) != 5 {
			t.Fatalf("%d instances started, want 5", len(e.starts))
		}
		pool.mu.Lock()
		pool.idlest = []engine.Instance{e.starts[1], e.starts[3], e.starts[0], e.starts[2], e.starts[4]}
		pool.mu.Unlock()
		pool.set(1) // two instances are for it
		after(2 * time.Minute)
		var left []string
		for _, i := range a.Instances() {
			left = append(left, i.ID)
		}
		want := []string{e.starts[2].id, e.starts[4].id}
		slices.Sort(want)
		slices.Sort(left)
		if diff := cmp.Diff(want, left); diff != "" {
			t.Errorf("instances left (-want +got):\n%s", diff)
		}
	})
}
