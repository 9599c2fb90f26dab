package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// errContainerEnded is why there is nothing to say of a command's end.
var errContainerEnded = errors.New("the container ended before the command did")

// Exec implements engine.Instance. The command runs as the container's program does: as its user, with its environment
// and working directory, within its limits, and with its system call filter. When ctx ends, it is killed with all
// processes of its session.
func (i *instance) Exec(ctx context.Context, command engine.Command) (int, error) {
	if len(command.Args) == 0 || command.Args[0] == "" {
		return 0, fmt.Errorf("running a command in instance %q: no command is given", i.id)
	}
	l, err := i.alive(command.Container)
	if err != nil {
		return 0, fmt.Errorf("running %q in instance %q: %w", command.Args[0], i.id, err)
	}
	code, err := i.execHeld(ctx, l, command)
	if err != nil {
		return 0, fmt.Errorf("running %q in container %q of instance %q: %w", command.Args[0], l.container.spec.Name, i.id, err)
	}
	return code, nil
}

// alive finds the life of a container that runs; "" is the one that requests go to. The caller ends with i.execs.Done.
func (i *instance) alive(name string) (*life, error) {
	n := 0
	if name != "" {
		n = slices.IndexFunc(i.containers, func(c *container) bool { return c.spec.Name == name })
	}
	if n < 0 {
		names := make([]string, len(i.containers))
		for n, c := range i.containers {
			names[n] = c.spec.Name
		}
		return nil, fmt.Errorf("it has no container %q: it has %s", name, strings.Join(names, ", "))
	}
	c := i.containers[n]
	i.mu.Lock()
	defer i.mu.Unlock()
	if c.state != engine.ContainerRunning || i.stopping {
		state := string(c.state)
		if c.reason != "" {
			state += ", " + c.reason
		}
		return nil, fmt.Errorf("container %q does not run (%s)", c.spec.Name, state)
	}
	i.execs.Add(1)
	return c.life, nil
}

// execHeld runs a command in a container of the instance, which runs for as long as the command does.
func (i *instance) execHeld(ctx context.Context, l *life, command engine.Command) (int, error) {
	release, err := i.hold()
	if err != nil {
		i.execs.Done()
		return 0, err
	}
	defer release()
	return l.exec(ctx, command)
}

// exec runs a command in the container.
func (l *life) exec(ctx context.Context, command engine.Command) (int, error) {
	streams, process, err := l.beginExec(ctx, command)
	l.container.instance.execs.Done()
	if err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() {
		select {
		case <-ctx.Done():
			l.killSession(process)
		case <-ended:
		}
	})
	streams.copy(command)
	status, err := l.await(process)
	close(ended)
	beside.Wait()
	copyErr := streams.finish()
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return 0, err
	case copyErr != nil:
		return 0, fmt.Errorf("passing its output on: %w", copyErr)
	case status.Signaled() && status.Signal() == unix.SIGKILL && l.isExiting():
		return 0, errContainerEnded
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// beginExec has the runtime start the command. The process is a child of this one.
func (l *life) beginExec(ctx context.Context, command engine.Command) (s *streams, p *process, err error) {
	e := l.container.instance.engine
	var dir string // for files that the runtime reads and writes
	var config struct{ Process *specs.Process }
	defer func() {
		if err != nil && s != nil {
			s.close()
		}
		if dir != "" {
			_ = e.namespace.do(func() error { return os.RemoveAll(dir) })
		}
	}()
	err = e.namespace.do(func() error {
		text, err := os.ReadFile(filepath.Join(l.rootfs.dir, "config.json"))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &config); err != nil {
			return err
		}
		dir, err = os.MkdirTemp(e.run, "x") // short, as a socket's path must be
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the container's configuration: %w", err)
	}
	size := describe(config.Process, command)
	text, err := json.Marshal(config.Process)
	if err != nil {
		return nil, nil, err
	}
	var listener *net.UnixListener
	err = e.namespace.do(func() error {
		if command.Terminal != nil {
			if listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "console")}); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(dir, "process.json"), text, 0o600)
	})
	if listener != nil {
		defer listener.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("describing the command: %w", err)
	}
	if s, err = openStreams(listener, l.container.instance.link.ids.outside(config.Process.User.UID)); err != nil {
		return nil, nil, err
	}
	if p, err = l.launch(ctx, dir, s); err != nil {
		return s, nil, err
	}
	if err = s.receiveTerminal(); err != nil {
		l.killSession(p)
		_, _ = l.await(p)
	} else if size != nil {
		s.setSize(*size) // crun may have let the command run before it has
	}
	return s, p, err
}

// launch has the runtime start the command that is described in dir. It does not go on when the container ends.
func (l *life) launch(ctx context.Context, dir string, s *streams) (*process, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	l.launching.Lock()
	defer l.launching.Unlock()
	if hasEnded(l.exited) { // and the next life has the same names
		return nil, errContainerEnded
	}
	pid, err := l.container.instance.engine.runtime.exec(ctx, l.container.id, dir, s)
	s.closeTheirs()
	if err != nil {
		l.reapStrays()
		l.container.instance.engine.runtime.reapHelpers()
		if hasEnded(l.exited) {
			err = errContainerEnded
		}
		return nil, err
	}
	p, err := openProcess(pid)
	if err != nil {
		l.reapStrays()
		return nil, err
	}
	if fields := processStat(pid); len(fields) > statSession {
		p.session = fields[statSession] // its own, or the runtime's
	}
	l.commands = append(l.commands, pid)
	return p, nil
}

// await returns how a command ended. It is called once.
func (l *life) await(p *process) (unix.WaitStatus, error) {
	status, err := p.wait()
	p.close()
	l.launching.Lock()
	defer l.launching.Unlock()
	l.commands = slices.DeleteFunc(l.commands, func(pid int) bool { return pid == p.pid })
	return status, err
}

// reapStrays ends the children of this process in the container's PID namespace that nobody waits for: crun leaves
// one when it cannot start a command, which may have begun a session of its own. The container could not end before
// they are reaped. launching is held.
func (l *life) reapStrays() {
	const namespace = "/proc/%d/ns/pid"
	own, err := os.Readlink(fmt.Sprintf(namespace, l.process.pid))
	if err != nil {
		return
	}
	processes, _ := os.ReadDir("/proc")
	for _, entry := range processes {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == l.process.pid || slices.Contains(l.commands, pid) {
			continue
		}
		fields := processStat(pid)
		if len(fields) <= statParent || fields[statParent] != strconv.Itoa(os.Getpid()) {
			continue
		}
		if its, err := os.Readlink(fmt.Sprintf(namespace, pid)); err == nil && its == own {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}
}

// describe turns the description of the container's program into that of a command beside it. It returns the size of
// its terminal, if that is known already.
func describe(p *specs.Process, command engine.Command) (size *engine.TerminalSize) {
	p.Args = command.Args
	if command.Terminal == nil {
		return nil
	}
	p.Terminal = true
	select {
	case first, ok := <-command.Terminal:
		if ok {
			size = &first
			p.ConsoleSize = &specs.Box{Height: uint(first.Height), Width: uint(first.Width)}
		}
	default:
	}
	if !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return size
}

// killSession kills a command and all processes of its session: who means to outlive it begins one of its own.
func (l *life) killSession(p *process) {
	const rounds = 10 // what is found to begin others, again and again, goes with the container
	_ = p.signal(unix.SIGKILL)
	cgroups := l.container.instance.engine.cgroups
	for range rounds {
		found := false
		for _, pid := range processesIn(filepath.Join(cgroups.directories()[0], l.container.id)) {
			if pid != p.pid && killInSession(pid, p.session) {
				found = true
			}
		}
		if !found {
			return
		}
	}
}

// killInSession kills a process if it belongs to a session, and waits for its end.
func killInSession(pid int, session string) bool {
	const patience = 1000 // milliseconds
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false // it is gone
	}
	defer unix.Close(fd)
	if fields := processStat(pid); len(fields) <= statSession || fields[statSession] != session {
		return false
	}
	if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) != nil {
		return false
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience)
	return true
}

// isExiting tells whether the container's first process has ended or is about to: the kernel first kills all others.
func (l *life) isExiting() bool {
	const exiting = 0x4 // PF_EXITING
	fields := processStat(l.process.pid)
	if len(fields) <= statFlags {
		return true
	}
	var flags uint
	_, err := fmt.Sscan(fields[statFlags], &flags)
	return err == nil && flags&exiting != 0
}

// Fields of what processStat returns.
const (
	statState   = 0
	statParent  = 1
	statSession = 3
	statFlags   = 6
	statBegun   = 19
)

// processStat returns the fields of /proc/PID/stat from the process's state on, or nil when it is gone; see
// proc_pid_stat(5).
func processStat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	end := strings.LastIndex(string(text), ")") // of the name
	return strings.Fields(string(text[end+1:]))
}
