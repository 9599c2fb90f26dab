package autoscaler

import (
	"time"

	"github.com/berth-run/berth/engine"
)

// backoff keeps a revision that does not start, or ends soon after, from being started over and over.
type backoff struct {
	failures int           // in a row
	last     time.Time     // when the newest of them was
	until    time.Time     // no start before
	lost     time.Duration // what the row has cost so far: starts that failed, and the delays after each failure
}

const (
	backoffFirst = time.Second
	backoffMost  = 60 * time.Second
	// backoffSteady is how long an instance must have been ready for its end not to count as a failure. It is short:
	// a request now and then that ends the program must not keep the service down.
	backoffSteady = 10 * time.Second
	// backoffBrief is about how long requests are kept waiting in all while a revision does not come up again.
	backoffBrief = 10 * time.Second
	// backoffForget is after how long without a try a row is history.
	backoffForget = 10 * time.Minute
)

// LoopFailures is how many failures in a row are a crash loop: the first may be anything, and its instance is replaced
// like any other. From then on one instance is tried at a time, and behind all others.
const LoopFailures = 2

// active tells whether no start may begin now.
func (b *backoff) active() bool { return time.Now().Before(b.until) }

// brief tells whether the row is so short yet that requests for a revision that has been ready had better wait: it
// may soon be again. Requests for one that never was are told at once what is wrong with it.
func (b *backoff) brief() bool { return b.lost <= backoffBrief }

// loops tells whether the row is a crash loop.
func (b *backoff) loops() bool { return b.failures >= LoopFailures }

// startFailed counts a start that began at claimed and failed now. Starts that were under way when another
// failed are the same failure.
func (b *backoff) startFailed(claimed, now time.Time) {
	if b.failures > 0 && !claimed.After(b.last) {
		return
	}
	b.count(now)
	b.delay(now, backoffDelay(b.failures))
	b.lost += now.Sub(claimed)
}

// exited counts an instance that ended by itself at now, having been ready since. The first time it is replaced
// at once. Those that were ready when another ended are replaced with it: whatever it was, it was the same.
func (b *backoff) exited(since, now time.Time) {
	b.settle(since, now)
	if now.Sub(since) >= backoffSteady || b.failures > 0 && !since.After(b.last) {
		return
	}
	b.count(now)
	b.delay(now, backoffDelay(b.failures-1))
}

// settle ends the row when an instance that has become ready after its last failure has been so for long. Those that
// were there before say nothing of what fails now.
func (b *backoff) settle(since, now time.Time) {
	if b.failures > 0 && now.Sub(since) >= backoffSteady && since.After(b.last) {
		*b = backoff{}
	}
}

func (b *backoff) count(now time.Time) {
	if !b.last.IsZero() && now.Sub(b.last) >= backoffForget {
		*b = backoff{}
	}
	b.failures++
	b.last = now
}

func (b *backoff) delay(now time.Time, by time.Duration) {
	b.until = now.Add(by)
	b.lost += by
}

func backoffDelay(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(backoffFirst<<min(failures-1, 10), backoffMost)
}

// settle ends the fleet's row of failures when one of its instances proves that it is over.
func (a *Autoscaler) settle(f *fleet, now time.Time) {
	if f.backoff.failures == 0 {
		return
	}
	for _, m := range f.members {
		if m.state == engine.Ready && !m.isUnready() {
			f.backoff.settle(m.since, now)
		}
	}
	if f.backoff.failures == 0 {
		f.lastFailure = nil
		a.change(f)
	}
}
