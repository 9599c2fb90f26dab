package autoscaler

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

// patientEngine prepares ahead in ten seconds, and at once when somebody waits for it.
type patientEngine struct{ *fakeEngine }

func (e patientEngine) PrepareAhead(ctx context.Context, spec engine.Spec, hurry <-chan struct{}) (engine.Instance, error) {
	select {
	case <-hurry:
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
	}
	return e.Prepare(ctx, spec)
}

func TestAutoscaler_PreparationAheadHurriesWhenItIsClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(patientEngine{&fakeEngine{}}, DefaultSettings(), testLogger(), nil)
		run(t, a)
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		after(9 * time.Second) // nearly done
		pool.set(1)
		after(10 * time.Millisecond)
		if s := status(t, a, r); s.Ready != 1 {
			t.Errorf("the start waits for a preparation that does not hurry: %+v", s)
		}
		pool.set(2)
		after(time.Second)
		if s := status(t, a, r); s.Ready != 2 || s.Prepared != 0 {
			t.Errorf("the next one: %+v", s)
		}
		after(20 * time.Second)
		if s := status(t, a, r); s.Prepared != 1 {
			t.Errorf("nothing is prepared when nobody waits: %+v", s)
		}
	})
}

func TestAutoscaler_PreparesAMomentAfterTheLastStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: 30 * time.Millisecond}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		r.Prove = true // so that nothing is prepared before
		a.Apply(r)
		pool.set(1)
		after(31 * time.Millisecond)
		if prepared, started, _ := e.counts(); prepared != 1 || started != 1 {
			t.Errorf("right after the start %d were prepared and %d started, want 1 each", prepared, started)
		}
		after(quietTime)
		if prepared, _, _ := e.counts(); prepared != 2 {
			t.Errorf("after a moment of quiet %d were prepared, want 2", prepared)
		}
	})
}

func TestAutoscaler_PreparesAlsoWhereInstancesStartAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: 30 * time.Millisecond}
		a := running(t, e, DefaultSettings())
		first, _ := revision(t, a, "first", 1)
		first.Prove = true
		a.Apply(first)
		for i := range 200 { // an instance every 10 ms, each of another revision
			r, pool := revision(t, a, fmt.Sprintf("r%03d", i), 1)
			r.Reachable = false // these are not prepared for
			a.Apply(r)
			pool.set(1)
			after(10 * time.Millisecond)
		}
		if s := status(t, a, first); s.Prepared != 1 {
			t.Errorf("in two seconds of starts nothing was prepared: %+v", s)
		}
	})
}

// heavyEngine makes instances that hold as much memory as the test says.
type heavyEngine struct {
	*fakeEngine
	holds map[string]int64 // by revision
}

type heavyInstance struct {
	*fakeInstance
	holds int64
}

func (i heavyInstance) Usage() (engine.Usage, error) { return engine.Usage{Memory: i.holds}, nil }

func (e heavyEngine) Prepare(ctx context.Context, spec engine.Spec) (engine.Instance, error) {
	i, err := e.fakeEngine.Prepare(ctx, spec)
	if err != nil {
		return nil, err
	}
	return heavyInstance{i.(*fakeInstance), e.holds[spec.Revision]}, nil
}

func TestAutoscaler_PreparedInstancesCountWithWhatTheyHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.PreparedMemory = Amount{Bytes: 21 << 19}
		holds := map[string]int64{"huge": 11 << 20, "new": 4 << 20, "large": 5 << 20, "small": 1 << 20, "old": 1 << 20}
		fake := &fakeEngine{}
		a := New(heavyEngine{fake, holds}, settings, testLogger(), nil)
		run(t, a)
		names := []string{"huge", "new", "large", "small", "old"} // the one used last first
		var revisions []Revision
		for _, name := range names {
			r, _ := revision(t, a, name, 1)
			a.Apply(r)
			revisions = append(revisions, r)
		}
		after(time.Minute)
		var got []int
		for _, r := range revisions {
			got = append(got, status(t, a, r).Prepared)
		}
		if diff := cmp.Diff([]int{0, 1, 1, 1, 0}, got); diff != "" {
			t.Errorf("prepared of %v (-want +got):\n%s", names, diff)
		}
		// What was found not to fit is not tried again and again.
		if prepared, _, _ := fake.counts(); prepared > 7 {
			t.Errorf("%d were prepared for four that fit", prepared)
		}
	})
}
