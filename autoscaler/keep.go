package autoscaler

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/berth-run/berth/engine"
)

// Instances of throttled revisions cost no CPU while they have no requests: they are frozen (contract C66). So those that
// load needs no longer are kept for a while (contract C51), until the memory is short (C52).

// freezePatience is how long an instance without requests is given to become frozen. One that has not is treated as
// those of revisions that are not throttled.
const freezePatience = 5 * time.Second

// keeps tells whether surplus instances are kept frozen. Those that no route leads to can get no request.
func (a *Autoscaler) keeps(f *fleet) bool {
	return f.revision.Throttled && f.revision.Reachable && a.settings.IdleKeep > 0
}

// serving is how many of the ready instances load is served with, which is what decisions are about: frozen ones beyond
// those that are wanted cost nothing, and are none of them.
func (f *fleet) serving(ready int) int {
	if !f.revision.Throttled {
		return ready
	}
	for _, m := range f.members {
		if m.state == engine.Ready && m.instance.Frozen() {
			ready--
		}
	}
	return max(ready, min(f.count(engine.Ready), f.desired))
}

// letIdle takes at most n instances away that have been frozen for as long as they are kept, the longest first.
func (a *Autoscaler) letIdle(f *fleet, n int, now time.Time) {
	for range n {
		m := f.longestUnready()
		if m != nil {
			a.drain(f, m, "load no longer needs it")
			continue
		}
		if m = f.holding(f.revision.Pool.Idlest()); m == nil {
			return
		}
		since, frozen := f.revision.Pool.Idle(m.instance)
		keep := freezePatience
		if frozen {
			keep = a.settings.IdleKeep
		}
		if since.IsZero() || now.Sub(since) < keep { // and the others were used after it
			return
		}
		a.drain(f, m, "it was idle for "+now.Sub(since).Round(time.Second).String())
	}
}

// pressureTick is how often the memory of the machine is looked at while there are frozen instances.
const pressureTick = 5 * time.Second

// frozen is an instance without requests, and without CPU, as the memory is short.
type frozen struct {
	fleet     *fleet
	member    *member
	since     time.Time // when its last request ended
	memory    int64     // that it holds, in bytes
	reclaimed bool      // its memory was reclaimed since
	needed    bool      // load needs it, or it is one of the least number
}

// relieve decides what to do about so many bytes too few: of which instances to reclaim the memory, and which to stop. It
// reclaims first, of those that have been idle longest, and stops when there is nothing left to reclaim.
func relieve(short int64, idle []frozen) (reclaim, stop []frozen) {
	if short <= 0 {
		return nil, nil
	}
	slices.SortStableFunc(idle, func(a, b frozen) int { return a.since.Compare(b.since) })
	left := short
	for _, i := range idle {
		if !i.reclaimed && left > 0 {
			reclaim = append(reclaim, i)
			left -= i.memory
		}
	}
	if len(reclaim) > 0 {
		return reclaim, nil
	}
	for _, i := range idle {
		if !i.needed && short > 0 {
			stop = append(stop, i)
			short -= cmp.Or(i.memory, 1)
		}
	}
	return nil, stop
}

// pressure is what is known of the machine's memory, and what is being done about it. It belongs to the loop.
type pressure struct {
	looked  time.Time // when the memory was looked at last
	working bool      // it is being relieved
}

// tend looks at the machine's memory while there are frozen instances, and relieves it when it is short. It is called at
// each tick.
func (a *Autoscaler) tend(now time.Time) {
	reserve := a.settings.MemoryReserve.Of(a.settings.MachineMemory)
	if reserve <= 0 || a.pressure.working || now.Sub(a.pressure.looked) < pressureTick || a.settings.MemoryAvailable == nil {
		return
	}
	idle := a.idle()
	if len(idle) == 0 {
		return
	}
	a.pressure.looked = now
	available, err := a.settings.MemoryAvailable()
	if err != nil {
		a.logger.Warn("looking at the machine's memory", "error", err)
		return
	}
	if available >= reserve {
		return
	}
	a.pressure.working = true
	var stop []frozen
	var reclaimed []frozen
	a.step(func() {
		for n := range idle {
			if usage, err := idle[n].member.instance.Usage(); err == nil {
				idle[n].memory = usage.Memory
			}
		}
		var reclaim []frozen
		reclaim, stop = relieve(reserve-available, idle)
		for _, i := range reclaim {
			freed, err := i.member.instance.Reclaim()
			if err != nil {
				a.logger.Debug("reclaiming the memory of an idle instance", "instance", i.member.instance.ID(), "error", err)
			} else {
				a.logger.Info("memory of an idle instance reclaimed", "instance", i.member.instance.ID(), "freed", freed, "held", i.memory, "available", available)
			}
			reclaimed = append(reclaimed, i)
		}
	}, func(context.Context) {
		a.pressure.working = false
		for _, i := range reclaimed {
			i.member.reclaimedSince = i.since
		}
		for _, i := range stop {
			since, frozen := i.fleet.revision.Pool.Idle(i.member.instance)
			if i.member.state == engine.Ready && frozen && since.Equal(i.since) { // it has not been used meanwhile
				a.drain(i.fleet, i.member, "the machine is short of memory and it was idle for "+time.Since(since).Round(time.Second).String())
			}
		}
	})
}

// idle lists the frozen instances of all fleets.
func (a *Autoscaler) idle() []frozen {
	var all []frozen
	for f := range a.busy {
		if !f.revision.Throttled {
			continue
		}
		ready, n := f.count(engine.Ready), 0
		first := len(all)
		for _, m := range f.members {
			if m.state != engine.Ready || !m.instance.Frozen() {
				continue
			}
			since, idle := f.revision.Pool.Idle(m.instance)
			if !idle {
				continue
			}
			all = append(all, frozen{fleet: f, member: m, since: since, reclaimed: m.reclaimedSince.Equal(since)})
			n++
		}
		// Those that load still needs stay, or others would start in their place: the ones used last.
		mine := all[first:]
		slices.SortFunc(mine, func(a, b frozen) int { return b.since.Compare(a.since) })
		for i := range min(len(mine), max(0, f.desired-(ready-n))) {
			mine[i].needed = true
		}
	}
	return all
}
