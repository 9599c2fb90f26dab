// Command coldstart measures cold starts of examples/hello: a request to a service at zero, from the client's
// dial to the last byte of the answer, beside the floor in the same run: fork and exec of the same binary to its
// first 200.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
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
	hello := filepath.Join(dir, "hello")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", hello, "./examples/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building examples/hello: %w\n%s", err, out)
	}

	prepared, err := measure(ctx, hello, nil)
	if err != nil {
		return err
	}
	unprepared, err := measure(ctx, hello, []string{"--prepared", "0"})
	if err != nil {
		return err
	}
	floor := bench.Quantile(prepared.floor, 0.5)
	fmt.Printf("%d cold starts through the gateway, cached image, one prepared instance; stages of the start at p50:\n", rounds)
	for _, name := range prepared.order {
		bench.Print("coldstart_stage_"+name+"_p50_ms", bench.Quantile(prepared.stages[name], 0.5), "ms")
	}
	bench.Print("coldstart_unprepared_p50_ms", bench.Quantile(unprepared.wait, 0.5), "ms")
	bench.Print("coldstart_p50_ms", bench.Quantile(prepared.wait, 0.5), "ms")
	bench.Print("coldstart_p99_ms", bench.Quantile(prepared.wait, 0.99), "ms")
	bench.Print("coldstart_floor_p50_ms", floor, "ms")
	bench.Print("coldstart_ratio", bench.Quantile(prepared.wait, 0.5)/floor, "ratio")
	return nil
}

type figures struct {
	wait, floor []time.Duration
	stages      map[string][]time.Duration
	order       []string
}

// measure interleaves cold starts of a server with runs of the floor.
func measure(ctx context.Context, hello string, flags []string) (figures, error) {
	f := figures{stages: map[string][]time.Duration{}}
	wantPrepared := 1
	if len(flags) > 0 {
		wantPrepared = 0
	}
	s, err := bench.Start(ctx, append(flags, "--stable-window", "1s", "--scale-to-zero-grace", "0s")...)
	if err != nil {
		return f, err
	}
	defer s.Stop()
	url, _, err := s.DeployHello(ctx)
	if err != nil {
		return f, err
	}
	for range rounds {
		err := bench.Await(ctx, "the service to be at zero", func() (bool, error) {
			states, err := s.States(ctx)
			return states["prepared"] == wantPrepared && len(states) == wantPrepared, err
		})
		if err != nil {
			return f, err
		}
		wait, status, err := bench.Get(ctx, url)
		if err != nil || status != 200 {
			return f, fmt.Errorf("cold request: status %d, %w", status, err)
		}
		f.wait = append(f.wait, wait)
		instances, err := s.Client.Instances(ctx, "default")
		if err != nil {
			return f, err
		}
		f.addStages(instances)
		took, err := floor(hello)
		if err != nil {
			return f, err
		}
		f.floor = append(f.floor, took)
	}
	return f, nil
}

func (f *figures) addStages(instances []client.Instance) {
	for _, i := range instances {
		if i.State != "ready" {
			continue
		}
		for _, stage := range i.Stages {
			if _, ok := f.stages[stage.Name]; !ok {
				f.order = append(f.order, stage.Name)
			}
			f.stages[stage.Name] = append(f.stages[stage.Name], stage.Took)
		}
	}
}

// floor starts the program directly and asks it until it answers 200.
func floor(hello string) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	command := exec.Command(hello)
	command.Env = []string{"PORT=" + strconv.Itoa(port)}
	start := time.Now()
	if err := command.Start(); err != nil {
		return 0, err
	}
	defer func() {
		command.Process.Kill()
		command.Wait()
	}()
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	for time.Since(start) < 10*time.Second {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			if _, status, err := bench.Get(context.Background(), url); err == nil && status == 200 {
				return time.Since(start), nil
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
	return 0, fmt.Errorf("%s did not answer within 10 s", hello)
}
