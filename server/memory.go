package server

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The heap is small and most servers are idle most of the time: while few requests come, the collector works
// early, so that a burst of deploys does not leave the heap twice as large as what it holds; under load it works
// as late as Go's default, because processor time counts more then. Cold starts are load long before their requests
// are many: what tells of them is that the collector works all the time.
const (
	quietPercent = 25
	busyPercent  = 100
	busyRate     = 100 // requests a second
	// busyCollections is how many collections in a tick make the server busy, and calmCollections how few later let it
	// be quiet again: a busy one collects less for the same work.
	busyCollections = 15
	calmCollections = 2
	memoryTick      = 5 * time.Second
	// worthReturning is how much unused memory makes it worth to give it back to the machine.
	worthReturning = 2 << 20
	// returnPause is how many times as long as it took the memory last given back is not looked at again: that collects the
	// whole heap, and among many services a deploy now and then would cost less than what it left behind.
	returnPause = 100
)

// tendMemory keeps the server small while it is idle, until ctx ends. $GOGC overrules it.
func (s *server) tendMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	before := debug.SetGCPercent(quietPercent)
	defer debug.SetGCPercent(before)
	tick := time.NewTicker(memoryTick)
	defer tick.Stop()
	percent := quietPercent
	requests := s.gateway.Requests()
	_, collections := readHeap()
	var last returned
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := s.gateway.Requests()
		rate := float64(now-requests) / memoryTick.Seconds()
		requests = now
		unused, collected := readHeap()
		want := quietPercent
		if rate >= busyRate || isCollecting(collected-collections, percent) {
			want = busyPercent
		}
		if want != percent {
			debug.SetGCPercent(want)
			percent = want
		}
		// Nothing was collected for a while: what the last work left behind can go. Our own collection counts as
		// one, and leaves nothing unused: an idle server does this once.
		if want == quietPercent && collected == collections && unused > worthReturning && last.mayRepeat(time.Now()) {
			begun := time.Now()
			debug.FreeOSMemory()
			last = returned{at: time.Now(), took: time.Since(begun)}
			_, collected = readHeap()
		}
		collections = collected
	}
}

// returned is when memory was last given back, and how long that took; the zero value is never.
type returned struct {
	at   time.Time
	took time.Duration
}

// mayRepeat tells whether the next time may be now.
func (r returned) mayRepeat(now time.Time) bool { return now.Sub(r.at) >= returnPause*r.took }

// isCollecting tells whether so many collections in a tick, at a percentage, are those of a busy server.
func isCollecting(collections uint64, percent int) bool {
	if percent == busyPercent {
		return collections > calmCollections
	}
	return collections >= busyCollections
}

// readHeap tells how many bytes the heap holds without need (free, or not collected yet), and how many
// collections there were.
func readHeap() (unused, collections uint64) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(samples)
	unused = samples[0].Value.Uint64()
	if objects, live := samples[1].Value.Uint64(), samples[2].Value.Uint64(); objects > live {
		unused += objects - live
	}
	return unused, samples[3].Value.Uint64()
}
