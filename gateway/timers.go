package gateway

import "time"

// timer is one deadline on a loop, which its owner moves with every step of its work. Moving it to later, which is
// what happens with every request, only writes a number: when the heap's time comes the timer looks at it again.
type timer struct {
	at    time.Duration // when to fire, on the loop's clock; 0 for never
	queue time.Duration // its place in the heap: not after at
	index int           // in the heap, counted from 1; 0 when it is not there
	owner expirer
}

type expirer interface{ expire() }

// timers is a heap of timers, the earliest first.
type timers []*timer

// set moves a timer, to 0 for never.
func (h *timers) set(t *timer, at time.Duration) {
	t.at = at
	switch {
	case at == 0:
	case t.index == 0:
		t.queue = at
		*h = append(*h, t)
		t.index = len(*h)
		h.up(t)
	case at < t.queue:
		t.queue = at
		h.up(t)
	}
}

// remove takes a timer out.
func (h *timers) remove(t *timer) {
	t.at = 0
	if t.index == 0 {
		return
	}
	last := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = nil
	*h = (*h)[:len(*h)-1]
	if last != t {
		(*h)[t.index-1], last.index = last, t.index
		h.up(last)
		h.down(last)
	}
	t.index = 0
}

// next is when to look at the heap again; 0 when it is empty.
func (h timers) next() time.Duration {
	if len(h) == 0 {
		return 0
	}
	return h[0].queue
}

// fire expires the timers whose time has come.
func (h *timers) fire(now time.Duration) {
	for len(*h) > 0 && (*h)[0].queue <= now {
		t := (*h)[0]
		switch {
		case t.at == 0:
			h.remove(t)
		case t.at > now: // it was moved to later
			t.queue = t.at
			h.down(t)
		default:
			h.remove(t)
			t.owner.expire()
		}
	}
}

func (h timers) up(t *timer) {
	for t.index > 1 {
		parent := h[t.index/2-1]
		if parent.queue <= t.queue {
			return
		}
		h.swap(t, parent)
	}
}

func (h timers) down(t *timer) {
	for 2*t.index <= len(h) {
		child := h[2*t.index-1]
		if 2*t.index < len(h) && h[2*t.index].queue < child.queue {
			child = h[2*t.index]
		}
		if t.queue <= child.queue {
			return
		}
		h.swap(t, child)
	}
}

func (h timers) swap(a, b *timer) {
	a.index, b.index = b.index, a.index
	h[a.index-1], h[b.index-1] = a, b
}
