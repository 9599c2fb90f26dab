package autoscaler

import "time"

// Judge decides on one revision from one look to the next: it holds what [Decide] has to remember, and makes the
// averages that it decides by. It has no clock and knows nothing of instances, so that a simulation judges as the
// platform does. The zero value is a revision that has not been looked at.
type Judge struct {
	state  State
	window *window // nil from zero until an instance is ready
}

// Look takes a reading of the revision's load and decides. The averages in the input are filled in; the tick is the
// time between two looks when nothing happens.
func (j *Judge) Look(scale Scale, tick time.Duration, in Input, load Load) Decision {
	switch {
	case j.window != nil:
		j.window.record(load)
	case in.Ready > 0:
		// Not before: waiting for a first instance is not load, and would be taken for it in the averages.
		j.window = newWindow(scale.StableWindow, tick, load)
	}
	if j.window != nil {
		if scale.Decaying {
			in.Stable = j.window.decayed(scale.Metric, load, scale.StableWindow)
			in.Panic = j.window.decayed(scale.Metric, load, scale.PanicWindow)
		} else {
			in.Stable = j.window.mean(scale.Metric, load, scale.StableWindow, scale.PanicWindow)
			in.Panic = j.window.mean(scale.Metric, load, scale.PanicWindow, scale.PanicWindow)
		}
		in.Service = j.window.service(load)
	}
	decision, state := Decide(scale, in, j.state)
	j.state = state
	return decision
}

// Rest forgets what only averages need. Call it when the revision is at zero, with nothing that waits.
func (j *Judge) Rest() {
	j.window = nil
	j.state = State{proven: j.state.proven}
}

// rewindow begins new averages: those of another window's length cannot be kept.
func (j *Judge) rewindow() { j.window = nil }
