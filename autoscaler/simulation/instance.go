package simulation

import (
	"math"
	"time"
)

// instance works on its requests at the same speed each: full speed up to a number of them, and sharing that beyond it.
// Work is counted in the seconds that one request has got since the instance began, so that a change of speed changes no
// request: each one ends when the count has grown by its service time.
type instance struct {
	began   time.Duration
	speed   int // requests at full speed; 0 is any number
	used    int // order of its last use
	leaving bool
	plan    int   // changes when the end of the next request does
	queue   []int // requests that wait for a place on this instance

	since time.Duration // when done was right
	work  float64       // seconds that a request has got since the beginning
	tasks heap[task]
}

// task is a request in progress.
type task struct {
	end     float64 // it ends when work has come this far
	request int
}

func (i *instance) len() int  { return i.tasks.len() }
func (i *instance) load() int { return i.tasks.len() + len(i.queue) }

// rate is how much of full speed each request gets.
func (i *instance) rate() float64 {
	if n := i.tasks.len(); i.speed > 0 && n > i.speed {
		return float64(i.speed) / float64(n)
	}
	return 1
}

func (i *instance) advance(now time.Duration) {
	if i.tasks.len() == 0 {
		i.work = 0 // nothing refers to it: begin again, where numbers are exact
	} else {
		i.work += (now - i.since).Seconds() * i.rate()
	}
	i.since = now
}

func (i *instance) add(now time.Duration, request int, service time.Duration) {
	i.advance(now)
	if i.tasks.less == nil {
		i.tasks.less = func(a, b task) bool { return a.end < b.end || a.end == b.end && a.request < b.request }
	}
	i.tasks.push(task{end: i.work + service.Seconds(), request: request})
}

// next is when the next request ends if nothing changes.
func (i *instance) next(now time.Duration) time.Duration {
	i.advance(now)
	left := max(0, i.tasks.first().end-i.work) / i.rate()
	return now + time.Duration(math.Round(left*1e9))
}

// done ends the next request.
func (i *instance) done(now time.Duration) int {
	i.advance(now)
	return i.tasks.pop().request
}

// heap is a priority queue.
type heap[T any] struct {
	less func(a, b T) bool
	all  []T
}

func (h *heap[T]) len() int { return len(h.all) }
func (h *heap[T]) first() T { return h.all[0] }

func (h *heap[T]) push(item T) {
	h.all = append(h.all, item)
	for i := len(h.all) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.less(h.all[i], h.all[parent]) {
			return
		}
		h.all[i], h.all[parent] = h.all[parent], h.all[i]
		i = parent
	}
}

func (h *heap[T]) pop() T {
	top, last := h.all[0], len(h.all)-1
	h.all[0] = h.all[last]
	var none T
	h.all[last] = none
	h.all = h.all[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if h.less(h.all[child], h.all[least]) {
				least = child
			}
		}
		if least == i {
			return top
		}
		h.all[i], h.all[least] = h.all[least], h.all[i]
		i = least
	}
}
