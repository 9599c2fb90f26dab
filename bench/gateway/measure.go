package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// connectionCounts are what each variant is measured with.
var connectionCounts = [...]int{1, 64}

// path is one way to the instance.
type path struct {
	name    string
	address string
	http2   string // the address that speaks HTTP/2, where it is another one
	pids    []int  // of the proxy's processes; none for the direct path
	ours    []int  // of all processes of the benchmark
}

// result is what one measurement of a path found.
type result struct {
	rate     float64 // requests a second
	cpu      float64 // of the proxy, in microseconds for each request
	p50, p99 float64 // microseconds
	others   float64 // the part of the machine's CPU time that went to processes that are none of the benchmark's
}

// client asks an address over connections of its own.
type client interface {
	// run asks for a time and returns how long each answer took; it may be called again.
	run(time.Duration) ([]time.Duration, error)
	close()
}

// connect makes a client of a variant with as many requests at the same time as there are connections.
func connect(p *path, v *variant, connections int) (client, error) {
	if v.http2 {
		address := p.http2
		if address == "" {
			address = p.address
		}
		return newHTTP2Client(address, connections, v)
	}
	return newHTTP1Client(p.address, connections, v, [][]byte{v.request(host)})
}

// measure measures a path once, over new connections that have been used before the measurement.
func measure(p *path, v *variant, connections int, length time.Duration) (result, error) {
	c, err := connect(p, v, connections)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	r, err := measureWith(c, p, length)
	if err != nil {
		return result{}, fmt.Errorf("measuring %s over %d connections, %s: %w", p.name, connections, v.about, err)
	}
	return r, nil
}

func measureWith(c client, p *path, length time.Duration) (result, error) {
	if _, err := c.run(length / 10); err != nil {
		return result{}, err
	}
	machine, err := readBusy(p.ours)
	if err != nil {
		return result{}, err
	}
	before, err := cpuTime(p.pids)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	latencies, err := c.run(length)
	if err != nil {
		return result{}, err
	}
	took := time.Since(began)
	after, err := cpuTime(p.pids)
	if err != nil {
		return result{}, err
	}
	machineAfter, err := readBusy(p.ours)
	if err != nil {
		return result{}, err
	}
	slices.Sort(latencies)
	n := len(latencies)
	microseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return result{
		rate: float64(n) / took.Seconds(),
		cpu:  microseconds(after-before) / float64(n),
		p50:  microseconds(latencies[n/2]),
		p99:  microseconds(latencies[n*99/100]),

		others: machineAfter.othersSince(machine),
	}, nil
}

// cpuTime is the CPU time that processes have used, to the nanosecond, where /proc/PID/stat has only ticks.
func cpuTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return 0, err
		}
		for _, thread := range threads {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, thread.Name()))
			if err != nil {
				return 0, err
			}
			var nanoseconds int64
			if _, err := fmt.Sscan(string(text), &nanoseconds); err != nil {
				return 0, err
			}
			sum += time.Duration(nanoseconds)
		}
	}
	return sum, nil
}

// busy is CPU time that was used up to a moment.
type busy struct {
	at   time.Time
	all  time.Duration // of the whole machine, its hypervisor's other guests included
	ours time.Duration
}

func readBusy(ours []int) (busy, error) {
	b := busy{at: time.Now()}
	// All of the first line of /proc/stat but its idle and iowait, and the guests' time that is in user's already.
	for _, number := range [...]int{1, 2, 3, 6, 7, 8} {
		ticks, err := field("/proc/stat", "cpu", number)
		if err != nil {
			return b, err
		}
		b.all += time.Duration(ticks) * 10 * time.Millisecond
	}
	var err error
	b.ours, err = cpuTime(ours)
	return b, err
}

// othersSince is the part of the machine's CPU time since then that others than ours have used.
func (b busy) othersSince(then busy) float64 {
	others := (b.all - then.all) - (b.ours - then.ours)
	return max(0, float64(others)/float64(b.at.Sub(then.at))/float64(runtime.NumCPU()))
}

// median of values that are at least one.
func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}
