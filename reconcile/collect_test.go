package reconcile

import (
	"fmt"
	"testing"
	"time"
)

func TestStale_KeepsTheNewestAndTheRecentlyUsed(t *testing.T) {
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	make := func(n int, age, idle time.Duration) []idleRevision {
		var all []idleRevision
		for i := range n {
			made := at.Add(-age - time.Duration(i)*time.Second)
			all = append(all, idleRevision{name: fmt.Sprint("r", i), made: made, idleSince: at.Add(-idle)})
		}
		return all
	}
	const day = 24 * time.Hour
	for _, test := range []struct {
		what      string
		n         int
		age, idle time.Duration
		want      int
	}{
		{"few old ones", keepAtLeast, 30 * day, 30 * day, 0},
		{"many old ones", 50, 30 * day, 30 * day, 50 - keepAtLeast},
		{"many young ones", 50, day, day, 0},
		{"many old ones that had requests lately", 50, 30 * day, time.Hour, 0},
		{"far too many young ones", keepAtMost + 7, time.Hour, time.Hour, 7},
	} {
		got := stale(make(test.n, test.age, test.idle), at)
		if len(got) != test.want {
			t.Errorf("%s: %d deleted, want %d", test.what, len(got), test.want)
		}
		if len(got) > 0 && got[len(got)-1] != fmt.Sprint("r", test.n-1) {
			t.Errorf("%s: the oldest, r%d, is kept: %v", test.what, test.n-1, got)
		}
	}
}
