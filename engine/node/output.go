package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLine is where longer lines are cut in pieces, each a line of its own.
	maxLine = 64 << 10
	// firstBuffer is what reading a container's output takes until it writes more than that at once.
	firstBuffer = 4 << 10
	// keptLines are the last lines that are kept in memory, for errors.
	keptLines = 20
	// maxKeptLine is where those are cut.
	maxKeptLine = 2 << 10
)

// output reads what one container writes to stdout and stderr, into its revision's log. Reading stops while the
// log is written: a container that writes faster than the disk waits, nobody else does.
//
// One reader takes both streams, so that their lines come in the order in which they were written as far as the
// kernel tells it. What is written to stdout and then to stderr is never the other way round; what is written to
// stderr and then to stdout is, if the reader did not come between.
type output struct {
	source  source
	log     *revisionLog
	ready   *os.File // an epoll that has the streams' pipes, in the poller: waiting holds no thread
	streams []*stream
	readers sync.WaitGroup

	mu    sync.Mutex
	lines []string // the last keptLines
}

// stream is stdout or stderr. Only its output's reader uses it, once that runs.
type stream struct {
	name   string
	pipe   int // our end; -1 once it is closed
	buffer []byte
	used   int // of buffer: the beginning of a line
}

// openOutput makes the output of a container, which goes to a log. The two files are the container's ends, which the
// caller closes. uid is who must be able to open them by name, as /dev/stdout.
func openOutput(log *revisionLog, from source, uid int) (o *output, stdout, stderr *os.File, err error) {
	o = &output{source: from, log: log}
	var ends []*os.File
	if err = o.openReady(); err == nil {
		for _, name := range []string{"stdout", "stderr"} {
			var end *os.File
			if end, err = o.openStream(name, uid); err != nil {
				err = fmt.Errorf("making a pipe for %s: %w", name, err)
				break
			}
			ends = append(ends, end)
		}
	}
	if err != nil {
		for _, end := range ends {
			end.Close()
		}
		for _, s := range o.streams {
			s.close()
		}
		if o.ready != nil {
			o.ready.Close()
		}
		return nil, nil, nil, err
	}
	o.readers.Go(o.read)
	return o, ends[0], ends[1], nil
}

func (o *output) openReady() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		if err = unix.SetNonblock(fd, true); err != nil { // for os.NewFile
			unix.Close(fd)
		}
	}
	if err != nil {
		return fmt.Errorf("watching a container's output: %w", err)
	}
	o.ready = os.NewFile(uintptr(fd), "output of "+o.source.String())
	return nil
}

// openStream makes a pipe and returns the container's end.
func (o *output) openStream(name string, uid int) (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	s := &stream{name: name, pipe: fds[0], buffer: make([]byte, firstBuffer)}
	end := os.NewFile(uintptr(fds[1]), name)
	err := errors.Join(unix.SetNonblock(s.pipe, true), unix.Fchown(fds[1], uid, -1), o.watch(s.pipe))
	if err != nil {
		end.Close()
		s.close()
		return nil, err
	}
	o.streams = append(o.streams, s)
	return end, nil
}

// watch has ready tell when a pipe can be read from.
func (o *output) watch(pipe int) error {
	ready, err := o.ready.SyscallConn()
	if err != nil {
		return err
	}
	var added error
	err = ready.Control(func(fd uintptr) {
		added = unix.EpollCtl(int(fd), unix.EPOLL_CTL_ADD, pipe, &unix.EpollEvent{Events: unix.EPOLLIN})
	})
	return errors.Join(err, added)
}

// read reads lines until the last process that could write has ended, or until close.
func (o *output) read() {
	defer func() {
		for _, s := range o.streams {
			s.finish(o)
		}
	}()
	ready, err := o.ready.SyscallConn()
	for err == nil && slices.ContainsFunc(o.streams, (*stream).open) {
		err = ready.Read(func(fd uintptr) bool {
			var events [2]unix.EpollEvent
			n, waitErr := unix.EpollWait(int(fd), events[:], 0)
			return n > 0 || waitErr != nil && waitErr != unix.EINTR
		})
		if err == nil {
			o.readReady()
		}
	}
}

// readReady reads what both pipes hold. The second is asked first how much that is: whatever was written to the first
// before those bytes is in it by the time that it is asked.
func (o *output) readReady() {
	waiting := make([]int, len(o.streams))
	for i := len(o.streams) - 1; i >= 0; i-- {
		waiting[i] = o.streams[i].waiting()
	}
	for i, s := range o.streams {
		s.read(o, waiting[i])
	}
}

func (s *stream) open() bool { return s.pipe >= 0 }

// waiting is how many bytes can be read, or one when there is only an end to be found.
func (s *stream) waiting() int {
	if !s.open() {
		return 0
	}
	if n, err := unix.IoctlGetInt(s.pipe, unix.TIOCINQ); err != nil || n > 0 {
		return max(n, 1)
	}
	poll := []unix.PollFd{{Fd: int32(s.pipe)}} // an end is told without asking
	if n, err := unix.Poll(poll, 0); err == nil && n > 0 {
		return 1
	}
	return 0
}

// read reads count bytes, and writes the whole lines that there are.
func (s *stream) read(o *output, count int) {
	for count > 0 {
		n, err := unix.Read(s.pipe, s.buffer[s.used:min(len(s.buffer), s.used+count)])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != nil || n == 0: // nobody can write any more
			s.finish(o)
			return
		}
		s.used += n
		count -= n
		whole := bytes.LastIndexByte(s.buffer[:s.used], '\n') + 1
		if whole == 0 && s.used == maxLine {
			whole = s.used
		}
		if whole > 0 {
			o.take(s.name, s.buffer[:whole])
		}
		full := s.used == len(s.buffer)
		s.used = copy(s.buffer, s.buffer[whole:s.used])
		if full && len(s.buffer) < maxLine {
			larger := make([]byte, 2*len(s.buffer))
			copy(larger, s.buffer[:s.used])
			s.buffer = larger
		}
	}
}

// finish writes what is left, a line that lacks its newline, and closes the pipe.
func (s *stream) finish(o *output) {
	if s.used > 0 {
		o.take(s.name, s.buffer[:s.used])
		s.used = 0
	}
	s.close()
}

func (s *stream) close() {
	if s.open() {
		unix.Close(s.pipe)
		s.pipe = -1
	}
}

// take writes and keeps lines; the last may lack its newline.
func (o *output) take(stream string, text []byte) {
	var lines []string
	for line := range bytes.Lines(text) {
		lines = append(lines, string(bytes.TrimSuffix(line, []byte("\n"))))
	}
	o.log.write(o.source, stream, lines)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, line := range lines[max(0, len(lines)-keptLines):] {
		if len(line) > maxKeptLine {
			line = line[:maxKeptLine] + "…"
		}
		o.lines = append(o.lines, line)
	}
	if extra := len(o.lines) - keptLines; extra > 0 {
		o.lines = append(o.lines[:0], o.lines[extra:]...)
	}
}

// lastLines are the last lines that the container wrote.
func (o *output) lastLines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.lines...)
}

// drain waits until everything that the container wrote is read. It has ended, so that takes no time unless
// something else holds the pipes.
func (o *output) drain(patience time.Duration) {
	_ = o.ready.SetReadDeadline(deadlineIn(patience))
	o.readers.Wait()
}

// close gives the output back.
func (o *output) close() {
	o.ready.Close()
	o.readers.Wait()
}
