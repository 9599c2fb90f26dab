package engine

// State is where an instance is in its life.
type State string

// The states of an instance, in the order it goes through them.
const (
	Prepared State = "prepared" // rootfs, network and cgroup made; no user code has run
	Starting State = "starting" // user code runs, the startup probe has not passed
	Ready    State = "ready"    // takes requests
	Idle     State = "idle"     // ready, and frozen until the next request comes: the CPU is withheld
	Draining State = "draining" // takes no new request; those in flight finish
	Stopping State = "stopping" // SIGTERM sent, SIGKILL to come
)
