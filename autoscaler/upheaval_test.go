package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

// ledgerIn returns what does not add up of what the loop counts.
func ledgerIn(a *Autoscaler) error {
	var errs []error
	var used int64
	members, preparing, slots, retrying := 0, 0, 0, 0
	a.mu.RLock()
	fleets := make([]*fleet, 0, len(a.fleets)+len(a.leaving))
	for _, f := range a.fleets {
		fleets = append(fleets, f)
	}
	for f := range a.leaving {
		fleets = append(fleets, f)
	}
	a.mu.RUnlock()
	for _, f := range fleets {
		for _, m := range f.members {
			members++
			used += m.held
			if m.state == "" && !m.claimed {
				preparing++
			}
			if m.slot != nil {
				slots++
				if m.retry {
					retrying++
				}
			}
			if m.claimed && m.held != f.size {
				errs = append(errs, fmt.Errorf("an instance of %s counts for %d bytes, want %d", f.revision.Key.Revision, m.held, f.size))
			}
		}
		if m := a.spares[f]; m != nil && (m.state != engine.Prepared || m.claimed) {
			errs = append(errs, fmt.Errorf("the prepared instance of %s is %q", f.revision.Key.Revision, m.state))
		}
	}
	for _, what := range []struct {
		name      string
		got, want int64
	}{
		{"memory", a.room.used, used},
		{"instances", int64(a.members), int64(members)},
		{"instances being prepared ahead", int64(a.sparing), int64(preparing)},
		{"slots", int64(a.slots), int64(a.settings.StartsAtOnce - slots)},
		{"slots of tries", int64(a.retrying), int64(retrying)},
	} {
		if what.got != what.want {
			errs = append(errs, fmt.Errorf("%s: %d are counted, and there are %d", what.name, what.got, what.want))
		}
	}
	if limit := a.room.total; a.room.used > limit {
		errs = append(errs, fmt.Errorf("%d bytes are used, of %d", a.room.used, limit))
	}
	return errors.Join(errs...)
}

// Whatever goes wrong with instances, and whatever is asked for meanwhile: nothing of the memory and of the slots is lost
// or given twice, and when all is well again every revision gets what it needs.
func TestAutoscaler_LosesNoMemoryAndNoSlotInAnUpheaval(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { upheaval(t, rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))) })
		})
	}
}

func upheaval(t *testing.T, random, faults *rand.Rand) {
	var mu sync.Mutex // of faults and well
	well := false
	chance := func(of int) bool {
		mu.Lock()
		defer mu.Unlock()
		return !well && faults.IntN(of) == 0
	}
	e := &fakeEngine{prepare: 30 * time.Millisecond, start: 100 * time.Millisecond, stop: 50 * time.Millisecond}
	e.prepareErr = func(engine.Spec) error {
		switch {
		case chance(8):
			return &engine.StartError{Reason: engine.ReasonImageNotPulled, Err: errors.New("it is gone")}
		case chance(8):
			return errors.New("no address is left")
		}
		return nil
	}
	e.startErr = func(i *fakeInstance) error {
		switch {
		case chance(6):
			return &engine.StartError{Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 1}}
		case chance(6):
			return &engine.StartError{Reason: engine.ReasonEngine, Err: errors.New("it was stale")}
		}
		return nil
	}
	settings := DefaultSettings()
	settings.StartsAtOnce = 4
	settings.InstanceMemory, settings.PreparedMemory = Amount{Bytes: 3 << 30}, Amount{Bytes: 8 << 20}
	a := New(e, settings, testLogger(), nil)
	run(t, a)
	var revisions []Revision
	var pools []*fakePool
	declare := func(n int) {
		r, pool := revision(t, a, fmt.Sprintf("r-%02d", n), 1+random.IntN(3))
		r.Spec.Container.Memory = int64(1+random.IntN(8)) << 28 / 2
		revisions[n], pools[n] = r, pool
		a.Apply(r)
	}
	const count = 10
	revisions, pools = make([]Revision, count), make([]*fakePool, count)
	for n := range count {
		declare(n)
	}
	check := func() {
		t.Helper()
		synctest.Wait()
		looked := make(chan error)
		a.mail.post(func(context.Context) { looked <- ledgerIn(a) })
		if err := <-looked; err != nil {
			t.Fatal(err)
		}
	}
	for range 1500 {
		time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
		n, do := random.IntN(count), random.IntN(20)
		switch {
		case do < 12:
			pools[n].set(random.IntN(6))
		case do < 14:
			a.Remove(revisions[n].Key)
			declare(n)
		case do < 18:
			for _, i := range a.InstancesOf(revisions[n].Key) {
				if i.State == engine.Ready {
					if one, ok := a.Instance(i.ID).(*fakeInstance); ok && !hasEnded(one) {
						one.crash(1)
					}
				}
			}
		default:
			pools[n].set(0)
		}
		check()
	}
	mu.Lock()
	well = true
	mu.Unlock()
	for n := range count { // no revision needs more than a third of the memory: each gets its turn
		pools[n].set(1)
	}
	served := map[int]bool{}
	for late := time.Now().Add(time.Hour); len(served) < count; {
		time.Sleep(time.Second)
		check()
		for n, pool := range pools {
			load := pool.Load()
			switch {
			case load.InFlight > 0:
				served[n] = true
			case load.Waiting == 0: // it was told that none starts
				pool.set(1)
			}
		}
		if time.Now().After(late) {
			t.Fatalf("after an hour only %v have had an instance", served)
		}
	}
	for _, pool := range pools {
		pool.set(0)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if a.room.used != 0 || a.members != 0 || len(a.room.going) != 0 || len(a.room.short) != 0 || a.slots != settings.StartsAtOnce {
		t.Errorf("at the end %d bytes are counted, %d instances, %d that go, %d that wait, and %d slots are free",
			a.room.used, a.members, len(a.room.going), len(a.room.short), a.slots)
	}
}

func hasEnded(i *fakeInstance) bool {
	select {
	case <-i.exited:
		return true
	default:
		return false
	}
}
