package reconcile

import (
	"sync"
	"time"
)

// queue holds the keys to look at, each at most once. A key that is added while it is worked on is handed out
// again afterwards, so no two workers ever have the same key.
//
// The backlog is what is looked at when there is nothing else to do, by one worker at a time: a server that starts with
// many objects serves and deploys meanwhile.
type queue struct {
	mu       sync.Mutex
	ready    sync.Cond
	waiting  []key
	backlog  []key // those in it that are not in state behind any more have been handed out before their turn
	behind   key   // the one of the backlog that a worker has; the zero key when none has one
	state    map[key]keyState
	delayed  map[key]*time.Timer
	failures map[key]int
	closed   bool
}

type keyState int

const (
	queued  keyState = iota + 1
	working          // a worker has it
	again            // a worker has it, and it is to be looked at once more
	behind           // in the backlog
)

func newQueue() *queue {
	q := &queue{state: map[key]keyState{}, delayed: map[key]*time.Timer{}, failures: map[key]int{}}
	q.ready.L = &q.mu
	return q
}

func (q *queue) add(keys ...key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, k := range keys {
		q.addLocked(k)
	}
}

func (q *queue) addLocked(k key) {
	if q.closed {
		return
	}
	switch q.state[k] {
	case queued, again:
	case working:
		q.state[k] = again
	default:
		q.state[k] = queued
		q.waiting = append(q.waiting, k)
		q.ready.Signal()
	}
}

// addBehind adds a key to the backlog, unless it is to be looked at anyway.
func (q *queue) addBehind(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, known := q.state[k]; known || q.closed {
		return
	}
	q.state[k] = behind
	q.backlog = append(q.backlog, k)
	q.ready.Signal()
}

// addAfter adds a key later. A key waits at most once: the first delay counts.
func (q *queue) addAfter(k key, delay time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if delay <= 0 {
		q.addLocked(k)
		return
	}
	if q.delayed[k] != nil {
		return
	}
	q.delayed[k] = time.AfterFunc(delay, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.delayed, k)
		q.addLocked(k)
	})
}

// addBackoff adds a key after a delay that doubles with each failure in a row, from 100 ms to a minute.
func (q *queue) addBackoff(k key) time.Duration {
	q.mu.Lock()
	n := q.failures[k]
	q.failures[k]++
	q.mu.Unlock()
	delay := min(100*time.Millisecond<<min(n, 10), time.Minute)
	q.addAfter(k, delay)
	return delay
}

func (q *queue) forget(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.failures, k)
}

// next waits for a key; false means the queue is closed.
func (q *queue) next() (key, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed {
		if len(q.waiting) > 0 {
			k := q.waiting[0]
			q.waiting = q.waiting[1:]
			q.state[k] = working
			return k, true
		}
		if k, ok := q.nextBehind(); ok {
			return k, true
		}
		q.ready.Wait()
	}
	return key{}, false
}

// nextBehind takes a key from the backlog, if no worker has one. q.mu is held.
func (q *queue) nextBehind() (key, bool) {
	for q.behind == (key{}) && len(q.backlog) > 0 {
		k := q.backlog[0]
		if q.backlog = q.backlog[1:]; len(q.backlog) == 0 {
			q.backlog = nil
		}
		if q.state[k] == behind {
			q.state[k], q.behind = working, k
			return k, true
		}
	}
	return key{}, false
}

func (q *queue) done(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.state[k]
	delete(q.state, k)
	if q.behind == k {
		q.behind = key{}
		q.ready.Signal()
	}
	if s == again {
		q.addLocked(k)
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for k, t := range q.delayed {
		t.Stop()
		delete(q.delayed, k)
	}
	q.ready.Broadcast()
}
