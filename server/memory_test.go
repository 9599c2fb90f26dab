package server

import (
	"testing"
	"time"
)

func TestIsCollecting_TellsABusyServerFromAQuietOne(t *testing.T) {
	for _, c := range []struct {
		collections uint64 // in a tick
		percent     int
		want        bool
	}{
		{0, quietPercent, false},
		{busyCollections - 1, quietPercent, false}, // a deploy
		{busyCollections, quietPercent, true},
		{busyCollections / (busyPercent / quietPercent), busyPercent, true}, // the same work, collected late
		{calmCollections, busyPercent, false},
		{0, busyPercent, false},
	} {
		if got := isCollecting(c.collections, c.percent); got != c.want {
			t.Errorf("%d collections at %d %%: busy is %t, want %t", c.collections, c.percent, got, c.want)
		}
	}
}

func TestReturned_RepeatsTheSoonerTheLessItTook(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name string
		last returned
		want bool
	}{
		{"never before", returned{}, true},
		{"a small heap, one tick ago", returned{at: now.Add(-memoryTick), took: 5 * time.Millisecond}, true},
		{"a large heap, one tick ago", returned{at: now.Add(-memoryTick), took: 500 * time.Millisecond}, false},
		{"a large heap, a minute ago", returned{at: now.Add(-time.Minute), took: 500 * time.Millisecond}, true},
	} {
		if got := c.last.mayRepeat(now); got != c.want {
			t.Errorf("%s: memory may be given back is %t, want %t", c.name, got, c.want)
		}
	}
}
