package node

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
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
type output struct {
	instance string
	log      *revisionLog
	pipes    []*os.File // our ends
	readers  sync.WaitGroup

	mu    sync.Mutex
	lines []string // the last keptLines
}

// open makes the output of an instance. The two files are the container's ends, which the caller closes.
// uid is who must be able to open them by name, as /dev/stdout.
func (l *logs) open(id string, spec engine.Spec, uid int) (o *output, stdout, stderr *os.File, err error) {
	o = &output{instance: id, log: l.use(logName{spec.Namespace, spec.Service, spec.Revision})}
	var ends []*os.File
	for _, stream := range []string{"stdout", "stderr"} {
		var fds [2]int
		if err = unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			err = fmt.Errorf("making a pipe for %s: %w", stream, err)
			break
		}
		ends = append(ends, os.NewFile(uintptr(fds[1]), stream))
		if err = unix.SetNonblock(fds[0], true); err == nil {
			err = unix.Fchown(fds[1], uid, -1)
		}
		read := os.NewFile(uintptr(fds[0]), stream)
		o.pipes = append(o.pipes, read)
		if err != nil {
			err = fmt.Errorf("setting up the pipe for %s: %w", stream, err)
			break
		}
		o.readers.Go(func() { o.read(read, stream) })
	}
	if err != nil {
		for _, end := range ends {
			end.Close()
		}
		o.close()
		return nil, nil, nil, err
	}
	return o, ends[0], ends[1], nil
}

// read reads lines until the last process that could write has ended.
func (o *output) read(pipe *os.File, stream string) {
	buffer := make([]byte, firstBuffer)
	used := 0
	for {
		n, err := pipe.Read(buffer[used:])
		used += n
		whole := bytes.LastIndexByte(buffer[:used], '\n') + 1
		switch {
		case err != nil, whole == 0 && used == maxLine:
			whole = used
		}
		if whole > 0 {
			o.take(stream, buffer[:whole])
		}
		full := used == len(buffer)
		used = copy(buffer, buffer[whole:used])
		if full && len(buffer) < maxLine {
			larger := make([]byte, 2*len(buffer))
			copy(larger, buffer[:used])
			buffer = larger
		}
		if err != nil {
			return
		}
	}
}

// take writes and keeps lines; the last may lack its newline.
func (o *output) take(stream string, text []byte) {
	var lines []string
	for line := range bytes.Lines(text) {
		lines = append(lines, string(bytes.TrimSuffix(line, []byte("\n"))))
	}
	o.log.write(o.instance, stream, lines)
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

// system writes a line of the platform's own.
func (o *output) system(text string) {
	o.log.write(o.instance, "system", []string{text})
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
	for _, pipe := range o.pipes {
		_ = pipe.SetReadDeadline(deadlineIn(patience))
	}
	o.readers.Wait()
}

// close gives the output back.
func (o *output) close() {
	for _, pipe := range o.pipes {
		pipe.Close()
	}
	o.readers.Wait()
	o.log.logs.done(o.log)
}
