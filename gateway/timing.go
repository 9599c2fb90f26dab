package gateway

import (
	"time"

	"github.com/berth-run/berth/engine"
)

// Stages of a request that waited, beside those of the instance's own start (engine.Stage): together they are all of the
// time from its arrival to its response's first byte.
const (
	stageQueue   = "queue"   // until an instance that ran had a free slot
	stageWake    = "wake"    // until the instance's start, or its thaw, began, and between its steps
	stageThaw    = "thaw"    // a frozen instance was given the CPU back
	stageClaim   = "claim"   // from the instance's start to the request's slot on it
	stageConnect = "connect" // until there was a connection
	stageAnswer  = "answer"  // until the response began
)

// timing is where the time of a request went that had to wait for its instance. Others have none, and pay nothing for it.
type timing struct {
	stages []engine.Stage
	last   time.Time // when the last of them ended
}

// newTiming is of a request that arrived, and was given a slot on an instance, at these times. started are the steps of
// the instance's start: those that ended before the request arrived were not waited for.
func newTiming(arrived, given time.Time, started []engine.Stage) *timing {
	t := &timing{last: arrived, stages: make([]engine.Stage, 0, 8)}
	for _, stage := range started {
		ended := stage.Begun.Add(stage.Took)
		if stage.Begun.IsZero() || !ended.After(t.last) || ended.After(given) {
			continue
		}
		if stage.Begun.After(t.last) {
			t.lap(stageWake, stage.Begun)
		}
		t.lap(stage.Name, ended)
	}
	if len(t.stages) == 0 {
		t.lap(stageQueue, given)
	} else {
		t.lap(stageClaim, given)
	}
	return t
}

// lapNow is lap up to now. It does nothing on a nil timing.
func (t *timing) lapNow(name string) {
	if t != nil {
		t.lap(name, time.Now())
	}
}

// lap adds the time since the last stage to a stage.
func (t *timing) lap(name string, now time.Time) {
	took := max(now.Sub(t.last), 0)
	t.last = now
	for i := range t.stages {
		if t.stages[i].Name == name {
			t.stages[i].Took += took
			return
		}
	}
	t.stages = append(t.stages, engine.Stage{Name: name, Took: took})
}

// given notes that a request that waited has a slot. It may be called on a nil timing, which is before the first slot.
func (t *timing) given(m *member, arrived time.Time) *timing {
	return t.ready(m, arrived, time.Now(), stageQueue)
}

// woken is given for a request that had its slot, and then waited until the instance was thawed, at a time.
func (t *timing) woken(m *member, arrived, at time.Time) *timing {
	return t.ready(m, arrived, at, stageThaw)
}

func (t *timing) ready(m *member, arrived, now time.Time, again string) *timing {
	if t == nil {
		started := m.instance.Stages()
		if thawed := m.thawed.Load(); thawed != nil {
			started = append(started, *thawed)
		}
		return newTiming(arrived, now, started)
	}
	t.lap(again, now)
	return t
}

// appendServerTiming appends the value of Server-Timing (W3C, Server Timing, 2): "wake;dur=0.41, listen;dur=3.2", in
// milliseconds.
func (t *timing) appendServerTiming(b []byte) []byte {
	for i, stage := range t.stages {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, stage.Name...), ";dur="...)
		b = appendMilliseconds(b, stage.Took)
	}
	return b
}

// appendJSON appends the stages as an object: {"wake":0.41,"listen":3.2}, in milliseconds.
func (t *timing) appendJSON(b []byte) []byte {
	b = append(b, '{')
	for i, stage := range t.stages {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), stage.Name...), `":`...)
		b = appendMilliseconds(b, stage.Took)
	}
	return append(b, '}')
}
