package server

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/autoscaler"
)

// availableMemory is how much memory programs can still be given, in bytes, without swapping.
func availableMemory() (int64, error) {
	const file = "/proc/meminfo"
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("asking for the machine's free memory: %w", err)
	}
	for line := range bytes.Lines(text) {
		value, ok := bytes.CutPrefix(line, []byte("MemAvailable:"))
		if !ok {
			continue
		}
		if fields := bytes.Fields(value); len(fields) > 0 {
			if kilobytes, err := strconv.ParseInt(string(fields[0]), 10, 64); err == nil {
				return kilobytes << 10, nil
			}
		}
	}
	return 0, fmt.Errorf("asking for the machine's free memory: %s has no line MemAvailable", file)
}

// checkMemory refuses a reserve that the machine does not have, and warns of bounds that keep services from running.
func checkMemory(config Config, logger *slog.Logger) error {
	machine := config.Scaling.MachineMemory
	if reserve := config.Scaling.MemoryReserve; reserve.Of(machine) >= machine {
		return fmt.Errorf("--memory-reserve %v: give less than the machine's memory, %v", reserve, autoscaler.Amount{Bytes: machine})
	}
	limit := config.Scaling.InstanceMemory
	memory, err := resource.ParseQuantity(cmp.Or(config.Memory, "0"))
	if err != nil {
		return fmt.Errorf("reading --memory %q: %w", config.Memory, err)
	}
	if bytes := limit.Of(machine); bytes > 0 && memory.Value() > bytes {
		logger.Warn("services that set no memory limit cannot run: --memory, which they get, is more than --instance-memory, which is for all instances",
			"memory", config.Memory, "instance-memory", limit.String())
	}
	return nil
}

// machineMemory is how much memory the machine has, in bytes; where the server is in a container, what that may use.
func machineMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("asking for the machine's memory: %w", err)
	}
	memory := int64(info.Totalram) * int64(info.Unit)
	// At the root of the cgroups that this process sees there is a limit only in a container.
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil && limit > 0 {
			memory = min(memory, limit)
		}
	}
	return memory, nil
}
