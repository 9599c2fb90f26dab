package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	code, err := l.exec(ctx, command)
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
		return 0, errors.New("the container ended before the command did")
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

// launch has the runtime start the command that is described in dir.
func (l *life) launch(ctx context.Context, dir string, s *streams) (*process, error) {
	l.launching.Lock()
	defer l.launching.Unlock()
	if hasEnded(l.exited) { // and the next life has the same names
		return nil, errors.New("the container has ended")
	}
	pid, err := l.container.instance.engine.runtime.exec(ctx, l.container.id, dir, s)
	s.closeTheirs()
	if err != nil {
		l.reapStrays()
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
// one when it cannot start a command. The container could not end before they are reaped. launching is held.
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
	statParent  = 1
	statSession = 3
	statFlags   = 6
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

// streams connect a command to who asked for it: a terminal, or three pipes.
type streams struct {
	listener *net.UnixListener // where the runtime sends the terminal to; nil for pipes
	terminal *os.File

	stdin, stdout, stderr *os.File // our ends
	theirs                []*os.File

	copies sync.WaitGroup
	ended  chan struct{}
	mu     sync.Mutex
	err    error // the first of a writer's
}

// openStreams makes pipes that a user may open by name, unless there is a listener for a terminal.
func openStreams(listener *net.UnixListener, uid int) (*streams, error) {
	s := &streams{listener: listener, ended: make(chan struct{})}
	if listener != nil {
		return s, nil
	}
	for _, ours := range []**os.File{&s.stdin, &s.stdout, &s.stderr} {
		read, write, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, fmt.Errorf("making a pipe: %w", err)
		}
		theirs := write
		if *ours = read; ours == &s.stdin {
			*ours, theirs = write, read
		}
		s.theirs = append(s.theirs, theirs)
		if err := theirs.Chown(uid, -1); err != nil {
			s.close()
			return nil, fmt.Errorf("giving the command a pipe: %w", err)
		}
	}
	return s, nil
}

// receiveTerminal takes the terminal that the runtime has sent, and that waits.
func (s *streams) receiveTerminal() error {
	if s.listener == nil {
		return nil
	}
	if err := s.listener.SetDeadline(deadlineIn(releasePatience)); err != nil {
		return err
	}
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return fmt.Errorf("waiting for the command's terminal: %w", err)
	}
	defer conn.Close()
	name, control := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, control)
	if err != nil {
		return fmt.Errorf("receiving the command's terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return errors.New("receiving the command's terminal: the runtime sent something else")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return errors.New("receiving the command's terminal: the runtime sent something else")
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return fmt.Errorf("receiving the command's terminal: %w", err)
	}
	s.terminal = os.NewFile(uintptr(fds[0]), "terminal")
	return nil
}

// copy passes on, beside the caller, what the command is told and what it says. A reader of the caller's is left alone
// only when it returns.
func (s *streams) copy(command engine.Command) {
	if s.terminal != nil {
		s.copies.Go(func() { s.pass(command.Stdout, s.terminal) })
		s.copies.Go(func() { s.resize(command.Terminal) })
		if command.Stdin != nil {
			go func() { _, _ = io.Copy(s.terminal, command.Stdin) }()
		}
		return
	}
	s.copies.Go(func() { s.pass(command.Stdout, s.stdout) })
	s.copies.Go(func() { s.pass(command.Stderr, s.stderr) })
	if command.Stdin == nil {
		s.stdin.Close()
		return
	}
	go func() {
		_, _ = io.Copy(s.stdin, command.Stdin)
		s.stdin.Close()
	}()
}

// pass copies what the command writes, until nobody can write any more or finish is called. What comes after a
// writer's error is lost, and the command is not held up by it.
func (s *streams) pass(to io.Writer, from *os.File) {
	if to == nil {
		to = io.Discard
	}
	_, err := io.Copy(to, from)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // finish: what the command has written is there
		err = copyPresent(to, from)
	case err != nil && !errors.Is(err, unix.EIO): // the end of a terminal
		go func() { _, _ = io.Copy(io.Discard, from) }()
	}
	if err == nil || errors.Is(err, unix.EIO) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// copyPresent copies what can be read without waiting.
func copyPresent(to io.Writer, from *os.File) error {
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	buffer := make([]byte, 32<<10)
	for {
		var n int
		var readErr error
		if err := raw.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), buffer) }); err != nil {
			return err
		}
		switch {
		case readErr == unix.EINTR:
			continue
		case readErr != nil || n <= 0:
			return nil
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
	}
}

// resize tells the terminal its size until finish is called.
func (s *streams) resize(sizes <-chan engine.TerminalSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			s.setSize(size)
		case <-s.ended:
			return
		}
	}
}

func (s *streams) setSize(size engine.TerminalSize) {
	raw, err := s.terminal.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// finish copies what is left of what the command has written, and closes the streams.
func (s *streams) finish() error {
	close(s.ended)
	for _, file := range []*os.File{s.terminal, s.stdout, s.stderr} {
		if file != nil {
			_ = file.SetReadDeadline(deadlineIn(0))
		}
	}
	s.copies.Wait()
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *streams) closeTheirs() {
	for _, file := range s.theirs {
		file.Close()
	}
	s.theirs = nil
}

func (s *streams) close() {
	s.closeTheirs()
	for _, file := range []*os.File{s.terminal, s.stdin, s.stdout, s.stderr} {
		if file != nil {
			file.Close()
		}
	}
}
