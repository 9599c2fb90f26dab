package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/engine"
)

// query calls emit for the lines that q selects; see engine.Engine.Logs.
func (l *logs) query(ctx context.Context, q engine.LogQuery, emit func(engine.LogLine) error) error {
	var wake chan struct{}
	if q.Follow {
		wake = l.follow(q) // before reading, so that no line falls between
		defer l.unfollow(wake)
	}
	readers := map[logName]*logReader{}
	defer func() {
		for _, r := range readers {
			r.close()
		}
	}()
	take := emit
	kept := tail{most: q.Tail}
	if q.Tail > 0 {
		take = kept.add
	}
	if err := l.readNew(ctx, q, readers, take); err != nil {
		return err
	}
	if err := kept.each(emit); err != nil {
		return err
	}
	for following := q.Follow; following; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-q.Done:
			following = false
		}
		if err := l.readNew(ctx, q, readers, emit); err != nil {
			return err
		}
	}
	return nil
}

// tail keeps the last lines of many.
type tail struct {
	most  int
	lines []engine.LogLine
	first int // where the oldest is, once there are most
}

func (t *tail) add(line engine.LogLine) error {
	if len(t.lines) < t.most {
		t.lines = append(t.lines, line)
		return nil
	}
	t.lines[t.first] = line
	t.first = (t.first + 1) % t.most
	return nil
}

// each calls emit for the lines, oldest first.
func (t *tail) each(emit func(engine.LogLine) error) error {
	for _, lines := range [][]engine.LogLine{t.lines[t.first:], t.lines[:t.first]} {
		for _, line := range lines {
			if err := emit(line); err != nil {
				return err
			}
		}
	}
	return nil
}

// readNew calls emit for the lines that were written since the last call with the same readers, merged by time.
func (l *logs) readNew(ctx context.Context, q engine.LogQuery, readers map[logName]*logReader, emit func(engine.LogLine) error) error {
	names, err := l.names(q)
	if err != nil {
		return err
	}
	for _, name := range names {
		if readers[name] == nil {
			readers[name] = &logReader{name: name, dir: name.dir(l.dir)}
		}
	}
	heads := map[*logReader]engine.LogLine{}
	for _, r := range readers {
		if err := r.advance(heads, q); err != nil {
			return err
		}
	}
	for len(heads) > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var oldest *logReader
		for r, line := range heads {
			if oldest == nil || line.Time.Before(heads[oldest].Time) {
				oldest = r
			}
		}
		if err := emit(heads[oldest]); err != nil {
			return err
		}
		if err := oldest.advance(heads, q); err != nil {
			return err
		}
	}
	return nil
}

// selects tells whether a query whose revision a line is of selects the line.
func selects(q engine.LogQuery, line engine.LogLine) bool {
	return (q.Instance == "" || q.Instance == line.Instance) &&
		(q.Container == "" || q.Container == line.Container) &&
		(q.Streams == nil || slices.Contains(q.Streams, line.Stream)) &&
		!line.Time.Before(q.Since)
}

// logReader reads the files of one revision's log in order, and goes on when more was written.
type logReader struct {
	name   logName
	dir    string
	file   *os.File
	number int
	buffer *bufio.Reader
	part   []byte // of a line that is being written
}

// advance puts the reader's next selected line into heads, or removes it when there is none now.
func (r *logReader) advance(heads map[*logReader]engine.LogLine, q engine.LogQuery) error {
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			delete(heads, r)
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the log of revision %q: %w", r.name.revision, err)
		}
		if selects(q, line) {
			heads[r] = line
			return nil
		}
	}
}

// next returns the next line, or io.EOF when there is none now. Lines that cannot be read, as the last before a
// crash, are left out.
func (r *logReader) next() (engine.LogLine, error) {
	for {
		if r.file == nil {
			if err := r.openAfter(); err != nil {
				return engine.LogLine{}, err
			}
		}
		text, err := r.buffer.ReadSlice('\n')
		r.part = append(r.part, text...)
		switch {
		case err == nil:
			line, ok := parseLine(r.name.revision, r.part[:len(r.part)-1])
			r.part = r.part[:0]
			if ok {
				return line, nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			done, err := r.finished()
			if err != nil {
				return engine.LogLine{}, err
			}
			if !done {
				return engine.LogLine{}, io.EOF
			}
		default:
			return engine.LogLine{}, err
		}
	}
}

// finished reports whether the file that was read to its end stays as it is, and then leaves it.
func (r *logReader) finished() (bool, error) {
	numbers, err := logFiles(r.dir)
	if err != nil {
		return false, err
	}
	removed, err := r.removed(numbers)
	if err != nil {
		return false, err
	}
	if !removed && (len(numbers) == 0 || numbers[len(numbers)-1] <= r.number) {
		return false, nil
	}
	// It is gone or has a successor, so nothing is added to it any more; but something may have been since it was
	// read.
	if more, err := r.buffer.Peek(1); len(more) > 0 {
		return true, nil
	} else if !errors.Is(err, io.EOF) {
		return false, err
	}
	r.close()
	if removed {
		r.number = 0
	}
	return true, nil
}

// removed reports whether the log that the file belongs to was removed, and maybe begun again. When a log grows, its
// oldest files go, but not without a successor.
func (r *logReader) removed(numbers []int) (bool, error) {
	own, err := r.file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(logFile(r.dir, r.number))
	if errors.Is(err, os.ErrNotExist) {
		return len(numbers) == 0 || numbers[0] < r.number, nil
	}
	return err == nil && !os.SameFile(own, named), err
}

// openAfter opens the oldest file after the one that was read last.
func (r *logReader) openAfter() error {
	for {
		numbers, err := logFiles(r.dir)
		if err != nil {
			return err
		}
		if len(numbers) == 0 {
			return io.EOF
		}
		if numbers[len(numbers)-1] <= r.number {
			r.number = 0 // the one that was read last had a successor: this is another log
		}
		next := numbers[slices.IndexFunc(numbers, func(n int) bool { return n > r.number })]
		file, err := os.Open(logFile(r.dir, next))
		if errors.Is(err, os.ErrNotExist) {
			continue // it was the oldest and has just been removed
		}
		if err != nil {
			return err
		}
		r.file, r.number, r.part = file, next, r.part[:0]
		r.buffer = bufio.NewReader(file)
		return nil
	}
}

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// parseLine reads "TIME STREAM SOURCE TEXT". Logs of former versions have no container in the source.
func parseLine(revision string, text []byte) (engine.LogLine, bool) {
	fields := bytes.SplitN(text, []byte(" "), 4)
	if len(fields) < 4 {
		return engine.LogLine{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return engine.LogLine{}, false
	}
	instance, container, _ := strings.Cut(string(fields[2]), "/")
	return engine.LogLine{
		Time: at, Revision: revision, Stream: string(fields[1]),
		Instance: instance, Container: container, Text: string(fields[3]),
	}, true
}
