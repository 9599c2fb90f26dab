// Command idle measures what a Berth server costs when nothing happens: memory and CPU without services, and what
// each of 200 more services at zero adds. The price of a service is taken from one service on, so that code and
// tables that the first one brings into memory are not counted as its size.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
)

const services = 200

// The server rests before it is looked at, and its CPU is counted over a window.
const rest, window = 40 * time.Second, 20 * time.Second

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-idle:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	s, err := bench.Start(ctx, "--stable-window", "1s", "--scale-to-zero-grace", "0s")
	if err != nil {
		return err
	}
	defer s.Stop()
	empty, emptyCPU, err := s.Settle(rest, window)
	if err != nil {
		return err
	}
	_, image, err := s.DeployHello(ctx)
	if err != nil {
		return err
	}
	if err := atZero(ctx, s); err != nil {
		return err
	}
	one, _, err := s.Settle(rest, window)
	if err != nil {
		return err
	}
	for i := range services {
		if _, err := s.Client.Services("default").Create(ctx, bench.Service(fmt.Sprintf("idle-%03d", i), image)); err != nil {
			return err
		}
	}
	if err := atZero(ctx, s); err != nil {
		return err
	}
	full, fullCPU, err := s.Settle(rest, window)
	if err != nil {
		return err
	}
	states, err := s.States(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%d services at zero, %d of them with a prepared instance (a process that waits; not counted in the server's memory)\n", services+1, states["prepared"])
	bench.Print("idle_pss_with_one_service_mib", one/1024, "MiB")
	bench.Print("idle_pss_with_services_mib", full/1024, "MiB")
	bench.Print("idle_cpu_percent_empty", emptyCPU, "%")
	bench.Print("idle_pss_mib", empty/1024, "MiB")
	bench.Print("idle_kib_per_service", (full-one)/services, "KiB")
	bench.Print("idle_cpu_percent", fullCPU, "%")
	return nil
}

// atZero waits until every service is ready and has no running instance.
func atZero(ctx context.Context, s *bench.Server) error {
	return bench.Await(ctx, "all services to be ready and at zero", func() (bool, error) {
		list, _, err := s.Client.Services("default").List(ctx, client.Selector{})
		if err != nil {
			return false, err
		}
		for _, service := range list {
			if !service.IsReady() {
				return false, nil
			}
		}
		states, err := s.States(ctx)
		return states["ready"]+states["starting"]+states["draining"]+states["stopping"] == 0, err
	})
}
