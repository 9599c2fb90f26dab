package node

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// lowest is the nice value of work that nobody waits for. SCHED_IDLE would be lower still: on a machine that is busy for
// long, what holds a lock of the kernel's would then hardly ever come to release it.
const lowest = 19

// PrepareAhead is Prepare for an instance that nobody waits for yet: the OCI runtime works at the lowest priority, until
// hurry is closed. The instance's own programs have the normal one.
func (e *Engine) PrepareAhead(ctx context.Context, spec engine.Spec, hurry <-chan struct{}) (engine.Instance, error) {
	if !mayRaise() {
		hurry = nil
	}
	return e.prepareInstance(ctx, spec, hurry)
}

// mayRaise tells whether this process may give back the priority that it has taken from another.
func mayRaise() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_NICE) != 0
}

// lower gives a runtime that has just begun the lowest priority, until hurry is closed. Its processes have the normal one
// again when raise has returned; container is the one that stays, or 0. With a nil hurry nothing is changed.
func lower(pid int, hurry <-chan struct{}) (raise func(container int)) {
	if hurry == nil || unix.Setpriority(unix.PRIO_PROCESS, pid, lowest) != nil {
		return func(int) {}
	}
	// A session of its own is a group of its own to the kernel where groups share the CPU by sessions: the priority
	// counts within the group only, and this is the group's. Where there are none, it is not needed.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(lowest)), 0)
	ended, settled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(settled)
		select {
		case <-hurry:
			_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("0"), 0)
			normalize(pid)
		case <-ended:
		}
	}()
	return func(container int) {
		close(ended)
		<-settled
		if container > 0 {
			normalize(container)
		}
	}
}

// normalize gives a process, and what it has begun, the normal priority. Each comes before those that it began: what it
// begins from then on has it anyway.
func normalize(pid int) {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			continue
		}
		_ = unix.Setpriority(unix.PRIO_PROCESS, id, 0) // it may have ended
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, id))
		for child := range strings.FieldsSeq(string(children)) {
			if id, err := strconv.Atoi(child); err == nil {
				normalize(id)
			}
		}
	}
}
