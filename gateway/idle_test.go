package gateway

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// throttled is a revision whose instances have no CPU between requests.
func throttled() Revision {
	revision := testRevision()
	revision.Throttled, revision.IdleDelay = true, 100*time.Millisecond
	return revision
}

func TestActivator_FreezesAnInstanceThatHasHadNoRequestForTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(throttled())
		one := idleInstance("one")
		a.Add(one)
		time.Sleep(99 * time.Millisecond)
		synctest.Wait()
		if one.Frozen() {
			t.Fatal("frozen before the delay was over")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !one.Frozen() {
			t.Fatal("not frozen after the delay")
		}
		began := time.Now()
		m := mustClaim(t, a)
		if one.Frozen() {
			t.Fatal("the request was given to a frozen instance")
		}
		if since, frozen := a.Idle(one); !since.IsZero() || frozen {
			t.Errorf("with a request it is idle since %v, frozen %t", since, frozen)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if one.Frozen() {
			t.Fatal("frozen with a request in flight")
		}
		a.release(m, time.Now())
		if since, frozen := a.Idle(one); since.Sub(began) != time.Hour || frozen {
			t.Errorf("idle since %v after the claim, frozen %t; want an hour, not frozen yet", since.Sub(began), frozen)
		}
		time.Sleep(101 * time.Millisecond)
		synctest.Wait()
		if _, frozen := a.Idle(one); !frozen || !one.Frozen() {
			t.Error("not frozen again after the request")
		}
		if n := one.freezes.Load(); n != 2 {
			t.Errorf("frozen %d times, want 2", n)
		}
	})
}

func TestActivator_LeavesInstancesAloneThatAreNotThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := throttled()
		revision.Throttled = false
		a := NewActivator(revision)
		one := idleInstance("one")
		a.Add(one)
		a.release(mustClaim(t, a), time.Now())
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := one.freezes.Load() + one.thaws.Load(); n != 0 {
			t.Errorf("frozen or thawed %d times", n)
		}
		if since, _ := a.Idle(one); time.Since(since) != time.Hour {
			t.Errorf("idle since %v ago, want an hour", time.Since(since))
		}
	})
}

func TestActivator_SetsOneTimerForManyRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(throttled())
		one := idleInstance("one")
		a.Add(one)
		for range 1000 {
			time.Sleep(10 * time.Millisecond)
			a.release(mustClaim(t, a), time.Now())
		}
		synctest.Wait()
		if n := one.freezes.Load(); n != 0 {
			t.Errorf("frozen %d times between requests that came every 10 ms", n)
		}
	})
}

func TestActivator_PrefersInstancesThatRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := throttled()
		revision.Room = 3
		a := NewActivator(revision)
		one, two, three := idleInstance("one"), idleInstance("two"), idleInstance("three")
		for _, i := range []*fakeInstance{one, two, three} {
			a.Add(i)
			time.Sleep(time.Second)
		}
		a.Spread(2)
		synctest.Wait()
		given := map[string]int{}
		for range 6 {
			given[mustClaim(t, a).id]++
		}
		if given["three"] != 3 || given["two"] != 3 {
			t.Errorf("six requests were spread as %v: two are to be used, those used last, and have room for three each", given)
		}
		if m := mustClaim(t, a); m.id != "one" {
			t.Errorf("the next was given to %q, want the one that has none: the others have no room", m.id)
		}
	})
}

func TestActivator_ARequestThatComesWhileItsInstanceIsBeingFrozenThawsIt(t *testing.T) {
	revision := throttled()
	revision.IdleDelay = time.Millisecond
	a := NewActivator(revision)
	one := idleInstance("one")
	freezing, freeze := make(chan struct{}), make(chan struct{})
	one.onFreeze = sync.OnceValue(func() error { close(freezing); <-freeze; return nil })
	a.Add(one)
	<-freezing
	var group sync.WaitGroup
	all := make(chan struct{})
	for range 3 {
		group.Go(func() {
			m, err := a.claim(t.Context(), time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			if one.Frozen() {
				t.Error("a request was given to a frozen instance")
			}
			<-all
			a.release(m, time.Now())
		})
	}
	waitForLoad(t, a, 3, 0) // they wait for the kernel
	close(freeze)
	for end := time.Now().Add(10 * time.Second); one.thaws.Load() == 0 || one.Frozen(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not thawed")
		}
	}
	close(all)
	group.Wait()
	if n := one.thaws.Load(); n != 1 {
		t.Errorf("thawed %d times for three requests, want once", n)
	}
	awaitFrozen(t, one)
}

// awaitFrozen waits until an instance is frozen.
func awaitFrozen(t *testing.T, i *fakeInstance) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !i.Frozen(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("instance %s has not been frozen", i.id)
		}
	}
}

// Requests come at all moments around that of freezing, from many goroutines: none may find its instance frozen.
func TestActivator_NeverGivesARequestAFrozenInstance(t *testing.T) {
	revision := throttled()
	revision.IdleDelay = 50 * time.Microsecond
	a := NewActivator(revision)
	instances := []*fakeInstance{idleInstance("one"), idleInstance("two")}
	for _, i := range instances {
		a.Add(i)
	}
	var group sync.WaitGroup
	for n := range 4 {
		group.Go(func() {
			for round := range 2000 {
				m, err := a.claim(t.Context(), time.Now())
				if err != nil {
					t.Error(err)
					return
				}
				if m.instance.Frozen() {
					t.Error("a request was given to a frozen instance")
				}
				if (round+n)%3 == 0 {
					time.Sleep(20 * time.Microsecond)
					if m.instance.Frozen() {
						t.Error("an instance was frozen with a request in flight")
					}
				}
				a.release(m, time.Now())
				if round%7 == n {
					time.Sleep(time.Duration(round%11) * 20 * time.Microsecond)
				}
				if round%101 == n {
					a.Suspend(m.instance)
					a.Resume(m.instance)
				}
			}
		})
	}
	group.Wait()
	if n := instances[0].freezes.Load() + instances[1].freezes.Load(); n == 0 {
		t.Error("none was ever frozen")
	}
	for _, i := range instances { // and at last both are
		awaitFrozen(t, i)
	}
}

func TestActivator_ASuspendedInstanceIsThawed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(throttled())
		one := idleInstance("one")
		a.Add(one)
		time.Sleep(time.Second)
		a.Suspend(one)
		time.Sleep(time.Hour)
		synctest.Wait()
		if one.Frozen() {
			t.Error("frozen while it takes no requests: it can never take any again")
		}
		a.Resume(one)
		time.Sleep(time.Second)
		synctest.Wait()
		if !one.Frozen() {
			t.Error("not frozen again")
		}
	})
}

func TestActivator_AnInstanceThatCannotBeFrozenIsToldOfOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := throttled()
		told := 0
		revision.FreezeFailed = func(instance string, err error) {
			told++
			if instance != "one" || err == nil {
				t.Errorf("told of %q: %v", instance, err)
			}
		}
		a := NewActivator(revision)
		one := idleInstance("one")
		one.onFreeze = func() error { return errors.New("there is no freezer") }
		a.Add(one)
		for range 3 {
			time.Sleep(time.Second)
			a.release(mustClaim(t, a), time.Now())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if told != 1 || one.freezes.Load() != 1 {
			t.Errorf("told %d times after %d tries, want 1 and 1", told, one.freezes.Load())
		}
		if _, frozen := a.Idle(one); frozen {
			t.Error("it is said to be frozen")
		}
	})
}

// Of an instance that could be frozen in part only, and not thawed again at once, no request must find that part.
func TestActivator_AnInstanceThatIsFrozenInPartIsThawed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(throttled())
		one := idleInstance("one")
		one.onFreeze = func() error {
			one.frozen.Store(true)
			return errors.New("the second container cannot be frozen")
		}
		a.Add(one)
		time.Sleep(time.Second)
		for range 2 {
			m := mustClaim(t, a)
			if one.Frozen() {
				t.Error("the request was given to a frozen instance")
			}
			a.release(m, time.Now())
			time.Sleep(time.Second)
		}
		if n := one.freezes.Load(); n != 1 {
			t.Errorf("freezing was tried %d times, want once", n)
		}
	})
}

func TestActivator_AnInstanceThatCannotBeThawedGetsNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(throttled())
		one := idleInstance("one")
		broken := errors.New("the cgroup does not answer")
		one.onThaw = func() error { return broken }
		a.Add(one)
		time.Sleep(time.Second)
		_, err := a.claim(t.Context(), time.Now())
		if !errors.Is(err, broken) || !errors.Is(err, errUnreachable) {
			t.Fatalf("claim: %v, want the reason, and that nothing has reached the instance", err)
		}
		if load := a.Load(); load.InFlight != 0 {
			t.Errorf("load is %+v, want nothing in flight", load)
		}
		one.onThaw = nil
		m := mustClaim(t, a) // when it is tried again
		if one.Frozen() {
			t.Error("the request was given to a frozen instance")
		}
		a.release(m, time.Now())
	})
}

func TestActivator_RemovedAndFrozenAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(throttled())
		one := idleInstance("one")
		a.Add(one)
		time.Sleep(time.Second)
		<-a.Remove(one)
		if since, frozen := a.Idle(one); !since.IsZero() || frozen {
			t.Errorf("a removed instance is idle since %v, frozen %t", since, frozen)
		}
	})
}

// Both ways through the gateway: the request finds a frozen instance, and one that was thawed gets a new connection.
func TestGateway_ThawsTheInstanceOfARequest(t *testing.T) {
	for name, set := range map[string]func(*Revision){
		"HTTP/1.1": func(*Revision) {},
		"HTTP/2":   func(r *Revision) { r.HTTP2 = true },
		"affinity": func(r *Revision) { r.Affinity = true },
	} {
		t.Run(name, func(t *testing.T) {
			revision := throttled()
			revision.IdleDelay = time.Millisecond
			set(&revision)
			a := NewActivator(revision)
			var one *fakeInstance
			one = serveInstance(t, "one", func(w http.ResponseWriter, r *http.Request) {
				if one.Frozen() {
					t.Error("a request reached a frozen instance")
				}
				io.Copy(w, r.Body)
			})
			a.Add(one)
			_, address := startGateway(t, Config{}, a)
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			var cookie string
			for n := range 20 {
				awaitFrozen(t, one)
				method, body := "GET", ""
				if n%2 == 1 {
					method, body = "POST", "hello"
				}
				r := newRequest(t, method, address, "/", body)
				if cookie != "" {
					r.Header.Set("Cookie", cookie)
				}
				response, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != 200 || string(got) != body {
					t.Fatalf("answer %d %q, %v", response.StatusCode, got, err)
				}
				if set := response.Header.Get("Set-Cookie"); set != "" {
					cookie = set
				}
			}
			if dials := one.dials.Load(); dials != 20 {
				t.Errorf("%d connections for 20 requests, each to an instance that was thawed for it", dials)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

// An instance whose idle limit is over ends its connections as soon as it runs again. No request may be lost by that.
func TestGateway_SendsNothingOnAConnectionFromBeforeTheFreeze(t *testing.T) {
	revision := throttled()
	revision.IdleDelay = time.Millisecond
	a := NewActivator(revision)
	thawed := make(chan struct{}, 1)
	one := rawInstance(t, "one", func(c net.Conn) {
		buffer := make([]byte, 4096)
		if _, err := c.Read(buffer); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		<-thawed // and ends the connection
	})
	one.onThaw = func() error { thawed <- struct{}{}; return nil }
	a.Add(one)
	_, address := startGateway(t, Config{}, a)
	for range 20 {
		awaitFrozen(t, one)
		response, err := http.DefaultTransport.RoundTrip(newRequest(t, "POST", address, "/", "hello"))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != 200 {
			t.Fatalf("answer %d", response.StatusCode)
		}
	}
}
