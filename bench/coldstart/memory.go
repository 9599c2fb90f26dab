package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"knative.dev/serving/pkg/apis/autoscaling"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
)

// measureMemory compares the memory that the machine has in use, with the same services at zero, while none has a prepared
// instance and while all have. Only what the page cache holds of files is left out, of which an instance shares its image's with
// all others: processes, the kernel's own memory, tmpfs and the server's part count.
func measureMemory(ctx context.Context) error {
	s, err := bench.Start(ctx, slices.Concat([]string{"--prepared-memory", "0", "--initial-scale", "0"}, flags)...)
	if err != nil {
		return err
	}
	defer s.Stop()
	url, image, err := s.DeployHello(ctx)
	if err != nil {
		return err
	}
	if err := s.Remove(ctx, "default", "hello"); err != nil {
		return err
	}
	for n := range preparedServices {
		service := bench.Service(fmt.Sprintf("hello-%d", n), image)
		service.Spec.Template.Annotations = map[string]string{autoscaling.InitialScaleAnnotationKey: "0"}
		if _, err := s.Deploy(ctx, service); err != nil {
			return err
		}
	}
	without, err := settled(ctx, s, url, "0", 0)
	if err != nil {
		return err
	}
	with, err := settled(ctx, s, url, "1Gi", preparedServices)
	if err != nil {
		return err
	}
	each := func(a, b int64) float64 { return float64(b-a) / preparedServices / (1 << 20) }
	fmt.Printf("a prepared instance of %d: %.2f MiB, of which the kernel's slabs %.2f, its page tables and stacks %.2f, tmpfs %.2f, the server %.2f\n", preparedServices,
		each(without.used, with.used), each(without.slab, with.slab), each(without.tables, with.tables), each(without.shared, with.shared), each(without.server, with.server))
	bench.Print("prepared_mib", each(without.used, with.used), "MiB")
	return nil
}

// settled starts the server anew with an amount of memory for prepared instances, asks every service once, and returns what
// the machine uses when there are as many instances as are wanted, all of them prepared.
func settled(ctx context.Context, s *bench.Server, url, amount string, prepared int) (machine, error) {
	if err := s.Relaunch(ctx, url, slices.Concat([]string{"--prepared-memory", amount, "--initial-scale", "0"}, flags)...); err != nil {
		return machine{}, err
	}
	services, _, err := s.Client.Services("default").List(ctx, client.Selector{})
	if err != nil {
		return machine{}, err
	}
	for _, service := range services {
		if _, status, err := bench.Get(ctx, service.Status.URL.String()); err != nil || status != 200 {
			return machine{}, fmt.Errorf("asking service %q: status %d, %w", service.Name, status, err)
		}
	}
	err = bench.Await(ctx, "all instances to be prepared", func() (bool, error) {
		states, err := s.States(ctx)
		return states[string(engine.Prepared)] == prepared && len(states) == min(prepared, 1), err
	})
	if err != nil {
		return machine{}, err
	}
	// What others do on the machine makes it more for moments.
	var all []machine
	for range 40 {
		m, err := readMachine(s.PID)
		if err != nil {
			return machine{}, err
		}
		all = append(all, m)
		time.Sleep(100 * time.Millisecond)
	}
	return slices.MinFunc(all, func(a, b machine) int { return int(a.used - b.used) }), nil
}

// machine is memory in use, in bytes.
type machine struct {
	used                 int64
	slab, tables, shared int64 // parts of it
	server               int64 // the server's part
}

func readMachine(pid int) (machine, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return machine{}, err
	}
	at := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return machine{}, fmt.Errorf("reading /proc/meminfo: %q: %w", line, err)
			}
			at[strings.TrimSuffix(f[0], ":")] = n << 10
		}
	}
	server, err := bench.PSS(pid)
	return machine{
		used:   at["MemTotal"] - at["MemFree"] - at["Buffers"] - at["Cached"] + at["Shmem"],
		slab:   at["Slab"],
		tables: at["PageTables"] + at["KernelStack"],
		shared: at["Shmem"],
		server: int64(server * (1 << 10)),
	}, err
}
