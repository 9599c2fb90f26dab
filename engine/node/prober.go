package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/berth-run/berth/engine"
)

// What probes that go on do where they do not say it (contract 1.3).
const (
	probePeriod   = 10 * time.Second
	probeFailures = 3
)

// thawPause is how long after a thaw a probe is tried that has become due meanwhile: what the instance was thawed for
// goes first.
const thawPause = 10 * time.Millisecond

// course is how far a probe that goes on has come. It outlasts the times in which the instance is frozen.
type course struct {
	mu             sync.Mutex
	next           time.Time // when it is to be tried
	passed, failed int       // tries in a row
}

// wait is how long it is until the next try.
func (c *course) wait() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Until(c.next)
}

// count counts a try, and returns how many in a row have passed or failed.
func (c *course) count(err error, next time.Time) (passed, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = next
	if err == nil {
		c.passed, c.failed = c.passed+1, 0
	} else {
		c.passed, c.failed = 0, c.failed+1
	}
	return c.passed, c.failed
}

// courses are those of a container's probes.
type courses struct{ readiness, liveness course }

// newCourses returns those of a container that was let run at begun, and has started now. The check that it was before
// its start is the first try of the readiness probe.
func newCourses(readiness, liveness *engine.Probe, begun time.Time) *courses {
	if readiness == nil && liveness == nil {
		return nil
	}
	c := new(courses)
	if readiness != nil {
		c.readiness.next = time.Now().Add(period(*readiness))
	}
	if liveness != nil {
		c.liveness.next = begun.Add(liveness.InitialDelay)
	}
	return c
}

// prober goes on probing a container that has started, as Kubernetes does. Containers without such probes have none.
type prober struct {
	name      string        // of the container
	readiness *engine.Probe // nil is none
	liveness  *engine.Probe // nil is none
	courses   *courses
	anew      bool // it was frozen, and probed before

	try func(ctx context.Context, probe engine.Probe) error
	// hold keeps the instance from being frozen until release is called: a try that has begun counts. ok is false when it
	// is frozen.
	hold func() (release func(), ok bool)
	// say writes a line to the container's log.
	say func(text string)
	// turn is told when the readiness probe fails, and when it passes again.
	turn func(ready bool)
	// fail is told once that the liveness probe has failed, and why. Nothing is probed any more then.
	fail func(why string)
}

// run probes until ctx ends or the liveness probe has failed.
func (p *prober) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var readiness sync.WaitGroup
	if p.readiness != nil {
		readiness.Go(func() { p.watchReadiness(ctx) })
	}
	why := ""
	if p.liveness != nil {
		why = p.watchLiveness(ctx)
	}
	if why != "" {
		cancel()
	}
	readiness.Wait()
	if why != "" {
		p.fail(why)
	}
}

// watchReadiness begins with a container that is ready.
func (p *prober) watchReadiness(ctx context.Context) {
	probe := *p.readiness
	ready := true
	p.repeat(ctx, probe, &p.courses.readiness, func(passed, failed int, err error) bool {
		switch {
		case ready && failed >= failures(probe):
			ready = false
			p.say(p.failure("READINESS", probe, failed, err) + ". It is sent no new requests until the probe passes.")
			p.turn(false)
		case !ready && passed >= max(probe.SuccessThreshold, 1):
			ready = true
			p.say(fmt.Sprintf("READINESS %s probe passed again for container %s. It is sent requests.", probeKind(probe), p.name))
			p.turn(true)
		}
		return true
	})
}

// watchLiveness returns why the container has to be started again; "" when ctx ended before.
func (p *prober) watchLiveness(ctx context.Context) (why string) {
	probe := *p.liveness
	p.repeat(ctx, probe, &p.courses.liveness, func(_, failed int, err error) bool {
		if failed >= failures(probe) {
			why = p.failure("LIVENESS", probe, failed, err)
		}
		return why == ""
	})
	return why
}

// repeat tries a probe when it is due and then in each period, until ctx ends, the instance is frozen or each returns
// false. each is told how many tries in a row have passed or failed. A try that takes longer than the period puts the
// next one off.
func (p *prober) repeat(ctx context.Context, probe engine.Probe, c *course, each func(passed, failed int, err error) bool) {
	wait := c.wait()
	if p.anew {
		wait = max(wait, thawPause)
	}
	for sleep(ctx, wait) == nil {
		release, ok := p.hold()
		if !ok {
			return
		}
		more := p.tryOnce(ctx, probe, c, each)
		release()
		if !more {
			return
		}
		wait = c.wait()
	}
}

// tryOnce makes one try, and tells each. It returns false when there is to be no other.
func (p *prober) tryOnce(ctx context.Context, probe engine.Probe, c *course, each func(passed, failed int, err error) bool) bool {
	tried := time.Now()
	err := p.try(ctx, probe)
	if ctx.Err() != nil { // the end of probing may have cut it short
		return false
	}
	passed, failed := c.count(err, tried.Add(period(probe)))
	return each(passed, failed, err)
}

// failure is the beginning of the log line that Cloud Run writes (contract E16), and what was seen last.
func (p *prober) failure(kind string, probe engine.Probe, failed int, err error) string {
	times := "times"
	if failed == 1 {
		times = "time"
	}
	where := ""
	if port := probedPort(probe); port != 0 {
		where = fmt.Sprintf(" on port %d", port)
	}
	return fmt.Sprintf("%s %s probe failed %d %s consecutively for container %s%s: %v", kind, probeKind(probe), failed, times, p.name, where, err)
}

func period(probe engine.Probe) time.Duration {
	if probe.Period == 0 {
		return probePeriod
	}
	return probe.Period
}

func failures(probe engine.Probe) int {
	if probe.FailureThreshold == 0 {
		return probeFailures
	}
	return probe.FailureThreshold
}
