package server

import "testing"

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
