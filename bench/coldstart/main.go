// Command coldstart measures cold starts: a request to a service at zero, from the client's dial to the last byte of the
// answer, beside the floor in the same run: fork and exec of the same program to the last byte of its first answer.
//
// Each round runs the floor and then the cold start, when nothing else is under way: no instance is being prepared
// or taken down. The floor's first connection that succeeds carries its request. Beside a small Go program
// (examples/hello) these are a Python, a Node and a Go program that start slowly, where the machine has what they need.
//
// It measures too what a prepared instance holds, what a thaw adds to a request, and how long a deploy takes.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/berth-run/berth/bench"
)

const (
	rounds           = 60 // with a prepared instance
	unpreparedRounds = 20
	secondRounds     = 10
	slowRounds       = 7
	thawRounds       = 40
	deployRounds     = 12
	preparedServices = 64
)

// flags let an instance end soon after its request, so that the next round can begin.
var flags = []string{"--stable-window", "250ms", "--tick", "100ms", "--scale-to-zero-grace", "0s", "--server-timing"}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-coldstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "berth-coldstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	hello, err := bench.BuildHello(ctx, dir)
	if err != nil {
		return err
	}
	if err := measureMemory(ctx); err != nil {
		return err
	}
	if err := withServer(ctx, "0", func(s *bench.Server) error { return measureUnprepared(ctx, s, hello) }); err != nil {
		return err
	}
	if err := withServer(ctx, "64Mi", func(s *bench.Server) error { return measurePrepared(ctx, s, dir, hello) }); err != nil {
		return err
	}
	fmt.Println("coldstart_rate_vs_crun is measured by: make bench-coldstart-rate")
	return nil
}

// withServer runs measure on a server that keeps prepared instances within an amount of memory.
func withServer(ctx context.Context, prepared string, measure func(*bench.Server) error) error {
	s, err := bench.Start(ctx, append([]string{"--prepared-memory", prepared}, flags...)...)
	if err != nil {
		return err
	}
	defer s.Stop()
	return measure(s)
}

// measurePrepared measures what happens with prepared instances.
func measurePrepared(ctx context.Context, s *bench.Server, dir, hello string) error {
	url, image, err := s.DeployHello(ctx)
	if err != nil {
		return err
	}
	f := figures{prepared: 1}
	for range rounds {
		if err := f.round(ctx, s, url, program{path: hello}); err != nil {
			return err
		}
	}
	floor := bench.Quantile(f.floor, 0.5)
	fmt.Printf("%d cold starts through the gateway, cached image, one prepared instance; all times at p50\n", rounds)
	fmt.Println("prepared ahead:", f.ahead)
	fmt.Println("on the request's path:", f.path)
	fmt.Println("the floor:", f.floorPath)
	for _, stage := range f.path.order {
		bench.Print("coldstart_path_"+stage+"_p50_ms", f.path.p50(stage), "ms")
	}
	bench.Print("coldstart_p50_ms", bench.Quantile(f.wait, 0.5), "ms")
	bench.Print("coldstart_p99_ms", bench.Quantile(f.wait, 0.99), "ms")
	bench.Print("coldstart_floor_p50_ms", floor, "ms")
	bench.Print("coldstart_ratio", bench.Quantile(f.wait, 0.5)/floor, "ratio")
	bench.Print("coldstart_p99_over_floor", bench.Quantile(f.wait, 0.99)/floor, "ratio")
	if err := s.Remove(ctx, "default", "hello"); err != nil {
		return err
	}
	if err := measureSlow(ctx, s, dir); err != nil {
		return err
	}
	times, err := s.DeployTimes(ctx, "changed", image, false, deployRounds)
	if err != nil {
		return err
	}
	fmt.Printf("a deploy contains a start of the program: %.2f ms by itself\n", floor)
	bench.Print("deploy_ready_p50_ms", bench.Quantile(times, 0.5), "ms")
	return measureThaw(ctx, s, image)
}

// measureUnprepared measures cold starts on a server that prepares nothing: from zero, and of a second instance while the
// first one is busy.
func measureUnprepared(ctx context.Context, s *bench.Server, hello string) error {
	url, image, err := s.DeployHello(ctx)
	if err != nil {
		return err
	}
	var first, second figures
	for range unpreparedRounds {
		if err := first.round(ctx, s, url, program{path: hello}); err != nil {
			return err
		}
	}
	if err := s.Remove(ctx, "default", "hello"); err != nil {
		return err
	}
	one := bench.Service("one", image)
	one.Spec.Template.Spec.ContainerConcurrency = new(int64(1))
	if _, err := s.Deploy(ctx, one); err != nil {
		return err
	}
	url = strings.Replace(url, "//hello.", "//one.", 1)
	for range secondRounds {
		if err := second.secondRound(ctx, s, url, program{path: hello}); err != nil {
			return err
		}
	}
	fmt.Println("on the request's path, nothing prepared:", first.path)
	fmt.Println("on the request's path, a second instance:", second.path)
	bench.Print("coldstart_unprepared_p50_ms", bench.Quantile(first.wait, 0.5), "ms")
	bench.Print("coldstart_unprepared_over_floor_ms", bench.Quantile(first.wait, 0.5)-bench.Quantile(first.floor, 0.5), "ms")
	bench.Print("coldstart_second_over_floor_ms", bench.Quantile(second.wait, 0.5)-bench.Quantile(second.floor, 0.5), "ms")
	return nil
}

// stages are named steps and how long each took in every round.
type stages struct {
	order []string
	took  map[string][]time.Duration
}

func (s *stages) add(name string, took time.Duration) {
	if s.took == nil {
		s.took = map[string][]time.Duration{}
	}
	if _, ok := s.took[name]; !ok {
		s.order = append(s.order, name)
	}
	s.took[name] = append(s.took[name], took)
}

func (s *stages) p50(name string) float64 { return bench.Quantile(s.took[name], 0.5) }

// String lists the stages: "release 0.51 ms, listen 2.13 ms".
func (s stages) String() string {
	var parts []string
	for _, name := range s.order {
		parts = append(parts, fmt.Sprintf("%s %.2f ms", name, s.p50(name)))
	}
	return strings.Join(parts, ", ")
}
