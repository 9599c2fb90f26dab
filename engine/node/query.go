package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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
	var tail []engine.LogLine
	take := emit
	if q.Tail > 0 {
		take = func(line engine.LogLine) error {
			if len(tail) == q.Tail {
				tail = append(tail[:0], tail[1:]...)
			}
			tail = append(tail, line)
			return nil
		}
	}
	if err := l.readNew(ctx, q, readers, take); err != nil {
		return err
	}
	for _, line := range tail {
		if err := emit(line); err != nil {
			return err
		}
	}
	for q.Follow {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
		if err := l.readNew(ctx, q, readers, emit); err != nil {
			return err
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
		if (q.Instance == "" || q.Instance == line.Instance) && !line.Time.Before(q.Since) {
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
	if err != nil || len(numbers) == 0 || numbers[len(numbers)-1] <= r.number {
		return false, err
	}
	// It has a successor, so nothing is added to it any more; but something may have been since it was read.
	if more, err := r.buffer.Peek(1); len(more) > 0 {
		return true, nil
	} else if !errors.Is(err, io.EOF) {
		return false, err
	}
	r.close()
	return true, nil
}

// openAfter opens the oldest file after the one that was read last.
func (r *logReader) openAfter() error {
	for {
		numbers, err := logFiles(r.dir)
		if err != nil {
			return err
		}
		next := 0
		for _, number := range numbers {
			if number > r.number {
				next = number
				break
			}
		}
		if next == 0 {
			return io.EOF
		}
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

// parseLine reads "TIME STREAM INSTANCE TEXT".
func parseLine(revision string, text []byte) (engine.LogLine, bool) {
	fields := bytes.SplitN(text, []byte(" "), 4)
	if len(fields) < 4 {
		return engine.LogLine{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return engine.LogLine{}, false
	}
	return engine.LogLine{
		Time: at, Revision: revision, Stream: string(fields[1]),
		Instance: string(fields[2]), Text: string(fields[3]),
	}, true
}
