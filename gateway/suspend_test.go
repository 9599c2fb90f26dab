package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

func TestActivator_SendsNothingNewToASuspendedInstance(t *testing.T) {
	a := NewActivator(testRevision())
	one, two := idleInstance("one"), idleInstance("two")
	a.Add(one)
	m := mustClaim(t, a)
	a.Add(two)
	a.Suspend(one)
	a.Suspend(one)
	for range 10 {
		if got := mustClaim(t, a); got.id != "two" {
			t.Fatalf("a request was given to %q, which is suspended", got.id)
		}
	}
	if load := a.Load(); load.InFlight != 11 {
		t.Errorf("load is %+v, want the request on the suspended instance to go on: 11 in flight", load)
	}
	if got := a.Idlest(); got != two {
		t.Errorf("the idlest is %v, want the one that takes requests", got)
	}
	a.release(m, time.Now())
	a.Resume(one)
	if got := mustClaim(t, a); got.id != "one" {
		t.Errorf("a request was given to %q, want the resumed instance, which has none", got.id)
	}
}

func TestActivator_RequestsWaitWhileEveryInstanceIsSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		woken := 0
		revision := testRevision()
		revision.Concurrency = 2
		revision.Wake = func() { woken++ }
		a := NewActivator(revision)
		one := idleInstance("one")
		a.Add(one)
		a.Suspend(one)
		claimed := make(chan time.Time, 3)
		began := time.Now()
		var group sync.WaitGroup
		defer group.Wait()
		for range 3 {
			group.Go(func() {
				m, err := a.claim(t.Context(), began)
				if err != nil {
					t.Error(err)
					return
				}
				claimed <- time.Now()
				time.Sleep(time.Second)
				a.release(m, time.Now())
			})
			synctest.Wait()
		}
		if load := a.Load(); load.Waiting != 3 || woken != 3 {
			t.Errorf("load is %+v, woken %d times; want 3 waiting and 3 wakes", load, woken)
		}
		time.Sleep(5 * time.Second)
		a.Resume(one)
		for i, want := range []time.Duration{5 * time.Second, 5 * time.Second, 6 * time.Second} {
			if got := (<-claimed).Sub(began); got != want {
				t.Errorf("claim %d was given after %s, want %s", i, got, want)
			}
		}
	})
}

func TestActivator_LimitsHoldWhileEveryInstanceIsSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.MaxQueue = 1
		a := NewActivator(revision)
		one := idleInstance("one")
		a.Add(one)
		a.Suspend(one)
		began := time.Now()
		timedOut := make(chan error, 1)
		go func() {
			_, err := a.claim(t.Context(), began)
			timedOut <- err
		}()
		synctest.Wait()
		if _, err := a.claim(t.Context(), time.Now()); !errors.Is(err, errQueueFull) {
			t.Errorf("got %v, want %v", err, errQueueFull)
		}
		if err, waited := <-timedOut, time.Since(began); !errors.Is(err, errTimeout) || waited != revision.Timeout {
			t.Errorf("got %v after %s, want %v after %s", err, waited, errTimeout, revision.Timeout)
		}
		failed := make(chan error, 1)
		go func() {
			_, err := a.claim(t.Context(), time.Now())
			failed <- err
		}()
		synctest.Wait()
		a.Fail(errors.New("none can start"))
		var failure *startFailure
		if err := <-failed; !errors.As(err, &failure) {
			t.Errorf("got %v, want a startFailure", err)
		}
	})
}

func TestActivator_DrainsASuspendedInstance(t *testing.T) {
	a := NewActivator(testRevision())
	one := idleInstance("one")
	a.Add(one)
	m := mustClaim(t, a)
	a.Suspend(one)
	drained := a.Remove(one)
	select {
	case <-drained:
		t.Fatal("drained with a request in flight")
	default:
	}
	a.Suspend(one)
	a.Resume(one)
	if a.balancer.size != 0 {
		t.Fatal("resuming offered an instance that was taken back")
	}
	a.release(m, time.Now())
	<-drained
	a.Resume(one)
	a.Suspend(idleInstance("unknown"))
	if a.balancer.size != 0 || len(a.members) != 0 {
		t.Errorf("%d listed, %d known; want none", a.balancer.size, len(a.members))
	}
}

func TestActivator_AnInstanceSetAsideStaysSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(testRevision())
		one := idleInstance("one")
		a.Add(one)
		m := mustClaim(t, a)
		a.setAside(m)
		a.Suspend(one)
		time.Sleep(2 * dialPause)
		synctest.Wait()
		if a.balancer.size != 0 {
			t.Error("the end of the pause offered an instance that is suspended")
		}
		a.Resume(one)
		if got := mustClaim(t, a); got.id != "one" {
			t.Errorf("a request was given to %q", got.id)
		}

		// The other order: resumed before the pause is over, it is listed once.
		a.setAside(m)
		a.Suspend(one)
		a.Resume(one)
		time.Sleep(2 * dialPause)
		synctest.Wait()
		if a.balancer.size != 1 {
			t.Errorf("listed %d times, want once", a.balancer.size)
		}
	})
}

func TestActivator_ResumingAnInstanceThatHasExitedOffersNothing(t *testing.T) {
	a := NewActivator(testRevision())
	one := idleInstance("one")
	a.Add(one)
	a.Suspend(one)
	one.kill(engine.Exit{})
	a.Resume(one)
	if a.balancer.size != 0 {
		t.Error("an instance that has exited was offered to requests")
	}
}

// TestActivator_SuspendingLosesNoRequest has instances turn unready and ready, and be taken back, while requests come.
func TestActivator_SuspendingLosesNoRequest(t *testing.T) {
	const concurrency, clients, rounds = 2, 32, 300
	revision := testRevision()
	revision.Concurrency = concurrency
	a := NewActivator(revision)
	instances := make([]*fakeInstance, 3)
	for i := range instances {
		instances[i] = idleInstance(fmt.Sprint(i))
		a.Add(instances[i])
	}
	var inFlight sync.Map // instance ID → *atomic.Int64
	var group, churn sync.WaitGroup
	for range clients {
		group.Go(func() {
			for i := range rounds {
				m, err := a.claim(context.Background(), time.Now())
				if err != nil {
					t.Errorf("claim: %v", err)
					return
				}
				counter, _ := inFlight.LoadOrStore(m.id, new(atomic.Int64))
				if n := counter.(*atomic.Int64).Add(1); n > concurrency {
					t.Errorf("%d requests on %s", n, m.id)
				}
				if i%11 == 0 {
					a.setAside(m)
				}
				counter.(*atomic.Int64).Add(-1)
				a.release(m, time.Now())
			}
		})
	}
	stop := make(chan struct{})
	for i, instance := range instances {
		churn.Go(func() {
			for n := 0; ; n++ {
				a.Suspend(instance)
				if n%5 == 4 {
					<-a.Remove(instance) // its claims end: it must drain
					instance = idleInstance(fmt.Sprintf("%d-%d", i, n))
					a.Add(instance)
				}
				a.Resume(instance)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	group.Wait()
	close(stop)
	churn.Wait()
	if load := a.Load(); load.InFlight != 0 || load.Waiting != 0 || load.Requests != clients*rounds {
		t.Errorf("load is %+v", load)
	}
}

func TestGateway_RequestsWaitForASuspendedInstance(t *testing.T) {
	instance := serveInstance(t, "one", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	revision := testRevision()
	a := NewActivator(revision)
	_, address := startGateway(t, Config{}, a)
	a.Add(instance)
	a.Suspend(instance)
	answered := make(chan string, 1)
	request := newRequest(t, "GET", address, "/", "")
	go func() {
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		answered <- fmt.Sprint(response.StatusCode, " ", string(body), err)
	}()
	waitForLoad(t, a, 0, 1)
	a.Resume(instance)
	if got := <-answered; got != "200 hello<nil>" {
		t.Errorf("got %q, want 200 hello", got)
	}
}

func TestGateway_Answers504WhenAnInstanceStaysSuspended(t *testing.T) {
	revision := testRevision()
	revision.Timeout = 20 * time.Millisecond
	a := NewActivator(revision)
	_, address := startGateway(t, Config{}, a)
	instance := idleInstance("one")
	a.Add(instance)
	a.Suspend(instance)
	response, err := http.DefaultClient.Do(newRequest(t, "GET", address, "/", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("got %s, want 504", response.Status)
	}
}
