package node

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// becomeSubreaper makes this process the parent of the containers' first processes once the runtime that made
// them has ended, so that it learns how they end.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the parent of containers' processes: %w", err)
	}
	return nil
}

// process is a container's first process, or a command that was started in it. It is a child of this process, and so its pid stays its own until
// wait has returned.
type process struct {
	pid  int
	file *os.File // a pidfd, in the poller: waiting holds no thread
	// session is the number of a command's session, which no process has that the command has not begun.
	session string
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	return &process{pid: pid, file: os.NewFile(uintptr(fd), fmt.Sprintf("pidfd %d", pid))}, nil
}

// wait returns how the process ended. It is called once.
func (p *process) wait() (unix.WaitStatus, error) {
	var status unix.WaitStatus
	raw, err := p.file.SyscallConn()
	if err != nil {
		return status, err
	}
	var waitErr error
	err = raw.Read(func(uintptr) bool {
		for {
			var pid int
			pid, waitErr = unix.Wait4(p.pid, &status, unix.WNOHANG, nil)
			if waitErr == unix.EINTR {
				continue
			}
			return pid != 0
		}
	})
	if err == nil {
		err = waitErr
	}
	if err != nil {
		return status, fmt.Errorf("waiting for process %d: %w", p.pid, err)
	}
	return status, nil
}

// signal sends a signal. A process that has ended is no error.
func (p *process) signal(signal unix.Signal) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), signal, nil, 0) }) != nil || sent == unix.ESRCH {
		return nil // closed, or gone
	}
	return sent
}

func (p *process) close() { p.file.Close() }
