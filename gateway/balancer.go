package gateway

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/engine"
)

// member is one instance as its activator sees it. Its fields are guarded by the activator's mutex, except those
// that never change.
type member struct {
	id       string
	instance engine.Instance
	conns    *connections
	drained  chan struct{} // closed when it is draining and its last request has ended

	inFlight   int
	idleSince  time.Time // when its last request ended, or it began to take requests; meaningful while it has none
	mark       mark      // for session affinity; 0 when the revision has none
	draining   bool      // taken back: no new request, ever
	suspended  bool      // no new request until it is resumed
	linked     bool      // in a list of the balancer: may be given requests
	prev, next *member

	// asleep says that its CPU is withheld, or about to be. It is set under the activator's mutex while it has no request,
	// and cleared under power: idle.go has the rules.
	asleep      atomic.Bool
	thawed      atomic.Pointer[engine.Stage] // when it was thawed last; nil when it never was
	unfreezable bool                         // freezing it has failed
	power       sync.Mutex                   // held while it is frozen or thawed; before the activator's
}

// balancer chooses the instance for a request: the one with the fewest requests in flight, and among equals the
// one that was used last. The first rule gives the shortest wait. The second sends light load to the same few
// instances: their caches stay warm and the others become idle, which is what scaling in looks for. Frozen instances are
// the last among those without a request, and beyond spread they are taken only when those that run have no room.
//
// Choosing and returning take constant time, however many instances there are: levels[n] lists the instances
// that have n requests in flight, last used first, and a request moves its instance one level up or down.
//
// Invariant: least is the lowest level with an instance when there is one.
type balancer struct {
	concurrency int // most requests in flight on one instance; 0 is unlimited
	levels      []level
	least       int
	size        int // instances in the lists
	working     int // of these, those that have requests
	spread      int // over how many instances requests are spread before frozen ones are left alone
	room        int // how many requests each of them takes then
}

func newBalancer(revision Revision) balancer {
	b := balancer{concurrency: revision.Concurrency}
	if revision.Throttled {
		b.room = revision.Room
	}
	if b.concurrency > 0 {
		b.room = min(b.room, b.concurrency)
	}
	return b
}

// level is a list of instances with equally many requests.
type level struct{ first, last *member }

// take adds a request to the best instance and returns it; nil when no instance has a free slot.
func (b *balancer) take() *member {
	if b.size == 0 || b.concurrency > 0 && b.least >= b.concurrency {
		return nil
	}
	m := b.levels[b.least].first
	if m.asleep.Load() && b.working >= b.spread {
		if awake := b.roomy(); awake != nil {
			m = awake
		}
	}
	b.raise(m)
	return m
}

// roomy is the instance with the fewest requests, but at least one, that has room for more; nil when there is none.
func (b *balancer) roomy() *member {
	for n := 1; n < min(b.room, len(b.levels)); n++ {
		if m := b.levels[n].first; m != nil {
			return m
		}
	}
	return nil
}

// takeOn adds a request to an instance; false when it has no free slot.
func (b *balancer) takeOn(m *member) bool {
	if !m.linked || b.concurrency > 0 && m.inFlight >= b.concurrency {
		return false
	}
	b.raise(m)
	return true
}

// raise adds a request to a listed instance.
func (b *balancer) raise(m *member) {
	b.unlink(m)
	m.inFlight++
	b.link(m)
	if b.levels[b.least].first == nil {
		b.least++ // m, which was alone there, has left it for the next level
	}
}

// put ends a request on an instance, listed or not.
func (b *balancer) put(m *member) {
	if !m.linked {
		m.inFlight--
		return
	}
	b.unlink(m)
	m.inFlight--
	b.link(m)
	if m.inFlight < b.least {
		b.least = m.inFlight
	}
}

// add lists an instance.
func (b *balancer) add(m *member) {
	if m.linked {
		return
	}
	b.link(m)
	m.linked = true
	if b.size == 0 || m.inFlight < b.least {
		b.least = m.inFlight
	}
	b.size++
}

// remove takes an instance off the lists: it gets no new request.
func (b *balancer) remove(m *member) {
	if !m.linked {
		return
	}
	b.unlink(m)
	m.linked = false
	b.size--
	if b.size == 0 {
		b.least = 0
		return
	}
	for b.levels[b.least].first == nil {
		b.least++
	}
}

// idlest is the instance that is missed least: the one with the fewest requests in flight, and among equals the one
// that was used longest ago, which take comes to last. It is nil when none is listed.
func (b *balancer) idlest() *member {
	if b.size == 0 {
		return nil
	}
	return b.levels[b.least].last
}

func (b *balancer) link(m *member) {
	for len(b.levels) <= m.inFlight {
		b.levels = append(b.levels, level{})
	}
	if m.inFlight > 0 {
		b.working++
	}
	l := &b.levels[m.inFlight]
	m.prev, m.next = nil, l.first
	if l.first != nil {
		l.first.prev = m
	} else {
		l.last = m
	}
	l.first = m
}

func (b *balancer) unlink(m *member) {
	if m.inFlight > 0 {
		b.working--
	}
	l := &b.levels[m.inFlight]
	if m.prev != nil {
		m.prev.next = m.next
	} else {
		l.first = m.next
	}
	if m.next != nil {
		m.next.prev = m.prev
	} else {
		l.last = m.prev
	}
	m.prev, m.next = nil, nil
}
