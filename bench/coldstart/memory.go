package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
)

// measureMemory compares the memory that the machine has in use, with the same services at zero, while none has a prepared
// instance and while all have. Only what the page cache holds of files is left out, of which an instance shares its image's with
// all others.
//
// prepared_mib is the sum of the parts that can be told from what else happens on the machine: the waiting process, the kernel's
// slabs, page tables and stacks, tmpfs, and the server's part. prepared_machine_mib is how much less the machine has free, which
// misses nothing, and means something only where nothing else runs.
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
	for n := range preparedServices - 1 {
		if _, err := s.Deploy(ctx, bench.Service(fmt.Sprintf("hello-%d", n), image)); err != nil {
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
	each := func(of func(machine) int64) float64 {
		return float64(of(with)-of(without)) / preparedServices / (1 << 20)
	}
	parts := []struct {
		name string
		of   func(machine) int64
	}{
		{"its waiting process", func(m machine) int64 { return m.processes }},
		{"the server", func(m machine) int64 { return m.server }},
		{"tmpfs", func(m machine) int64 { return m.shared }},
		{"page tables and stacks", func(m machine) int64 { return m.tables }},
		{"slabs", func(m machine) int64 { return m.slab }},
		{"per processor", func(m machine) int64 { return m.perProcessor }},
	}
	sum := 0.0
	var told []string
	for _, part := range parts {
		sum += each(part.of)
		told = append(told, fmt.Sprintf("%s %.2f", part.name, each(part.of)))
	}
	used := each(func(m machine) int64 { return m.used })
	fmt.Printf("a prepared instance, one of %d, in MiB: %s; %.2f in all, and %.2f by what the machine has free\n", preparedServices, strings.Join(told, ", "), sum, used)
	bench.Print("prepared_mib", sum, "MiB")
	bench.Print("prepared_machine_mib", used, "MiB")
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

// machine is memory in use, in bytes: all of it, and parts.
type machine struct {
	used, slab, tables, perProcessor, shared int64
	server, processes                        int64 // the server's part, and that of its children
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
	m := machine{
		used: at["MemTotal"] - at["MemFree"] - at["Buffers"] - at["Cached"] + at["Shmem"], slab: at["Slab"],
		tables: at["PageTables"] + at["KernelStack"], perProcessor: at["Percpu"], shared: at["Shmem"],
	}
	if m.server, err = proportional(pid); err != nil {
		return machine{}, err
	}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return machine{}, err
	}
	for _, file := range children {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return machine{}, fmt.Errorf("reading %q: %w", file, err)
			}
			if pss, err := proportional(child); err == nil { // else it has ended
				m.processes += pss
			}
		}
	}
	return m, nil
}

// proportional is a process's memory, in bytes; of what it shares, its share.
func proportional(pid int) (int64, error) {
	kib, err := bench.PSS(pid)
	return int64(kib * (1 << 10)), err
}
