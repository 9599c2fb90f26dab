package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/bench"
)

// keptInterfaces is how many network links of ended instances the engine keeps for the next: they are not left over.
const keptInterfaces = 256

// census counts what a server has on the machine: instances, cgroups, mounts, interfaces, processes.
func census(ctx context.Context, s *bench.Server) (map[string]int, error) {
	states, err := s.States(ctx)
	if err != nil {
		return nil, err
	}
	children, err := childrenOf(s.PID)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{"processes": len(children)}
	for state, n := range states {
		counts["instances "+state] = n
	}
	// Most threads share the machine's mounts; those of the engine have its own.
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/mountinfo", s.PID))
	for _, path := range threads {
		if text, err := os.ReadFile(path); err == nil {
			counts["mounts"] = max(counts["mounts"], strings.Count(string(text), "\n"))
		}
	}
	for _, pid := range children {
		if mark, ok := markOf(pid); ok {
			return counts, errors.Join(err, onMachine(mark, counts))
		}
	}
	return counts, err
}

// markOf is what the names of a server's cgroups and interfaces hold, as the cgroup of one of its instances tells.
func markOf(pid int) (string, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", false // it has ended
	}
	_, after, found := strings.Cut(string(text), ":/berth-")
	mark, _, inside := strings.Cut(after, "/")
	return mark, found && inside
}

// onMachine counts the cgroups and interfaces of the server with a mark.
func onMachine(mark string, counts map[string]int) error {
	for _, pattern := range []string{"/sys/fs/cgroup/*/berth-", "/sys/fs/cgroup/berth-"} { // versions 1 and 2
		files, err := filepath.Glob(pattern + mark + "/*/cgroup.procs")
		if err != nil {
			return err
		}
		counts["cgroups"] += len(files)
	}
	links, err := net.Interfaces()
	for _, link := range links {
		if strings.HasPrefix(link.Name, "bt"+mark) {
			counts["interfaces"]++
		}
	}
	return err
}

// childrenOf lists the children of a process.
func childrenOf(pid int) ([]int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []int
	for _, path := range lists {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all, err
}

// awaitNothingLeft waits until there is no more of anything than before, and returns how much more there still is.
func awaitNothingLeft(ctx context.Context, s *bench.Server, before map[string]int) (left int, err error) {
	const patience = 10 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		now, err := census(ctx, s)
		if err != nil {
			return 0, err
		}
		var errs []error
		left = 0
		for _, what := range slices.Sorted(maps.Keys(now)) {
			more := now[what] - before[what]
			if what == "interfaces" {
				more = now[what] - now["instances prepared"] - keptInterfaces
			}
			if more > 0 {
				left += more
				errs = append(errs, fmt.Errorf("%d %s, where there were %d", now[what], what, before[what]))
			}
		}
		if left == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return left, errors.Join(errs...)
		}
	}
}

// processCPU is the CPU of a process, and of the children that it has waited for, in steps of 10 ms; zero when it has
// ended.
func processCPU(pid int) (own, children time.Duration) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The command's name, in brackets, may hold spaces: utime, stime, cutime and cstime count from behind it (proc(5)).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks [4]time.Duration
	for i := range ticks {
		n, _ := strconv.ParseInt(fields[11+i], 10, 64)
		ticks[i] = time.Duration(n) * 10 * time.Millisecond
	}
	return ticks[0] + ticks[1], ticks[2] + ticks[3]
}
