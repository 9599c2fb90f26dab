package autoscaler

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

// listener records what an autoscaler tells of instances.
type listener struct {
	mu      sync.Mutex
	said    []What
	changes int
}

func listenTo(a *Autoscaler) *listener {
	l := &listener{}
	a.OnEvent = func(e Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.said = append(l.said, e.What)
	}
	a.OnInstances = func(Key) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changes++
	}
	return l
}

// since returns what was said, and how often instances changed, since it was last asked.
func (l *listener) since() (said []What, changes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	said, changes = l.said, l.changes
	l.said, l.changes = nil, 0
	return said, changes
}

func TestAutoscaler_TellsWhatHappensToInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{prepare: time.Second, start: time.Second}
		a := New(e, DefaultSettings(), testLogger(), nil)
		l := listenTo(a)
		run(t, a)
		r, pool := revision(t, a, "r", 0)
		expect := func(when string, want ...What) {
			t.Helper()
			if said, changes := l.since(); !slices.Equal(said, want) || changes == 0 {
				t.Errorf("%s: told %v, and of %d changes; want %v", when, said, changes, want)
			}
		}
		a.Apply(r)
		pool.set(1)
		after(3 * time.Second)
		expect("an instance has started", Started)
		instance := e.nth(1)
		if of := a.InstancesOf(r.Key); !slices.ContainsFunc(of, func(i InstanceStatus) bool { return i.ID == instance.ID() && i.State == engine.Ready }) {
			t.Errorf("the revision's instances are %+v", of)
		}
		instance.readiness <- false
		after(time.Second)
		expect("it takes no requests", Unready)
		instance.readiness <- true
		after(time.Second)
		expect("it takes them again", Recovered)
		instance.restart()
		instance.readiness <- true // as engines do when a container's state has changed
		after(time.Second)
		expect("a container was started again")
		instance.crash(3)
		after(100 * time.Millisecond)
		said, _ := l.since()
		if len(said) == 0 || said[0] != Exited || slices.Contains(said, Stopped) {
			t.Errorf("it ended by itself: told %v, want %v and not %v", said, Exited, Stopped)
		}
		after(10 * time.Second)
		l.since()
		pool.set(0)
		after(5 * time.Minute)
		expect("the load is over", Stopped)
		// What comes and goes unused is nobody's concern.
		if _, changes := l.since(); changes != 0 {
			t.Errorf("%d changes at rest", changes)
		}
	})
}

func TestAutoscaler_TellsOfAStartThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second, startErr: func(*fakeInstance) error {
			return &engine.StartError{Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 3}}
		}}
		a := New(e, DefaultSettings(), testLogger(), nil)
		l := listenTo(a)
		run(t, a)
		r, pool := revision(t, a, "r", 0)
		a.Apply(r)
		pool.set(1)
		after(1500 * time.Millisecond)
		if said, changes := l.since(); !slices.Equal(said, []What{NotStarted}) || changes == 0 {
			t.Errorf("told %v, and of %d changes", said, changes)
		}
	})
}

func TestAutoscaler_StopsOneInstanceAndReplacesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{start: time.Second}
		a := New(e, DefaultSettings(), testLogger(), nil)
		l := listenTo(a)
		run(t, a)
		r, pool := revision(t, a, "r", 0)
		a.Apply(r)
		pool.hold()
		pool.set(1)
		after(2 * time.Second)
		first := a.InstancesOf(r.Key)[0].ID
		l.since()
		a.StopInstance(r.Key, "r-nobody", "a test")
		a.StopInstance(Key{Namespace: "none", Revision: "none"}, first, "a test")
		a.StopInstance(r.Key, first, "a test")
		a.StopInstance(r.Key, first, "a test") // once more changes nothing
		after(5 * time.Second)
		if s := status(t, a, r); s.Ready != 1 || s.Draining != 1 {
			t.Errorf("status %+v, want another ready while the first finishes its requests", s)
		}
		pool.release()
		after(5 * time.Second)
		for _, i := range a.InstancesOf(r.Key) {
			if i.ID == first {
				t.Errorf("the first instance is still there: %+v", i)
			}
		}
		if said, _ := l.since(); !slices.Contains(said, Stopped) {
			t.Errorf("told %v", said)
		}

		pool.set(0)
		after(10 * time.Minute)
		pool.set(1)
		after(500 * time.Millisecond) // one is starting
		starting := e.newest().ID()
		for _, i := range a.InstancesOf(r.Key) {
			if i.State == engine.Starting {
				starting = i.ID
			}
		}
		a.StopInstance(r.Key, starting, "a test")
		after(10 * time.Second)
		for _, i := range a.InstancesOf(r.Key) {
			if i.ID == starting {
				t.Errorf("the one that was starting is still there: %+v", i)
			}
		}
		if s := status(t, a, r); s.Ready != 1 {
			t.Errorf("status %+v, want another ready", s)
		}
	})
}
