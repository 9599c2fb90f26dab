package autoscaler

import (
	"time"

	"github.com/berth-run/berth/engine"
)

// Pool is where the requests of one revision meet its instances: the gateway's activator. The autoscaler
// fills and drains it, and reads its load from memory.
type Pool interface {
	// Add offers a ready instance to requests.
	Add(instance engine.Instance)

	// Suspend keeps new requests from an instance that takes none for a while; those in flight go on.
	// Resume offers it again. Both do nothing for an instance that is unknown or taken back.
	Suspend(instance engine.Instance)
	Resume(instance engine.Instance)

	// Remove takes an instance back: it gets no new request from now on. The channel is closed when the last
	// request in flight on it has ended. Removing an unknown instance returns a closed channel.
	Remove(instance engine.Instance) <-chan struct{}

	// Idlest returns the instance that is missed least when it is removed: the one with the fewest requests in flight,
	// and among equals the one used longest ago. It is nil when no instance takes requests.
	Idlest() engine.Instance

	// Idle tells since when an instance has had no request, and whether its CPU is withheld meanwhile. The time is zero
	// while it has one, and for an instance that takes none.
	Idle(instance engine.Instance) (since time.Time, frozen bool)

	// Spread tells over how many instances requests are to be spread. Instances beyond these whose CPU is withheld get
	// requests only when the others have no room.
	Spread(n int)

	// Fail answers every request that waits now with err: the revision has no instance and cannot start one.
	Fail(err error)

	// Load reads the counters.
	Load() Load
}

// Load is what the gateway counted for one revision. Averages over any window come from two readings: the
// difference of Busy over the difference of At is the exact mean concurrency in between.
type Load struct {
	At       time.Time
	InFlight int           // requests on instances
	Waiting  int           // requests that wait for an instance
	Longest  time.Duration // that one of those that wait has waited
	Busy     time.Duration // request-seconds so far: the integral of InFlight+Waiting over time
	Waited   time.Duration // of them, those of waiting: the integral of Waiting
	Requests uint64        // requests that arrived so far
}
