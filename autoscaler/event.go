package autoscaler

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/berth-run/berth/engine"
)

// Event is something that happened to an instance, for people to read.
type Event struct {
	Revision Key
	Instance string // ID; "" when it did not come to be one
	What     What
	Took     time.Duration // for Started: from the decision to ready; for Recovered and Exited: since it was not so
	Text     string        // how or why
	Failures int           // for Looping: starts in a row that have come to nothing
	Next     time.Time     // for Looping: before when no other one is tried
}

// What an [Event] says.
type What string

// The events in an instance's life.
const (
	Started    What = "Started"
	NotStarted What = "NotStarted"
	Unready    What = "Unready"   // in state ready, it takes no requests for a while
	Recovered  What = "Recovered" // it takes them again
	Exited     What = "Exited"    // by itself, having been ready
	Stopped    What = "Stopped"   // by the platform, having been ready
	Short      What = "Short"     // of memory: an instance that is wanted cannot start yet
	Looping    What = "Looping"   // it is not the first in a row that came to nothing
)

// tell hands an event to who listens.
func (a *Autoscaler) tell(f *fleet, m *member, what What, took time.Duration, text string) {
	if a.OnEvent == nil {
		return
	}
	e := Event{Revision: f.revision.Key, What: what, Took: took, Text: text}
	if m.instance != nil {
		e.Instance = m.instance.ID()
	}
	a.OnEvent(e)
}

// tellLoop tells of a crash loop after each of its failures but the first.
func (a *Autoscaler) tellLoop(f *fleet) {
	if a.OnEvent != nil && f.backoff.loops() {
		a.OnEvent(Event{Revision: f.revision.Key, What: Looping, Failures: f.backoff.failures, Next: f.backoff.until})
	}
}

// whyUnready says which of an instance's containers keeps it from taking requests.
func whyUnready(containers []engine.ContainerStatus) string {
	for _, c := range containers {
		switch {
		case !c.Started:
			return fmt.Sprintf("its container %s is being started again", c.Name)
		case !c.Ready:
			return fmt.Sprintf("the readiness probe of its container %s fails", c.Name)
		}
	}
	return "a container is not ready"
}

// address returns an instance's address, where the engine can tell.
func address(instance engine.Instance) string {
	if located, ok := instance.(interface{ Address() netip.Addr }); ok {
		return located.Address().String()
	}
	return ""
}

// StopInstance drains and stops one instance of a revision; another takes its place if load or scale need one. It
// returns at once, and does nothing for an instance that is unknown, or stopping already.
func (a *Autoscaler) StopInstance(key Key, id, reason string) {
	a.mail.post(func(ctx context.Context) {
		a.mu.RLock()
		f := a.fleets[key]
		a.mu.RUnlock()
		if f == nil {
			return // what is left of it stops anyway
		}
		for _, m := range f.members {
			if m.instance == nil || m.instance.ID() != id {
				continue
			}
			switch m.state {
			case engine.Starting:
				m.given = true
				m.cancel()
			case engine.Prepared:
				a.stop(f, m, reason)
			case engine.Ready:
				a.drain(f, m, reason)
			}
			a.change(f)
			a.look(ctx, f)
			return
		}
	})
}
