package autoscaler

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

func TestAutoscaler_CrashLoopsDoNotKeepOthersFromStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.StartsAtOnce, settings.PreparedMemory = 2, Amount{}
		e := &fakeEngine{start: 4 * time.Second}
		e.startErr = func(i *fakeInstance) error {
			if strings.HasPrefix(i.spec.Revision, "loop") {
				return &engine.StartError{Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 1}, Port: 8080}
			}
			return nil
		}
		a := running(t, e, settings)
		for n := range 10 {
			r, _ := revision(t, a, fmt.Sprint("loop-", n), 1, "min-scale", "3")
			a.Apply(r)
		}
		fine, pool := revision(t, a, "fine", 1)
		a.Apply(fine)
		after(5 * time.Minute) // all of them loop
		for n := range 20 {
			after(1234 * time.Millisecond) // at another moment of their tries each time
			pool.set(1)
			synctest.Wait()
			if s := status(t, a, fine); s.Starting+s.Ready != 1 {
				t.Fatalf("request %d: %d of 2 slots are free, and its instance does not start", n, a.slots)
			}
			after(4 * time.Second)
			if s := status(t, a, fine); s.Ready != 1 {
				t.Fatalf("request %d: %+v", n, s)
			}
			pool.set(0)
			after(3 * time.Minute)
			if s := status(t, a, fine); s.Ready != 0 {
				t.Fatalf("after request %d it does not go to zero: %+v", n, s)
			}
		}
	})
}

func TestAutoscaler_TellsOfACrashLoopUntilItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: 100 * time.Millisecond}
		a := running(t, e, DefaultSettings())
		r, pool := revision(t, a, "r", 1)
		a.Apply(r)
		pool.set(1)
		for range 3 {
			for status(t, a, r).Ready == 0 {
				after(100 * time.Millisecond)
			}
			after(time.Second)
			e.newest().crash(7)
			synctest.Wait()
		}
		s := status(t, a, r)
		if s.Failures != 3 || s.LastFailure == nil || !strings.Contains(s.LastFailure.Error(), "exited with code 7 1s after it was ready, and did so 3 times in a row") {
			t.Errorf("after three crashes: %+v", s)
		}
		if wait := time.Until(s.Next); wait != 2*time.Second {
			t.Errorf("the next try is in %s, want 2s", wait)
		}
		after(5 * time.Second)
		if s := status(t, a, r); s.Ready == 0 || s.Failure != nil || s.Failures != 3 || s.LastFailure == nil {
			t.Errorf("while another one runs: %+v", s)
		}
		after(10 * time.Second)
		if s := status(t, a, r); s.Failures != 0 || s.LastFailure != nil {
			t.Errorf("after it has run for ten seconds: %+v", s)
		}
	})
}

func TestBackoff_CountsWhatHappensTogetherOnce(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	for _, test := range []struct {
		name string
		do   func(b *backoff)
		want int
	}{
		{"starts that were under way", func(b *backoff) {
			b.startFailed(at(0), at(1))
			b.startFailed(at(0.5), at(3))
		}, 1},
		{"starts that were not", func(b *backoff) {
			b.startFailed(at(0), at(1))
			b.startFailed(at(2), at(3))
		}, 2},
		{"instances that ran beside each other", func(b *backoff) {
			for n := range 100 {
				b.exited(at(0), at(5+float64(n)/100))
			}
		}, 1},
		{"the instances after them", func(b *backoff) {
			b.exited(at(0), at(5))
			b.exited(at(6), at(7))
			b.exited(at(6), at(7.1))
		}, 2},
		{"one that ran for long", func(b *backoff) { b.exited(at(0), at(10)) }, 0},
		{"one that ran for long beside those that fail", func(b *backoff) {
			b.startFailed(at(10), at(11))
			b.startFailed(at(12), at(13))
			b.exited(at(0), at(20))
		}, 2},
		{"one that ran for long after those that failed", func(b *backoff) {
			b.startFailed(at(10), at(11))
			b.startFailed(at(12), at(13))
			b.exited(at(16), at(40))
		}, 0},
		{"long ago", func(b *backoff) {
			b.startFailed(at(0), at(1))
			b.startFailed(at(2), at(3))
			b.startFailed(at(700), at(701))
		}, 1},
	} {
		var b backoff
		test.do(&b)
		if b.failures != test.want {
			t.Errorf("%s: %d in a row, want %d", test.name, b.failures, test.want)
		}
	}
}
