// Command gateway measures what the gateway costs a request: one warm instance behind Berth's gateway, behind
// nginx, behind the standard library's reverse proxy, and asked directly, in one run on one machine.
//
// Each of the four is a process of its own. The paths are measured in turns, several rounds, and the median of the
// rounds counts, so that what else the machine does falls on all alike. The gateway runs with its metrics on and
// its access log off; nginx with one worker, connections kept to the instance, and its access log off.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 5, "measurements of each path; the median counts")
	length := flag.Duration("length", 1200*time.Millisecond, "length of one measurement")
	flag.Parse()
	err := error(nil)
	switch flag.Arg(0) {
	case "":
		err = bench(*rounds, *length)
	case "instance":
		err = runInstance()
	case "gateway":
		err = runGateway(flag.Arg(1))
	case "reverseproxy":
		err = runReverseProxy(flag.Arg(1))
	default:
		err = fmt.Errorf("there is no role %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/gateway:", err)
		os.Exit(1)
	}
}

// path is one way to the instance.
type path struct {
	name    string
	address string
	pids    []int // of the proxy's processes; none for the direct path
	results map[int][]result
}

var connectionCounts = [...]int{1, 64}

func bench(rounds int, length time.Duration) error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)

	instance, err := startChild("instance")
	if err != nil {
		return err
	}
	defer instance.stop()
	gateway, err := startChild("gateway", instance.address)
	if err != nil {
		return err
	}
	defer gateway.stop()
	reverse, err := startChild("reverseproxy", instance.address)
	if err != nil {
		return err
	}
	defer reverse.stop()

	paths := []*path{
		{name: "direct", address: instance.address},
		{name: "gateway", address: gateway.address, pids: []int{gateway.pid()}},
		{name: "reverseproxy", address: reverse.address, pids: []int{reverse.pid()}},
	}
	nginx, err := startNginx(instance.address)
	if err != nil {
		fmt.Printf("# nginx is left out: %v\n", err)
	} else {
		defer nginx.stop()
		paths = append(paths, &path{name: "nginx", address: nginx.address, pids: nginx.workers})
	}

	for _, connections := range connectionCounts {
		for _, p := range paths { // warm up
			if _, err := measure(p, connections, length/4); err != nil {
				return err
			}
		}
		for range rounds {
			for _, p := range paths {
				r, err := measure(p, connections, length)
				if err != nil {
					return err
				}
				if p.results == nil {
					p.results = make(map[int][]result)
				}
				p.results[connections] = append(p.results[connections], r)
				select {
				case s := <-interrupted:
					return fmt.Errorf("ended by %s", s)
				default:
				}
			}
		}
	}
	print(paths)
	return nil
}

func print(paths []*path) {
	fmt.Println("# medians; the gateway has metrics on and its access log off")
	fmt.Printf("# %-13s %12s %12s %16s %10s %10s\n", "path", "connections", "requests/s", "CPU us/request", "p50 us", "p99 us")
	medians := make(map[string]result)
	for _, connections := range connectionCounts {
		for _, p := range paths {
			m := median(p.results[connections])
			medians[fmt.Sprint(p.name, connections)] = m
			fmt.Printf("# %-13s %12d %12.0f %16.1f %10.0f %10.0f\n", p.name, connections, m.rate, m.cpu, m.p50, m.p99)
		}
	}
	gateway, reverse := medians["gateway64"], medians["reverseproxy64"]
	if nginx, ok := medians["nginx64"]; ok {
		fmt.Printf("gateway_rps_vs_nginx %.3f ratio\n", gateway.rate/nginx.rate)
		fmt.Printf("gateway_cpu_vs_nginx %.3f ratio\n", gateway.cpu/nginx.cpu)
	}
	fmt.Printf("gateway_rps_vs_reverseproxy %.3f ratio\n", gateway.rate/reverse.rate)
	fmt.Printf("gateway_added_p50_us %.0f us\n", medians["gateway1"].p50-medians["direct1"].p50)
}

// result is what one measurement of a path found.
type result struct {
	rate     float64 // requests a second
	cpu      float64 // of the proxy, in microseconds for each request
	p50, p99 float64 // microseconds
}

func measure(p *path, connections int, length time.Duration) (result, error) {
	before, err := cpuTime(p.pids)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	latencies, err := load(p.address, connections, length)
	if err != nil {
		return result{}, fmt.Errorf("measuring %s: %w", p.name, err)
	}
	took := time.Since(began)
	after, err := cpuTime(p.pids)
	if err != nil {
		return result{}, err
	}
	slices.Sort(latencies)
	n := len(latencies)
	return result{
		rate: float64(n) / took.Seconds(),
		cpu:  float64((after - before).Microseconds()) / float64(n),
		p50:  float64(latencies[n/2]) / 1000,
		p99:  float64(latencies[n*99/100]) / 1000,
	}, nil
}

// median takes the median of each number.
func median(results []result) result {
	of := func(field func(result) float64) float64 {
		var values []float64
		for _, r := range results {
			values = append(values, field(r))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return result{
		rate: of(func(r result) float64 { return r.rate }),
		cpu:  of(func(r result) float64 { return r.cpu }),
		p50:  of(func(r result) float64 { return r.p50 }),
		p99:  of(func(r result) float64 { return r.p99 }),
	}
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

// child is this program in another role.
type child struct {
	command *exec.Cmd
	address string
	stdin   io.Closer
}

func startChild(role string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{command: exec.Command(self, append([]string{role}, args...)...)}
	c.command.Stderr = os.Stderr
	if c.stdin, err = c.command.StdinPipe(); err != nil { // its end is the child's end
		return nil, err
	}
	stdout, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("starting the %s: %w", role, err)
	}
	c.address = strings.TrimSpace(line)
	return c, nil
}

func (c *child) pid() int { return c.command.Process.Pid }

func (c *child) stop() {
	c.stdin.Close()
	c.command.Wait()
}
