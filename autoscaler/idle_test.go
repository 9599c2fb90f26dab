package autoscaler

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

// quietPool is the pool of a revision whose load does not change. It counts how often it is asked.
type quietPool struct {
	present Load
	asked   atomic.Int64
}

func (p *quietPool) Add(engine.Instance) {}
func (p *quietPool) Remove(engine.Instance) <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
func (p *quietPool) Idlest() engine.Instance                { return nil }
func (p *quietPool) Suspend(engine.Instance)                {}
func (p *quietPool) Resume(engine.Instance)                 {}
func (p *quietPool) Fail(error)                             {}
func (p *quietPool) Spread(int)                             {}
func (p *quietPool) Idle(engine.Instance) (time.Time, bool) { return time.Time{}, false }

func (p *quietPool) Load() Load {
	p.asked.Add(1)
	load := p.present
	load.At = time.Now()
	return load
}

// declared returns an autoscaler that has taken in n idle revisions. Its loop does not run.
func declared(t testing.TB, n int) *Autoscaler {
	t.Helper()
	settings := DefaultSettings()
	settings.PreparedMemory = Amount{}
	a := New(&fakeEngine{}, settings, testLogger(), nil)
	scale, err := settings.Scale(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool := &quietPool{}
	for i := range n {
		name := fmt.Sprintf("r-%06d", i)
		a.Apply(Revision{Key: Key{"default", name}, Spec: engine.Spec{Revision: name}, Scale: scale, Pool: pool, Reachable: true})
	}
	for _, event := range a.mail.take() {
		event(t.Context())
	}
	a.publish()
	return a
}

func TestAutoscaler_IdleRevisionsAreNotLookedAt(t *testing.T) {
	a := declared(t, 5000)
	if len(a.busy) != 0 {
		t.Errorf("%d of 5000 idle revisions are looked at each tick", len(a.busy))
	}
	if n := len(a.fleets); n != 5000 {
		t.Errorf("%d revisions declared, want 5000", n)
	}
}

func TestAutoscaler_IdleRevisionsNeedNoGoroutineAndNoTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := runtime.NumGoroutine()
		a := declared(t, 1000)
		if more := runtime.NumGoroutine() - before; more > 0 {
			t.Errorf("%d goroutines more with 1000 idle revisions", more)
		}
		pool := a.fleets[Key{"default", "r-000000"}].revision.Pool.(*quietPool)
		asked := pool.asked.Load()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		looped := make(chan struct{})
		go func() { a.loop(ctx); close(looped) }()
		after(time.Hour)
		if more := pool.asked.Load() - asked; more != 0 {
			t.Errorf("in an hour 1000 idle revisions were looked at %d times, want 0", more)
		}
		cancel()
		<-looped
	})
}

func TestAutoscaler_IdleRevisionTakesLittleMemory(t *testing.T) {
	const n, limit = 20000, 2048
	size := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := size()
	a := declared(t, n)
	each := (size() - before) / n
	runtime.KeepAlive(a)
	t.Logf("an idle revision takes %d bytes, its Spec included", each)
	if each > limit {
		t.Errorf("an idle revision takes %d bytes, want at most %d", each, limit)
	}
}

func TestAutoscaler_LookingAtASteadyRevisionAllocatesNothing(t *testing.T) {
	a := declared(t, 1)
	f := steadyFleet(t, a)
	got := testing.AllocsPerRun(100, func() {
		a.look(t.Context(), f)
		a.publish()
	})
	if got != 0 {
		t.Errorf("a look at a steady revision allocates %v times, want 0", got)
	}
}

// steadyFleet gives the first revision one ready instance with one request, and looks at it until it is at rest.
func steadyFleet(t testing.TB, a *Autoscaler) *fleet {
	t.Helper()
	f := a.fleets[Key{"default", "r-000000"}]
	f.revision.Pool = &quietPool{present: Load{InFlight: 1}}
	f.members = []*member{{instance: &fakeInstance{engine: &fakeEngine{}}, state: engine.Ready, since: time.Now()}}
	for range 100 {
		a.look(t.Context(), f)
		a.publish()
	}
	if len(f.members) != 1 || f.desired != 1 {
		t.Fatalf("not steady: %d members, %d desired", len(f.members), f.desired)
	}
	return f
}

// BenchmarkTick is one tick with one busy revision among idle ones.
func BenchmarkTick(b *testing.B) {
	for _, idle := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprintf("idle=%d", idle), func(b *testing.B) {
			a := declared(b, idle)
			steadyFleet(b, a)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				for f := range a.busy {
					a.look(ctx, f)
				}
				a.startQueued(ctx)
				a.refill(ctx)
				a.publish()
			}
		})
	}
}

// BenchmarkWake is what a request pays that waits while another's wake is on its way.
func BenchmarkWake(b *testing.B) {
	a := declared(b, 1000)
	key := Key{"default", "r-000500"}
	a.Wake(key)
	b.ReportAllocs()
	for b.Loop() {
		a.Wake(key)
	}
}

// BenchmarkColdStart is the autoscaler's own part of a cold start: from Wake to the instance in the pool, with an
// engine that takes no time.
func BenchmarkColdStart(b *testing.B) {
	settings := DefaultSettings()
	settings.PreparedMemory = Amount{}
	a := running(b, &fakeEngine{}, settings)
	scale, err := settings.Scale(nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	added := make(chan struct{}, 1)
	i := 0
	for b.Loop() {
		i++
		key := Key{"default", fmt.Sprint(i)}
		a.Apply(Revision{Key: key, Scale: scale, Pool: &signalPool{added: added}, Reachable: true})
		a.Wake(key)
		<-added
		b.StopTimer()
		if err := a.Remove(key)(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// signalPool is a pool with one request that waits until there is an instance.
type signalPool struct {
	quietPool
	added chan struct{}
	there bool
}

func (p *signalPool) Add(engine.Instance) { p.there = true; p.added <- struct{}{} }
func (p *signalPool) Load() Load {
	if p.there {
		return Load{At: time.Now(), InFlight: 1, Requests: 1}
	}
	return Load{At: time.Now(), Waiting: 1, Requests: 1}
}
