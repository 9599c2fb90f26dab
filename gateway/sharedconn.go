package gateway

import (
	"errors"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// sharedConn is a connection that carries the HTTP/2 requests to one instance. It looks, before it writes, whether the
// instance has ended it: the transport learns that only when its reader has run, and an instance's end would take
// requests along that came after it.
type sharedConn struct {
	net.Conn
	raw   syscall.RawConn // nil when it cannot be looked at; then it counts as open
	look  func(fd uintptr)
	ended atomic.Bool // what look has found

	refused atomic.Bool // a write has sent nothing, as will all that follow
}

// errEnded is what a write fails with on a connection that the instance has ended.
var errEnded = errors.New("the instance has ended the connection")

// newSharedConn returns a connection to use in dialed's place.
func newSharedConn(dialed net.Conn) *sharedConn {
	c := &sharedConn{Conn: dialed}
	s, ok := dialed.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return c
	}
	c.raw = raw
	c.look = func(fd uintptr) {
		// Unlike a look at what there is to read, this sees the end also behind frames that nobody has read yet.
		of := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(of[:], 0)
		c.ended.Store(err == nil && n > 0)
	}
	return c
}

// isOver tells whether the instance, or this side, has ended the connection.
func (c *sharedConn) isOver() bool {
	return c.refused.Load() || c.raw != nil && (c.raw.Control(c.look) != nil || c.ended.Load())
}

// Write sends nothing on a connection that is over.
func (c *sharedConn) Write(p []byte) (int, error) {
	if c.isOver() {
		c.refused.Store(true)
		return 0, errEnded
	}
	n, err := c.Conn.Write(p)
	if n == 0 && err != nil {
		c.refused.Store(true)
	}
	return n, err
}

// sending follows one request into a transport, to tell whether the instance can have got it.
type sending struct {
	conn    *sharedConn // that it was given last; nil when that is not known
	reached bool        // all of its header may have been sent
}

// trace has the transport report what becomes of the request.
func (s *sending) trace(t *httptrace.ClientTrace) {
	t.GotConn = func(info httptrace.GotConnInfo) {
		s.conn, _ = info.Conn.(*sharedConn)
		s.reached = false // the transport itself tries again only what the instance has not taken
	}
	// It is called when the header has been written or refused, before anything else is written to the connection. An
	// instance that lacks the end of a header has no request.
	t.WroteHeaders = func() { s.reached = s.conn == nil || !s.conn.refused.Load() }
}

// isLost tells, of a request that has failed and was not canceled, whether the instance has got none of it because the
// connection is over.
func (s *sending) isLost() bool { return s.conn != nil && !s.reached && s.conn.isOver() }
