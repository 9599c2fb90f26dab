package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// idleInstance is an instance that no test connects to.
func idleInstance(id string) *fakeInstance { return newFakeInstance(id, "") }

func mustClaim(t *testing.T, a *Activator) *member {
	t.Helper()
	m, err := a.claim(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestActivator_HoldsRequestUntilInstanceIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		woken := 0
		revision := testRevision()
		revision.Wake = func() { woken++ }
		a := NewActivator(revision)
		go func() {
			time.Sleep(3 * time.Second)
			a.Add(idleInstance("a"))
		}()
		began := time.Now()
		m := mustClaim(t, a)
		if waited := time.Since(began); waited != 3*time.Second || m.id != "a" || woken != 1 {
			t.Errorf("waited %s for %q, woken %d times; want 3s for a, once", waited, m.id, woken)
		}
	})
}

func TestActivator_CountsConcurrencyExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(testRevision())
		before := a.Load()
		go func() {
			time.Sleep(2 * time.Second)
			a.Add(idleInstance("a"))
		}()
		first := mustClaim(t, a) // waits 2 s
		time.Sleep(time.Second)
		second := mustClaim(t, a)
		time.Sleep(4 * time.Second)
		a.release(first, time.Now())
		time.Sleep(time.Second)
		now := a.Load()
		// first: 2 s waiting and 5 s in flight; second: 5 s so far.
		if now.Busy-before.Busy != 12*time.Second || now.Waited != 2*time.Second || now.InFlight != 1 || now.Requests != 2 {
			t.Errorf("load is %+v, want 12 s busy, 2 of them waited, 1 in flight, 2 requests", now)
		}
		a.release(second, time.Now())
		if got := a.Load(); got.Busy != 12*time.Second || got.InFlight != 0 {
			t.Errorf("load is %+v, want 12 s busy, none in flight", got)
		}
	})
}

func TestActivator_TryClaimTakesAFreeSlotAndCountsOnlyThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.Concurrency = 1
		revision.Wake = func() { t.Error("woken") }
		a := NewActivator(revision)
		if m := a.tryClaim(time.Now()); m != nil {
			t.Errorf("claimed %q of no instances", m.id)
		}
		a.Add(idleInstance("a"))
		arrived := time.Now()
		time.Sleep(time.Second)
		m := a.tryClaim(arrived)
		if m == nil {
			t.Fatal("a free slot was not claimed")
		}
		if second := a.tryClaim(time.Now()); second != nil {
			t.Errorf("claimed %q, whose only slot is taken", second.id)
		}
		time.Sleep(time.Second)
		if got := a.Load(); got.InFlight != 1 || got.Requests != 1 || got.Busy != 2*time.Second {
			t.Errorf("load is %+v, want 1 in flight, 1 request, 2 s busy", got)
		}
		a.release(m, time.Now())
		a.Close(errors.New("gone"))
		if m := a.tryClaim(time.Now()); m != nil {
			t.Errorf("claimed %q of a closed activator", m.id)
		}
		if got := a.Load(); got.InFlight != 0 || got.Requests != 1 || got.Busy != 2*time.Second {
			t.Errorf("load is %+v, want none in flight, 1 request, 2 s busy", got)
		}
	})
}

func TestActivator_ClaimsAndReleasesWithoutAllocating(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(idleInstance("a"))
	now := time.Now()
	if n := testing.AllocsPerRun(1000, func() {
		m := a.tryClaim(now)
		again, err := a.claim(t.Context(), now)
		if m == nil || err != nil {
			t.Fatalf("claimed %v, %v", m, err)
		}
		a.release(m, now)
		a.release(again, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkActivator(b *testing.B) {
	a := NewActivator(testRevision())
	for i := range 4 {
		a.Add(idleInstance(fmt.Sprint(i)))
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		a.release(a.tryClaim(now), now)
	}
}

func TestActivator_ServesWaitersInTheOrderTheyCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.Concurrency = 1
		a := NewActivator(revision)
		var order []int
		for i := range 5 {
			go func() {
				m, err := a.claim(t.Context(), time.Now())
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i) // one slot: one at a time
				a.release(m, time.Now())
			}()
			synctest.Wait()
		}
		a.Add(idleInstance("a"))
		synctest.Wait()
		if fmt.Sprint(order) != "[0 1 2 3 4]" {
			t.Errorf("order is %v", order)
		}
	})
}

func TestActivator_RefusesOneMoreThanTheQueueHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.MaxQueue = 2
		a := NewActivator(revision)
		results := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := a.claim(t.Context(), time.Now())
				results <- err
			}()
		}
		synctest.Wait()
		if err := <-results; !errors.Is(err, errQueueFull) {
			t.Errorf("got %v, want %v", err, errQueueFull)
		}
		if load := a.Load(); load.Waiting != 2 || load.Requests != 3 {
			t.Errorf("load is %+v", load)
		}
		a.Fail(errors.New("no"))
		for range 2 {
			var failure *startFailure
			if err := <-results; !errors.As(err, &failure) {
				t.Errorf("got %v, want a startFailure", err)
			}
		}
	})
}

func TestActivator_GivesUpAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(testRevision())
		began := time.Now()
		_, err := a.claim(t.Context(), began)
		if waited := time.Since(began); !errors.Is(err, errTimeout) || waited != a.revision.Timeout {
			t.Errorf("got %v after %s, want %v after %s", err, waited, errTimeout, a.revision.Timeout)
		}
		if load := a.Load(); load.Waiting != 0 || load.Busy != a.revision.Timeout {
			t.Errorf("load is %+v", load)
		}
	})
}

func TestActivator_GivesUpThePlaceOfAClientThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.Concurrency = 1
		a := NewActivator(revision)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			m, err := a.claim(ctx, time.Now())
			if err == nil { // granted before it saw that its client had gone
				a.release(m, time.Now())
				err = ctx.Err()
			}
			gone <- err
		}()
		synctest.Wait()
		served := make(chan *member, 1)
		go func() {
			m, err := a.claim(t.Context(), time.Now())
			if err != nil {
				t.Error(err)
			}
			served <- m
		}()
		synctest.Wait()
		cancel()
		// The slot may come to the one that is leaving, at the same moment: it must reach the other either way.
		a.Add(idleInstance("a"))
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		a.release(<-served, time.Now())
		if load := a.Load(); load.InFlight != 0 || load.Waiting != 0 {
			t.Errorf("load is %+v", load)
		}
	})
}

func TestActivator_DrainsAnInstanceThatIsRemoved(t *testing.T) {
	a := NewActivator(testRevision())
	one, two := idleInstance("one"), idleInstance("two")
	a.Add(one)
	m := mustClaim(t, a)
	a.Add(two)
	drained := a.Remove(one)
	for range 10 {
		if got := mustClaim(t, a); got.id != "two" {
			t.Fatalf("a request was given to %q, which is draining", got.id)
		}
	}
	select {
	case <-drained:
		t.Fatal("drained with a request in flight")
	default:
	}
	if again := a.Remove(one); again != drained {
		t.Error("removing a draining instance again returns another channel")
	}
	a.release(m, time.Now())
	<-drained
	<-a.Remove(one)
	<-a.Remove(idleInstance("unknown"))
}

func TestActivator_PrefersTheLeastLoadedThenTheLastUsed(t *testing.T) {
	a := NewActivator(testRevision())
	for i := range 3 {
		a.Add(idleInstance(fmt.Sprint(i)))
	}
	first := mustClaim(t, a)
	a.release(first, time.Now())
	for range 5 { // light load stays on one instance
		m := mustClaim(t, a)
		if m != first {
			t.Fatalf("got %q, want %q, which was used last", m.id, first.id)
		}
		a.release(m, time.Now())
	}
	counts := make(map[string]int)
	for range 9 {
		counts[mustClaim(t, a).id]++
	}
	if len(counts) != 3 || counts["0"] != 3 || counts["1"] != 3 {
		t.Errorf("9 requests are spread %v, want 3 each", counts)
	}
}

func TestBalancer_AlwaysTakesAMemberWithTheFewestRequests(t *testing.T) {
	const concurrency = 4
	random := rand.New(rand.NewPCG(1, 2))
	b := balancer{concurrency: concurrency}
	var all []*member
	for i := range 12 {
		all = append(all, &member{id: fmt.Sprint(i)})
	}
	var used []*member // listed ones, used longest ago first: the order is kept here in the slow way
	touch := func(m *member, listed bool) {
		used = slices.DeleteFunc(used, func(other *member) bool { return other == m })
		if listed {
			used = append(used, m)
		}
	}
	for step := range 100_000 {
		var idlest *member
		for _, m := range used {
			if idlest == nil || m.inFlight < idlest.inFlight {
				idlest = m
			}
		}
		if got := b.idlest(); got != idlest {
			t.Fatalf("step %d: the idlest is %+v, want %+v", step, got, idlest)
		}
		m := all[random.IntN(len(all))]
		switch random.IntN(6) {
		case 0:
			if !m.linked {
				touch(m, true)
			}
			b.add(m)
		case 1:
			b.remove(m)
			touch(m, false)
		case 2, 3:
			if m.inFlight > 0 {
				b.put(m)
				touch(m, m.linked)
			}
		default:
			fewest := concurrency
			for _, m := range all {
				if m.linked {
					fewest = min(fewest, m.inFlight)
				}
			}
			got := b.take()
			switch {
			case fewest == concurrency && got != nil:
				t.Fatalf("step %d: got member %s with %d requests, want none", step, got.id, got.inFlight)
			case fewest < concurrency && (got == nil || !got.linked || got.inFlight != fewest+1):
				t.Fatalf("step %d: got %+v, want a linked member that had %d", step, got, fewest)
			case got != nil:
				touch(got, true)
			}
		}
	}
}

func TestActivator_NeverExceedsConcurrencyWhileInstancesComeAndGo(t *testing.T) {
	const concurrency, clients, rounds = 3, 64, 300
	revision := testRevision()
	revision.Concurrency = concurrency
	a := NewActivator(revision)

	var inFlight sync.Map // instance ID → *atomic.Int64
	var served atomic.Int64
	var group sync.WaitGroup
	for c := range clients {
		group.Go(func() {
			for i := range rounds {
				ctx, cancel := context.WithCancel(context.Background())
				if (c+i)%7 == 0 { // some clients do not wait long
					time.AfterFunc(time.Duration(i%5)*50*time.Microsecond, cancel)
				}
				m, err := a.claim(ctx, time.Now())
				if err == nil {
					counter, _ := inFlight.LoadOrStore(m.id, new(atomic.Int64))
					if n := counter.(*atomic.Int64).Add(1); n > concurrency {
						t.Errorf("%d requests on %s", n, m.id)
					}
					counter.(*atomic.Int64).Add(-1)
					a.release(m, time.Now())
					served.Add(1)
				} else if !errors.Is(err, context.Canceled) {
					t.Errorf("claim: %v", err)
				}
				cancel()
			}
		})
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		var ready []*fakeInstance
		for i := 0; ; i++ {
			one := idleInstance(fmt.Sprint(i))
			a.Add(one)
			ready = append(ready, one)
			if len(ready) > 4 {
				<-a.Remove(ready[0]) // all claims end: it must drain
				ready = ready[1:]
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	group.Wait()
	close(stop)
	churn.Wait()
	if load := a.Load(); load.InFlight != 0 || load.Waiting != 0 || load.Requests != clients*rounds {
		t.Errorf("load is %+v", load)
	}
	if served.Load() < clients*rounds/2 {
		t.Errorf("only %d of %d claims were served", served.Load(), clients*rounds)
	}
}

func TestActivator_SendsNothingMoreToAnInstanceThatHasExited(t *testing.T) {
	a := NewActivator(testRevision())
	one := idleInstance("one")
	a.Add(one)
	m := mustClaim(t, a)
	two := idleInstance("two")
	a.Add(two)
	one.kill(one.exit)
	again, err := a.claimAgain(t.Context(), m, time.Now())
	if err != nil || again.id != "two" {
		t.Fatalf("got %+v, %v; want instance two", again, err)
	}
	for range 5 {
		if got := mustClaim(t, a); got.id != "two" {
			t.Fatalf("a request was given to %q", got.id)
		}
	}
	if load := a.Load(); load.Requests != 6 || load.InFlight != 6 {
		t.Errorf("load is %+v, want 6 requests in flight", load)
	}
}

func TestActivator_ClaimsAWarmSlotWithoutAllocating(t *testing.T) {
	a := NewActivator(testRevision())
	for i := range 10 {
		a.Add(idleInstance(fmt.Sprint(i)))
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		m, err := a.claim(ctx, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		a.release(m, time.Now())
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkActivator_ClaimAndRelease(b *testing.B) {
	revision := testRevision()
	revision.Concurrency = 80
	a := NewActivator(revision)
	for i := range 100 {
		a.Add(idleInstance(fmt.Sprint(i)))
	}
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m, err := a.claim(ctx, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			a.release(m, time.Now())
		}
	})
}

func TestActivator_ClosedFailsRequestsThatWaitAndThoseThatCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.Concurrency = 1
		a := NewActivator(revision)
		one := idleInstance("one")
		a.Add(one)
		running := mustClaim(t, a)
		results := make(chan error, 1)
		go func() {
			_, err := a.claim(t.Context(), time.Now())
			results <- err
		}()
		synctest.Wait()
		why := errors.New("the revision was deleted")
		a.Close(why)
		a.Close(errors.New("again"))
		if err := <-results; !errors.Is(err, why) {
			t.Errorf("the request that waited got %v, want %v", err, why)
		}
		began := time.Now()
		a.Add(idleInstance("two")) // even a free slot is not for a deleted revision
		if _, err := a.claim(t.Context(), began); !errors.Is(err, why) || time.Since(began) != 0 {
			t.Errorf("a later request got %v after %s, want %v at once", err, time.Since(began), why)
		}
		time.Sleep(time.Second)
		if _, err := a.claimAgain(t.Context(), running, began); !errors.Is(err, why) {
			t.Errorf("a request whose instance is gone got %v, want %v", err, why)
		}
		<-a.Remove(one)
		if load := a.Load(); load.InFlight != 0 || load.Waiting != 0 || load.Requests != 3 || load.Busy != time.Second {
			t.Errorf("load is %+v, want 3 requests of one second in all", load)
		}
	})
}

func TestActivator_TheIdlestInstanceIsTheOneThatWouldBeUsedLast(t *testing.T) {
	a := NewActivator(testRevision())
	if got := a.Idlest(); got != nil {
		t.Errorf("without instances the idlest is %v", got)
	}
	one, two := idleInstance("one"), idleInstance("two")
	a.Add(one)
	a.Add(two)
	m := mustClaim(t, a)
	if got := a.Idlest(); got.ID() == m.id {
		t.Errorf("the idlest is %s, which has a request", got.ID())
	}
	a.release(m, time.Now())
	if got := a.Idlest(); got.ID() == m.id {
		t.Errorf("the idlest is %s, which was used last", got.ID())
	}
	a.Remove(one)
	a.Remove(two)
	if got := a.Idlest(); got != nil {
		t.Errorf("with all instances removed the idlest is %v", got)
	}
}
