// Command coldstart measures cold starts of examples/hello: a request to a service at zero, from the client's
// dial to the last byte of the answer, beside the floor in the same run: fork and exec of the same binary to the
// last byte of its first answer.
//
// Each round runs the floor and then the cold start, when nothing else is under way: no instance is being prepared
// or taken down. The floor's first connection that succeeds carries its request.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
)

const rounds = 50

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-coldstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "berth-floor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	hello, err := bench.BuildHello(ctx, dir)
	if err != nil {
		return err
	}

	prepared, err := measure(ctx, hello, 1)
	if err != nil {
		return err
	}
	unprepared, err := measure(ctx, hello, 0)
	if err != nil {
		return err
	}
	fmt.Printf("%d cold starts through the gateway, cached image, one prepared instance; all times at p50\n", rounds)
	fmt.Println("prepared ahead:", prepared.ahead)
	fmt.Println("on the request's path:", prepared.path)
	fmt.Println("on the request's path, nothing prepared:", unprepared.path)
	fmt.Println("the floor:", prepared.floorPath)
	for _, stage := range prepared.path.order {
		bench.Print("coldstart_path_"+stage+"_p50_ms", prepared.path.p50(stage), "ms")
	}
	floor := bench.Quantile(prepared.floor, 0.5)
	bench.Print("coldstart_unprepared_p50_ms", bench.Quantile(unprepared.wait, 0.5), "ms")
	bench.Print("coldstart_p50_ms", bench.Quantile(prepared.wait, 0.5), "ms")
	bench.Print("coldstart_p99_ms", bench.Quantile(prepared.wait, 0.99), "ms")
	bench.Print("coldstart_floor_p50_ms", floor, "ms")
	bench.Print("coldstart_ratio", bench.Quantile(prepared.wait, 0.5)/floor, "ratio")
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

type figures struct {
	wait, floor            []time.Duration
	ahead, path, floorPath stages
}

// measure interleaves runs of the floor with cold starts of a server that keeps so many instances prepared: 0 or 1.
func measure(ctx context.Context, hello string, prepared int) (figures, error) {
	var f figures
	s, err := bench.Start(ctx, "--prepared-memory", strconv.Itoa(prepared*64<<20), "--stable-window", "1s", "--scale-to-zero-grace", "0s")
	if err != nil {
		return f, err
	}
	defer s.Stop()
	url, _, err := s.DeployHello(ctx)
	if err != nil {
		return f, err
	}
	for range rounds {
		if err := s.AwaitZero(ctx, prepared); err != nil {
			return f, err
		}
		if err := f.addFloor(ctx, hello); err != nil {
			return f, err
		}
		begun := time.Now()
		wait, status, err := bench.Get(ctx, url)
		if err != nil {
			return f, fmt.Errorf("cold request: %w", err)
		}
		if status != 200 {
			return f, fmt.Errorf("cold request: status %d", status)
		}
		instances, err := s.Client.Instances(ctx, "default")
		if err != nil {
			return f, err
		}
		i := slices.IndexFunc(instances, func(i client.Instance) bool { return i.State == engine.Ready })
		if i < 0 {
			return f, fmt.Errorf("there is no ready instance after a cold request, only %+v", instances)
		}
		f.wait = append(f.wait, wait)
		f.addStart(begun, wait, instances[i], prepared > 0)
	}
	return f, nil
}

// addStart divides a cold start. Its instance was claimed for the request at a time, and ready at another: before
// the one the request was on its way to the instance, after the other on its way through it.
func (f *figures) addStart(begun time.Time, wait time.Duration, i client.Instance, prepared bool) {
	claimed := i.Since.Add(-i.StartTook)
	f.path.add("wake", claimed.Sub(begun))
	other := i.StartTook
	for _, stage := range i.Stages {
		if prepared && stage.Name != "release" && stage.Name != "listen" {
			f.ahead.add(stage.Name, stage.Took)
			continue
		}
		f.path.add(stage.Name, stage.Took)
		other -= stage.Took
	}
	f.path.add("other", other) // between the stages
	f.path.add("answer", begun.Add(wait).Sub(i.Since))
}

// addFloor starts the program directly.
func (f *figures) addFloor(ctx context.Context, hello string) error {
	listen, answer, err := bench.Floor(ctx, hello)
	if err != nil {
		return err
	}
	f.floor = append(f.floor, answer)
	f.floorPath.add("listen", listen)
	f.floorPath.add("answer", answer-listen)
	return nil
}
