package node

import (
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/berth-run/berth/engine"
)

// boosts are the limits, in thousandths of a CPU, that containers have while they start, as on Cloud Run (contract C46):
// those with a limit up to the first number have the second.
var boosts = [...][2]int64{{1000, 2000}, {2000, 4000}, {8000, 8000}}

// boosted is the limit while a container starts, which has another limit for the rest of its life, on a machine with so
// many CPUs. What is unlimited (0) stays so.
func boosted(limit int64, cpus int) int64 {
	if limit == 0 {
		return 0
	}
	for _, b := range boosts {
		if limit <= b[0] {
			return max(limit, min(b[1], int64(cpus)*1000))
		}
	}
	return limit
}

// cpuLimit is the limit that a container is made with. Its share of a machine that is short of CPU is not raised: those
// beside it are to be as fast as before.
func (b *bundle) cpuLimit() int64 {
	if b.spec.Boost {
		return boosted(b.container.CPU, runtime.NumCPU())
	}
	return b.container.CPU
}

// quota is how long a container with a limit may run in each cpuPeriod, in microseconds.
func quota(limit int64) int64 {
	const least = 1000 // of the kernel
	return max(limit*cpuPeriod/1000, least)
}

// endBoost sees to it that the container, which has just started, has the limit that it is to have, in a while.
// instance.mu is held.
func (l *life) endBoost() {
	c := l.container
	i := c.instance
	if !i.spec.Boost || boosted(c.spec.CPU, runtime.NumCPU()) == c.spec.CPU {
		return
	}
	time.AfterFunc(engine.BoostAfter, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if hasEnded(l.exited) { // and the cgroup may be another life's
			return
		}
		if err := i.engine.cgroups.limitCPU(c.id, c.spec.CPU); err != nil {
			i.engine.logger.Error("ending a container's startup CPU boost", "revision", i.spec.Revision, "instance", i.id, "container", c.spec.Name, "error", err)
		}
	})
}

// limitCPU changes the CPU limit of a container.
func (c *cgroups) limitCPU(id string, limit int64) error {
	if c.v2 {
		value := strconv.FormatInt(quota(limit), 10) + " " + strconv.Itoa(cpuPeriod)
		return tell(filepath.Join(c.roots[""], c.path(id), "cpu.max"), value)
	}
	return tell(filepath.Join(c.roots["cpu"], c.path(id), "cpu.cfs_quota_us"), strconv.FormatInt(quota(limit), 10))
}
