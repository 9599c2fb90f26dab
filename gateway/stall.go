package gateway

import (
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A client that stops reading would hold its slot on an instance for ever. Two guards see to it that it does not,
// and both count only the time in which there is something to write: a response may be silent for as long as its
// revision lets it. clientConn guards a connection, whatever is spoken on it; streamGuard guards one stream of an
// HTTP/2 connection, whose client may read the others.

// clientListener makes every connection that it accepts a clientConn, and accepts no more than there may be.
type clientListener struct {
	net.Listener
	gateway *Gateway
	tls     bool // clients do not understand an answer before they have shaken hands
}

func (l clientListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if counted, ok := c.(*clientConn); ok {
			return counted, nil // a loop has handed it over
		}
		from := addressOfConn(c)
		if refused := l.gateway.clients.enter(from); refused != nil {
			if !l.tls {
				// The kernel has room for this much of a new connection. Whether the client reads it is its own matter.
				c.SetWriteDeadline(time.Now().Add(time.Second))
				c.Write(refused.appendResponse(nil))
			}
			c.Close()
			continue
		}
		conn := newClientConn(c, l.gateway.config.WriteTimeout)
		conn.left = func() { l.gateway.clients.leave(from) }
		return conn, nil
	}
}

// clientConn is a connection that is closed when it takes no byte for as long as timeout.
type clientConn struct {
	net.Conn
	timeout time.Duration
	epoch   time.Time
	limit   atomic.Int64 // the write deadline that the connection has, in nanoseconds after epoch; 0 is none

	left  func() // called when it is closed, once; may be nil
	close sync.Once
}

// Close closes the connection and gives its place to another.
func (c *clientConn) Close() error {
	if c.left != nil {
		c.close.Do(c.left)
	}
	return c.Conn.Close()
}

func newClientConn(c net.Conn, timeout time.Duration) *clientConn {
	return &clientConn{Conn: c, timeout: timeout, epoch: time.Now()}
}

func (c *clientConn) Write(p []byte) (int, error) {
	began := time.Now() // or when the last byte was taken
	// Setting a deadline takes about as long as the write: one that lies far enough ahead will do.
	if time.Duration(c.limit.Load())-began.Sub(c.epoch) < c.timeout/2 {
		if err := c.limitTo(began.Add(c.timeout)); err != nil {
			return 0, err
		}
	}
	written := 0
	for {
		n, err := c.Conn.Write(p[written:])
		written += n
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
		switch now := time.Now(); {
		case n > 0: // the client reads slowly
			began = now
		case now.Sub(began) >= c.timeout:
			c.Close() // what reads from it must end too
			return written, err
		}
		if err := c.limitTo(began.Add(c.timeout)); err != nil {
			return written, err
		}
	}
}

func (c *clientConn) limitTo(at time.Time) error {
	c.limit.Store(int64(at.Sub(c.epoch)))
	return c.Conn.SetWriteDeadline(at)
}

// SetDeadline, as SetWriteDeadline, is for net/http, which ends deadlines of its own with it. The next write has one.
func (c *clientConn) SetDeadline(at time.Time) error {
	c.limit.Store(0)
	return c.Conn.SetDeadline(at)
}

// SetWriteDeadline holds until the next write.
func (c *clientConn) SetWriteDeadline(at time.Time) error {
	c.limit.Store(0)
	return c.Conn.SetWriteDeadline(at)
}

// CloseWrite is what net/http ends a connection with, so that its last response arrives.
func (c *clientConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// streamGuard resets an HTTP/2 stream when a write to it takes as long as timeout. The nil guard does nothing.
type streamGuard struct {
	writer  http.ResponseWriter
	timeout time.Duration
	timer   *time.Timer

	mu  sync.Mutex
	end time.Time // of the patience with the write that is pending; zero when none is. Guarded by mu.
}

// enter is called before a write, and leave after it.
func (g *streamGuard) enter() {
	if g == nil {
		return
	}
	g.mu.Lock()
	g.end = time.Now().Add(g.timeout)
	g.mu.Unlock()
	if g.timer == nil {
		g.timer = time.AfterFunc(g.timeout, g.expire)
	} else {
		g.timer.Reset(g.timeout)
	}
}

func (g *streamGuard) leave() {
	if g == nil {
		return
	}
	g.timer.Stop()
	g.mu.Lock()
	g.end = time.Time{}
	g.mu.Unlock()
}

// expire resets the stream, unless the write has ended at the same moment.
func (g *streamGuard) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); !g.end.IsZero() && !now.Before(g.end) {
		// A deadline that is over already resets the stream now, which ends the write.
		http.NewResponseController(g.writer).SetWriteDeadline(now.Add(-time.Second))
	}
}
