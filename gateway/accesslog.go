package gateway

import (
	"bytes"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	accessLogBuffer   = 1 << 20 // bytes of lines that wait for the writer; more are dropped
	accessLogInterval = 100 * time.Millisecond
)

// accessLog writes one line of JSON for each request. A request never waits for it: lines gather in a buffer of
// bounded size that a goroutine writes out; when the reader of the log is slower than the requests, lines are
// dropped and counted.
type accessLog struct {
	out     io.Writer
	dropped atomic.Uint64
	lines   sync.Pool // *[]byte

	mu      sync.Mutex
	pending []byte
	wake    chan struct{} // has a value when pending is not empty

	writing sync.Mutex // held while lines are written, so that they stay in order
	spare   []byte     // guarded by writing: the other buffer
}

func newAccessLog(out io.Writer) *accessLog {
	l := &accessLog{out: out, wake: make(chan struct{}, 1)}
	l.lines.New = func() any { b := make([]byte, 0, 512); return &b }
	return l
}

// start begins to write lines out. The function it returns writes the last ones and ends it.
func (l *accessLog) start() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-l.wake:
			case <-done:
				l.flush()
				return
			}
			l.flush()
			select { // let lines gather: one write for many
			case <-time.After(accessLogInterval):
			case <-done:
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

func (l *accessLog) flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	lines := l.pending
	l.pending = l.spare[:0]
	l.mu.Unlock()
	if len(lines) > 0 {
		if _, err := l.out.Write(lines); err != nil {
			l.dropped.Add(uint64(bytes.Count(lines, []byte{'\n'})))
		}
	}
	l.spare = lines
}

// logLine is what the log says of one request. Its strings need be good only until write returns.
type logLine struct {
	arrived, ended     time.Time
	claimed            time.Time // zero for a request that was given no instance
	method, host, path string
	status             int
	sent               int64 // bytes of the response's body
	cut                bool
	revision           *Revision
	instance, tag      string // empty where there is none
	trace              *traceContext
	timing             *timing // nil for a request that has not waited
}

// write adds a line. The query is not in it: it may hold secrets.
func (l *accessLog) write(x *logLine) {
	pooled := l.lines.Get().(*[]byte)
	given := x.claimed
	if given.IsZero() {
		given = x.ended
	}
	revision := x.revision

	b := append((*pooled)[:0], `{"time":"`...)
	b = x.arrived.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, '"')
	b = appendField(b, "method", x.method)
	b = appendField(b, "host", x.host)
	b = appendField(b, "path", x.path)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(x.status), 10)
	b = append(b, `,"bytes":`...)
	b = strconv.AppendInt(b, x.sent, 10)
	b = append(b, `,"duration_ms":`...)
	b = appendMilliseconds(b, x.ended.Sub(x.arrived))
	b = append(b, `,"wait_ms":`...)
	b = appendMilliseconds(b, given.Sub(x.arrived))
	if x.timing != nil {
		b = append(b, `,"stages_ms":`...)
		b = x.timing.appendJSON(b)
	}
	if x.cut {
		b = append(b, `,"cut":true`...)
	}
	b = appendField(b, "namespace", revision.Namespace)
	b = appendField(b, "service", revision.Service)
	b = appendField(b, "revision", revision.Name)
	b = appendField(b, "instance", x.instance)
	if x.tag != "" {
		b = appendField(b, "tag", x.tag)
	}
	b = append(b, `,"trace":"`...)
	b = append(b, x.trace.trace[:]...)
	b = append(b, "\"}\n"...)

	l.mu.Lock()
	full := len(l.pending)+len(b) > accessLogBuffer
	if !full {
		l.pending = append(l.pending, b...)
	}
	l.mu.Unlock()
	if full {
		l.dropped.Add(1)
	} else {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	*pooled = b
	l.lines.Put(pooled)
}

func appendMilliseconds(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', 3, 64)
}

// appendField appends `,"name":"value"`, the value escaped for JSON.
func appendField(b []byte, name, value string) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":"`...)
	for i := 0; i < len(value); {
		c := value[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(value[i:])
			b = utf8.AppendRune(b, r) // an invalid byte becomes U+FFFD
			i += size
			continue
		}
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
		i++
	}
	return append(b, '"')
}
