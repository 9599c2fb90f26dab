package gateway

import (
	"sync/atomic"
	"time"
)

const (
	// reuseWithin is how long a connection may be idle and still be used again. Instances close idle connections after
	// some time: Node after 5 s, Apache 5 s, gunicorn 2 s. A request that is sent at that moment may be lost, and not even
	// provably so (fateOf). Programs set whole seconds, and a new connection costs less than a tenth of a millisecond.
	reuseWithin = 750 * time.Millisecond
	// learnFrom is the shortest idle time after which the end of a connection is taken for a habit. What ends sooner
	// has other reasons, and what is used more often than this is not to be dialed anew each time.
	learnFrom = 50 * time.Millisecond
)

// habit is how long an instance leaves idle connections open, as far as it is known. It is safe for concurrent use.
type habit struct {
	limit atomic.Int64 // nanoseconds; 0 while only reuseWithin is
}

// usable tells whether a connection that has been idle for so long can be used again without racing its end.
func (h *habit) usable(idle time.Duration) bool {
	if limit := time.Duration(h.limit.Load()); limit != 0 {
		return idle < limit
	}
	return idle < reuseWithin
}

// ended learns that the instance ended a connection that had been idle for so long, at most: others are used again
// only for three quarters of that time.
func (h *habit) ended(idle time.Duration) {
	limit := idle * 3 / 4
	if idle < learnFrom || limit >= reuseWithin {
		return
	}
	for {
		known := h.limit.Load()
		if known != 0 && known <= int64(limit) || h.limit.CompareAndSwap(known, int64(limit)) {
			return
		}
	}
}
