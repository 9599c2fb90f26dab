package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

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
