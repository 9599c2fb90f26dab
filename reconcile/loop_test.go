package reconcile

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/store/bolt"
)

func TestQueue_HandsOutAKeyToOneWorkerAtATime(t *testing.T) {
	q := newQueue()
	k := key{"services", "default", "hello"}
	q.add(k)
	q.add(k)
	got, ok := q.next()
	if !ok || got != k {
		t.Fatalf("next: %v %v", got, ok)
	}
	q.add(k) // while it is worked on
	if len(q.waiting) != 0 {
		t.Fatalf("the key waits (%v) while a worker has it", q.waiting)
	}
	q.done(k)
	if len(q.waiting) != 1 {
		t.Fatalf("after the work the key waits %d times, want once more", len(q.waiting))
	}
	q.next()
	q.done(k)
	if len(q.waiting) != 0 || len(q.state) != 0 {
		t.Fatalf("left over: %v %v", q.waiting, q.state)
	}
}

func TestQueue_DelaysDoubleUntilSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{"services", "default", "hello"}
		for _, want := range []time.Duration{100, 200, 400, 800} {
			if got := q.addBackoff(k); got != want*time.Millisecond {
				t.Fatalf("delay %v, want %v ms", got, want)
			}
			start := time.Now()
			q.next()
			if waited := time.Since(start); waited != want*time.Millisecond {
				t.Fatalf("handed out after %v, want %v ms", waited, want)
			}
			q.done(k)
		}
		q.forget(k)
		if got := q.addBackoff(k); got != 100*time.Millisecond {
			t.Fatalf("delay after a success: %v", got)
		}
		for range 20 {
			q.addBackoff(k)
		}
		if got := q.addBackoff(k); got != time.Minute {
			t.Fatalf("longest delay %v, want a minute", got)
		}
		q.close()
	})
}

func TestQueue_DelayedKeyIsHandedOutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{"revisions", "default", "hello-00001"}
		for range 10 {
			q.addAfter(k, time.Second)
		}
		q.next()
		q.done(k)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(q.waiting) != 0 {
			t.Fatalf("waits again: %v", q.waiting)
		}
		q.close()
	})
}

func TestQueue_CloseFreesEveryWorker(t *testing.T) {
	q := newQueue()
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			if _, ok := q.next(); ok {
				t.Error("a closed queue handed out a key")
			}
		})
	}
	q.close()
	workers.Wait()
	q.add(key{"services", "default", "late"})
	if len(q.waiting) != 0 {
		t.Fatal("a closed queue took a key")
	}
}

func TestRun_StoppedBeforeItHasReadEverythingEndsWithoutAnErrorAndIsNotSynced(t *testing.T) {
	objects, err := bolt.Open(filepath.Join(t.TempDir(), "objects.db"), bolt.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	r := New(Config{Store: objects, Logger: slog.New(slog.DiscardHandler)})
	if err := r.Run(stopped, func() { t.Error("what was not read counts as synced") }); err != nil {
		t.Errorf("Run ended with: %v", err)
	}
}

func TestQueue_HandsOutTheBacklogToOneWorkerWhenNothingElseWaits(t *testing.T) {
	q := newQueue()
	first, second, urgent := key{"revisions", "default", "a"}, key{"revisions", "default", "b"}, key{"services", "default", "c"}
	for _, k := range []key{first, second, urgent} {
		q.addBehind(k)
	}
	q.add(urgent) // a user writes it now
	take := func() key {
		t.Helper()
		k, ok := q.next()
		if !ok {
			t.Fatal("the queue is closed")
		}
		return k
	}
	if got := take(); got != urgent {
		t.Errorf("got %v first, want what was added", got)
	}
	if got := take(); got != first {
		t.Errorf("got %v next, want the backlog's first", got)
	}
	if k, ok := q.nextBehind(); ok {
		t.Errorf("a second worker gets %v of the backlog", k)
	}
	q.add(second) // somebody waits for it
	if got := take(); got != second {
		t.Errorf("got %v, want what was added", got)
	}
	for _, k := range []key{urgent, first, second} {
		q.done(k)
	}
	if k, ok := q.nextBehind(); ok || len(q.state) > 0 {
		t.Errorf("%v is handed out again; states %v are left", k, q.state)
	}
}
