package node

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupMount is where distributions mount cgroups.
const cgroupMount = "/sys/fs/cgroup"

// cgroups are the control groups of one engine: one directory below the root of every hierarchy, and in it one
// for each container, named by its ID. What is in them is the truth about which processes are the engine's.
type cgroups struct {
	v2     bool
	hybrid bool              // v1, with an empty v2 hierarchy beside it
	roots  map[string]string // controller → mount point; with v2 one entry, ""
	name   string            // "berth-3f9a2c"

	own     string // cgroup.procs of the group that this process is in already
	warming atomic.Bool

	freezing sync.Once // the first time that something is frozen; see alwaysFrozen
}

// findCgroups reads how cgroups are mounted here.
func findCgroups(name string) (*cgroups, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the machine's mounts: %w", err)
	}
	defer mounts.Close()
	c := &cgroups{name: name, roots: map[string]string{}}
	defer c.findOwn()
	var unified string
	lines := bufio.NewScanner(mounts)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(fields[4], cgroupMount) {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			unified = fields[4]
		case "cgroup":
			for option := range strings.SplitSeq(kind[2], ",") {
				if option != "rw" && option != "ro" {
					c.roots[strings.TrimPrefix(option, "name=")] = fields[4]
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the machine's mounts: %w", err)
	}
	switch {
	case unified == cgroupMount:
		c.v2 = true
		c.roots = map[string]string{"": unified}
		return c, nil
	case len(c.roots) == 0:
		return nil, fmt.Errorf("no cgroups are mounted at %s: limits cannot be enforced; mount cgroup2 there", cgroupMount)
	}
	for _, controller := range []string{"cpu", "devices", "memory", "pids"} {
		if c.roots[controller] == "" {
			return nil, fmt.Errorf("the cgroup controller %q is not mounted below %s: limits cannot be enforced; mount it there", controller, cgroupMount)
		}
	}
	c.hybrid = unified != ""
	return c, nil
}

// findOwn finds the group that this process is in, in one hierarchy.
func (c *cgroups) findOwn() {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return // then nothing is warmed
	}
	for line := range strings.Lines(string(text)) { // "8:pids:/group"
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (c.v2 && fields[1] == "" || !c.v2 && slices.Contains(strings.Split(fields[1], ","), "pids")) {
			controller := "pids"
			if c.v2 {
				controller = ""
			}
			c.own = filepath.Join(c.roots[controller], fields[2], "cgroup.procs")
		}
	}
}

// warm readies the kernel for a process that will be moved to a new cgroup. The first move in a while waits for
// all CPUs, which takes 10 to 20 ms, and those that follow soon do not. Moving this process to where it is
// already takes that wait while other things are made.
func (c *cgroups) warm() {
	if c.own == "" || !c.warming.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer c.warming.Store(false)
		_ = os.WriteFile(c.own, []byte("0"), 0) // without it, the wait comes later
	}()
}

// open removes what a former engine of the name has left, and makes what instances' groups need to be there.
func (c *cgroups) open() error {
	if err := c.sweep(); err != nil {
		return fmt.Errorf("cleaning up after a former server: %w", err)
	}
	if c.v2 {
		if err := c.delegate(); err != nil {
			return err
		}
	} // else runtimes make the groups above an instance's, with all they need
	return c.weigh()
}

// weigh gives the engine's group the weight of one busy program for each processor, as Kubernetes gives its pods. Else
// the kernel lets all instances together have no more of a busy machine than a single program beside them has.
func (c *cgroups) weigh() error {
	const each, weightEach, mostWeight = 1024, 100, 10000 // of the kernel: its default, and what it takes
	group := filepath.Join(c.roots["cpu"], c.name)
	file, value := filepath.Join(group, "cpu.shares"), each*runtime.NumCPU()
	if c.v2 {
		group = filepath.Join(c.roots[""], c.name)
		file, value = filepath.Join(group, "cpu.weight"), min(weightEach*runtime.NumCPU(), mostWeight)
	}
	if err := os.MkdirAll(group, 0o755); err != nil {
		return fmt.Errorf("making cgroup %q: %w", group, err)
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(value)), 0o644); err != nil {
		return fmt.Errorf("giving instances their part of the CPU: %w", err)
	}
	return nil
}

// delegate makes the engine's v2 group and lets groups below it have limits.
func (c *cgroups) delegate() error {
	root := c.roots[""]
	group := filepath.Join(root, c.name)
	if err := os.MkdirAll(group, 0o755); err != nil {
		return fmt.Errorf("making cgroup %q: %w", group, err)
	}
	for _, directory := range []string{root, group} {
		for _, controller := range []string{"cpu", "memory", "pids"} {
			file := filepath.Join(directory, "cgroup.subtree_control")
			if err := os.WriteFile(file, []byte("+"+controller), 0); err != nil {
				return fmt.Errorf("enabling the cgroup controller %q in %q: %w", controller, file, err)
			}
		}
	}
	return nil
}

// String is the layout as a person says it.
func (c *cgroups) String() string {
	switch {
	case c.v2:
		return "v2"
	case c.hybrid:
		return "v1 hybrid"
	}
	return "v1"
}

// path is the cgroup of a container below the hierarchies' roots, as the OCI runtime wants it.
func (c *cgroups) path(id string) string { return "/" + c.name + "/" + id }

// directories lists where the engine's cgroup is in each hierarchy.
func (c *cgroups) directories() []string {
	roots := slices.Compact(slices.Sorted(maps.Values(c.roots)))
	for i, root := range roots {
		roots[i] = filepath.Join(root, c.name)
	}
	return roots
}

// countsSwap reports whether limits can be set for memory and swap together. With v2 only a group that exists tells.
func (c *cgroups) countsSwap() bool {
	file := filepath.Join(c.roots["memory"], "memory.memsw.limit_in_bytes")
	if c.v2 {
		file = filepath.Join(c.roots[""], c.name, "memory.swap.max")
	}
	_, err := os.Stat(file)
	return err == nil
}

// outOfMemory reports whether the kernel has killed a process of the container for its memory limit.
func (c *cgroups) outOfMemory(id string) bool {
	file := filepath.Join(c.roots["memory"], c.path(id), "memory.oom_control")
	if c.v2 {
		file = filepath.Join(c.roots[""], c.path(id), "memory.events")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if count, found := strings.CutPrefix(line, "oom_kill "); found {
			return strings.TrimSpace(count) != "0"
		}
	}
	return false
}

// kill sends SIGKILL to every process in the container's cgroups, and reaps those that are this process's
// children, as orphans of a runtime are.
func (c *cgroups) kill(id string) {
	for _, directory := range c.directories() {
		for _, pid := range killAll(filepath.Join(directory, id)) {
			for {
				_, err := unix.Wait4(pid, nil, 0, nil)
				if err != unix.EINTR {
					break // reaped, or not a child
				}
			}
		}
	}
}

// remove removes the container's cgroups, whose processes are gone.
func (c *cgroups) remove(id string) error {
	var errs []error
	for _, directory := range c.directories() {
		if err := removeCgroup(filepath.Join(directory, id)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and those below it. A process leaves its cgroup a moment after its parent was
// told of its end, hence the tries.
func removeCgroup(directory string) error {
	const tries = 50
	for try := 0; ; try++ {
		err := unix.Rmdir(directory)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return nil
		case try == tries:
			return fmt.Errorf("removing cgroup %q: %w", directory, err)
		}
		entries, _ := os.ReadDir(directory)
		for _, entry := range entries {
			if entry.IsDir() {
				if err := removeCgroup(filepath.Join(directory, entry.Name())); err != nil {
					return err
				}
			}
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

// awaitEmpty waits until the processes in the container's cgroups, which have ended, have left them: a runtime makes no
// container where there are others. It waits no longer than removing them would.
func (c *cgroups) awaitEmpty(id string) {
	const tries = 50
	for try := range tries {
		if !slices.ContainsFunc(c.directories(), func(directory string) bool { return len(processesIn(filepath.Join(directory, id))) > 0 }) {
			return
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

// sweep kills every process in the engine's cgroups, waits until they are gone, and removes the cgroups.
func (c *cgroups) sweep() error {
	const patience = 10 * time.Second
	deadline := time.Now().Add(patience)
	for _, directory := range c.directories() {
		killAll(directory)
	}
	c.thawAll() // with what is to be done: to end
	var errs []error
	for _, directory := range c.directories() {
		for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
			left := len(killAll(directory))
			if left == 0 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("ending the processes in cgroup %q: %d are still there after %s", directory, left, patience)
			}
			time.Sleep(wait)
		}
		if err := removeCgroup(directory); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// killAll sends SIGKILL to every process in a cgroup and those below it, and returns them.
func killAll(directory string) []int {
	var found []int
	_ = filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // it went away under our eyes
		}
		for _, pid := range processesIn(path) {
			found = append(found, pid)
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return nil
	})
	return found
}

// processesIn lists the processes in a cgroup, without this one.
func processesIn(directory string) []int {
	text, err := os.ReadFile(filepath.Join(directory, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for field := range strings.FieldsSeq(string(text)) {
		// 0 is a process that this PID namespace does not show.
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
