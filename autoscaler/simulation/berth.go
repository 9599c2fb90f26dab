package simulation

import (
	"time"

	"github.com/berth-run/berth/autoscaler"
)

// Berth scales as the platform does: by [autoscaler.Decide], with its state and its averages, at every tick and as soon as
// a request has to wait.
type Berth struct {
	scale    autoscaler.Scale
	tick     time.Duration
	patience time.Duration
	judge    autoscaler.Judge
	next     time.Duration // tick; 0 when there is none
}

// NewBerth returns the platform's rule for a revision that scales so. A request is refused when it has waited for
// patience.
func NewBerth(scale autoscaler.Scale, tick, patience time.Duration) *Berth {
	return &Berth{scale: scale, tick: tick, patience: patience}
}

// Manner implements [Rule].
func (b *Berth) Manner() Manner { return Manner{Patience: b.patience} }

// Look implements [Rule]. It does what the autoscaler's loop does with one fleet.
func (b *Berth) Look(seen Seen) (desired int, again time.Duration) {
	load := seen.Load
	decision := b.judge.Look(b.scale, b.tick, autoscaler.Input{
		Now: load.At, Ready: seen.Ready, Starting: seen.Starting, InFlight: load.InFlight, Waiting: load.Waiting, Reachable: true,
		Longest: load.Longest,
	}, load)
	if seen.Ready+seen.Starting+load.InFlight+load.Waiting == 0 && decision.Desired == 0 {
		b.judge.Rest()
		b.next = 0
		return 0, Never
	}
	if b.next <= seen.Now {
		b.next = seen.Now + b.tick
	}
	if decision.Again > 0 {
		return decision.Desired, min(b.next, seen.Now+decision.Again)
	}
	return decision.Desired, b.next
}
