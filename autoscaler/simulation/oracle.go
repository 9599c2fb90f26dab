package simulation

import (
	"slices"
	"time"
)

// Oracle returns what a rule could do at best that knows every arrival and every service time before: nobody waits but
// for the greatest number of instances, and of all ways to have it so, this one takes the least instance time.
//
// It is a bound and not a plan. An instance is started one start before it is needed, and kept over a gap when that is
// shorter than a start, or else started anew; requests are taken to fill instances without holes, as if they could be moved
// from one to another while they run. Nobody who waits as little uses less.
func Oracle(revision Revision, requests []Request) Result {
	result := Result{Waits: make([]time.Duration, len(requests))}
	room := revision.Limit
	if revision.Pace > 0 && (room == 0 || revision.Pace < room) {
		room = revision.Pace
	}
	ends := make([]time.Duration, len(requests))
	var places heap[time.Duration] // when the place is free, where their number has an end
	places.less = func(a, b time.Duration) bool { return a < b }
	for n, r := range requests {
		begin := r.At
		if most := revision.Max * room; most > 0 {
			if places.len() == most {
				begin = max(begin, places.pop())
			}
			places.push(begin + r.Service)
		}
		result.Waits[n] = begin - r.At
		ends[n] = begin + r.Service
	}
	begins := make([]time.Duration, len(requests))
	for n, r := range requests {
		begins[n] = r.At + result.Waits[n]
	}
	slices.Sort(begins)
	slices.Sort(ends)
	result.InstanceTime, result.Starts, result.Most = cover(begins, ends, room, revision.Start)
	return result
}

// cover is the least instance time, and the starts it takes, that has an instance for every room of the requests that are
// in progress between the sorted begins and ends. The n-th instance is needed while there are more requests than n-1
// have room for; two times that it is needed are bridged by keeping it or by another start, whichever costs less.
func cover(begins, ends []time.Duration, room int, start time.Duration) (total time.Duration, starts, most int) {
	var free []time.Duration // when the n-th instance was last needed
	running, needed := 0, 0
	since := make([]time.Duration, 0)
	for b, e := 0, 0; e < len(ends); {
		if b < len(begins) && begins[b] < ends[e] {
			running++
			if need := instances(running, room); need > needed {
				now := begins[b]
				switch {
				case need > len(free):
					free, since = append(free, 0), append(since, now)
					total += start
					starts++
				case now-free[needed] <= start:
					total += now - free[needed]
					since[needed] = now
				default:
					total += start
					since[needed] = now
					starts++
				}
				needed = need
			}
			b++
			continue
		}
		running--
		if need := instances(running, room); need < needed {
			needed = need
			free[needed] = ends[e]
			total += ends[e] - since[needed]
		}
		e++
	}
	return total, starts, len(free)
}

// instances is how many have room for so many requests.
func instances(requests, room int) int {
	if room == 0 {
		return min(requests, 1)
	}
	return (requests + room - 1) / room
}
