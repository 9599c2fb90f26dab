package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

// watched is a prober whose tries fail when the test says so, and what it did, by the second.
type watched struct {
	prober
	mu    sync.Mutex
	began time.Time
	down  map[string]bool // by path
	tries map[string][]time.Duration
	did   []string
}

func newWatched() *watched {
	w := &watched{began: time.Now(), down: map[string]bool{}, tries: map[string][]time.Duration{}}
	note := func(text string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.did = append(w.did, fmt.Sprintf("%s %s", time.Since(w.began), text))
	}
	w.prober = prober{
		name: "web",
		hold: func() (func(), bool) { return func() {}, true },
		try: func(_ context.Context, probe engine.Probe) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			path := probe.HTTP.Path
			w.tries[path] = append(w.tries[path], time.Since(w.began))
			if w.down[path] {
				return errors.New("GET " + path + " answered 503")
			}
			return nil
		},
		say:  func(text string) { note("says " + text) },
		turn: func(ready bool) { note(fmt.Sprintf("ready %t", ready)) },
		fail: func(why string) { note("fails: " + why) },
	}
	return w
}

func (w *watched) set(path string, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[path] = down
}

// start runs the prober until the test, or the function returned, ends it.
func (w *watched) start(t *testing.T) (stop func()) {
	if w.courses == nil {
		w.courses = newCourses(w.readiness, w.liveness, w.began)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func httpProbe(path string, period time.Duration, failures, successes int) *engine.Probe {
	return &engine.Probe{
		HTTP: &engine.HTTPProbe{Port: 8080, Path: path}, Period: period, FailureThreshold: failures, SuccessThreshold: successes,
	}
}

func TestProber_ReadinessTurnsByItsThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.readiness = httpProbe("/ready", 2*time.Second, 3, 2)
		stop := w.start(t)
		time.Sleep(5 * time.Second) // tries at 2 s, 4 s
		w.set("/ready", true)       // fails at 6 s, 8 s
		time.Sleep(4 * time.Second)
		w.set("/ready", false) // passes at 10 s: two failures are not enough
		time.Sleep(2 * time.Second)
		w.set("/ready", true) // fails at 12 s, 14 s, 16 s
		time.Sleep(6 * time.Second)
		w.set("/ready", false) // passes at 18 s, 20 s
		time.Sleep(4 * time.Second)
		stop()
		want := []string{
			"16s says READINESS HTTP probe failed 3 times consecutively for container web on port 8080: GET /ready answered 503. It is sent no new requests until the probe passes.",
			"16s ready false",
			"20s says READINESS HTTP probe passed again for container web. It is sent requests.",
			"20s ready true",
		}
		if diff := cmp.Diff(want, w.did); diff != "" {
			t.Errorf("what it did (-want +got):\n%s", diff)
		}
		if n := len(w.tries["/ready"]); n != 10 {
			t.Errorf("%d tries in 21 s, want 10", n)
		}
	})
}

func TestProber_LivenessFailsOnceAndEndsAllProbing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.liveness = httpProbe("/live", time.Second, 1, 0)
		w.liveness.InitialDelay = 3 * time.Second
		w.readiness = httpProbe("/ready", time.Second, 3, 1)
		stop := w.start(t)
		time.Sleep(5500 * time.Millisecond)
		w.set("/live", true)
		time.Sleep(time.Minute)
		stop()
		want := []string{"6s fails: LIVENESS HTTP probe failed 1 time consecutively for container web on port 8080: GET /live answered 503"}
		if diff := cmp.Diff(want, w.did); diff != "" {
			t.Errorf("what it did (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]time.Duration{3 * time.Second, 4 * time.Second, 5 * time.Second, 6 * time.Second}, w.tries["/live"]); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
		if n := len(w.tries["/ready"]); n > 6 {
			t.Errorf("readiness was tried %d times, want none after the end", n)
		}
	})
}

func TestProber_DefaultsAreKubernetes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.liveness = httpProbe("/live", 0, 0, 0)
		w.set("/live", true)
		stop := w.start(t)
		time.Sleep(time.Minute)
		stop()
		if diff := cmp.Diff([]time.Duration{0, 10 * time.Second, 20 * time.Second}, w.tries["/live"]); diff != "" || len(w.did) != 1 {
			t.Errorf("it did %q, tries (-want +got):\n%s", w.did, diff)
		}
	})
}

func TestProber_SlowTriesPutTheNextOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.liveness = httpProbe("/live", time.Second, 3, 1)
		try, slow := w.try, 2500*time.Millisecond
		w.try = func(ctx context.Context, probe engine.Probe) error {
			err := try(ctx, probe)
			_ = sleep(ctx, slow)
			return err
		}
		stop := w.start(t)
		time.Sleep(6 * time.Second)
		stop()
		if diff := cmp.Diff([]time.Duration{0, 2500 * time.Millisecond, 5 * time.Second}, w.tries["/live"]); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
	})
}

func TestProber_AProbeCutShortByTheEndDoesNotFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.liveness, w.readiness = httpProbe("/live", time.Second, 1, 1), httpProbe("/ready", time.Second, 1, 1)
		w.try = func(ctx context.Context, _ engine.Probe) error {
			<-ctx.Done()
			return ctx.Err()
		}
		stop := w.start(t)
		time.Sleep(10 * time.Second)
		stop()
		if len(w.did) != 0 {
			t.Errorf("it did %q, want nothing", w.did)
		}
	})
}
