package autoscaler

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/berth-run/berth/engine"
)

// ReasonTooLarge is the reason of an [engine.StartError] about a revision whose instances may use more memory than all
// instances together.
const ReasonTooLarge = "TooLarge"

const (
	// unlimitedMemory is what a container without a memory limit counts for: what one with the default limit does.
	unlimitedMemory = 512 << 20
	// unusedLeast is how long an instance has had no request before others may have its memory. Between two requests of
	// a client that sends one after the other it is not unused.
	unusedLeast = time.Second
	// turnLeast is for how long a revision keeps its only instance at least while others wait for their first: it is
	// many times what a start costs, and half of what requests wait at least under Cloud Run's rule.
	turnLeast = 5 * time.Second
	// loopPatience is how long a revision that has been in a crash loop waits behind all others. Then it has its turn as they
	// do: it may be well again, and only a start can tell.
	loopPatience = backoffMost
	// settleTime is how long an instance has been ready at least before it is given up for another revision's second.
	settleTime = time.Second
	// drainPatience is how long the memory of a draining instance is counted on. After that another one goes.
	drainPatience = 10 * time.Second
	// roomTick is how often is looked for instances that are unused by now, while starts wait for memory.
	roomTick = 100 * time.Millisecond
	// shortPatience is how long a revision waits for memory before it says so.
	shortPatience = time.Second
	// shortSpoken is how often a revision's waiting for memory is logged at most.
	shortSpoken = time.Minute
)

// room is the memory that the machine has for instances, and who waits for it. It belongs to the loop.
type room struct {
	total int64 // 0 is as much as one likes
	used  int64 // what all members count for
	short []*fleet
	going map[*member]struct{} // that drain or stop
	dirty bool                 // something changed that those who wait may profit by
	timer *time.Timer
}

// sizeOf is what an instance counts for while it runs: the sum of its containers' limits (contract C65).
func sizeOf(spec engine.Spec) int64 {
	limit := func(c engine.Container) int64 { return cmp.Or(c.Memory, unlimitedMemory) }
	size := limit(spec.Container)
	for _, c := range spec.Sidecars {
		size += limit(c)
	}
	return size
}

// hold records what a member counts for from now on.
func (a *Autoscaler) hold(m *member, bytes int64) {
	a.room.used += bytes - m.held
	m.held = bytes
}

// admits tells whether a fleet may start an instance now. When there is no memory for it the fleet waits, if it has
// work for one, and makeRoom starts it.
func (a *Autoscaler) admits(ctx context.Context, f *fleet) bool {
	r := &a.room
	switch {
	case r.total == 0:
		return true
	case f.size > r.total:
		now := time.Now()
		a.startFailed(ctx, f, &member{claimedAt: now}, &engine.StartError{Reason: ReasonTooLarge, Err: fmt.Errorf(
			"an instance may use %s of memory, and all instances of this machine together no more than %s: lower the memory limits of its containers, or raise --instance-memory of the server",
			inBytes(f.size), inBytes(r.total))})
		return false
	case f.short.waits():
		return false
	}
	needed := f.need(f.revision.Pool.Load()) > f.holds()
	switch {
	case len(r.short) == 0 && a.fits(f) && (needed || time.Since(f.yielded) >= f.revision.Scale.StableWindow):
		return true
	case needed:
		f.short.since = time.Now()
		r.short = append(r.short, f)
		r.dirty = true
		a.change(f)
	}
	return false // what averages alone ask for is asked for again at the next tick
}

// fits tells whether there is memory for another instance of a fleet.
func (a *Autoscaler) fits(f *fleet) bool { return a.room.used+a.cost(f) <= a.room.total }

// cost is what is used more when a fleet starts another instance.
func (a *Autoscaler) cost(f *fleet) int64 {
	if m := a.spares[f]; m != nil {
		return f.size - m.held
	}
	return f.size
}

// shortage is what a fleet knows of its waiting for memory.
type shortage struct {
	since  time.Time // zero when it does not wait
	text   string    // what people are told; "" before they are
	spoken time.Time // when it was logged last
}

func (s *shortage) waits() bool { return !s.since.IsZero() }

// suffice ends a fleet's waiting for memory.
func (a *Autoscaler) suffice(f *fleet) {
	if i := slices.Index(a.room.short, f); i >= 0 {
		a.room.short = slices.Delete(a.room.short, i, i+1)
		f.short.since, f.short.text = time.Time{}, ""
		a.change(f)
	}
}

// holds is how many instances a fleet has, without those that go.
func (f *fleet) holds() int { return f.count(engine.Ready) + f.count(engine.Starting) }

// least is how many instances a fleet is promised: its least number, or what proves it.
func (f *fleet) least() int {
	n := 0
	if f.revision.Reachable {
		n = f.revision.Scale.Min
	}
	if f.revision.Prove && !f.judge.state.proven {
		n = max(n, f.revision.Scale.Initial)
	}
	return min(n, f.desired)
}

// need is how many instances a fleet has work for now. Averages ask for what may be needed soon, and targets for some
// that are free: that is not enough to take memory from others.
func (f *fleet) need(load Load) int {
	switch {
	case load.Waiting > 0, load.InFlight > 0 && f.revision.Scale.Metric != metricConcurrency:
		return f.desired
	}
	return min(f.desired, max(f.least(), int(math.Ceil(float64(load.InFlight)/f.revision.Scale.TotalTarget))))
}

// turn is where a fleet is in the order in which fleets get their first instance.
type turn int8

const (
	hasTurn   turn = iota // it has had an instance for a short time only
	waits                 // it waits for its first
	isOver                // it has had one for long
	justWaits             // it has begun to wait just now: perhaps it has given one up
	loops                 // it is in a crash loop, and has not waited for long
)

// place is a fleet's turn, and its order among those with the same.
type place struct {
	turn  turn
	since time.Time // the earlier goes first
}

func (f *fleet) place(now time.Time) place {
	var ready time.Time // when the oldest of its instances became so
	for _, m := range f.members {
		if m.state == engine.Ready && (ready.IsZero() || m.since.Before(ready)) {
			ready = m.since
		}
	}
	had := now.Sub(ready)
	switch {
	case f.holds() > 0 && !ready.IsZero() && had >= max(turnLeast, f.averageStart):
		return place{isOver, time.Time{}.Add(had)} // the longest last
	case f.holds() > 0:
		return place{turn: hasTurn}
	case f.backoff.loops() && now.Sub(f.short.since) < loopPatience:
		return place{loops, f.short.since}
	case now.Sub(f.short.since) >= settleTime:
		return place{waits, f.short.since}
	}
	return place{justWaits, f.short.since}
}

// unused is an instance that has no request, and that its fleet need not keep.
type unused struct {
	fleet  *fleet
	member *member
	since  time.Time
}

// makeRoom starts instances of fleets that wait for memory, as far as there is some, and has others give some up: those
// that are unused, whoever they belong to, and then those of fleets that have more than their share.
func (a *Autoscaler) makeRoom(ctx context.Context) {
	r := &a.room
	if len(r.short) == 0 || a.closing || !r.dirty {
		return
	}
	r.dirty = false
	now := time.Now()
	all, claims, idle := a.claims(now)
	gets := shares(r.total, claims)
	coming := r.coming(now)
	for i, f := range all {
		if !f.short.waits() {
			continue
		}
		loops := f.backoff.loops()
		for f.holds() < gets[i] && f.missing() > 0 && a.slots > 0 && a.fits(f) && (!loops || a.mayRetry()) {
			a.begin(ctx, f, loops)
		}
		if f.missing() <= 0 || f.holds() >= claims[i].wants {
			a.suffice(f)
		}
	}
	free := r.total - r.used + coming
	for i, f := range all {
		for n := f.holds(); f.short.waits() && n < gets[i]; n++ {
			if free < a.cost(f) {
				free += a.takeSpares(f, a.cost(f)-free)
			}
			for len(idle) > 0 && free < a.cost(f) {
				u := idle[0]
				idle = idle[1:]
				if u.fleet != f && u.member.state == engine.Ready {
					free += u.member.held
					u.fleet.yielded = now
					a.drain(u.fleet, u.member, "it had no requests, and the memory was needed for another revision")
				}
			}
			for free < a.cost(f) {
				m := a.takeShare(all, claims, gets, n == 0, now)
				if m == nil {
					break
				}
				free += m.held
			}
			free -= a.cost(f)
		}
	}
	for _, f := range r.short {
		a.sayShort(f, now)
	}
	if r.timer == nil {
		r.timer = time.AfterFunc(roomTick, func() { a.mail.post(func(context.Context) { r.dirty = true }) })
	} else {
		r.timer.Reset(roomTick)
	}
}

// claims returns what every fleet with instances, and every one that waits, wants of the memory, in the order of their
// turn: those whose turn is not over, those that wait for their first instance, the longest first, those whose turn
// is over, the longest last, those that have just begun to wait, and crash loops. With it come the instances that are unused, the longest first.
func (a *Autoscaler) claims(now time.Time) (all []*fleet, claims []claim, idle []unused) {
	for _, f := range slices.Clone(a.room.short) {
		if f.removed || f.missing() <= 0 || f.backoff.active() || f.need(f.revision.Pool.Load()) <= f.holds() {
			a.suffice(f)
		}
	}
	places := make(map[*fleet]place)
	for f := range a.busy {
		if f.holds() > 0 || f.short.waits() {
			places[f] = f.place(now)
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(f, g *fleet) int {
		p, q := places[f], places[g]
		return cmp.Or(cmp.Compare(p.turn, q.turn), p.since.Compare(q.since),
			cmp.Compare(f.revision.Key.Namespace, g.revision.Key.Namespace), cmp.Compare(f.revision.Key.Revision, g.revision.Key.Revision))
	})
	for _, f := range all {
		c := claim{size: f.size, least: f.least(), holds: f.holds()}
		if f.short.waits() {
			c.wants = f.need(f.revision.Pool.Load())
		} else {
			spared := f.unused(now)
			c.wants = c.holds - len(spared)
			idle = append(idle, spared...)
		}
		claims = append(claims, c)
	}
	slices.SortStableFunc(idle, func(u, v unused) int { return u.since.Compare(v.since) })
	return all, claims, idle
}

// unused lists a fleet's instances that have had no request for a while, above its least number.
func (f *fleet) unused(now time.Time) []unused {
	spared := f.count(engine.Ready) - f.least()
	if spared <= 0 {
		return nil
	}
	var all []unused
	for _, m := range f.members {
		if m.state != engine.Ready {
			continue
		}
		if since, _ := f.revision.Pool.Idle(m.instance); !since.IsZero() && now.Sub(since) >= unusedLeast {
			all = append(all, unused{f, m, since})
		}
	}
	slices.SortStableFunc(all, func(u, v unused) int { return u.since.Compare(v.since) })
	return all[:min(len(all), spared)]
}

// coming is the memory that is about to be free.
func (r *room) coming(now time.Time) int64 {
	var sum int64
	for m := range r.going {
		if m.state == engine.Stopping || now.Sub(m.since) < drainPatience {
			sum += m.held
		}
	}
	return sum
}

// takeSpares stops prepared instances if they hold as much as is needed, those of the fleets used longest ago first,
// and returns what they held.
func (a *Autoscaler) takeSpares(f *fleet, needed int64) (taken int64) {
	var sum int64
	for of, m := range a.spares {
		if of != f {
			sum += m.held
		}
	}
	for e := a.recent.Back(); e != nil && sum >= needed && taken < needed; e = e.Prev() {
		of := e.Value.(*fleet)
		if m := a.spares[of]; m != nil && of != f {
			taken += m.held
			a.stop(of, m, "its memory was needed for an instance that starts")
		}
	}
	return taken
}

// takeShare drains an instance of the fleet that is most above its share, and returns it; nil when none has to give one
// now. For another's first instance everybody gives at once; else one after the other.
func (a *Autoscaler) takeShare(all []*fleet, claims []claim, gets []int, first bool, now time.Time) *member {
	var from *fleet
	var victim *member
	most := int64(0)
	for i, f := range all {
		above := int64(f.holds()-gets[i]) * claims[i].size
		if above <= most || !first && f.count(engine.Draining) > 0 {
			continue
		}
		m := f.longestUnready()
		if m == nil {
			m = f.holding(f.revision.Pool.Idlest())
		}
		if m == nil {
			m = f.newest(engine.Ready)
		}
		if m != nil && (first || now.Sub(m.since) >= settleTime) {
			from, victim, most = f, m, above
		}
	}
	if from != nil {
		a.drain(from, victim, "other revisions wait for their share of the memory")
	}
	return victim
}

// sayShort tells people that a fleet waits for memory, once it has done so for a moment: making room for it is no news.
func (a *Autoscaler) sayShort(f *fleet, now time.Time) {
	if f.short.text != "" || now.Sub(f.short.since) < shortPatience {
		return
	}
	r := &a.room
	f.short.text = fmt.Sprintf("memory: an instance may use %s, and the instances of this machine have %s of the %s that they may use together (--instance-memory)",
		inBytes(f.size), inBytes(r.used), inBytes(r.total))
	a.change(f)
	if now.Sub(f.short.spoken) < shortSpoken {
		return
	}
	f.short.spoken = now
	a.log(f, &member{}).Warn("instance waits for memory", "needs", f.size, "used", r.used, "limit", r.total, "waiting", len(r.short),
		"setting", "--instance-memory")
	a.tell(f, &member{}, Short, 0, f.short.text)
}

// MemoryStatus is how the memory for instances is used, in bytes.
type MemoryStatus struct {
	Limit   int64 // 0 is no bound
	Used    int64 // the limits of what runs, and what prepared instances hold
	Waiting int   // revisions with work for another instance, for which there is no memory
}

// Memory tells how the memory for instances is used.
func (a *Autoscaler) Memory() MemoryStatus { return *a.memory.Load() }

// publishMemory makes what changed of it visible.
func (a *Autoscaler) publishMemory() {
	now := MemoryStatus{Limit: a.room.total, Used: a.room.used, Waiting: len(a.room.short)}
	if before := a.memory.Load(); before == nil || *before != now {
		changed := now // so that nothing is allocated where nothing has changed
		a.memory.Store(&changed)
	}
}

// String is the status as people read it.
func (s MemoryStatus) String() string {
	text := inBytes(s.Used)
	if s.Limit > 0 {
		text += " of " + inBytes(s.Limit)
	}
	switch {
	case s.Waiting == 1:
		text += ", 1 revision waits"
	case s.Waiting > 1:
		text += fmt.Sprintf(", %d revisions wait", s.Waiting)
	}
	return text
}
