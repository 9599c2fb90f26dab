package server

import (
	"errors"
	"strconv"
	"time"
)

// QueueWait is how long requests wait for an instance at most; 0 is as long as their timeout, which is Knative's rule.
type QueueWait time.Duration

// QueueWaitAuto is Cloud Run's rule (contract C48): as long as 3.5 starts of an instance take, and 10 s at least.
const QueueWaitAuto QueueWait = -1

const (
	autoQueueStarts = 3.5
	autoQueueLeast  = 10 * time.Second
)

// limit returns how long a request of a revision waits whose instances take so long to start; nil is as long as its
// timeout.
func (w QueueWait) limit() func(averageStart time.Duration) time.Duration {
	switch {
	case w == QueueWaitAuto:
		return func(averageStart time.Duration) time.Duration {
			return max(time.Duration(autoQueueStarts*float64(averageStart)), autoQueueLeast)
		}
	case w > 0:
		return func(time.Duration) time.Duration { return time.Duration(w) }
	}
	return nil
}

// String is the setting as one gives it.
func (w QueueWait) String() string {
	if w == QueueWaitAuto {
		return "auto"
	}
	return time.Duration(w).String()
}

// UnmarshalText reads "auto", or a duration: "90s", "5m" or a number of seconds.
func (w *QueueWait) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*w = QueueWaitAuto
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if seconds, bare := strconv.ParseFloat(string(text), 64); bare == nil {
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err != nil || d < 0 {
		return errors.New("not auto, and not a duration such as 300, 300s or 5m")
	}
	*w = QueueWait(d)
	return nil
}
