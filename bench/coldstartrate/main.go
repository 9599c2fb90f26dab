// Command coldstartrate measures how many cold starts a second a server sustains. 200 services of examples/hello are
// deployed and at zero. All are asked at once; then eight workers ask services at zero, each again as soon as it is
// back at zero, which finds the sustained rate; then requests come for 30 seconds at 80 % of that rate. What an
// instance's end and the next prepared instance cost counts: an instance lives for half a second after its request.
//
// Slices of the second part take turns with a loop of plain crun on the same program, see [crunLoop].
//
// A request counts when an instance answered it that had not answered before: every request is a cold start. The
// command fails when a request fails, when p99 or the ratio to crun is out of bounds, and when something is left over.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/bench"
)

const (
	services = 200
	workers  = 8
	rounds   = 3 // of a slice of Berth's and one of crun's each
	// warmUp is the beginning of a slice, in which the instances that were prepared while nothing happened are used up
	// and the first ones end: then as many end as start.
	warmUp = 2 * time.Second
	slice  = 4 * time.Second
	steady = 30 * time.Second // of requests at part of the rate found
	part   = 0.8

	mostP99    = time.Second
	leastRatio = 1.5
)

// flags have instances end half a second after their request, every service keep a prepared instance, and as many
// instances start at a time as crun makes containers.
var flags = []string{
	"--stable-window", "250ms", "--tick", "250ms", "--scale-to-zero-grace", "0s", "--prepared-memory", "2Gi", "--starts-at-once", fmt.Sprint(workers), "--memory", "64Mi",
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-coldstart-rate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	// crun's containers become this process's children when crun ends, so that their ends are seen and their CPU counted.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the parent of containers: %w", err)
	}
	dir, err := os.MkdirTemp("", "berth-rate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	hello := filepath.Join(dir, "hello")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", hello, "./examples/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building examples/hello: %w\n%s", err, out)
	}
	crun, err := newCrunLoop(dir, hello)
	if err != nil {
		return err
	}
	defer crun.close()
	s, err := bench.Start(ctx, flags...)
	if err != nil {
		return err
	}
	f, err := newFleet(ctx, s)
	if err == nil {
		err = measure(ctx, s, f, crun)
	}
	return errors.Join(err, s.Stop())
}

// measure runs the parts one after the other.
func measure(ctx context.Context, s *bench.Server, f *fleet, crun *crunLoop) error {
	took, err := f.all(ctx)
	if err != nil {
		return fmt.Errorf("asking %d services at zero at once: %w", services, err)
	}
	bench.Print("coldstart_burst_services", services, "services")
	bench.Print("coldstart_burst_ms", float64(took.Microseconds())/1000, "ms")
	if err := f.settle(ctx); err != nil {
		return err
	}
	before, err := census(ctx, s)
	if err != nil {
		return err
	}

	var ours, theirs sum
	for range rounds {
		theirs.add(crun.run(ctx, slice))
		if theirs.err != nil {
			return fmt.Errorf("starting containers with crun: %w", theirs.err)
		}
		ours.add(f.closedLoop(ctx))
		if ours.err != nil {
			return fmt.Errorf("starting instances as fast as it goes: %w", ours.err)
		}
		if err := f.rest(ctx); err != nil {
			return err
		}
	}
	rate := ours.rate()
	fmt.Printf("%d workers, %d slices of %s each; CPU of a life: the server's, and that of the OCI runtime and the program\n", workers, rounds, slice)
	bench.Print("coldstart_rate_server_cpu_ms", ours.each(ours.own), "ms")
	bench.Print("coldstart_rate_instance_cpu_ms", ours.each(ours.children), "ms")
	bench.Print("crun_rate_instance_cpu_ms", theirs.each(theirs.children), "ms")

	waits, failures, err := f.openLoop(ctx, part*rate, steady)
	if err != nil {
		return err
	}
	bench.Print("coldstart_rate_steady_per_s", part*rate, "1/s")
	bench.Print("coldstart_rate_steady_requests", float64(len(waits)), "requests")
	bench.Print("coldstart_rate_p50_ms", bench.Quantile(waits, 0.5), "ms")
	bench.Print("coldstart_rate_p99_ms", bench.Quantile(waits, 0.99), "ms")
	bench.Print("coldstart_rate_failures", float64(failures), "requests")
	bench.Print("coldstart_rate_per_s", rate, "1/s")
	bench.Print("crun_rate_per_s", theirs.rate(), "1/s")
	bench.Print("coldstart_rate_vs_crun", rate/theirs.rate(), "ratio")
	if err := f.settle(ctx); err != nil {
		return err
	}
	left, err := awaitNothingLeft(ctx, s, before)
	bench.Print("coldstart_rate_left_over", float64(left), "things")
	return errors.Join(err, bounds(waits, failures, rate/theirs.rate()))
}

// bounds checks what must hold.
func bounds(waits []time.Duration, failures int, ratio float64) error {
	var errs []error
	if failures > 0 {
		errs = append(errs, fmt.Errorf("%d of %d requests failed", failures, len(waits)))
	}
	if p99 := bench.Quantile(waits, 0.99); p99 > float64(mostP99.Milliseconds()) {
		errs = append(errs, fmt.Errorf("p99 of cold starts at %.0f %% of the sustained rate is %.1f ms: it must be at most %s", 100*part, p99, mostP99))
	}
	if ratio < leastRatio {
		errs = append(errs, fmt.Errorf("the sustained rate is %.2f times that of crun: it must be at least %.1f", ratio, leastRatio))
	}
	return errors.Join(errs...)
}

// sum adds up what slices have found.
type sum struct {
	lives    int
	time     time.Duration
	own      time.Duration // CPU of the server
	children time.Duration // CPU of the OCI runtime and of the instances
	err      error
}

func (s *sum) add(other sum) {
	s.lives += other.lives
	s.time += other.time
	s.own += other.own
	s.children += other.children
	s.err = errors.Join(s.err, other.err)
}

// rate is lives in a second.
func (s *sum) rate() float64 { return float64(s.lives) / s.time.Seconds() }

// each is what a life has of a time, in milliseconds.
func (s *sum) each(all time.Duration) float64 {
	return float64(all.Microseconds()) / 1000 / float64(max(1, s.lives))
}
