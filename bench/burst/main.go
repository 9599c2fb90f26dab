// Command burst sends 1,000 requests at once into a service at zero: every one must be answered 200.
package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/berth-run/berth/bench"
)

const requests = 1000

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-burst:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	s, err := bench.Start(ctx, "--stable-window", "6s", "--scale-to-zero-grace", "0s")
	if err != nil {
		return err
	}
	defer s.Stop()
	url, _, err := s.DeployHello(ctx)
	if err != nil {
		return err
	}
	if err := s.AwaitZero(ctx, 1); err != nil {
		return err
	}

	var all sync.WaitGroup
	took := make([]time.Duration, requests)
	failures := make([]error, requests)
	start := make(chan struct{})
	for i := range requests {
		all.Go(func() {
			<-start
			var status int
			took[i], status, failures[i] = bench.Get(ctx, url)
			if failures[i] == nil && status != 200 {
				failures[i] = fmt.Errorf("status %d", status)
			}
		})
	}
	close(start)
	all.Wait()

	failed := 0
	for _, err := range failures {
		if err != nil {
			if failed == 0 {
				fmt.Println("first failure:", err)
			}
			failed++
		}
	}
	states, err := s.States(ctx)
	if err != nil {
		return err
	}
	bench.Print("burst_instances", float64(states["ready"]+states["starting"]), "instances")
	bench.Print("burst_failures", float64(failed), "requests")
	bench.Print("burst_p50_ms", bench.Quantile(took, 0.5), "ms")
	bench.Print("burst_p99_ms", bench.Quantile(took, 0.99), "ms")
	if failed > 0 {
		return fmt.Errorf("%d of %d requests failed", failed, requests)
	}
	return nil
}
