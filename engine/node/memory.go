package node

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// With cgroups v2 the kernel ends a whole instance when it kills one of its processes for the memory limit
// (memory.oom.group). With v1 it kills the one process, and tells who asked: then the engine ends the rest, so that
// no instance goes on without a part of it (contract C56).

// memoryEvents is a file that can be read from when the instance has come to its memory limit: an eventfd, in the
// poller, so that waiting holds no thread. It is nil where the kernel ends the instance itself.
func (c *cgroups) memoryEvents(id string) (*os.File, error) {
	if c.v2 {
		return nil, nil
	}
	directory := filepath.Join(c.roots["memory"], c.path(id))
	control, err := os.Open(filepath.Join(directory, "memory.oom_control"))
	if err != nil {
		return nil, fmt.Errorf("watching the memory of cgroup %q: %w", directory, err)
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching the memory of cgroup %q: %w", directory, err)
	}
	events := os.NewFile(uintptr(fd), "memory events of "+id)
	// See "OOM Control" in the kernel's admin-guide/cgroup-v1/memory.
	line := fmt.Appendf(nil, "%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(directory, "cgroup.event_control"), line, 0); err != nil {
		events.Close()
		return nil, fmt.Errorf("watching the memory of cgroup %q: %w", directory, err)
	}
	return events, nil
}

// killedForMemory reports whether the kernel has killed a process of an instance whose memory event has just come.
// The kernel tells before it chooses whom to kill, and may then find that it need not. There is no event for the
// kill itself, which follows within moments.
func (c *cgroups) killedForMemory(id string) bool {
	const patience, longest = time.Second, 50 * time.Millisecond
	deadline := time.Now().Add(patience)
	for wait := 100 * time.Microsecond; time.Now().Before(deadline); wait = min(2*wait, longest) {
		if c.outOfMemory(id) {
			return true
		}
		time.Sleep(wait)
	}
	return false
}

// watchMemory ends the container when the kernel has killed one of its processes for its memory limit. It returns
// when events are closed.
func (l *life) watchMemory(events *os.File) {
	count := make([]byte, 8)
	for {
		if _, err := events.Read(count); err != nil {
			return
		}
		if l.container.instance.engine.cgroups.killedForMemory(l.container.id) {
			l.signal(unix.SIGKILL)
			l.container.instance.holdAnyway() // for good: what is frozen does not end
			return
		}
	}
}
