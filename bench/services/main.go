// Command services measures deploys, from the write to the watch event that says Ready, and their processor time, which
// says on a busy machine what the clock does not, with few services registered and with many, and what many cost: memory, processor time of an idle server, lists, and restarts.
//
// The many are declared through the API as users declare services, and start nothing (--initial-scale 0). A measured deploy is
// of examples/hello with an image that the server has: a new service, or a new revision of one. Both start an instance.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

const (
	few     = 10
	writers = 8 // that declare services at the same time
)

// The server rests before it is looked at, and its CPU is counted over a window.
const rest, window = 30 * time.Second, 10 * time.Second

func main() {
	many := flag.Int("services", 10000, "how many services are declared")
	rounds := flag.Int("rounds", 40, "how many deploys of each sort are measured")
	flag.Parse()
	if err := run(context.Background(), *many, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench-services:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, many, rounds int) error {
	floor, err := floor(ctx, rounds)
	if err != nil {
		return err
	}
	s, err := bench.Start(ctx, "--initial-scale", "0", "--stable-window", "1s", "--scale-to-zero-grace", "0s")
	if err != nil {
		return err
	}
	defer s.Stop()
	url, image, err := s.DeployHello(ctx)
	if err != nil {
		return err
	}

	if err := register(ctx, s, image, 1, few); err != nil {
		return err
	}
	before, err := deploys(ctx, s, image, rounds)
	if err != nil {
		return err
	}
	small, _, err := s.Settle(rest, window)
	if err != nil {
		return err
	}

	begun := time.Now()
	if err := register(ctx, s, image, few, many); err != nil {
		return err
	}
	registered := time.Since(begun)
	after, err := deploys(ctx, s, image, rounds)
	if err != nil {
		return err
	}
	lists, err := list(ctx, s)
	if err != nil {
		return err
	}
	large, idle, err := s.Settle(rest, window)
	if err != nil {
		return err
	}
	fmt.Printf("%d services at zero\n", many)
	bench.Print("deploy_floor_p50_ms", bench.Quantile(floor, 0.5), "ms")
	bench.Print("deploy_ready_p50_ms", bench.Quantile(before.fresh, 0.5), "ms")
	bench.Print("deploy_ready_p99_ms", bench.Quantile(before.fresh, 0.99), "ms")
	bench.Print("deploy_revision_ready_p50_ms", bench.Quantile(before.again, 0.5), "ms")
	bench.Print("deploy_revision_ready_p99_ms", bench.Quantile(before.again, 0.99), "ms")
	bench.Print("services_deploy_ready_p50_ms", bench.Quantile(after.fresh, 0.5), "ms")
	bench.Print("services_deploy_ready_p99_ms", bench.Quantile(after.fresh, 0.99), "ms")
	bench.Print("services_deploy_revision_ready_p50_ms", bench.Quantile(after.again, 0.5), "ms")
	bench.Print("services_ready_ratio", bench.Quantile(after.fresh, 0.5)/bench.Quantile(before.fresh, 0.5), "ratio")
	bench.Print("services_revision_ready_ratio", bench.Quantile(after.again, 0.5)/bench.Quantile(before.again, 0.5), "ratio")
	bench.Print("deploy_cpu_ms", before.cpu, "ms")
	bench.Print("services_deploy_cpu_ms", after.cpu, "ms")
	bench.Print("services_deploy_cpu_ratio", after.cpu/before.cpu, "ratio")
	bench.Print("services_registered_per_second", float64(many-few)/registered.Seconds(), "services/s")
	bench.Print("services_kib_per_service", (large-small)/float64(many-few), "KiB")
	bench.Print("services_idle_cpu_percent", idle, "%")
	lists.print()
	return restarts(ctx, s, url, many)
}

// floor starts the program directly, as often as it is deployed.
func floor(ctx context.Context, rounds int) ([]time.Duration, error) {
	dir, err := os.MkdirTemp("", "berth-floor-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	hello, err := bench.BuildHello(ctx, dir)
	if err != nil {
		return nil, err
	}
	var all []time.Duration
	for range rounds {
		_, took, err := bench.Floor(ctx, hello)
		if err != nil {
			return nil, err
		}
		all = append(all, took)
	}
	return all, nil
}

// times are how long deploys took of a new service, and of a new revision of one.
type times struct {
	fresh, again []time.Duration
	cpu          float64 // ms of the processor for one, of either sort, with all that it leaves behind
}

func deploys(ctx context.Context, s *bench.Server, image string, rounds int) (t times, err error) {
	before, err := bench.CPUWithChildren(s.PID)
	if err != nil {
		return t, err
	}
	if t.fresh, err = s.DeployTimes(ctx, "fresh", image, true, rounds); err != nil {
		return t, err
	}
	if t.again, err = s.DeployTimes(ctx, "again", image, false, rounds); err != nil {
		return t, err
	}
	after, err := bench.CPUWithChildren(s.PID)
	t.cpu = float64((after - before).Milliseconds()) / float64(2*rounds)
	return t, err
}

// register declares services number from to to-1 and waits until all are ready.
func register(ctx context.Context, s *bench.Server, image string, from, to int) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	var next atomic.Int64
	next.Store(int64(from))
	var group sync.WaitGroup
	failed := make(chan error, writers)
	for range writers {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(to) && ctx.Err() == nil; i = next.Add(1) - 1 {
				service := bench.Service(fmt.Sprintf("at-zero-%05d", i), image)
				if _, err := s.Client.Services("default").Create(ctx, service); err != nil {
					failed <- err
					cancel()
					return
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	waiting := map[string]bool{}
	listed := false
	for event, err := range s.Client.Services("default").Watch(ctx, client.Selector{}) {
		if err != nil {
			return err
		}
		if event.Type == client.Listed {
			listed = true
		} else if service := event.Object; service.Status.GetCondition(serving.ServiceReady).IsFalse() {
			return fmt.Errorf("service %q is not ready: %s", service.Name, service.Status.GetCondition(serving.ServiceReady).GetMessage())
		} else if service.IsReady() {
			delete(waiting, service.Name)
		} else {
			waiting[service.Name] = true
		}
		if listed && len(waiting) == 0 {
			return nil
		}
	}
	return ctx.Err()
}

// listed is how long lists of all services took.
type listed struct {
	berth, kubectl time.Duration // kubectl is zero when it is not there
}

func list(ctx context.Context, s *bench.Server) (l listed, err error) {
	begun := time.Now()
	if err := s.Berth(ctx, "services", "list"); err != nil {
		return l, err
	}
	l.berth = time.Since(begun)
	if _, err := exec.LookPath("kubectl"); err != nil {
		return l, nil
	}
	begun = time.Now()
	if err := s.Kubectl(ctx, "get", "ksvc"); err != nil {
		return l, err
	}
	l.kubectl = time.Since(begun)
	return l, nil
}

func (l listed) print() {
	bench.Print("services_list_ms", float64(l.berth.Milliseconds()), "ms")
	if l.kubectl > 0 {
		bench.Print("services_kubectl_list_ms", float64(l.kubectl.Milliseconds()), "ms")
	}
}

// restarts measures the time from a new process to the first answer of a service that is at zero.
func restarts(ctx context.Context, s *bench.Server, url string, many int) error {
	for _, how := range []struct {
		name string
		hard bool
	}{{"services_restart_ms", false}, {"services_restart_killed_ms", true}} {
		took, err := s.Restart(ctx, url, how.hard)
		if err != nil {
			return err
		}
		bench.Print(how.name, float64(took.Milliseconds()), "ms")
	}
	after, _, err := s.Settle(rest, window)
	if err != nil {
		return err
	}
	bench.Print("services_restarted_kib_per_service", after/float64(many), "KiB")
	return nil
}
