package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/gateway/http1"
)

// The standard library's server takes more than package http1: folded lines, lines that end with LF alone, a length
// beside chunks. What it makes of them is hidden from its handlers, so connections are read along before it: strictConn
// sees the same bytes, and lets it come to the end of no request that is refused.

// strictListener makes every connection that it accepts strict.
type strictListener struct {
	net.Listener
	judge *judge
}

func (l strictListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newStrictConn(c, l.judge), nil
}

// judge is what strict connections share.
type judge struct {
	limits   http1.Limits
	trailer  http1.Limits // of a body in chunks
	requests sync.Pool    // *http1.Request
	metrics  *metrics     // nil where nothing is counted
}

func (g *Gateway) newJudge() *judge {
	j := &judge{limits: g.limits, trailer: g.limits, metrics: g.metrics}
	j.trailer.Head = min(j.trailer.Head, standardTrailer)
	j.requests.New = func() any { return new(http1.Request) }
	return j
}

// standardTrailer is a little less than the trailer that the standard library's server can read.
const standardTrailer = 4000

// head judges a head. It returns the length of the body after it, and whether what follows may not be HTTP/1.
func (j *judge) head(head []byte) (body int64, upgrade bool, err error) {
	r := j.requests.Get().(*http1.Request)
	defer j.requests.Put(r)
	err = r.Parse(head, j.limits)
	return r.Body, len(r.Upgrade) > 0, err
}

// strictConn is a connection from which HTTP/1 is read. All bytes are given on at once, so that timeouts hold as they
// are; but in place of the end of what is refused comes what no server takes for anything else.
type strictConn struct {
	net.Conn
	judge  *judge
	chunks http1.Chunks

	state strictState
	begun bool   // a request has been read
	waits bool   // the request that was read may change the protocol
	left  int64  // of a body
	held  []byte // of a head or of chunks: given on, and not to be judged before there is more
	next  int    // where the end of the head that is held is searched on
	ahead []byte // read, and neither judged nor given on: what follows it is known when it is read again
	bad   string // what is still to be given in place of what was refused

	why      atomic.Pointer[http1.Error] // it was refused
	answered atomic.Bool                 // the server has refused a request before any handler
	over     atomic.Bool                 // nothing more is read: a request's body was left
	closed   atomic.Bool
}

type strictState uint8

const (
	strictHead strictState = iota
	strictBody
	strictChunks
	strictRefused  // nothing of what follows is read
	strictReleased // what follows is not HTTP/1, and not judged
)

// badEnd is refused wherever it comes: in a head, before or after a chunk, and in a trailer.
const badEnd = "\r\x00\r\n\r\n"

func newStrictConn(c net.Conn, judge *judge) *strictConn {
	return &strictConn{Conn: c, judge: judge}
}

// release ends the judging: the connection belongs to another protocol now.
func (c *strictConn) release() {
	c.state, c.held = strictReleased, nil
}

// release ends the judging of a connection that has been taken over, where it was judged.
func release(c net.Conn) {
	if strict, ok := c.(*strictConn); ok {
		strict.release()
	}
}

// Read gives on what has come and is in order.
func (c *strictConn) Read(p []byte) (int, error) {
	if c.over.Load() {
		return 0, io.EOF
	}
	if c.state == strictRefused {
		if len(c.bad) == 0 {
			return 0, io.EOF
		}
		n := copy(p, c.bad)
		c.bad = c.bad[n:]
		return n, nil
	}
	n, err := c.read(p)
	if c.state == strictHead && len(c.held) == 0 {
		if empty := http1.EmptyLines(p[:n]); empty > 0 { // the server wants none (RFC 9112, 2.2)
			n = copy(p, p[empty:n])
			if n == 0 && err == nil {
				return c.Read(p)
			}
		}
	}
	good, wrong := c.inOrder(p[:n])
	if wrong == nil && good == n {
		return n, err
	}
	if wrong == nil {
		c.ahead = append(bytes.Clone(p[good:n]), c.ahead...)
		return good, nil
	}
	c.state, c.held, c.bad = strictRefused, nil, badEnd
	var why *http1.Error
	if errors.As(wrong, &why) { // which it is
		c.why.Store(why)
	}
	if good == 0 {
		return c.Read(p)
	}
	return good, nil
}

// read reads what has come, and not been given on.
func (c *strictConn) read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.ahead)
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.ahead = nil
	}
	return n, nil
}

// inOrder returns how many bytes of p belong to what is in order, or is not complete, and what is wrong with the rest.
// Without an error it is all, or what comes before a change of the protocol.
func (c *strictConn) inOrder(p []byte) (good int, why error) {
	c.waits = false
	for i := 0; i < len(p); {
		if c.waits {
			return i, nil
		}
		n := len(p) - i
		switch c.state {
		case strictHead:
			n, why = c.head(p[i:])
		case strictBody:
			n = int(min(c.left, int64(n)))
			if c.left -= int64(n); c.left == 0 {
				c.state = strictHead
			}
		case strictChunks:
			n, why = c.chunked(p[i:])
		}
		if why != nil {
			return i, why
		}
		i += n
	}
	return len(p), nil
}

// head returns how many bytes of p are of the request's head, or why it is refused.
func (c *strictConn) head(p []byte) (int, error) {
	b, old := p, len(c.held)
	if old > 0 {
		c.held = append(c.held, p...)
		b = c.held
	}
	if !c.begun && bytes.HasPrefix(b, []byte("PRI * HTTP/2.0\r\n\r\n")) {
		c.release()
		return len(p), nil
	}
	skipped := http1.EmptyLines(b)
	end, next := http1.FindEnd(b[skipped:], max(c.next-skipped, 0))
	if end == 0 {
		if old == 0 {
			c.held = bytes.Clone(p)
		}
		c.next = skipped + next
		if why := c.judge.limits.Exceeded(b[skipped:]); why != nil {
			return 0, why
		}
		return len(p), nil
	}
	end += skipped
	body, upgrade, err := c.judge.head(b[skipped:end])
	if err != nil {
		return 0, err
	}
	switch {
	case body == http1.Chunked:
		c.state = strictChunks
		c.chunks.Reset()
	case body > 0:
		c.state, c.left = strictBody, body
	}
	c.held, c.next, c.begun, c.waits = nil, 0, true, upgrade && body == 0
	return end - old, nil
}

// chunked returns how many bytes of p are of the body in chunks, or why it is refused.
func (c *strictConn) chunked(p []byte) (int, error) {
	old := len(c.held)
	c.held = append(c.held, p...) // which is rewritten; p must not be
	_, consumed, done, err := c.chunks.Normalize(c.held, c.judge.trailer)
	switch {
	case err != nil:
		return 0, err
	case done:
		c.held, c.state = nil, strictHead
		return consumed - old, nil
	}
	c.held = append(c.held[:0], c.held[consumed:]...)
	return len(p), nil
}

// standardRefusal is between the first line and the text of what the standard library's server says of a request that
// never comes to a handler. No response of a handler's begins so: it has a length or chunks.
const standardRefusal = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// Write writes what the server says; in place of a refusal of its own, what is wrong with the request.
func (c *strictConn) Write(p []byte) (int, error) {
	_, rest, _ := bytes.Cut(p[:min(len(p), 256)], []byte("\r\n"))
	if !bytes.HasPrefix(rest, []byte(standardRefusal[2:])) {
		return c.Conn.Write(p)
	}
	c.answered.Store(true)
	why := c.why.Load()
	if why == nil {
		return c.Conn.Write(p)
	}
	c.judge.metrics.unrouted(why.Status)
	if _, err := c.Conn.Write((&refusal{why.Status, why.Text}).appendResponse(nil)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// endReading lets nothing more be read: what comes is the rest of a body that nobody wants.
func (c *strictConn) endReading() { c.over.Store(true) }

// Close closes the connection; after a refusal, or when a body was left, so that the client can read it: what it has still sent is read, and
// not answered with a reset, which would take the answer back.
func (c *strictConn) Close() error {
	if (c.answered.Load() || c.over.Load() || c.why.Load() != nil) && !c.closed.Swap(true) && c.CloseWrite() == nil {
		c.Conn.SetReadDeadline(time.Now().Add(refusedWait)) // fails only on a closed connection, as reading does
		io.CopyN(io.Discard, c.Conn, refusedBytes)
	}
	return c.Conn.Close()
}

// After a refusal so much is still read, for so long at most.
const (
	refusedBytes = 1 << 20
	refusedWait  = 500 * time.Millisecond
)

// CloseWrite is what net/http ends a connection with, so that its last response arrives.
func (c *strictConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
