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
// as late as Go's default, because processor time counts more then.
const (
	quietPercent = 25
	busyPercent  = 100
	busyRate     = 100 // requests a second
	memoryTick   = 5 * time.Second
	// worthReturning is how much unused memory makes it worth to give it back to the machine.
	worthReturning = 2 << 20
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
	requests, collections := s.gateway.Requests(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := s.gateway.Requests()
		rate := float64(now-requests) / memoryTick.Seconds()
		requests = now
		want := quietPercent
		if rate >= busyRate {
			want = busyPercent
		}
		if want != percent {
			debug.SetGCPercent(want)
			percent = want
		}
		// Nothing was collected for a while: what the last work left behind can go. Our own collection counts as
		// one, so an idle server does this once.
		unused, collected := readHeap()
		if want == quietPercent && collected == collections && unused > worthReturning {
			debug.FreeOSMemory()
			_, collected = readHeap()
		}
		collections = collected
	}
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
