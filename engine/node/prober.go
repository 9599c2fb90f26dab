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

// prober goes on probing a container that has started, as Kubernetes does. Containers without such probes have none.
type prober struct {
	name      string        // of the container
	readiness *engine.Probe // nil is none
	liveness  *engine.Probe // nil is none
	begun     time.Time     // when the program was let run
	anew      bool          // it was probed before, and not for a while: the first try is a period away

	try func(ctx context.Context, probe engine.Probe) error
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

// watchReadiness begins with a container that is ready. The check that it was before its start is the first try.
func (p *prober) watchReadiness(ctx context.Context) {
	probe := *p.readiness
	ready := true
	p.repeat(ctx, probe, period(probe), func(passed, failed int, err error) bool {
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
	first := probe.InitialDelay - time.Since(p.begun)
	if p.anew {
		first = max(first, period(probe))
	}
	p.repeat(ctx, probe, first, func(_, failed int, err error) bool {
		if failed >= failures(probe) {
			why = p.failure("LIVENESS", probe, failed, err)
		}
		return why == ""
	})
	return why
}

// repeat tries a probe after the time first and then in each period, until ctx ends or each returns false. each is told
// how many tries in a row have passed or failed. A try that takes longer than the period puts the next one off.
func (p *prober) repeat(ctx context.Context, probe engine.Probe, first time.Duration, each func(passed, failed int, err error) bool) {
	passed, failed := 0, 0
	for wait := first; sleep(ctx, wait) == nil; {
		tried := time.Now()
		err := p.try(ctx, probe)
		switch {
		case ctx.Err() != nil: // the end of probing may have cut it short
			return
		case err == nil:
			passed, failed = passed+1, 0
		default:
			passed, failed = 0, failed+1
		}
		if !each(passed, failed, err) {
			return
		}
		wait = period(probe) - time.Since(tried)
	}
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
