package gateway

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestActivator_EndsTheWaitAfterTheQueueWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision() // its timeout is 10 s
		wait, full := time.Duration(0), false
		revision.QueueWait = func() time.Duration { return wait }
		revision.Full = func() bool { return full }
		a := NewActivator(revision)
		for _, c := range []struct {
			wait, took time.Duration
			full       bool
			want       error
		}{
			{3 * time.Second, 3 * time.Second, true, errFull},
			{3 * time.Second, 3 * time.Second, false, errTooSlow},
			{0, 10 * time.Second, true, errTimeout},
			{time.Minute, 10 * time.Second, true, errTimeout},
		} {
			wait, full = c.wait, c.full
			began := time.Now()
			_, err := a.claim(t.Context(), began)
			if took := time.Since(began); err != c.want || took != c.took {
				t.Errorf("wait %v, full %t: got %v after %v, want %v after %v", c.wait, c.full, err, took, c.want, c.took)
			}
		}
		if load := a.Load(); load.Waiting != 0 || load.InFlight != 0 {
			t.Errorf("load is %+v", load)
		}
	})
}

func TestActivator_WaitsAnewWhenAnInstanceRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.QueueWait = func() time.Duration { return time.Second }
		a := NewActivator(revision)
		a.Add(idleInstance("only"))
		m := mustClaim(t, a)
		arrived := time.Now()
		time.Sleep(5 * time.Second) // reaching it took that long
		if again, err := a.claimAgain(t.Context(), m, arrived); err != nil || again != m {
			t.Errorf("got %v, %v", again, err)
		}
	})
}

func TestActivator_LetsAClientThatIsGoneGoBeforeTheQueueWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revision := testRevision()
		revision.QueueWait = func() time.Duration { return time.Second }
		a := NewActivator(revision)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := a.claim(ctx, time.Now()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestGateway_AnswersAsCloudRunDoesAfterTheQueueWait(t *testing.T) {
	for name, c := range map[string]struct {
		full   bool
		status int
		text   string
	}{
		"at the greatest number": {true, http.StatusTooManyRequests, textNoInstance},
		"too slow":               {false, http.StatusInternalServerError, textTooSlow},
	} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.QueueWait = func() time.Duration { return time.Millisecond }
			revision.Full = func() bool { return c.full }
			a := NewActivator(revision)
			_, address := startGateway(t, Config{}, a)
			if response, body := fetch(t, newRequest(t, "GET", address, "/", "")); response.StatusCode != c.status || body != c.text+"\n" {
				t.Errorf("got %d %q", response.StatusCode, body)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestGateway_SaysThatTheMachineIsFull(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Revision)
		status int
		text   string
	}{
		"after the queue wait": {func(r *Revision) { r.QueueWait = func() time.Duration { return time.Millisecond } }, http.StatusTooManyRequests, textNoInstance},
		"after the timeout":    {func(r *Revision) { r.Timeout = 10 * time.Millisecond }, http.StatusGatewayTimeout, textTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			full := func() bool { return true }
			revision.Full, revision.Short = full, full
			c.change(&revision)
			a := NewActivator(revision)
			_, address := startGateway(t, Config{}, a)
			response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
			if want := c.text + "\n" + textShort + "\n"; response.StatusCode != c.status || body != want {
				t.Errorf("got %d %q, want %d %q", response.StatusCode, body, c.status, want)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}
