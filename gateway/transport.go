package gateway

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

const (
	maxIdleConns   = 256         // idle HTTP/1.1 connections kept to one instance
	idleConnAge    = reuseWithin // an idle connection is closed between one and two times this
	connBufferSize = 4 << 10
	// idleTransportAge is how long an HTTP/2 connection is kept that carries no request. HTTP/2 says which requests
	// were not taken when it ends (RFC 9113, 6.8).
	idleTransportAge = 60 * time.Second
)

// connections are the gateway's connections to one instance: a pool of HTTP/1.1 connections, last used first,
// and, once it is asked for, an HTTP/2 transport.
type connections struct {
	instance engine.Instance
	habit    habit
	era      atomic.Uint32 // connections that became idle in another one are not used again

	mu      sync.Mutex
	idle    []*conn // oldest first
	closing bool    // the instance is draining: keep nothing
	loops   []*loop // that have connections of their own
	reaper  *time.Timer
	http2   *http.Transport
}

func newConnections(instance engine.Instance) *connections {
	return &connections{instance: instance}
}

// errUnreachable is wrapped around the reason when no byte of a request has reached an instance: it may be sent
// to another one.
var errUnreachable = errors.New("the instance takes no connection")

// get returns a connection that nothing is known to be wrong with: an idle one that the instance has not closed,
// or a new one. The context bounds dialing.
func (p *connections) get(ctx context.Context, deadline time.Time) (*conn, error) {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		if c.idle = time.Since(c.idleSince); !p.habit.usable(c.idle) || c.era != p.era.Load() {
			p.mu.Unlock() // nor are those that were used before it
			break
		}
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		// The deadline of the last use may be over, and would fail the look at the socket.
		if c.SetReadDeadline(deadline) == nil && c.alive() {
			return c, nil
		}
		p.habit.ended(c.idle - c.endedBefore())
		c.abort()
	}
	return p.dial(ctx, deadline)
}

// dial returns a new connection.
func (p *connections) dial(ctx context.Context, deadline time.Time) (*conn, error) {
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	dialed, err := p.instance.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c := newConn(dialed)
	return c, c.SetReadDeadline(deadline)
}

// put keeps a connection whose last response was read to its end.
func (p *connections) put(c *conn) {
	if c.reader.Buffered() > 0 { // an answer to nothing
		c.abort()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing || len(p.idle) >= maxIdleConns {
		c.abort()
		return
	}
	c.used, c.idleSince, c.era = true, time.Now(), p.era.Load()
	p.idle = append(p.idle, c)
	if p.reaper == nil {
		p.reaper = time.AfterFunc(idleConnAge, p.reap)
	}
}

// reap closes the connections that have been idle for long, and comes again while there are any.
func (p *connections) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := time.Now().Add(-idleConnAge)
	n := 0
	for n < len(p.idle) && p.idle[n].idleSince.Before(oldest) {
		p.idle[n].abort()
		n++
	}
	p.idle = append(p.idle[:0], p.idle[n:]...)
	clear(p.idle[len(p.idle) : len(p.idle)+n])
	p.reaper = nil
	if len(p.idle) > 0 {
		p.reaper = time.AfterFunc(idleConnAge, p.reap)
	}
}

// closeIdle closes the connections that no request uses, and from now on each one whose request ends.
func (p *connections) closeIdle() {
	p.mu.Lock()
	p.closing = true
	idle, http2, loops := p.idle, p.http2, slices.Clone(p.loops)
	p.idle = nil
	if p.reaper != nil {
		p.reaper.Stop()
	}
	p.mu.Unlock()
	for _, c := range idle {
		c.abort()
	}
	for _, l := range loops {
		l.post(func() { l.closeInstance(p) })
	}
	if http2 != nil {
		http2.CloseIdleConnections()
	}
}

// renew lets requests from now on have new connections. It is called while no request uses any.
func (p *connections) renew() {
	p.era.Add(1)
	p.mu.Lock()
	http2 := p.http2
	p.mu.Unlock()
	if http2 != nil {
		http2.CloseIdleConnections()
	}
}

// transport returns the HTTP/2 transport to the instance. One connection carries all requests, up to the number
// of streams that the instance allows.
func (p *connections) transport() *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.http2 == nil {
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		p.http2 = &http.Transport{
			Protocols: &protocols,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := p.instance.Dial(ctx)
				if err != nil {
					return nil, &dialError{err}
				}
				return newSharedConn(c), nil
			},
			DisableCompression:    true,
			ExpectContinueTimeout: continueWait,
			IdleConnTimeout:       idleTransportAge,
		}
	}
	return p.http2
}

// dialError marks the errors of dialing among those of a transport.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// conn is one HTTP/1.1 connection to an instance. One request uses it at a time.
type conn struct {
	net.Conn
	reader    *bufio.Reader
	head      []byte // scratch for the head of a request, then of its response
	used      bool   // an exchange before this one ended well on it
	idleSince time.Time
	idle      time.Duration // how long it was idle before it was taken last
	era       uint32        // connections.era when it became idle
	sent      int           // bytes written of the request that it is used for
	sendErr   error         // what the first write that failed ended with
	abort     func()        // closes it; safe to call from anywhere, kept here so that handing it on allocates nothing

	raw  syscall.RawConn
	peek func(fd uintptr) bool
	dead bool
}

func newConn(dialed net.Conn) *conn {
	c := &conn{Conn: dialed}
	c.reader = bufio.NewReaderSize(dialed, connBufferSize)
	c.abort = func() { c.Close() }
	if s, ok := dialed.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			c.raw = raw
			c.peek = func(fd uintptr) bool {
				var b [1]byte
				_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
				// An idle connection has nothing to read. Its end, an error, or bytes nobody asked for: all dead.
				c.dead = err != syscall.EAGAIN
				return true
			}
		}
	}
	return c
}

// begin starts counting what is written.
func (c *conn) begin() { c.sent, c.sendErr = 0, nil }

// Write is that of the connection, and counts.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent += n
	if c.sendErr == nil {
		c.sendErr = err
	}
	return n, err
}

// endedBefore is how long ago the instance ended the connection; 0 when that is not known.
func (c *conn) endedBefore() time.Duration {
	var ago time.Duration
	if c.raw != nil {
		c.raw.Control(func(fd uintptr) { // fails only on a closed connection
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.State == unix.BPF_TCP_CLOSE_WAIT {
				ago = time.Duration(info.Last_ack_recv) * time.Millisecond // the end was the last that came
			}
		})
	}
	return ago
}

// alive looks, without waiting, whether the instance has closed the connection. A connection that cannot be
// looked at counts as alive.
func (c *conn) alive() bool {
	if c.raw == nil {
		return true
	}
	if err := c.raw.Read(c.peek); err != nil {
		return false
	}
	return !c.dead
}
