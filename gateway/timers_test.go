package gateway

import (
	"math/rand/v2"
	"testing"
	"time"
)

// alarm is a timer's owner that notes when it was woken.
type alarm struct {
	timer timer
	now   *time.Duration
	rang  time.Duration // 0 while it has not
}

func (a *alarm) expire() { a.rang = *a.now }

func TestTimers_FireAtTheLastTimeThatTheyWereSetFor(t *testing.T) {
	const count, steps = 50, 20_000
	random := rand.New(rand.NewPCG(1, 2))
	var heap timers
	now := time.Duration(1)
	alarms := make([]*alarm, count)
	want := make([]time.Duration, count) // when each is to ring; 0 for never
	for i := range alarms {
		alarms[i] = &alarm{now: &now}
		alarms[i].timer.owner = alarms[i]
	}
	for range steps {
		i := random.IntN(count)
		switch random.IntN(10) {
		case 0:
			heap.set(&alarms[i].timer, 0)
			want[i] = 0
		case 1:
			heap.remove(&alarms[i].timer)
			want[i] = 0
		default:
			want[i] = now + 1 + time.Duration(random.IntN(100))
			heap.set(&alarms[i].timer, want[i])
		}
		if next := heap.next(); next == 0 {
			continue
		}
		now += time.Duration(random.IntN(5))
		heap.fire(now)
		for i, a := range alarms {
			due := want[i] != 0 && want[i] <= now
			switch {
			case due && a.rang != now:
				t.Fatalf("at %d one did not fire that was set for %d", now, want[i])
			case due:
				want[i], a.rang = 0, 0
			case a.rang != 0:
				t.Fatalf("at %d one fired that was set for %d", now, want[i])
			}
			if want[i] != 0 && (heap.next() == 0 || heap.next() > want[i]) {
				t.Fatalf("the loop would look again at %d, after %d", heap.next(), want[i])
			}
		}
	}
}
